"""The HTTP proxy: what becomes of requests and clients when it stops."""

from __future__ import annotations

import asyncio
import json

import pytest

from ghostcacher_router.http.protocol.limits import Limits
from ghostcacher_router.types import Outcome
from tests.support.broken_answers import BreakingEngine, cut, request
from tests.support.mock_engine import CHUNKED, MockEngine, Peer, Received, chunk, echo
from tests.support.proxy_rig import PATIENCE_S, POST, eventually, on_loop, post, proxy_rig


@on_loop
async def test_stop_lets_requests_end_and_takes_no_more() -> None:
    """Idle clients are closed at once, busy ones after their answer."""
    gate = asyncio.Event()

    async def wait(peer: Peer, request: Received) -> None:
        await gate.wait()
        echo(peer, request)

    async with proxy_rig(MockEngine("w0", wait)) as rig:
        idle, busy = await rig.client(), await rig.client()
        busy.send(post(b"{}"))
        await eventually(lambda: rig.engine.received and len(rig.state.clients) == 2)
        stopping = asyncio.ensure_future(rig.proxy.stop(60.0))
        assert await idle.rest() == b""
        with pytest.raises(OSError, match="refused"):
            await asyncio.open_connection("127.0.0.1", rig.port)
        gate.set()
        head, body = await busy.answer()
        assert (b"connection: close" in head, body) == (True, b"{}")
        await stopping


@on_loop
async def test_client_that_reads_the_end_of_its_answer_during_stop_is_closed() -> None:
    """Its answer was written when the stop began; once it is read, nothing is waited for."""
    body = b"x" * (8 << 20)
    async with proxy_rig() as rig:
        client = await rig.client()
        client.writer.transport.pause_reading()
        client.send(post(body).replace(b"/v1/chat/completions", b"/local/page"))
        await eventually(lambda: any(one._write_paused for one in rig.state.clients) and not rig.state.in_flight)
        stopping = asyncio.ensure_future(rig.proxy.stop(60.0))
        await asyncio.sleep(0)
        client.writer.transport.resume_reading()
        assert (await client.answer())[1].endswith(body)
        assert await client.rest() == b""
        async with asyncio.timeout(PATIENCE_S):
            await stopping


@on_loop
async def test_client_that_comes_as_the_proxy_stops_is_closed() -> None:
    """It was accepted, but asyncio had not told of it yet."""
    async with proxy_rig() as rig:
        rig.state.draining = True
        assert await (await rig.client()).rest() == b""
        rig.state.draining = False


@on_loop
async def test_answer_that_is_cut_by_a_stop_does_not_look_whole() -> None:
    """Its time to end was over."""
    engine = BreakingEngine(b"HTTP/1.1 200 OK\r\n\r\nabc", silent=True)
    async with proxy_rig(engine) as rig:
        client = await rig.client()
        client.send(POST + b"Content-Length: 2\r\n\r\n{}")
        head = await client.head()
        assert await client.reader.readexactly(3) == b"abc"
        await rig.proxy.stop(0.0)
        assert await cut(client, head) == (True, b"")


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/v1/messages", b"/v1/responses"])
@on_loop
async def test_stream_that_is_cut_by_a_stop_tells_of_it(path: bytes, version: bytes) -> None:
    """As one that its worker breaks off does; its worker is told by the end of its connection."""
    event = b'data: {"sequence_number":4}\n\n'
    engine = BreakingEngine(CHUNKED + chunk(event), silent=True)
    chunked = version == b"1.1"
    passed = chunk(event) if chunked else event
    async with proxy_rig(engine) as rig:
        client = await rig.client()
        client.send(request(version, path))
        head = await client.head()
        assert await client.reader.readexactly(len(passed)) == passed
        stopping = asyncio.ensure_future(rig.proxy.stop(0.0))
        was_reset, rest = await cut(client, head)
        await stopping
        assert (was_reset, rest.endswith(b"0\r\n\r\n")) == (not chunked, False)
        error = json.loads(rest.partition(b"data: ")[2].rstrip())
        assert "router stops" in (error.get("error") or error)["message"]
        assert rig.placements[0].outcome is Outcome.CANCELLED
        assert rig.meter.answers == [(path.decode(), 200)]


@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/local/wait"])
@on_loop
async def test_request_that_a_stop_leaves_unanswered_gets_an_error(path: bytes) -> None:
    """Its client may try again, at another router: so may one whose body is still coming."""
    engine = BreakingEngine(b"", silent=True)
    async with proxy_rig(engine) as rig:
        client, sending = await rig.client(), await rig.client()
        client.send(request(b"1.1", path))
        sending.send(POST + b"Content-Length: 9\r\n\r\n{}")
        await eventually(lambda: len(rig.state.clients) == 2 and rig.state.in_flight == 1)
        stopping = asyncio.ensure_future(rig.proxy.stop(0.0))
        for one in (client, sending):
            head, body = await one.answer()
            assert head.startswith(b"HTTP/1.1 503 ")
            assert (b"retry-after: 1" in head, json.loads(body)["error"]["code"]) == (True, "router_stops")
        sending.abort()
        await stopping


@on_loop
async def test_client_that_reads_nothing_does_not_hold_up_a_stop() -> None:
    """It has `linger_s` to take its error."""
    engine = BreakingEngine(CHUNKED + chunk(b"x" * (16 << 20)), silent=True)
    async with proxy_rig(engine, limits=Limits(linger_s=0.05)) as rig:
        client = await rig.client()
        client.writer.transport.pause_reading()
        client.send(post(b"{}"))
        await eventually(lambda: any(one._write_paused for one in rig.state.clients))
        async with asyncio.timeout(PATIENCE_S):
            await rig.proxy.stop(0.0)
        client.writer.transport.resume_reading()
        assert await client.ends_with_reset()
