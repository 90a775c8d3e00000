"""Flow control over sockets: the whole router before engines that answer when a test says so."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ghostcacher_router.app import Router
from ghostcacher_router.config import RouterSettings
from ghostcacher_simulator.http_server import Peer, Received
from tests.support.mock_engine import MiniEngine, content
from tests.support.proxy_rig import PATIENCE_S, Client, eventually, on_loop

PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}


class GatedEngine(MiniEngine):
    """Answers probes at once, and each prompt when `free` says so, in the order in which they came."""

    def __init__(self) -> None:
        super().__init__()
        self.handler = self._answer
        self.waiting: list[tuple[str, asyncio.Future[int]]] = []
        """The prompts that are not answered."""
        self.bodies: list[dict[str, Any]] = []

    async def _answer(self, peer: Peer, request: Received) -> None:
        if request.method != "POST":
            await self.api(peer, request)
            return
        body = json.loads(request.body)
        self.bodies.append(body)
        gate: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.waiting.append((body["messages"][0]["content"], gate))
        peer.send(content(request.body, status=await gate))

    async def free(self, status: int = 200) -> str:
        """Have the first prompt answered that waits; return it."""
        await eventually(lambda: self.waiting)
        name, gate = self.waiting.pop(0)
        gate.set_result(status)
        return name


class Rig:
    def __init__(self, router: Router, engines: list[GatedEngine]) -> None:
        self.router, self.engines = router, engines
        self.clients: list[Client] = []

    @property
    def waiting(self) -> int:
        flow = self.router._routing.flow
        return 0 if flow is None else len(flow.queue)

    async def send(self, name: str, *headers: bytes, path: str = PATHS["openai"], **fields: Any) -> Client:
        """Send a request; return its client once the request is at an engine, waits, or is answered."""
        client = Client(*await asyncio.open_connection("127.0.0.1", int(self.router.url.rpartition(":")[2])))
        self.clients.append(client)
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": name}], **fields}).encode()
        lines = b"".join(b"%b\r\n" % header for header in headers)
        head = b"POST %b HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n" % (path.encode(), lines, len(body))
        before = self.waiting, self._at_engines()
        client.send(head + body)
        async with asyncio.timeout(PATIENCE_S):
            while (self.waiting, self._at_engines()) == before and not client.reader._buffer:  # type: ignore[attr-defined]
                await asyncio.sleep(0.001)
        return client

    def _at_engines(self) -> int:
        return sum(len(engine.bodies) for engine in self.engines)

    async def drain(self) -> list[str]:
        """Have everything answered; return in which order that was."""
        found = []
        while self.router.in_flight:
            for engine in self.engines:
                if engine.waiting:
                    found.append(await engine.free())
            await asyncio.sleep(0.001)
        return found


@asynccontextmanager
async def flow_rig(engines: int = 1, **settings: Any) -> AsyncIterator[Rig]:
    """A router before so many engines, of one place each; at the end it holds nothing."""
    group = [GatedEngine() for _ in range(engines)]
    for engine in group:
        await engine.start()
    given = {"flow_queue_max": 8, "flow_worker_requests_max": 1, "drain_timeout_s": 0.1} | settings
    urls = tuple(engine.endpoint.url for engine in group)
    router = Router(RouterSettings(listen="127.0.0.1:0", redis=False, workers=urls, **given))
    await router.start()
    rig = Rig(router, group)
    try:
        yield rig
        for client in rig.clients:
            client.abort()
        await eventually(lambda: router.in_flight == 0)
        await eventually(lambda: not router._routing.tracker._open)
        flow = router._routing.flow
        assert flow is None or not (len(flow.queue) or flow._placing), flow
        assert router._proxy.state.buffered_bytes == 0
    finally:
        await router.stop()
        for engine in group:
            await engine.stop()


def error_of(body: bytes, api: str) -> tuple[str, str]:
    """Return type and message of an error in the shape of an API."""
    answer = json.loads(body)
    assert (answer.get("type") == "error") is (api == "anthropic")
    return answer["error"]["type"], answer["error"]["message"]


@pytest.fixture(autouse=True)
def patient_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is."""
    monkeypatch.setattr("ghostcacher_router.warm_up.FLEET_S_MAX", 60.0)


@pytest.mark.parametrize("api", PATHS)
def test_full_queue_is_told_in_the_words_of_the_api(api: str) -> None:
    """With a time to come back; and who waits is answered once there is room."""

    @on_loop
    async def run() -> None:
        async with flow_rig(flow_queue_max=1) as rig:
            first, waits = await rig.send("first"), await rig.send("waits")
            head, body = await (await rig.send("too many", path=PATHS[api])).answer()
            assert head.startswith(b"HTTP/1.1 429 ")
            assert b"\r\nretry-after: 1\r\n" in head
            kind, message = error_of(body, api)
            assert kind == "rate_limit_error"
            assert message.startswith("All workers are busy, and 1 requests wait for them already.")
            assert await rig.drain() == ["first", "waits"]
            for client in (first, waits):
                assert (await client.answer())[0].startswith(b"HTTP/1.1 200 ")

    run()


@pytest.mark.parametrize("api", PATHS)
def test_deadline_that_passes_is_told_at_once(api: str) -> None:
    """The worker never hears of it."""

    @on_loop
    async def run() -> None:
        async with flow_rig(flow_deadlines=True) as rig:
            await rig.send("first")
            late = await rig.send("late", b"x-gc-deadline-ms: 20", path=PATHS[api])
            head, body = await late.answer()
            assert head.startswith(b"HTTP/1.1 504 ")
            assert error_of(body, api)[0] == ("timeout_error" if api == "anthropic" else "server_error")
            assert await rig.drain() == ["first"]

    run()


@on_loop
async def test_client_that_leaves_frees_its_place_in_the_queue() -> None:
    async with flow_rig(flow_queue_max=1) as rig:
        await rig.send("first")
        leaves = await rig.send("leaves")
        leaves.abort()
        await eventually(lambda: rig.waiting == 0)
        await rig.send("next")
        assert await rig.drain() == ["first", "next"]


@on_loop
async def test_order_is_that_of_priorities_and_engines_are_told_of_them(caplog: pytest.LogCaptureFixture) -> None:
    """By header or body; the access log says how long each has waited, and /gc/status what waits."""
    caplog.set_level(logging.INFO, "ghostcacher_router.access")
    settings = {"flow_priorities": "client", "flow_priority_min": -9, "flow_priority_to_engines": True}
    async with flow_rig(**settings, access_log=True) as rig:
        await rig.send("runs")
        await rig.send("late", priority=7)
        await rig.send("plain")
        await rig.send("urgent", b"x-gc-priority: -9")
        status = Client(*await asyncio.open_connection("127.0.0.1", int(rig.router.url.rpartition(":")[2])))
        _, body = await status.ask(b"GET /gc/status HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert json.loads(body)["queue"] | {"bytes": 0, "saturated": []} == {
            "requests": 3,
            "requests_max": 8,
            "bytes": 0,
            "by_priority": {"-9": 1, "0": 1, "7": 1},
            "tenants": {"": 3},
            "saturated": [],
            "retry_after_s": 1,
        }
        rig.clients.append(status)
        asked = b'{"model": "m", "messages": [{"role": "user", "content": "q"}]}'
        head = b"POST /gc/explain HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(asked)
        _, body = await status.ask(head + asked)
        assert [row["saturated"] for row in json.loads(body)["workers"]] == [True]
        assert await rig.drain() == ["runs", "urgent", "plain", "late"]
        assert [body.get("priority") for body in rig.engines[0].bodies] == [None, -9, None, 7]
        await eventually(lambda: rig.router.in_flight == 0)
        logged = [record.gc_fields for record in caplog.records if hasattr(record, "gc_fields")]
        waits = [fields["queued_ms"] for fields in logged if "queued_ms" in fields]
        assert [wait > 0 for wait in waits] == [False, True, True, True]


@on_loop
async def test_turned_away_request_goes_to_another_worker_before_those_that_wait() -> None:
    """Its client gets an answer, though every place was taken when the worker turned it away."""
    async with flow_rig(2) as rig:
        clients = [await rig.send(name) for name in ("a", "b", "waits")]
        loser = rig.engines[0]
        turned_away = await loser.free(503)
        await eventually(lambda: loser.waiting)
        assert loser.waiting[0][0] == "waits"
        assert rig.waiting == 1
        await rig.engines[1].free()
        await eventually(lambda: rig.engines[1].waiting)
        assert rig.engines[1].waiting[0][0] == turned_away
        await rig.drain()
        for client in clients:
            assert (await client.answer())[0].startswith(b"HTTP/1.1 200 ")


@on_loop
async def test_wait_for_a_turn_is_no_silence_of_a_worker() -> None:
    """A request that waits in the router for longer than a worker may be silent has all of that time then."""
    async with flow_rig(read_timeout_s=600.0) as rig:
        proxy = rig.router._proxy
        began = proxy.state.clock()
        silent, waits = await rig.send("silent"), await rig.send("waits")
        proxy.state.clock = lambda: began + 601.0
        proxy.tick()
        assert (await silent.answer())[0].startswith(b"HTTP/1.1 504 ")
        engine = rig.engines[0]
        await eventually(lambda: [name for name, _ in engine.waiting] == ["silent", "waits"])
        proxy.state.clock = lambda: began + 1200.0
        proxy.tick()
        assert rig.router.in_flight == 1
        proxy.state.clock = lambda: began + 1203.0
        proxy.tick()
        assert (await waits.answer())[0].startswith(b"HTTP/1.1 504 ")


@on_loop
async def test_router_that_stops_answers_what_waits() -> None:
    """Those that have their turn in time are answered; at its end all others are told."""
    async with flow_rig(drain_timeout_s=PATIENCE_S) as rig:
        first, second, third = [await rig.send(name) for name in ("first", "second", "third")]
        rig.router._settings = RouterSettings(redis=False, workers=("http://h:1",), drain_timeout_s=2.0)
        stopping = asyncio.create_task(rig.router.stop())
        await rig.engines[0].free()
        assert (await first.answer())[0].startswith(b"HTTP/1.1 200 ")
        await eventually(lambda: rig.engines[0].waiting)
        for client in (second, third):
            head, body = await client.answer()
            assert head.startswith(b"HTTP/1.1 503 ")
            assert json.loads(body)["error"]["code"] == "router_stops"
        await stopping


@on_loop
async def test_off_by_default() -> None:
    """Requests are sent on at once; priorities and deadlines mean nothing, and bodies stay as they are."""
    settings = {"flow_queue_max": 0, "flow_worker_requests_max": 256}
    async with flow_rig(**settings) as rig:
        assert rig.router._routing.flow is None
        assert rig.router._routing.dispatcher is rig.router._routing.picker
        for number in range(3):
            await rig.send(f"r{number}", b"x-gc-priority: none", b"x-gc-deadline-ms: 0", priority=3)
        assert len(rig.engines[0].waiting) == 3
        assert [body["priority"] for body in rig.engines[0].bodies] == [3, 3, 3]
        await rig.drain()
