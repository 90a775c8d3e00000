"""A fleet with a key on a Redis whose users may do just what the documents say, and one user that may do less."""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from benchmarks.harness.redis_server import RedisServer
from benchmarks.harness.router import RouterProcess
from ghostcacher_connector.config import Settings
from ghostcacher_connector.core import schema
from ghostcacher_connector.core.coordination.base import DrainOrder
from ghostcacher_connector.core.coordination.redis import RedisCoordinationStore
from ghostcacher_connector.core.process.guarded import GuardedProcess
from ghostcacher_connector.core.redis.permissions import ROUTER, WORKER
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.worker.membership import Membership
from tests.support.acl_users import acl_server, set_user
from tests.support.doctor_program import doctor
from tests.support.index_parts import chain, make_record, wait_until

KEY = "the secret of this fleet"
PATIENCE_S = 60.0
TROUBLE = ("NOPERM", "refuses", "Traceback", "unexpected error")


def fetch(url: str, method: str = "GET", data: bytes | None = None) -> bytes:
    request = urllib.request.Request(url, data=data, method=method)  # noqa: S310 - loopback
    with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310 - loopback
        body = reply.read()
    assert isinstance(body, bytes)
    return body


class AclFleet:
    """Two routers and a simulated worker."""

    def __init__(self, stack: ExitStack, folder: Path, server: RedisServer, urls: dict[str, str]) -> None:
        self.server, self.urls = server, urls
        self.incarnation = os.urandom(16).hex()
        command = [sys.executable, "-m", "ghostcacher_simulator", urls["worker"], "w1", self.incarnation, "60"]
        self.engine = GuardedProcess(command, log=folder / "engine.log")
        stack.callback(self.engine.stop)
        self.routers = [
            stack.enter_context(RouterProcess(redis_url=urls["router"], log_dir=folder)).wait_workers(1)
            for _ in range(2)
        ]

    def worker(self, router: RouterProcess) -> dict[str, object]:
        (found,) = router.get("/gc/workers")["workers"]
        assert isinstance(found, dict)
        return found

    def drain(self, router: RouterProcess, draining: bool) -> None:
        method = "POST" if draining else "DELETE"
        assert json.loads(fetch(f"{router.url}/gc/workers/w1/drain", method))["shared"]

    def ask(self, router: RouterProcess, text: str) -> None:
        body = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 1}
        assert fetch(f"{router.url}/v1/chat/completions", "POST", json.dumps(body).encode())


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AclFleet]:
    monkeypatch.setenv("GC_INDEX_KEY", KEY)
    with ExitStack() as stack:
        server, urls = stack.enter_context(acl_server())
        yield AclFleet(stack, tmp_path, server, urls)


def test_documented_users_are_enough(fleet: AclFleet) -> None:
    """Workers are found and report, drains are shared, prompts are learned by both routers, and nothing is refused."""
    one, two = fleet.routers
    wait_until(lambda: fleet.worker(two)["load"] is not None, PATIENCE_S, "a load")
    for _ in range(2):
        fleet.ask(one, "word " * 2000)
    wait_until(lambda: one.get("/gc/status")["replicas"] == 2, PATIENCE_S, "the routers to see each other")
    fleet.drain(one, True)
    wait_until(lambda: fleet.worker(two)["draining"], PATIENCE_S, "the other router to see the drain")
    fleet.drain(two, False)
    wait_until(lambda: not fleet.worker(one)["draining"], PATIENCE_S, "the first router to see it taken back")
    settings = Settings(redis_url=fleet.urls["worker"], redis_timeout_s=2.0, index_key=KEY)
    member = Membership(settings, make_record("w2", token="w2"), Recorder())
    member.start()
    blocks = chain(3)
    member.publisher.publish(1, blocks[0], blocks[0], 1)
    wait_until(lambda: member.publisher.stats().published == 1, PATIENCE_S, "a block to be published")
    wait_until(
        lambda: member.index.lookup(member.live_workers.candidates(), blocks), PATIENCE_S, "the block to be found"
    )
    outcome = doctor("--redis-url", fleet.urls["doctor"], GC_INDEX_KEY=KEY)
    assert outcome.status("redis permissions") == "OK", outcome.printed
    assert "NOPERM" not in outcome.printed
    member.stop()
    for process in (*(router.process for router in fleet.routers), fleet.engine):
        assert not any(word in process.log_tail(500) for word in TROUBLE), process.log_tail(50)


def test_strangers_with_the_right_to_write_change_nothing(fleet: AclFleet) -> None:
    """Who may write to Redis, but has not the key, cannot drain, report for a worker or make the routers forget."""
    one, two = fleet.routers
    with closing(RedisCoordinationStore(fleet.urls["router"], timeout_s=5.0)) as stranger:
        now, _ = stranger.drains([])
        drain_id = f"w1@{fleet.incarnation}"
        stranger.put_drains([DrainOrder(drain_id, True, now, now + 9e6)])
        with fleet.server.client() as raw:
            raw.zadd("gc2:{router}:drains", {drain_id: 9e15})
            raw.zadd(schema.router_key("routers"), {f"r{number}": 9e15 for number in range(50)})
        refused = 'gc_router_refused_values{what="drain: not authentic"}'
        for router in (one, two):
            wait_until(lambda router=router: refused in page_of(router), PATIENCE_S, "the drain to be looked at")
            wait_until(lambda router=router: router.get("/gc/status")["replicas"] == 2, PATIENCE_S, "two routers")
            assert not fleet.worker(router)["draining"]
            wait_until(
                lambda router=router: "refused drain: not authentic" in router.process.log_tail(500),
                PATIENCE_S,
                "a line of the log",
            )
        assert stranger.drains([drain_id])[1] != [None]
        fleet.ask(one, "hello")


def page_of(router: RouterProcess) -> str:
    return fetch(f"{router.url}/metrics").decode()


def test_router_says_what_redis_refuses(tmp_path: Path) -> None:
    """A wrong password and a missing permission are named in the log, in /ready and in /gc/status, without a secret."""
    with acl_server() as (server, urls):
        lacking = set_user(server, "lacking", [name for name in ROUTER if name != "zrevrange"])
        wrong = urls["router"].replace("pw-of", "wrong-of")
        for url, said in ((wrong, "wrong user or password"), (lacking, "lacks a permission (NOPERM)")):
            with RouterProcess(redis_url=url, log_dir=tmp_path) as router:
                wait_until(
                    lambda router=router, said=said: said in (router.get("/gc/status")["redis_error"] or ""),
                    PATIENCE_S,
                    "the refusal to be known",
                )
                with pytest.raises(urllib.error.HTTPError) as caught:
                    fetch(f"{router.url}/ready")
                assert said in caught.value.read().decode()
                assert f"Redis refuses this router; the 0 known workers stay: Redis at 127.0.0.1:{server.port}: " in (
                    router.process.log_tail(100)
                )
                assert "wrong-of" not in router.process.log_tail(500)
                assert "wrong-of" not in json.dumps(router.get("/gc/status"))


def test_router_says_what_redis_refuses_beside_the_workers(tmp_path: Path) -> None:
    """A user that may find workers, but not share what routers learn: said in /gc/status and at the start."""
    with acl_server() as (server, _):
        lacking = set_user(server, "lacking", [name for name in ROUTER if name != "xread"])
        with RouterProcess(redis_url=lacking, log_dir=tmp_path) as router:
            wait_until(
                lambda: "lacks a permission (NOPERM)" in (router.get("/gc/status")["redis_error"] or ""),
                PATIENCE_S,
                "the refusal to be known",
            )
            assert router.get("/gc/status")["redis_available"]
            assert "Redis does not answer" not in router.process.log_tail(100)
            set_user(server, "lacking", ROUTER)
            wait_until(lambda: router.get("/gc/status")["redis_error"] is None, PATIENCE_S, "the permission")


@pytest.mark.parametrize("command", ["hexists", "xadd", "pexpire"])
def test_doctor_names_the_missing_permission(command: str) -> None:
    """Whatever else the user may do."""
    with acl_server() as (server, _):
        user = set_user(server, "lacking", [name for name in (*WORKER, "ping", "info") if name != command])
        outcome = doctor("--redis-url", user)
        assert outcome.status("redis permissions") == "FAIL", outcome.printed
        assert f"+{command}" in outcome.checks["redis permissions"]["text"]
        assert outcome.code == 1


def test_doctor_as_a_worker_says_so() -> None:
    """A worker's user is no failure: it may do what a worker needs, and the doctor cannot see all."""
    with acl_server() as (_, urls):
        outcome = doctor("--redis-url", urls["worker"])
        assert outcome.status("redis permissions") == "WARN", outcome.printed
        assert "what a worker needs" in outcome.checks["redis permissions"]["text"]
        assert "+info" in outcome.checks["redis permissions"]["text"]
        assert "redis version" not in outcome.checks


def test_doctor_without_scripts_or_keys_says_what_to_allow() -> None:
    """A user that may not even run a script, or not on our keys."""
    with acl_server() as (server, _):
        for user in (
            set_user(server, "without-eval", [name for name in WORKER if name != "eval"]),
            set_user(server, "other-keys", WORKER, "resetkeys", "~other:*"),
        ):
            outcome = doctor("--redis-url", user)
            assert outcome.status("redis permissions") == "FAIL", outcome.printed
            assert "+eval and ~gc2:*" in outcome.checks["redis permissions"]["fix"]
