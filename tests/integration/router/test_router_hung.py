"""Workers that are stopped in their tracks, behind a real router: what becomes of their requests, and of them."""

from __future__ import annotations

import json
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from queue import Queue

import pytest

from benchmarks.harness.client import metrics
from benchmarks.harness.router import RouterProcess
from tests.support.chaos_fleet import ChaosFleet
from tests.support.engine_process import EngineProcess
from tests.support.index_parts import wait_until

PATIENCE_S = 60.0
HEALTH = ("--health-interval-s", "0.1", "--health-timeout-s", "2", "--health-failures-max", "2")


class Clients:
    """Requests to a router, each in a thread; their answers come into a queue."""

    def __init__(self, router: RouterProcess) -> None:
        self._router = router
        self.answers: Queue[tuple[int, str]] = Queue()

    def send(self, prompt: str) -> None:
        threading.Thread(target=self._ask, args=(prompt,), daemon=True).start()

    def _ask(self, prompt: str) -> None:
        body = json.dumps({"model": "m", "prompt": prompt}).encode()
        request = urllib.request.Request(f"{self._router.url}/v1/completions", body)  # noqa: S310
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:  # noqa: S310
            self.answers.put((reply.status, reply.read().decode()))


def rows(router: RouterProcess) -> dict[str, dict[str, object]]:
    return {row["id"]: row for row in router.get("/gc/workers")["workers"]}


def wait_for(condition: object, what: str) -> None:
    wait_until(lambda: bool(condition()), timeout_s=PATIENCE_S, what=what)  # type: ignore[operator]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[RouterProcess, EngineProcess, EngineProcess]]:
    """A router over two workers without a connector."""
    with ExitStack() as stack:
        engines = [EngineProcess(stack, tmp_path, name) for name in ("a", "b")]
        router = stack.enter_context(
            RouterProcess(workers=[engine.url for engine in engines], arguments=HEALTH, log_dir=tmp_path)
        )
        router.wait_workers(2)
        yield router, *engines


def fill(router: RouterProcess, clients: Clients, stopped: EngineProcess) -> int:
    """Send requests until one is at the worker that is stopped; return how many were sent."""
    for number in range(1000):
        if rows(router)[stopped.id]["in_flight"]:
            return number
        clients.send(f"{number} " * 300)
    raise AssertionError(f"no request went to {stopped.name}")


def test_requests_of_a_stopped_worker_are_answered_by_another(
    pair: tuple[RouterProcess, EngineProcess, EngineProcess],
) -> None:
    """All that had no answer; it is DOWN then, and gets requests again once it goes on."""
    router, first, second = pair
    clients = Clients(router)
    first.pause()
    sent = fill(router, clients, first)
    assert {clients.answers.get(timeout=PATIENCE_S) for _ in range(sent)} == {(200, second.name)}
    assert rows(router)[first.id]["state"] == "down"
    assert metrics(router.url).sum("gc_router_retries_total", reason="hung") > 0
    first.resume()
    router.wait_workers(2, deadline_s=PATIENCE_S)
    clients.send("again")
    assert clients.answers.get(timeout=PATIENCE_S)[0] == 200


def test_stream_of_a_stopped_worker_ends_with_an_error(
    pair: tuple[RouterProcess, EngineProcess, EngineProcess],
) -> None:
    """The client is told, in the form of its API, and the stream has no end that looks like one."""
    router, *engines = pair
    body = b'{"model": "m", "prompt": "x", "stream": true}'
    with socket.create_connection(("127.0.0.1", router.port), timeout=PATIENCE_S) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: r\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        got = b""
        while b'"from"' not in got:
            got += client.recv(1 << 16)
        (busy,) = [engine for engine in engines if rows(router)[engine.id]["in_flight"]]
        busy.pause()
        while piece := client.recv(1 << 16):
            got += piece
    assert b"the worker no longer answers" in got
    assert not got.endswith(b"0\r\n\r\n")
    busy.resume()


def test_requests_of_a_worker_that_lost_its_lease_are_answered_by_another(tmp_path: Path) -> None:
    """Its connector hangs, too, so that it leaves the fleet before it is DOWN."""
    with ExitStack() as stack:
        fleet = ChaosFleet(stack, tmp_path, ["a", "b"], routers=1, arguments=HEALTH)
        (router,) = fleet.routers
        clients = Clients(router)
        fleet.pause("a")
        sent = 0
        while not fleet.pods(router)["a"].in_flight:
            clients.send(f"{sent} " * 300)
            sent += 1
        fleet.wait(lambda pods: "a" not in pods, "a has left")
        assert {clients.answers.get(timeout=PATIENCE_S)[0] for _ in range(sent)} == {200}
        fleet.resume("a")
        fleet.wait_whole()
