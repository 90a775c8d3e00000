"""The HTTP proxy and workers that hang, or whose host is gone: what becomes of the requests that they have."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from ghostcacher_router.http.protocol.limits import Limits
from ghostcacher_router.types import Outcome
from tests.support.black_hole import swallow
from tests.support.mock_engine import CHUNKED, MockEngine, Peer, Received, chunks, content, echo
from tests.support.proxy_rig import Client, Rig, eventually, on_loop, post, proxy_rig

CHANGE = b"POST /v1/load_lora_adapter HTTP/1.1\r\nHost: router\r\nContent-Length: 2\r\n\r\n{}"


async def mute(peer: Peer, request: Received) -> None:
    """Take a request, and say nothing."""
    await peer.left()


def begins(data: bytes) -> Callable[[Peer, Received], object]:
    async def script(peer: Peer, request: Received) -> None:
        peer.send(data)
        await peer.left()

    return script


def hangs(rig: Rig, engine: MockEngine, since: float = 0.0) -> None:
    rig.proxy.worker_hangs(engine.name, engine.endpoint, since)


async def asked(rig: Rig, request: bytes, engine: MockEngine) -> Client:
    """Send a request that an engine takes, and return its client."""
    client, before = await rig.client(), len(engine.received)
    client.send(request)
    await eventually(lambda: len(engine.received) > before)
    return client


@on_loop
async def test_requests_without_an_answer_go_to_another_worker() -> None:
    """All that wait at the worker that hangs, none elsewhere."""
    first, second = MockEngine("w0", mute), MockEngine("w1")
    async with proxy_rig(first, second) as rig:
        clients = [await asked(rig, post(b"%d" % number), first) for number in range(20)]
        hangs(rig, second)
        hangs(rig, first)
        assert [(await client.answer())[1] for client in clients] == [b"%d" % number for number in range(20)]
        outcomes = [(place.worker, place.outcome) for place in rig.placements]
        assert sorted(outcomes, key=str) == sorted(
            [("w0", Outcome.REFUSED)] * 20 + [("w1", Outcome.DONE)] * 20, key=str
        )
        assert rig.meter.reasons == ["hung"] * 20


@on_loop
async def test_request_of_a_kept_connection_goes_to_another_worker_too() -> None:
    """The worker that hangs is not tried again on a new connection."""
    first, second = MockEngine("w0"), MockEngine("w1")
    async with proxy_rig(first, second) as rig:
        await rig.ask(post(b"{}"))
        first.script = mute
        client = await asked(rig, post(b"two"), first)
        assert first.received[-1].connection == 0
        hangs(rig, first)
        assert (await client.answer())[1] == b"two"
        assert len(first.peers) == 1


@on_loop
async def test_request_at_which_two_workers_hang_is_not_tried_at_a_third() -> None:
    """It may be what makes them hang, such as a text that takes their tokenizer forever."""
    group = [MockEngine(f"w{number}", mute) for number in range(4)]
    async with proxy_rig(*group) as rig:
        client = await asked(rig, post(b"{}"), group[0])
        hangs(rig, group[0])
        await eventually(lambda: group[1].received)
        hangs(rig, group[1])
        head, body = await client.answer()
        assert (head[:12], json.loads(body)["error"]["code"]) == (b"HTTP/1.1 502", "closed_unanswered")
        assert [(place.worker, place.outcome) for place in rig.placements] == [
            ("w0", Outcome.REFUSED),
            ("w1", Outcome.REFUSED),
        ]


@on_loop
async def test_only_worker_that_hangs_is_a_bad_gateway() -> None:
    """There is nobody else to ask, and the client can come back."""
    async with proxy_rig(MockEngine("w0", mute)) as rig:
        client = await asked(rig, post(b"{}"), rig.engine)
        hangs(rig, rig.engine)
        head, _ = await client.answer()
        assert head.startswith(b"HTTP/1.1 502 ")
        assert b"\r\nretry-after: 1\r\n" in head.lower()


@on_loop
async def test_request_that_may_have_changed_a_worker_is_sent_once() -> None:
    """Whether its worker hangs or breaks off: it is an error, and nobody else is asked."""
    first, second = MockEngine("w0", mute), MockEngine("w1")
    async with proxy_rig(first, second) as rig:
        client = await asked(rig, CHANGE, first)
        hangs(rig, first)
        head, body = await client.answer()
        assert head.startswith(b"HTTP/1.1 502 ")
        assert "may have carried out the request" in json.loads(body)["error"]["message"]
        first.script = lambda peer, _: peer.abort()
        assert (await rig.ask(CHANGE))[0].startswith(b"HTTP/1.1 502 ")
        assert second.received == []


@on_loop
async def test_request_that_changes_a_worker_goes_on_a_new_connection() -> None:
    """A kept one may be closed by the worker at any moment, and then it would be unclear what it has seen."""
    async with proxy_rig() as rig:
        for _ in range(2):
            await rig.ask(post(b"{}"))
            await rig.ask(CHANGE)
        assert [request.connection for request in rig.engine.received] == [0, 1, 1, 2]


@pytest.mark.parametrize("begun", [CHUNKED, CHUNKED + b"4\r\nmore\r\n", content(b"whole")[:-1]])
@on_loop
async def test_answer_that_has_begun_is_ended_and_looks_cut(begun: bytes) -> None:
    """Nobody else can go on with it. The client sees that."""
    async with proxy_rig(MockEngine("w0", begins(begun)), MockEngine("w1")) as rig:
        client = await rig.client()
        client.send(post(b"{}"))
        await client.head()
        rig.pass_time(1.0)
        rig.pass_time(1.0)
        hangs(rig, rig.engine, rig.clock())
        rest = await client.rest()
        assert not rest.endswith((b"0\r\n\r\n", b"whole"))
        assert [(place.worker, place.outcome) for place in rig.placements] == [("w0", Outcome.FAILED)]


@on_loop
async def test_stream_of_events_is_ended_with_an_error_event() -> None:
    """In the API's own form."""
    event = b'data: {"token": 1}\n\n'
    begun = CHUNKED + b"%x\r\n%b\r\n" % (len(event), event)
    async with proxy_rig(MockEngine("w0", begins(begun))) as rig:
        client = await rig.client()
        client.send(post(b"{}"))
        await client.head()
        await client.reader.readuntil(event)
        rig.pass_time(1.0)
        hangs(rig, rig.engine, rig.clock())
        rest = await client.rest()
        assert b"the worker no longer answers" in rest
        assert b"worker_timeout" in rest


@on_loop
async def test_worker_of_which_a_response_moves_does_not_hang() -> None:
    """Its probes have not been answered, but it works: nothing is taken away from it."""
    go_on = asyncio.Event()

    async def moves(peer: Peer, request: Received) -> None:
        if request.body == b"stream":
            peer.send(CHUNKED, b"4\r\nmore\r\n")
        await go_on.wait()
        if request.body == b"stream":
            peer.send(chunks(b"end"))
        else:
            echo(peer, request)

    async with proxy_rig(MockEngine("w0", moves), MockEngine("w1")) as rig:
        stream = await rig.client()
        stream.send(post(b"stream"))
        await stream.reader.readuntil(b"more\r\n")
        waiting = await asked(rig, post(b"other"), rig.engine)
        hangs(rig, rig.engine, rig.clock() - 1.0)
        await asyncio.sleep(0.01)
        go_on.set()
        assert (await waiting.answer())[1] == b"other"
        assert (await stream.reader.readuntil(b"0\r\n\r\n")).endswith(b"end\r\n0\r\n\r\n")
        assert rig.meter.reasons == []


@on_loop
async def test_kept_connections_of_a_worker_that_is_down_are_closed() -> None:
    """Those in use go on."""
    async with proxy_rig() as rig:
        gate = asyncio.Event()

        async def wait(peer: Peer, request: Received) -> None:
            if request.body == b"wait":
                await gate.wait()
            echo(peer, request)

        rig.engine.script = wait
        client = await asked(rig, post(b"wait"), rig.engine)
        await rig.ask(post(b"{}"))
        assert rig.state.pools.open_count == 2
        rig.proxy.worker_down(rig.engine.endpoint)
        await eventually(lambda: rig.state.pools.open_count == 1)
        gate.set()
        assert (await client.answer())[1] == b"wait"


@asynccontextmanager
async def with_black_hole(connect_s: float) -> AsyncIterator[Rig]:
    """Two workers; all of the first one's connections, which is also kept for the next request, lead nowhere."""
    first, second = MockEngine("w0"), MockEngine("w1")
    async with proxy_rig(first, second, limits=Limits(connect_s=connect_s)) as rig:
        await rig.ask(post(b"one"))
        assert first._server is not None
        for connection in [*first._server.sockets, first.peers[0].writer.get_extra_info("socket")]:
            swallow(connection)
        yield rig
        first._server.close()


async def tick_until(rig: Rig, condition: Callable[[], object]) -> None:
    """Let the proxy's time pass until a condition holds."""

    def passed() -> bool:
        rig.pass_time(0.1)
        return bool(condition())

    await eventually(passed)


@on_loop
async def test_kept_connection_into_a_black_hole_costs_two_connection_timeouts() -> None:
    """The request is not acknowledged, and neither is a new connection: then another worker is asked."""
    async with with_black_hole(0.5) as rig:
        client = await rig.client()
        client.send(post(b"two"))
        await tick_until(rig, lambda: len(rig.placements) == 3)
        assert (await client.answer())[1] == b"two"
        assert [(place.worker, place.outcome) for place in rig.placements[1:]] == [
            ("w0", Outcome.REFUSED),
            ("w1", Outcome.DONE),
        ]
        assert rig.meter.reasons == ["unreachable"]


@on_loop
async def test_host_that_vanishes_behind_a_new_connection_is_given_up() -> None:
    """In mid-request: what it has not acknowledged goes to another worker."""

    async def vanish(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        swallow(peer.writer.get_extra_info("socket"))
        await asyncio.Event().wait()

    first, second = MockEngine("w0"), MockEngine("w1")
    first.before = vanish
    async with proxy_rig(first, second, limits=Limits(connect_s=0.5)) as rig:
        client = await rig.client()
        body = b"x" * (32 << 20)
        client.send(post(body))
        await tick_until(rig, lambda: len(rig.placements) == 2)
        assert (await client.answer())[1] == body
        assert rig.meter.reasons == ["unreachable"]


@on_loop
async def test_request_that_has_arrived_is_waited_for() -> None:
    """The worker computes, and takes the time that it takes; its host has nothing to acknowledge."""

    async def vanish(peer: Peer, request: Received) -> None:
        swallow(peer.writer.get_extra_info("socket"))
        await asyncio.Event().wait()

    async with proxy_rig(MockEngine("w0", vanish), MockEngine("w1"), limits=Limits(connect_s=0.5)) as rig:
        client = await asked(rig, post(b"x" * 100), rig.engine)
        for _ in range(60):
            rig.pass_time(0.1)
            await asyncio.sleep(0.02)
        assert len(rig.placements) == 1
        client.abort()
        await eventually(lambda: rig.placements[0].outcome is Outcome.CANCELLED)


@on_loop
async def test_worker_that_takes_its_time_to_read_is_not_given_up() -> None:
    """Its host says that it has no room for more of a large body: it is there."""

    async def reads_late(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await gate.wait()
        peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
        await peer.reader.readexactly(size)
        peer.send(content(b"late"))

    gate, size = asyncio.Event(), 32 << 20
    async with proxy_rig(MockEngine("w0"), MockEngine("w1"), limits=Limits(connect_s=0.5)) as rig:
        rig.engine.before = reads_late
        client = await rig.client()
        client.send(post(b"x" * size))
        await eventually(lambda: rig.placements)
        for _ in range(60):
            rig.pass_time(0.1)
            await asyncio.sleep(0.02)
        gate.set()
        assert (await client.answer())[1] == b"late"
        assert [place.worker for place in rig.placements] == ["w0"]
