"""An engine's HTTP server without an engine: records what it received, and answers with scripted bytes."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from ghostcacher_router.types import Endpoint

CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Received(NamedTuple):
    """One request as it came. head: raw, with its empty line. headers: lower-case names. connection: a count."""

    head: bytes
    headers: dict[bytes, bytes]
    body: bytes
    connection: int


class Peer:
    """The router's side of a connection, for a script. left: set once the router has closed."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self.reader = reader
        self.writer = writer
        self.number = number

    def send(self, *pieces: bytes) -> None:
        """Send, unless the router has left."""
        for piece in pieces:
            if not self.writer.transport.is_closing():
                self.writer.write(piece)

    async def send_split(self, data: bytes, at: int) -> None:
        """Send in two packets."""
        self.writer.write(data[:at])
        await self.writer.drain()
        await asyncio.sleep(0.001)
        self.writer.write(data[at:])

    def abort(self) -> None:
        """Reset the connection."""
        self.writer.transport.abort()

    def close(self) -> None:
        self.writer.close()

    async def left(self) -> None:
        """Return when the router has closed the connection."""
        try:
            while await self.reader.read(1 << 16):
                pass
        except ConnectionError:
            pass


Script = Callable[[Peer, Received], Awaitable[None] | None]


def content(body: bytes, *headers: bytes) -> bytes:
    """Return a whole answer with a Content-Length."""
    lines = b"".join(b"%b\r\n" % header for header in headers)
    return b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (lines, len(body), body)


def chunks(*bodies: bytes) -> bytes:
    """Return a chunked body."""
    return b"".join(b"%x\r\n%b\r\n" % (len(body), body) for body in bodies) + b"0\r\n\r\n"


def says(answer: bytes) -> Script:
    """A script that always answers the same."""
    return lambda peer, _: peer.send(answer)


def echo(peer: Peer, request: Received) -> None:
    """Answer with the request's body."""
    peer.send(content(request.body))


class MockEngine:
    """A server on a loopback port. script: what it does with each request; it may be changed at any time.

    before: what it does with a new connection, before it reads anything.
    """

    def __init__(self, name: str, script: Script = echo) -> None:
        self.name = name
        self.script = script
        self.before: Callable[[Peer], Awaitable[None] | None] | None = None
        self.received: list[Received] = []
        self.peers: list[Peer] = []
        self.failures: list[BaseException] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint("127.0.0.1", self.port, False, "")

    async def start(self, tls: ssl.SSLContext | None = None) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=1 << 25, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse connections from now on, and reset those that are open."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        peer = Peer(reader, writer, len(self.peers))
        self.peers.append(peer)
        try:
            if self.before is not None:
                await _wait(self.before(peer))
            while True:
                await self._one(peer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        except Exception as exc:
            self.failures.append(exc)
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _one(self, peer: Peer) -> None:
        head = await peer.reader.readuntil(b"\r\n\r\n")
        pairs = [line.partition(b": ") for line in head.split(b"\r\n")[1:-2]]
        headers = {name.lower(): value for name, _, value in pairs}
        body = await peer.reader.readexactly(int(headers.get(b"content-length", b"0")))
        request = Received(head, headers, body, peer.number)
        self.received.append(request)
        await _wait(self.script(peer, request))


async def _wait(result: Awaitable[None] | None) -> None:
    if result is not None:
        await result
