"""The HTTP proxy: clients that leave or do not read, silence, and the end of it all."""

from __future__ import annotations

import asyncio

import pytest

from ghostcacher_router.http.protocol.limits import Limits
from ghostcacher_router.types import Outcome
from tests.support.mock_engine import CHUNKED, MockEngine, Peer, Received, content, says
from tests.support.proxy_rig import Client, Rig, eventually, on_loop, post, proxy_rig


async def never(peer: Peer, request: Received) -> None:
    """Answer nothing, until the router leaves."""
    await peer.left()


async def begin(peer: Peer, request: Received) -> None:
    """Begin an answer that never ends."""
    peer.send(CHUNKED + b"5\r\nhello\r\n")
    await peer.left()


LEAVINGS = {"FIN": Client.finish, "RST": Client.abort}


@pytest.mark.parametrize("script", [never, begin])
@pytest.mark.parametrize("leaving", LEAVINGS)
@on_loop
async def test_client_that_leaves_cancels_its_request_at_once(leaving: str, script: object) -> None:
    """The worker sees its connection close, before or after the answer has begun."""
    engine = MockEngine("w0", script)  # type: ignore[arg-type]
    async with proxy_rig(engine) as rig:
        client = await rig.client()
        client.send(post(b"{}"))
        if script is begin:
            await client.head()
        await eventually(lambda: engine.received)
        LEAVINGS[leaving](client)
        await eventually(lambda: rig.placements[0].outcome is Outcome.CANCELLED)
        await eventually(lambda: rig.state.pools.open_count == 0)
        assert rig.meter.answers == [("/v1/chat/completions", 499)]


@pytest.mark.parametrize("leaving", LEAVINGS)
@pytest.mark.parametrize("sent", [1, 30, 75, 100])
@on_loop
async def test_client_that_leaves_in_mid_request_leaves_nothing(leaving: str, sent: int) -> None:
    """No worker hears of it."""
    request = post(b"x" * 100)
    async with proxy_rig() as rig:
        client = await rig.client()
        client.send(request[:sent])
        await eventually(lambda: rig.state.clients)
        await asyncio.sleep(0.005)
        LEAVINGS[leaving](client)
        await eventually(lambda: not rig.state.clients)
        assert rig.engine.received == []


@on_loop
async def test_client_that_leaves_while_its_request_is_placed_or_answered_here_cancels_that() -> None:
    """There was no placement yet, so there is none to end."""
    async with proxy_rig() as rig:
        rig.dispatcher.slow = asyncio.Event()
        for path in (b"/v1/chat/completions", b"/local/wait"):
            client = await rig.client()
            client.send(post(b"{}").replace(b"/v1/chat/completions", path))
            await eventually(lambda: rig.state.in_flight)
            client.finish()
            await eventually(lambda: not rig.state.in_flight and not rig.dispatcher.waiting)
        assert rig.placements == []


@pytest.mark.interpreted
@on_loop
async def test_client_that_leaves_while_a_worker_is_connected_to_cancels_that() -> None:
    """The attempt ends, and the placement with it."""
    async with proxy_rig() as rig:
        gate = asyncio.Event()
        connect = rig.state.pools.connect

        async def slow(endpoint: object) -> object:
            await gate.wait()
            return await connect(rig.engine.endpoint)

        rig.state.pools.connect = slow  # type: ignore[method-assign, assignment]
        client = await rig.client()
        client.send(post(b"{}"))
        await eventually(lambda: rig.placements)
        client.finish()
        await eventually(lambda: rig.placements[0].outcome is Outcome.CANCELLED)
        assert rig.engine.peers == []


@on_loop
async def test_client_that_is_not_read_from_is_seen_to_leave() -> None:
    """It had sent more ahead than is read: the kernel is asked."""
    async with proxy_rig(MockEngine("w0", never)) as rig:
        client = await rig.client()
        client.send(post(b"{}") + post(b"x" * 1000) * 10_000)
        await eventually(lambda: rig.placements)
        await asyncio.sleep(0.1)
        (connection,) = rig.state.clients
        assert 0 < len(connection._reader.pending) < 1 << 19, "10 MB were sent"
        client.abort()

        def seen() -> bool:
            rig.pass_time(1)
            return rig.placements[0].outcome is Outcome.CANCELLED

        await eventually(seen)


@on_loop
async def test_client_that_does_not_read_stops_the_worker() -> None:
    """What is held is bounded; when the client reads on, it gets every byte."""
    piece = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    count = 400

    async def flood(peer: Peer, request: Received) -> None:
        peer.send(CHUNKED)
        for _ in range(count):
            peer.send(piece)
            await peer.writer.drain()
        peer.send(b"0\r\n\r\n")

    async with proxy_rig(MockEngine("w0", flood)) as rig:
        client = await rig.client()
        client.writer.transport.pause_reading()
        client.send(post(b"{}"))
        (connection,) = await _connections(rig)
        held = 0
        passed = -1
        while passed != connection.passed_bytes:
            passed = connection.passed_bytes
            for _ in range(20):
                await asyncio.sleep(0.002)
                held = max(held, *(one.transport.get_write_buffer_size() for one in rig.state.clients))
        assert 0 < held < 1 << 20
        assert passed < count * len(piece)
        client.writer.transport.resume_reading()
        _, body = await client.answer()
        assert body == piece * count + b"0\r\n\r\n"


@on_loop
async def test_answers_do_not_pile_up_before_a_client_that_does_not_read() -> None:
    """The next request is not taken up before the client has read; then every answer comes."""
    body, count = b"x" * 200_000, 100
    async with proxy_rig(MockEngine("w0", says(content(body)))) as rig:
        client = await rig.client()
        client.writer.transport.pause_reading()
        client.send(post(b"") * count)
        await eventually(lambda: any(one._write_paused for one in rig.state.clients))
        await asyncio.sleep(0.1)
        (connection,) = rig.state.clients
        assert connection.transport.get_write_buffer_size() < 1 << 20
        assert len(rig.engine.received) < count
        client.writer.transport.resume_reading()
        for _ in range(count):
            assert (await client.answer())[1] == body


@on_loop
async def test_connection_that_was_paused_at_the_end_of_an_answer_is_read_from_again() -> None:
    """It serves the next request."""
    gate = asyncio.Event()

    async def script(peer: Peer, request: Received) -> None:
        peer.send(content(b"hello")[:-1])
        await gate.wait()
        peer.send(b"o")

    async with proxy_rig(MockEngine("w0", script)) as rig:
        client = await rig.client()
        client.send(post(b""))
        await client.head()
        (connection,) = rig.state.clients
        ((worker,),) = [list(pool.open) for pool in rig.state.pools._pools.values()]

        def full(data: bytes) -> None:
            connection.write(data)
            connection.pause_writing()

        worker._reader._sink = full
        gate.set()
        await client.reader.readexactly(5)
        connection.resume_writing()
        assert (await client.ask(post(b"")))[1] == b"hello"
        assert len(rig.engine.peers) == 1


@on_loop
async def test_client_that_never_reads_is_cut_off() -> None:
    """Its engine computes for nobody."""

    async def flood(peer: Peer, request: Received) -> None:
        peer.send(CHUNKED)
        while True:
            peer.send(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            await peer.writer.drain()

    async with proxy_rig(MockEngine("w0", flood)) as rig:
        client = await rig.client()
        client.writer.transport.pause_reading()
        client.send(post(b"{}"))
        await eventually(lambda: any(one._write_paused for one in rig.state.clients))
        rig.pass_time(1)
        assert rig.placements[0].outcome is None
        rig.pass_time(Limits().client_stall_s + 1)
        await eventually(lambda: rig.placements[0].outcome is Outcome.CANCELLED)


@on_loop
async def test_worker_that_is_silent_for_too_long_is_given_up() -> None:
    """Before its answer: 504. Within it: the stream says so, and the connection is closed, without an end."""
    async with proxy_rig(MockEngine("w0", never)) as rig:
        client = await rig.client()
        client.send(post(b"{}"))
        await eventually(lambda: rig.engine.received)
        rig.pass_time(Limits().worker_silence_s + 1)
        assert (await client.head()).startswith(b"HTTP/1.1 504 ")
        rig.engine.script = begin
        client = await rig.client()
        client.send(post(b"{}"))
        await client.head()
        rig.pass_time(1)
        rig.pass_time(Limits().worker_silence_s + 1)
        rest = await client.rest()
        assert (rest[:10], b"worker_timeout" in rest, b"0\r\n\r\n" in rest) == (b"5\r\nhello\r\n", True, False)


async def _connections(rig: Rig) -> list[object]:
    """Return the connections to the first engine, once there are any."""
    await eventually(lambda: rig.state.pools.open_count)
    return list(rig.state.pools[rig.engine.endpoint].open)
