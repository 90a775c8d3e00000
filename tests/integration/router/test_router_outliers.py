"""One bad worker, or one bad request, among the whole router's own: what clients get, and what people are shown."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from ghostcacher_router.app import Router
from ghostcacher_router.config import RouterSettings
from ghostcacher_simulator.http_server import Peer, Received
from tests.support.mock_engine import MiniEngine, content, until
from tests.support.proxy_rig import Client, eventually, on_loop

SELDOM_S = 600.0
"""Between two probes, so that what the router learns, it learns from what happens."""

Script = Callable[[Peer], None]


class Engine(MiniEngine):
    """Answers probes well, and completions with its name after a moment; or as its script says, at once.

    busy_s: how long that moment is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.script: Script | None = None
        self.busy_s = 0.01
        self.handler = self._answer

    async def _answer(self, peer: Peer, request: Received) -> None:
        if request.method != "POST":
            await self.api(peer, request)
        elif self.script is not None:
            self.script(peer)
        else:
            await asyncio.sleep(self.busy_s)
            peer.send(content(b"{}"))

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def asked_count(self) -> int:
        """Completions that it was asked for."""
        return sum(request.method == "POST" for request in self.received)


def says(status: int) -> Script:
    return lambda peer: peer.send(content(b"{}", b"Retry-After: 7", status=status))


class Subject:
    """A router in front of engines, and what its clients got: how often each status, and from whom."""

    def __init__(self, router: Router, engines: list[Engine]) -> None:
        self.router, self.engines = router, engines
        self.port = int(router.url.rpartition(":")[2])
        self.statuses: Counter[int] = Counter()
        self._numbers = itertools.count()

    async def get(self, path: str) -> Any:
        _, body = await self.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return json.loads(body)

    async def send(self, data: bytes) -> tuple[bytes, bytes]:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        try:
            return await client.ask(data)
        finally:
            client.writer.close()

    async def ask(self, prompt: str) -> tuple[bytes, bytes]:
        body = json.dumps({"model": "m", "prompt": prompt}).encode()
        head, body = await self.send(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        self.statuses[int(head[9:12])] += 1
        return head, body

    async def load(self, requests: int, *, clients: int = 8, prompt: Callable[[int], str] = str) -> None:
        """Have clients send so many requests, one after the other each. prompt: of the how manieth request of all."""
        numbers = itertools.islice(self._numbers, requests)

        async def client() -> None:
            for number in numbers:
                await self.ask(prompt(number) * 50)

        await asyncio.gather(*[client() for _ in range(clients)])

    async def states(self) -> list[str]:
        return [worker["state"] for worker in (await self.get("/gc/workers"))["workers"]]


@pytest.fixture(autouse=True)
def patient_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is."""
    monkeypatch.setattr("ghostcacher_router.warm_up.FLEET_S_MAX", 60.0)


@asynccontextmanager
async def subject_of(count: int, **settings: Any) -> AsyncIterator[Subject]:
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(Engine()) for _ in range(count)]
        urls = tuple(engine.endpoint.url for engine in engines)
        router = Router(
            RouterSettings(
                listen="127.0.0.1:0",
                redis=False,
                workers=urls,
                health_interval_s=SELDOM_S,
                log_level="error",
                **settings,
            )
        )
        await router.start()
        stack.push_async_callback(router.stop)
        # It listens when it has asked each of them once.
        assert len(router._fleet.serving(None)) == count
        yield Subject(router, engines)


@pytest.mark.parametrize("status", [500, 503, 429])
@pytest.mark.parametrize("prompt", [str, lambda _: "hot"], ids=["distinct", "hot"])
@on_loop
async def test_worker_that_fails_fast_draws_no_more_than_its_share(status: int, prompt: Callable[[int], str]) -> None:
    """And none of the clients' requests fail that another worker can answer, but for the first that meets an error."""
    async with subject_of(4) as subject:
        await subject.load(1, prompt=prompt)
        bad = max(subject.engines, key=lambda engine: engine.asked_count)
        bad.script = says(status)
        await subject.load(300, prompt=prompt)
        assert 0 < bad.asked_count < 300 / 4
        failed = 301 - subject.statuses[200]
        assert failed == (status == 500)


@on_loop
async def test_ejected_worker_is_shown_with_why_and_counted() -> None:
    """In /gc/workers, in /gc/status and in the metrics; its state is READY, for its probes are fine."""
    async with subject_of(2) as subject:
        bad = subject.engines[0]
        bad.script = says(500)
        ejected: dict[str, str] = {}
        while not ejected:
            await subject.load(8)
            ejected = (await subject.get("/gc/status"))["ejected"]
        assert "its requests fail, the last one: status 500" in ejected[bad.name]
        while not (shown := {each["id"]: each for each in (await subject.get("/gc/workers"))["workers"]})[bad.name][
            "ejected"
        ]:
            await subject.load(8)
        assert shown[bad.name]["state"] == "ready"
        assert "status 500" in shown[bad.name]["ejected"]
        assert shown[subject.engines[1].name]["ejected"] is None
        _, page = await subject.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert f'gc_router_ejections_total{{reason="500",worker="{bad.name}"}}'.encode() in page


@on_loop
async def test_worker_that_is_well_again_is_used_again() -> None:
    """By itself, and its share then is that of the others."""
    async with subject_of(2) as subject:
        bad = subject.engines[0]
        bad.script = says(500)
        await subject.load(60)
        bad.script = None
        subject.statuses.clear()
        before = bad.asked_count
        while bad.asked_count < before + 20:
            await subject.load(8)
        assert set(subject.statuses) == {200}
        while (await subject.get("/gc/status"))["ejected"] or subject.router._fleet.limits():
            await subject.load(8)
        assert set(subject.statuses) == {200}


@on_loop
async def test_request_that_every_worker_fails_ejects_none() -> None:
    """A client that repeats it, among others that are answered or alone, gets its error from two workers at most."""
    async with subject_of(4) as subject:
        for engine in subject.engines:
            _fails_at(engine, b"bad")
        await subject.load(60, prompt=lambda number: f"bad {number}")
        asked = sum(engine.asked_count for engine in subject.engines)
        assert (subject.statuses, asked <= 120) == ({500: 60}, True)
        assert (await subject.get("/gc/status"))["ejected"] == {}
        subject.statuses.clear()
        await subject.load(60, prompt=lambda number: f"bad {number}" if number % 2 else f"good {number}")
        assert (subject.statuses, (await subject.get("/gc/status"))["ejected"]) == ({500: 30, 200: 30}, {})
        _, page = await subject.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"gc_router_ejections_total{" not in page


def _fails_at(engine: Engine, text: bytes) -> None:
    """Have an engine answer 500 to what has this text in it, at once."""
    answer = engine._answer

    async def handle(peer: Peer, request: Received) -> None:
        if text in request.body:
            peer.send(content(b"{}", status=500))
        else:
            await answer(peer, request)

    engine.handler = handle


@on_loop
async def test_fleet_that_is_full_tells_when_to_come_again() -> None:
    """Every worker answers 429 for a while: clients get that, and the very next request is answered when it is over."""
    async with subject_of(3) as subject:
        for engine in subject.engines:
            engine.script = says(429)
        await subject.load(60)
        head, _ = await subject.ask("one more")
        assert (head[:12], b"Retry-After: 7" in head) == (b"HTTP/1.1 429", True)
        assert subject.statuses == {429: 61}
        for engine in subject.engines:
            engine.script = None
        subject.statuses.clear()
        await subject.load(20)
        assert subject.statuses == {200: 20}


@on_loop
async def test_request_that_closes_connections_takes_nobody_down() -> None:
    """A client that repeats it gets an error that says why, the others their answers, and every worker stays READY."""
    async with subject_of(4) as subject:

        def poisoned(engine: Engine) -> None:
            answer = engine._answer

            async def handle(peer: Peer, request: Received) -> None:
                if b"poison" in request.body:
                    peer.abort()
                else:
                    await answer(peer, request)

            engine.handler = handle

        for engine in subject.engines:
            poisoned(engine)
        ended = asyncio.Event()

        async def attack() -> None:
            while not ended.is_set():
                head, body = await subject.send(
                    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 32\r\n\r\n"
                    b'{"model":"m","prompt": "poison"}'
                )
                assert (head[:12], json.loads(body)["error"]["code"]) == (b"HTTP/1.1 502", "closed_unanswered")

        attacks = [asyncio.ensure_future(attack()) for _ in range(4)]
        await subject.load(200)
        ended.set()
        await asyncio.gather(*attacks)
        assert subject.statuses == {200: 200}
        assert await subject.states() == ["ready"] * 4
        assert (await subject.get("/gc/status"))["ejected"] == {}


@on_loop
async def test_engine_that_crashes_on_a_request_is_down_and_no_third_is_asked() -> None:
    """A request that ends two engines is not given to the others; probes find those that are gone at once."""
    async with subject_of(4) as subject:

        def crash(engine: Engine) -> Script:
            def script(peer: Peer) -> None:
                assert engine._server is not None
                engine._server.close()
                for each in engine.peers:
                    each.abort()

            return script

        for engine in subject.engines:
            engine.script = crash(engine)
        head, body = await subject.ask("poison")
        assert (head[:12], json.loads(body)["error"]["code"]) == (b"HTTP/1.1 502", "closed_unanswered")
        assert sum(engine.asked_count for engine in subject.engines) == 2
        await until(lambda: len(subject.router._fleet.serving(None)) == 2)


@on_loop
async def test_engine_that_ends_gets_no_new_request() -> None:
    """It stops to listen, closes what is idle, and answers what it has: nothing is sent on a connection of the latter.

    Nobody has probed it, and nobody has asked it for anything since.
    """
    async with subject_of(2) as subject:
        await subject.load(40)
        ending, other = subject.engines
        ending.busy_s = other.busy_s = 0.05
        asks = [asyncio.ensure_future(subject.ask(f"slow {number}")) for number in range(4)]
        await eventually(lambda: ending.asked_count + other.asked_count >= 44)
        before = ending.asked_count
        assert ending._server is not None
        ending._server.close()
        idle = [peer for peer in ending.peers if not peer.writer.transport.is_closing()]
        idle[0].close()
        await until(lambda: len(subject.router._fleet.serving(None)) == 1)
        await subject.load(20)
        await asyncio.gather(*asks)
        assert ending.asked_count == before
        assert subject.statuses == {200: 64}


@pytest.mark.parametrize("status", [500, 503])
@on_loop
async def test_engine_that_says_that_it_ends_is_down_at_once(status: int) -> None:
    """Its health is asked for as soon as a request fails there: what is 503 then is no accident."""
    async with subject_of(2) as subject:
        ending = subject.engines[0]
        ending.script, ending.api.status = says(status), 503
        while "down" not in await subject.states():
            await subject.load(4)
        ending.script, ending.api.status = None, 200
        await until(lambda: len(subject.router._fleet.serving(None)) == 2)
