"""The HTTP proxy and WebSocket: what switches, what is passed on in both directions, and how it ends."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK

from ghostcacher_router.http.protocol.limits import Limits
from ghostcacher_router.types import Outcome
from tests.support.mock_engine import MockEngine, Peer, Received, content, echo, says
from tests.support.proxy_rig import PATIENCE_S, Client, eventually, on_loop, post, proxy_rig

ASKS = (
    b"GET /v1/realtime?model=m HTTP/1.1\r\nHost: router\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nX-Tunnel: a\r\n\r\n"
)
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nKeep-Alive: timeout=5\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


class Switching(MockEngine):
    """Switches, says `first`, and sends back what it gets, if it `answers`, while `gate` is set."""

    def __init__(self, first: bytes = b"") -> None:
        super().__init__("w0", self.converse)
        self.first = first
        self.got = bytearray()
        self.answers = True
        self.gate = asyncio.Event()
        self.gate.set()

    async def converse(self, peer: Peer, request: Received) -> None:
        if b"upgrade" not in request.headers:
            echo(peer, request)
            return
        peer.send(SWITCH + self.first)
        while True:
            await self.gate.wait()
            data = await peer.reader.read(1 << 16)
            if not data:
                raise ConnectionError
            self.got += data
            if self.answers:
                peer.send(data)
            await peer.writer.drain()


def reset(peer: Peer) -> None:
    linger = struct.pack("ii", 1, 0)
    peer.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    peer.abort()


async def converses(client: Client, text: bytes) -> bool:
    client.send(text)
    async with asyncio.timeout(PATIENCE_S):
        return await client.reader.readexactly(len(text)) == text


@on_loop
async def test_conversation_passes_in_both_directions() -> None:
    """It is counted when it ends, with the status that it began with; no time to first token is made of it."""
    engine = Switching(b"\x81\x02hi")
    async with proxy_rig(engine) as rig:
        client = await rig.client()
        client.send(ASKS)
        head = await client.head()
        assert await client.reader.readexactly(4) == b"\x81\x02hi"
        assert await converses(client, b"\0\r\n\r\nGET / HTTP/1.1\r\n\r\n")
        assert (rig.state.in_flight, rig.meter.answers) == (1, [])
        (asked,) = engine.received
        assert (asked.headers[b"connection"], asked.headers[b"upgrade"]) == (b"Upgrade", b"websocket")
        assert asked.headers[b"sec-websocket-key"] == b"dGhlIHNhbXBsZSBub25jZQ=="
        assert asked.head.startswith(b"GET /v1/realtime?model=m HTTP/1.1\r\n")
        lines = head.lower().split(b"\r\n")
        assert lines[0] == b"http/1.1 101 switching protocols"
        assert lines.count(b"connection: upgrade") == lines.count(b"upgrade: websocket") == 1
        names = {line.partition(b":")[0] for line in lines}
        assert names >= {b"sec-websocket-accept", b"x-gc-worker", b"x-request-id"}
        assert not names & {b"content-length", b"transfer-encoding", b"keep-alive"}
        engine.peers[0].close()
        assert await client.rest() == b""
        assert rig.meter.answers == [("/v1/realtime", 101)]
        assert (rig.placements[0].told, rig.placements[0].outcome) == (["sent"], Outcome.DONE)
        assert rig.state.pools.open_count == 0


@on_loop
async def test_real_client_talks_to_real_server() -> None:
    """Compressed, in fragments and with large messages; a close is one that both sides understand."""

    async def answer(server: ServerConnection) -> None:
        async for message in server:
            await server.send(message)
        await server.close()

    async with proxy_rig() as rig, serve(answer, "127.0.0.1", 0, ping_interval=None) as server:
        rig.engine.port = server.sockets[0].getsockname()[1]
        async with connect(f"ws://127.0.0.1:{rig.port}/v1/realtime?model=m", ping_interval=None) as client:
            for message in ("hello", b"\0" * 300_000, "x" * 100_000):
                await client.send(message)
                assert await client.recv() == message
            await client.send(["in ", "pieces"])
            assert await client.recv() == "in pieces"
            await (await client.ping())
        assert client.close_code == 1000
        await eventually(lambda: rig.meter.answers == [("/v1/realtime", 101)])
        async with connect(f"ws://127.0.0.1:{rig.port}/x", ping_interval=None) as client:
            await server.connections.copy().pop().close(1001, "going")
            with pytest.raises(ConnectionClosedOK):
                await client.recv()
        async with connect(f"ws://127.0.0.1:{rig.port}/x", ping_interval=None) as client:
            for connection in server.connections:
                connection.transport.abort()
            with pytest.raises(ConnectionClosedError):
                await client.recv()


@on_loop
async def test_what_is_sent_ahead_belongs_to_whatever_the_worker_decides() -> None:
    """After a 101 it is the conversation's, and no request; after any other answer it is the next request."""
    ahead = post(b"ahead")
    engine = Switching()
    async with proxy_rig(engine) as rig:
        client = await rig.client()
        client.send(ASKS + ahead)
        await client.head()
        assert await client.reader.readexactly(len(ahead)) == ahead
        assert (len(engine.received), engine.got) == (1, ahead)
    for answer in (content(b"no", status=400), content(b"", b"Upgrade: websocket", status=426), content(b"yes")):
        refusing = MockEngine(
            "w0", lambda peer, request, answer=answer: echo(peer, request) if request.body else peer.send(answer)
        )
        async with proxy_rig(refusing) as rig:
            client = await rig.client()
            client.send(ASKS + ahead)
            await client.answer()
            assert (await client.answer())[1] == b"ahead"
            assert [request.method for request in refusing.received] == ["GET", "POST"]
            assert len(refusing.peers) == 1, "a connection that did not switch goes on"


NOT_ASKED = {
    "HTTP/1.0": ASKS.replace(b"HTTP/1.1", b"HTTP/1.0"),
    "POST": ASKS.replace(b"GET", b"POST"),
    "a body": ASKS.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\nhello"),
    "chunks": ASKS.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
    "no chunks": ASKS.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "another protocol": ASKS.replace(b"WebSocket\r\n", b"h2c\r\n", 1),
    "several protocols": ASKS.replace(b"WebSocket\r\n", b"websocket, h2c\r\n", 1),
    "protocol twice": ASKS.replace(b"Upgrade: WebSocket", b"Upgrade: websocket\r\nUpgrade: websocket"),
    "not listed": ASKS.replace(b"keep-alive, Upgrade", b"keep-alive"),
    "no protocol": ASKS.replace(b"Upgrade: WebSocket\r\n", b""),
}


@pytest.mark.parametrize("name", NOT_ASKED)
@on_loop
async def test_what_does_not_ask_for_websocket_alone_asks_for_nothing(name: str) -> None:
    """The worker sees a plain request, whatever came before on the connection; a 101 to it is an error."""
    engine = MockEngine("w0")
    plain = ASKS.replace(b"\r\n\r\n", b"\r\nContent-Length: 0\r\n\r\n")
    async with proxy_rig(engine) as rig:
        client = await rig.client()
        client.send(plain)
        await client.answer()
        client.send(NOT_ASKED[name])
        await client.answer()
        asked = engine.received[1]
        assert (b"upgrade" in engine.received[0].headers, b"upgrade" in asked.headers) == (True, False)
        assert b"connection" not in asked.headers
        if b"HTTP/1.0" in NOT_ASKED[name]:
            client = await rig.client()
        client.send(plain)
        await client.answer()
        engine.script = says(SWITCH)
        client.send(NOT_ASKED[name])
        head = await client.head()
        assert head.startswith(b"HTTP/1.1 502 ")


BAD_SWITCHES = {
    "no protocol": SWITCH.replace(b"Upgrade: websocket\r\n", b""),
    "another protocol": SWITCH.replace(b"websocket\r\n", b"h2c\r\n", 1),
    "not listed": SWITCH.replace(b"Connection: Upgrade", b"Connection: close"),
    "a length": SWITCH.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n"),
    "chunks": SWITCH.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "HTTP/1.0": SWITCH.replace(b"HTTP/1.1", b"HTTP/1.0"),
}


@pytest.mark.parametrize("name", BAD_SWITCHES)
@on_loop
async def test_switch_to_anything_else_is_an_error(name: str) -> None:
    """Nothing that was sent ahead reaches the worker, which may read it as it likes."""
    engine = MockEngine("w0", says(BAD_SWITCHES[name]))
    async with proxy_rig(engine) as rig:
        client = await rig.client()
        client.send(ASKS + post(b"smuggled"))
        assert (await client.head()).startswith(b"HTTP/1.1 502 ")
        await eventually(lambda: rig.state.pools.open_count <= 1)
        assert not any(b"smuggled" in peer.reader._buffer for peer in engine.peers)  # type: ignore[attr-defined]


@on_loop
async def test_side_that_does_not_read_stops_the_other() -> None:
    """What is held is bounded in both directions, and nothing is lost."""
    size = 16 << 20
    text = bytes(range(256)) * (size >> 8)
    engine = Switching()
    async with proxy_rig(engine) as rig:
        client = await rig.client()
        client.send(ASKS)
        await client.head()
        engine.gate.clear()
        engine.peers[0].writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.send(text)
        (connection,) = rig.state.clients
        (worker,) = rig.state.pools[rig.engine.endpoint].open
        await eventually(lambda: connection._read_paused)
        assert 0 < worker.unsent_bytes < 1 << 20
        client.writer.transport.pause_reading()
        engine.peers[0].writer.transport.resume_reading()  # type: ignore[attr-defined]
        engine.gate.set()
        await eventually(lambda: connection._write_paused)
        assert 0 < connection.transport.get_write_buffer_size() < 1 << 20
        client.writer.transport.resume_reading()
        came = await client.reader.readexactly(size)
        assert hash(came) == hash(text)


@on_loop
async def test_end_of_either_side_is_the_end_of_the_other() -> None:
    """A reset stays one; a client that leaves is counted as such, and its placement ends."""
    engine = Switching()
    async with proxy_rig(engine) as rig:
        for index, leave in enumerate((Client.finish, Client.abort)):
            client = await rig.client()
            client.send(ASKS)
            await client.head()
            assert await converses(client, b"hello")
            leave(client)
            await eventually(lambda index=index: rig.placements[index].outcome is Outcome.CANCELLED)
            await eventually(lambda: rig.state.pools.open_count == 0)
        assert rig.meter.answers == [("/v1/realtime", 499)] * 2
        client = await rig.client()
        client.send(ASKS)
        await client.head()
        assert await converses(client, b"hello")
        reset(engine.peers[-1])
        assert await client.ends_with_reset()
        assert rig.placements[-1].outcome is Outcome.FAILED


@on_loop
async def test_silent_conversation_ends_and_a_word_of_either_side_prolongs_it() -> None:
    """As any answer of which nothing comes."""
    engine = Switching()
    engine.answers = False
    step_s = Limits().worker_silence_s * 2 / 3
    async with proxy_rig(engine) as rig:
        client = await rig.client()
        client.send(ASKS)
        await client.head()
        (connection,) = rig.state.clients
        for speaker in (client, engine.peers[0]) * 2:
            rig.pass_time(step_s)
            passed = connection._exchange.passed_bytes
            speaker.send(b"word")
            await eventually(lambda passed=passed: connection._exchange.passed_bytes == passed + 4)
            rig.pass_time(1)
            assert rig.placements[0].outcome is None
        rig.pass_time(Limits().worker_silence_s + 1)
        assert await client.ends_with_reset()
        await eventually(lambda: rig.state.pools.open_count == 0)


@on_loop
async def test_stop_lets_a_conversation_end_and_then_cuts_it() -> None:
    """It is in flight until then; no new one begins."""
    engine = Switching()
    async with proxy_rig(engine) as rig:
        client, other = await rig.client(), await rig.client()
        for one in (client, other):
            one.send(ASKS)
            await one.head()
        stopping = asyncio.ensure_future(rig.proxy.stop(2.0))
        assert await converses(client, b"still here")
        engine.peers[0].close()
        assert await client.rest() == b""
        await stopping
        assert await other.ends_with_reset()


@on_loop
async def test_worker_that_does_not_take_the_request_is_no_reason_to_fail() -> None:
    """Another one switches; a crowded client makes no room, since it is at work."""
    first, second = MockEngine("w1"), Switching()
    async with proxy_rig(first, second, limits=Limits(connections_max=1)) as rig:
        await first.refuse()
        client = await rig.client()
        client.send(ASKS)
        assert (await client.head()).startswith(b"HTTP/1.1 101 ")
        assert [placement.outcome for placement in rig.placements] == [Outcome.REFUSED, None]
        late = await rig.client()
        assert (await late.head()).startswith(b"HTTP/1.1 503 ")
        assert await converses(client, b"hello")


@on_loop
async def test_conversation_hides_no_worker_that_hangs() -> None:
    """What the client goes on sending is no sign of life of the worker."""
    engine = Switching()
    async with proxy_rig(engine) as rig:
        client = await rig.client()
        client.send(ASKS)
        await client.head()
        assert await converses(client, b"hello")
        engine.answers = False
        rig.pass_time(1.0)
        since = rig.clock()
        for text in (b"are", b"you", b"there"):
            client.send(text)
            await eventually(lambda text=text: engine.got.endswith(text))
            rig.pass_time(1.0)
        rig.proxy.worker_hangs(engine.name, engine.endpoint, since)
        assert await client.ends_with_reset()
