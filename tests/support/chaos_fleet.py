"""A fleet to be ill-treated: a real Redis, router and engine programs, and the levers to kill and restart each."""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness.client import metrics
from benchmarks.harness.redis_server import RedisServer
from benchmarks.harness.router import RouterProcess
from ghostcacher_connector.core.process.guarded import GuardedProcess
from tests.support.index_parts import wait_until
from tests.support.steady_load import SteadyLoad

PATIENCE_S = 60.0
LEASE_S = 2.0
SPARE_FILES = 8
"""Open files that a router may have beyond those at its start: connections to Redis that were not needed yet."""

GROWN_BYTES_MAX = 96 << 20
"""Beyond a router's memory at its start, in the longest run."""

FIRST_BYTES_MAX, REQUEST_BYTES_MAX = 8 << 20, 4 << 10
"""The same, for what is needed at first, and for what it learns of each request's prompt, which is about half of that:
the faster a machine, the more requests are made while workers come and go."""

ROUTER = ("--upstream-idle-s", "0.2", "--ghost-lock-tokens-min", "256", "--drain-timeout-s", "20")
PATIENT = ("--health-interval-s", "0.5", "--health-failures-max", "100")
"""However long a worker is stopped, what it has is answered by itself when it goes on."""
COMPLAINTS = ("Traceback", "unforeseen", "unexpected error", "never retrieved", "was destroyed", "never awaited")


class Pod(NamedTuple):
    """A worker as a router shows it."""

    state: str
    in_flight: int
    incarnation: str
    lease: str
    draining: bool


class ChaosFleet:
    """Two or more routers and workers. incarnation: the present incarnation of each worker, by name."""

    def __init__(
        self,
        stack: ExitStack,
        folder: Path,
        names: Sequence[str],
        *,
        routers: int = 2,
        arguments: Sequence[str] = PATIENT,
    ) -> None:
        """Start it. arguments: of the routers, about probes."""
        self.incarnation: dict[str, str] = {}
        self._folder = folder
        self._engines: dict[str, GuardedProcess] = {}
        self.redis = stack.enter_context(RedisServer(tcp=True))
        stack.callback(self._end_engines)
        for name in names:
            self.start(name)
        self.routers = [
            stack.enter_context(
                RouterProcess(redis_url=self.redis.url, arguments=[*ROUTER, *arguments], log_dir=folder)
            )
            for _ in range(routers)
        ]
        self.wait_whole()
        self._files_at_start = max(map(self.open_files, self.routers))
        self._bytes_at_start = min(map(self.resident_bytes, self.routers))

    @property
    def urls(self) -> list[str]:
        return [router.url for router in self.routers]

    # Workers

    def start(self, name: str) -> None:
        """Start a new incarnation of a worker."""
        self.incarnation[name] = os.urandom(16).hex()
        command = [sys.executable, "-m", "ghostcacher_simulator", self.redis.url, name, self.incarnation[name]]
        log = self._folder / f"engine-{name}.log"
        self._engines[name] = GuardedProcess([*command, str(LEASE_S)], log=log, grace_s=5.0)

    def stop(self, name: str) -> None:
        """End a worker as one that is asked to; what it is doing breaks off."""
        self._engines.pop(name).stop()

    def kill(self, name: str) -> None:
        self._engines.pop(name).kill()

    def pause(self, name: str) -> None:
        self._engines[name].pause()

    def resume(self, name: str) -> None:
        self._engines[name].resume()

    def _end_engines(self) -> None:
        for name in list(self._engines):
            self.kill(name)

    # Routers

    def pods(self, router: RouterProcess) -> dict[str, Pod]:
        """Return the workers as a router shows them, by name."""
        return {
            pod["id"]: Pod(pod["state"], pod["in_flight"], pod["incarnation"], pod["lease"], pod["draining"])
            for pod in router.get("/gc/pods")["pods"]
            if "in_flight" in pod
        }

    def drain(self, name: str, *, router: int = 0) -> None:
        """Drain a worker by one router, and wait until both show it so, with nothing in flight."""
        answer = post(f"{self.urls[router]}/gc/pods/{name}/drain", {})
        assert answer["state"] == "draining", answer
        self.wait(lambda pods: _is_idle(pods.get(name)), f"{name} is drained")

    def take_back(self, name: str, *, router: int = 0) -> None:
        """End a drain."""
        assert post(f"{self.urls[router]}/gc/pods/{name}/drain?drain=false", {})["state"] == "ready"

    def restart_gently(self, name: str, *, router: int = 0) -> None:
        """Restart a worker as the README says."""
        self.drain(name, router=router)
        self.stop(name)
        self.start(name)

    def wait(self, condition: Callable[[dict[str, Pod]], bool], what: str) -> None:
        """Return when every router shows what it should."""
        for router in self.routers:
            self._until(router, lambda r: condition(self.pods(r)), what)

    @staticmethod
    def _until(router: RouterProcess, condition: Callable[[RouterProcess], bool], what: str) -> None:
        wait_until(lambda: condition(router), timeout_s=PATIENCE_S, what=f"{router.url}: {what}")

    def wait_used(self, load: SteadyLoad, name: str) -> None:
        """Return when every router has had answers from the present incarnation of a worker."""
        incarnation = self.incarnation[name]
        for url in self.urls:
            load.until(partial(load.answered, url, incarnation), f"{url} uses the new {name}")

    def wait_whole(self) -> None:
        """Return when every router uses the present incarnation of every worker, and Redis vouches for each."""
        self.wait(self._is_whole, f"expected {self.incarnation}, all ready")

    def _is_whole(self, pods: dict[str, Pod]) -> bool:
        return {name: (pod.incarnation, pod.state, pod.lease) for name, pod in pods.items()} == {
            name: (incarnation, "ready", "held") for name, incarnation in self.incarnation.items()
        }

    # What must be so at the end

    @contextmanager
    def under_load(self, *, clients: int = 6) -> Iterator[SteadyLoad]:
        """Run a block under load, with every worker in use before and after it; then nothing may be left over."""
        self.wait_whole()
        with SteadyLoad(self.urls, clients=clients) as load:
            load.go_on(10)
            yield load
            self.wait_whole()
            load.go_on(10)
        self.check_nothing_left()

    def knows(self, router: RouterProcess, body: bytes) -> bool:
        """Say whether a router knows that some worker has the prompt of a request."""
        rows = post(f"{router.url}/gc/explain", json.loads(body))["workers"]
        return any(row["local_tokens"] for row in rows)

    def more_load(self) -> SteadyLoad:
        """Return other clients than those of `under_load`."""
        return SteadyLoad(self.urls, clients=2)

    def check_nothing_left(self) -> None:
        """Assert that no router holds a request, a connection or a complaint when nobody asks."""
        self.wait(lambda pods: not any(pod.in_flight for pod in pods.values()), "nothing is in flight")
        for router in self.routers:
            page = metrics(router.url)
            assert page.sum("gc_router_in_flight") == 0
            assert page.sum("gc_router_bad_items_total") == 0
            self._until(router, self._has_few_files, "connections are closed")
            grown_bytes = self.resident_bytes(router) - self._bytes_at_start
            requests = page.sum("gc_router_requests_total")
            grown_bytes_max = min(GROWN_BYTES_MAX, FIRST_BYTES_MAX + REQUEST_BYTES_MAX * requests)
            assert grown_bytes <= grown_bytes_max, f"{router.url}: {grown_bytes} bytes more than at its start"
            log = router.process.log.read_text()
            assert not [word for word in COMPLAINTS if word in log], log[-5000:]

    def _has_few_files(self, router: RouterProcess) -> bool:
        return self.open_files(router) <= self._files_at_start + SPARE_FILES

    def open_files(self, router: RouterProcess) -> float:
        return metrics(router.url).sum("process_open_fds")

    def resident_bytes(self, router: RouterProcess) -> float:
        return metrics(router.url).sum("process_resident_memory_bytes")


def _is_idle(pod: Pod | None) -> bool:
    return pod is not None and pod.draining and pod.state == "draining" and pod.in_flight == 0


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON that a router answers."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310
        answer: dict[str, Any] = json.loads(reply.read())
    return answer
