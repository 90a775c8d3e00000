"""A proxy that leaves its clients to another one, which listens where it did."""

from __future__ import annotations

import asyncio

from ghostcacher_router.http.proxy import LEAVE_IDLE_S
from ghostcacher_simulator.http_server import Peer, Received
from tests.support.mock_engine import CHUNKED, MockEngine, chunks
from tests.support.proxy_rig import PATIENCE_S, eventually, on_loop, post, proxy_rig


@on_loop
async def test_kept_connection_gets_one_more_answer() -> None:
    """It is told to connect again with that answer, and not closed while its client may be sending."""
    async with proxy_rig() as rig:
        client = await rig.client()
        head, _ = await client.ask(post(b"before"))
        assert b"connection: close" not in head.lower()
        leaving = asyncio.create_task(rig.proxy.leave(PATIENCE_S))
        await eventually(lambda: rig.state.leaving)
        head, body = await client.ask(post(b"after"))
        assert body == b"after"
        assert b"connection: close" in head.lower()
        assert await client.rest() == b""
        await leaving


@on_loop
async def test_stream_that_was_promised_a_next_request_gets_it_answered() -> None:
    """Its head was sent before: the client does not know yet that it is to connect again."""
    go_on = asyncio.Event()

    async def stream(peer: Peer, _: Received) -> None:
        peer.send(CHUNKED)
        await go_on.wait()
        peer.send(chunks(b"data: x\n\n"))

    engine = MockEngine("w0", stream)
    async with proxy_rig(engine) as rig:
        client = await rig.client()
        client.send(post(b"{}"))
        assert b"connection: close" not in (await client.head()).lower()
        leaving = asyncio.create_task(rig.proxy.leave(PATIENCE_S))
        await eventually(lambda: rig.state.leaving)
        go_on.set()
        async with asyncio.timeout(PATIENCE_S):
            assert (await client.reader.readuntil(b"0\r\n\r\n")).endswith(b"0\r\n\r\n")
        head, _ = await client.ask(post(b"{}"))
        assert b"connection: close" in head.lower()
        await leaving


@on_loop
async def test_client_that_asks_nothing_is_closed_after_a_while() -> None:
    """A restart does not wait for those who only hold connections."""
    async with proxy_rig() as rig:
        client = await rig.client()
        await client.ask(post(b"before"))
        leaving = asyncio.create_task(rig.proxy.leave(PATIENCE_S))
        await eventually(lambda: all(one.deadline <= rig.clock.now + LEAVE_IDLE_S for one in rig.state.clients))
        rig.pass_time(LEAVE_IDLE_S - 1.0)
        assert rig.state.clients
        rig.pass_time(2.0)
        assert await client.rest() == b""
        await leaving


@on_loop
async def test_nobody_is_waited_for_longer_than_for_requests_in_flight() -> None:
    """What `leave` has used of that time, `stop` has less."""
    engine = MockEngine("w0", lambda peer, _: peer.send(CHUNKED))
    async with proxy_rig(engine, drain_s=PATIENCE_S) as rig:
        client = await rig.client()
        client.send(post(b"{}"))
        await client.head()
        await rig.proxy.leave(0.0)
        assert rig.state.in_flight == 1
        rig.clock.now += PATIENCE_S
        stopping = asyncio.create_task(rig.proxy.stop(PATIENCE_S))
        assert b"error" in await client.rest()
        await stopping
