"""The HTTP server of simulated engines: it reads requests, remembers them, and hands each to a handler.

A handler writes whatever bytes it likes, also none, or half an answer: `api` has one that answers as an engine does.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Self

BODY_BYTES_MAX = 1 << 25


class Received(NamedTuple):
    """One request as it came.

    head: raw, with its empty line.
    headers: values by lower-case name.
    connection: number of its connection, from 0.
    """

    head: bytes
    headers: dict[bytes, bytes]
    body: bytes
    connection: int

    @property
    def method(self) -> str:
        return self.head.split(b" ", 1)[0].decode()

    @property
    def path(self) -> str:
        return self.head.split(b" ", 2)[1].decode()


class Peer:
    """The client's side of a connection, for a handler. number: of the connection, from 0."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self.reader = reader
        self.writer = writer
        self.number = number

    def send(self, *pieces: bytes) -> None:
        """Send, unless the client has left."""
        for piece in pieces:
            if not self.writer.transport.is_closing():
                self.writer.write(piece)

    async def send_split(self, data: bytes, at: int) -> None:
        """Send in two packets, the first one of `at` bytes."""
        self.writer.write(data[:at])
        await self.writer.drain()
        await asyncio.sleep(0.001)
        self.writer.write(data[at:])

    def abort(self) -> None:
        """Reset the connection."""
        self.writer.transport.abort()

    def close(self) -> None:
        """Close the connection when all is sent."""
        self.writer.close()

    async def left(self) -> None:
        """Return when the client has closed the connection."""
        try:
            while await self.reader.read(1 << 16):
                pass
        except ConnectionError:
            pass


Handler = Callable[[Peer, Received], Awaitable[None] | None]
"""What a server does with a request."""


class EngineServer:
    """An HTTP/1.1 server on a loopback port, which it keeps over a restart.

    handler: what it does with each request; it may be changed at any time.
    before: what it does with a new connection, before it reads anything.
    received: all requests, in order. peers: all connections. failures: what handlers raised.
    """

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.before: Callable[[Peer], Awaitable[None] | None] | None = None
        self.received: list[Received] = []
        self.peers: list[Peer] = []
        self.failures: list[BaseException] = []
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._reserved: socket.socket | None = None

    async def start(self, tls: ssl.SSLContext | None = None) -> None:
        """Listen; on the same port as before, if there was one."""
        self._release()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=BODY_BYTES_MAX, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Refuse connections from now on, and reset those that are open. Nobody else gets the port before `stop`."""
        await self.stop()
        # Bound, and not listening: the system gives it neither to a connection nor to a server that asks for any port.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", self.port))

    async def stop(self) -> None:
        """Refuse connections from now on, and reset those that are open."""
        self._release()
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _release(self) -> None:
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

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
        if headers.get(b"transfer-encoding") == b"chunked":
            body = await _chunks(peer.reader)
        else:
            body = await peer.reader.readexactly(int(headers.get(b"content-length", b"0")))
        request = Received(head, headers, body, peer.number)
        self.received.append(request)
        await _wait(self.handler(peer, request))
        if not peer.writer.transport.is_closing():
            await peer.writer.drain()


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    """Return a body that comes in chunks, without trailers."""
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    return body


async def _wait(result: Awaitable[None] | None) -> None:
    if result is not None:
        await result


def content(body: bytes, *headers: bytes, status: int = 200) -> bytes:
    """Return a whole answer with a Content-Length. headers: whole lines, such as ``b"x-name: value"``."""
    lines = b"".join(b"%b\r\n" % header for header in headers)
    reason = b"OK" if status == 200 else b"X"  # noqa: PLR2004 - HTTP's success
    return b"HTTP/1.1 %d %b\r\n%bContent-Length: %d\r\n\r\n%b" % (status, reason, lines, len(body), body)


def stream_head(*headers: bytes) -> bytes:
    """Return the head of an answer that is streamed in chunks of server-sent events."""
    lines = b"".join(b"%b\r\n" % header for header in headers)
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n%b\r\n" % lines


def chunk(body: bytes) -> bytes:
    """Return one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(body), body)


LAST_CHUNK = b"0\r\n\r\n"
