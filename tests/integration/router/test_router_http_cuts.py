"""The HTTP proxy: answers that break off never look whole, to no client, and a stream of events says what happened."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from ghostcacher_router.http.protocol.limits import Limits
from ghostcacher_router.types import Outcome
from ghostcacher_router.upstreams.worker_connection import WorkerConnection
from tests.support.broken_answers import BreakingEngine, cut, request
from tests.support.mock_engine import CHUNKED, MockEngine, Peer, Received, chunk
from tests.support.proxy_rig import Client, Rig, eventually, on_loop, post, proxy_rig

HEADS = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    "until close": b"HTTP/1.1 200 OK\r\n\r\n",
}
BODY = {"length": b"abc", "chunked": b"3\r\nabc\r\n", "until close": b"abc"}
LENGTHLESS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


async def connections(rig: Rig) -> list[WorkerConnection]:
    """Return the connections to the only worker, once there are any."""
    await eventually(lambda: rig.state.pools.open_count)
    return list(rig.state.pools[rig.engine.endpoint].open)


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
@pytest.mark.parametrize("kind", HEADS)
@on_loop
async def test_answer_that_its_worker_resets_does_not_look_whole(kind: str, version: bytes) -> None:
    """Its framing says so, or its connection is reset behind the last byte that came."""
    engine = BreakingEngine(HEADS[kind] + BODY[kind])
    async with proxy_rig(engine) as rig:
        client = await rig.client()
        client.send(request(version))
        head = await client.head()
        plain = kind == "until close" or (kind, version) == ("chunked", b"1.0")
        passed = b"abc" if plain else BODY[kind]
        assert await client.reader.readexactly(len(passed)) == passed
        engine.gate.set()
        assert await cut(client, head) == (plain, b"")
        assert rig.placements[0].outcome is Outcome.FAILED
        await eventually(lambda: not rig.state.clients)


FORMS = {
    b"/v1/chat/completions": (b"data: ", lambda data: data["error"]["code"] == "bad_gateway"),
    b"/v1/completions?x=y": (b"data: ", lambda data: data["error"]["type"] == "server_error"),
    b"/generate": (b"data: ", lambda data: "broke off" in data["error"]["message"]),
    b"/v1/messages": (b"event: error\ndata: ", lambda data: data["error"]["type"] == "api_error"),
    b"/v1/responses": (b"event: error\ndata: ", lambda data: (data["type"], data["sequence_number"]) == ("error", 5)),
}


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
@pytest.mark.parametrize("framing", ["chunked", "until close"])
@pytest.mark.parametrize("path", FORMS)
@on_loop
async def test_stream_that_breaks_off_tells_of_it_in_the_form_of_its_api(
    path: bytes, framing: str, version: bytes
) -> None:
    """An event of its own, before the cut that no client can take for the end."""
    event = b'data: {"sequence_number":4}\n\n'
    engine = BreakingEngine(CHUNKED + chunk(event) if framing == "chunked" else LENGTHLESS + event)
    chunked = (framing, version) == ("chunked", b"1.1")
    passed = chunk(event) if chunked else event
    async with proxy_rig(engine) as rig:
        client = await rig.client()
        client.send(request(version, path))
        head = await client.head()
        assert await client.reader.readexactly(len(passed)) == passed
        engine.gate.set()
        was_reset, rest = await cut(client, head)
        assert was_reset is not chunked
        if chunked:
            size, _, rest = rest.partition(b"\r\n")
            assert len(rest) == int(size, 16) + 2
            rest = rest.removesuffix(b"\r\n")
        prefix, fits = FORMS[path]
        assert (rest[: len(prefix)], rest[-2:], rest.count(b"\n\n")) == (prefix, b"\n\n", 1)
        assert fits(json.loads(rest.removeprefix(prefix)))


@on_loop
async def test_event_that_is_cut_is_ended_before_the_error() -> None:
    """No parser takes the error for the rest of its line."""
    passed = b'data: {"delta": "he'
    engine = BreakingEngine(LENGTHLESS + passed)
    async with proxy_rig(engine) as rig:
        client = await rig.client()
        client.send(post(b"{}"))
        await client.head()
        assert await client.reader.readexactly(len(passed)) == passed
        engine.gate.set()
        was_reset, rest = await cut(client, b"")
        assert (was_reset, rest[:15]) == (True, b'\n\ndata: {"error')


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Type: text/event-stream\r\nContent-Length: 900",
        b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nContent-Encoding: gzip",
        b"Content-Type: text/plain\r\nTransfer-Encoding: chunked",
    ],
)
@on_loop
async def test_answer_that_an_event_would_spoil_gets_none(head: bytes) -> None:
    """One with a length, an encoded one, or one that is no stream of events: its framing alone shows the cut."""
    passed = b"3\r\nabc\r\n"
    engine = BreakingEngine(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + passed)
    async with proxy_rig(engine) as rig:
        client = await rig.client()
        client.send(post(b"{}"))
        seen = await client.head()
        assert await client.reader.readexactly(len(passed)) == passed
        engine.gate.set()
        assert await cut(client, seen) == (False, b"")


@on_loop
async def test_all_that_came_before_a_reset_arrives_at_a_slow_client() -> None:
    """The reset does not overtake it, however late the client reads."""
    body = bytes(range(256)) * (4 << 10)
    engine = BreakingEngine(HEADS["until close"] + body)
    async with proxy_rig(engine) as rig:
        client = await rig.client()
        client.writer.transport.pause_reading()
        client.send(post(b"{}"))
        (connection,) = await connections(rig)
        await eventually(lambda: connection.passed_bytes == len(body))
        engine.gate.set()
        await eventually(lambda: rig.placements[0].outcome is Outcome.FAILED)
        client.writer.transport.resume_reading()
        head = await client.head()
        for _ in range(len(body) >> 12):
            await client.reader.readexactly(1 << 12)
        rig.pass_time(0.1)
        task = asyncio.ensure_future(cut(client, head))
        while not task.done():
            rig.proxy.tick()
            await asyncio.sleep(0.001)
        assert task.result() == (True, b"")


@on_loop
async def test_client_that_never_takes_the_rest_is_reset_in_time() -> None:
    """What was sent is waited for no longer than after any other error."""
    engine = BreakingEngine(HEADS["until close"] + b"x" * (16 << 20))
    async with proxy_rig(engine) as rig:
        client = await rig.client()
        client.writer.transport.pause_reading()
        client.send(post(b"{}"))
        await eventually(lambda: any(one._write_paused for one in rig.state.clients))
        (connection,) = rig.state.clients
        connection._exchange.expire()
        rig.pass_time(Limits().linger_s / 2)
        assert (len(rig.state.clients), rig.placements[0].outcome) == (1, Outcome.FAILED)
        client.finish()
        await asyncio.sleep(0.05)
        rig.pass_time(Limits().linger_s)
        await eventually(lambda: not rig.state.clients)
        client.writer.transport.resume_reading()
        assert await client.ends_with_reset()
        client.abort()


@on_loop
async def test_client_that_sends_a_fin_never_takes_half_an_answer_for_a_whole_one() -> None:
    """It counts as having left; should it still read, it sees a reset."""
    engine = BreakingEngine(HEADS["until close"] + b"abc", silent=True)
    async with proxy_rig(engine) as rig:
        for version in (b"1.1", b"1.0"):
            client = await rig.client()
            client.send(request(version))
            head = await client.head()
            assert await client.reader.readexactly(3) == b"abc"
            client.finish()
            assert await cut(client, head) == (True, b"")


@pytest.mark.parametrize("size", [60_000, 8 << 20])
@on_loop
async def test_answer_that_nobody_reads_to_its_end_does_not_look_whole_later(size: int) -> None:
    """It was given up, whether or not all of it had come: whoever reads on sees a reset, and not the end of it."""

    async def close(peer: Peer, request: Received) -> None:
        peer.send(HEADS["until close"] + b"x" * size)
        await peer.writer.drain()
        peer.close()

    async with proxy_rig(MockEngine("w0", close)) as rig:
        small = socket.socket()
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
        small.connect(("127.0.0.1", rig.port))
        client = Client(*await asyncio.open_connection(sock=small))
        client.writer.transport.pause_reading()
        await eventually(lambda: rig.state.clients)
        (connection,) = rig.state.clients
        connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 12)
        client.send(post(b"{}"))
        await eventually(lambda: connection._write_paused or repr(connection).count("CLOSED"))
        assert connection.transport.get_write_buffer_size() > 0
        rig.pass_time(1)
        rig.pass_time(Limits().client_stall_s + 1)
        await eventually(lambda: not rig.state.clients)
        client.writer.transport.resume_reading()
        assert await client.ends_with_reset()
        client.abort()
