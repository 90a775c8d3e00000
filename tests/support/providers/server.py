"""A server in the place of a hosted provider: TLS under a CA of its own, HTTP/1.1 read strictly, everything remembered.

Written from the public references of the APIs. What a provider would refuse is refused here, with the provider's own
status and in its own words, so that a test fails when the router sends what it should not.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?([^\r\n\0]*)")


class Authority(NamedTuple):
    """A certificate authority, and a certificate of it for `localhost`. All are paths of PEM files."""

    ca: Path
    certificate: Path
    key: Path

    def listening(self) -> ssl.SSLContext:
        """Return the TLS of a server with that certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(self.certificate, self.key)
        return context


def make_authority(folder: Path, name: str = "localhost") -> Authority:
    """Make a CA, and a certificate for a host name."""
    ca, ca_key = folder / "ca.pem", folder / "ca.key"
    certificate, key = folder / "server.pem", folder / "server.key"
    new = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "1",
    ]
    of_ca = ["-subj", "/CN=test CA", "-keyout", str(ca_key), "-out", str(ca)]
    signed = ["-CA", str(ca), "-CAkey", str(ca_key), "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
    signed += ["-addext", "basicConstraints=critical,CA:FALSE", "-keyout", str(key), "-out", str(certificate)]
    for command in ([*new, *of_ca], [*new, *signed]):
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    return Authority(ca, certificate, key)


class Asked(NamedTuple):
    """One request as it came."""

    method: str
    target: str
    headers: dict[str, str]
    """By lower-case name; none comes twice."""
    body: bytes
    connection: int
    """The number of the connection on which it came, from 1."""


class Peer:
    """The other side of one connection. left: set when the client has closed it."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.left = asyncio.Event()

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self, status: int, body: bytes, *lines: str, kind: str = "application/json") -> None:
        """Send a whole answer with a length."""
        head = [f"HTTP/1.1 {status} Said", f"content-type: {kind}", f"content-length: {len(body)}", *lines]
        await self.send("\r\n".join(head).encode() + b"\r\n\r\n" + body)

    async def stream(self, *lines: str) -> None:
        """Begin a stream of events in chunks."""
        head = [
            "HTTP/1.1 200 OK",
            "content-type: text/event-stream; charset=utf-8",
            "transfer-encoding: chunked",
            *lines,
        ]
        await self.send("\r\n".join(head).encode() + b"\r\n\r\n")

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.send(b"0\r\n\r\n")

    def abort(self) -> None:
        self._writer.transport.abort()


Script = Callable[[Peer, Asked], Awaitable[None]]


class ProviderServer:
    """Listens on a port of localhost. asked: all requests, in order. failures: what broke HTTP, or a script."""

    def __init__(self, authority: Authority, script: Script) -> None:
        self._authority = authority
        self.script = script
        self.asked: list[Asked] = []
        self.failures: list[str] = []
        self.connections = 0
        self.port = 0
        self._server: asyncio.Server | None = None
        self._peers: set[Peer] = set()

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    async def __aenter__(self) -> ProviderServer:
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", 0, ssl=self._authority.listening(), limit=1 << 22
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.close_connections()
        await self._server.wait_closed()
        assert self.failures == [], self.failures

    def close_connections(self) -> None:
        """Close what is open, as a provider does with what is idle."""
        for peer in list(self._peers):
            peer.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(writer)
        self._peers.add(peer)
        self.connections += 1
        number = self.connections
        try:
            while (asked := await self._read(reader, number)) is not None:
                self.asked.append(asked)
                await self._answer(reader, peer, asked)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        except Exception as exc:
            self.failures.append(repr(exc))
        finally:
            self._peers.discard(peer)
            peer.left.set()
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, peer: Peer, asked: Asked) -> None:
        answering = asyncio.ensure_future(self.script(peer, asked))
        watching = asyncio.ensure_future(reader.read(1))
        await asyncio.wait({answering, watching}, return_when=asyncio.FIRST_COMPLETED)
        if watching.done() and not answering.done():
            peer.left.set()
            answering.cancel()
        if not watching.done():
            watching.cancel()
            await asyncio.wait({watching})
        elif watching.result() != b"":
            raise AssertionError("bytes came before the answer was whole")
        await answering

    async def _read(self, reader: asyncio.StreamReader, number: int) -> Asked | None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as exc:
            if exc.partial:
                raise AssertionError(f"half a head: {exc.partial!r}") from None
            return None
        first, *lines = head[:-4].split(b"\r\n")
        method, target, version = first.decode("ascii").split(" ")
        assert version == "HTTP/1.1", first
        headers: dict[str, str] = {}
        for line in lines:
            found = HEADER.fullmatch(line)
            assert found is not None, line
            name = found[1].decode().lower()
            assert name not in headers, line
            headers[name] = found[2].decode("latin-1")
        assert headers["host"] == f"localhost:{self.port}", headers["host"]
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        return Asked(method, target, headers, body, number)
