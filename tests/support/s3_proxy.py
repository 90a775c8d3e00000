"""A proxy in front of a real S3 server that can be away, slow, throttling, or break off in the middle of an answer."""

from __future__ import annotations

import http.client
import math
import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

CHUNK_BYTES = 16 << 10
HOP_HEADERS = {"connection", "transfer-encoding", "keep-alive", "content-length"}
SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)


class S3Proxy:
    """Passes every request on, signed as it is, as long as nothing else is asked of it.

    slow_down: methods that are answered 503 SlowDown, as AWS does when it throttles; slow_downs_left: how many of them.
    bytes_s: the rate of bodies; None: as they come. cut_after: a body breaks off after so many bytes; None: never.
    requests: how many came, by method.
    """

    def __init__(self, endpoint: str) -> None:
        self._upstream = urlsplit(endpoint)
        self.slow_down: frozenset[str] = frozenset()
        self.slow_downs_left = math.inf
        self.bytes_s: float | None = None
        self.cut_after: int | None = None
        self.requests: Counter[str] = Counter()
        self._connections: set[socket.socket] = set()
        self._server = self._listening(0)
        self.port = int(self._server.server_address[1])

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.go_away()

    def go_away(self) -> None:
        """Refuse connections, and break off those that there are."""
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def come_back(self) -> None:
        """Listen again, on the same port."""
        self._server = self._listening(self.port)

    def _listening(self, port: int) -> ThreadingHTTPServer:
        proxy = self

        class Handler(_Handler):
            def setup(self) -> None:
                super().setup()
                proxy._connections.add(self.connection)

            def finish(self) -> None:
                proxy._connections.discard(self.connection)
                super().finish()

            def forward(self) -> None:
                proxy.forward(self)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            allow_reuse_address = True

            def handle_error(self, request: object, client_address: object) -> None:
                """A client that goes away is no fault of ours."""

        server = Server(("127.0.0.1", port), Handler)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server

    def forward(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        self.requests[handler.command] += 1
        body = handler.rfile.read(int(handler.headers.get("content-length", 0)))
        if handler.command in self.slow_down and self.slow_downs_left > 0:
            self.slow_downs_left -= 1
            _answer(handler, 503, {"content-type": "application/xml"}, SLOW_DOWN, len(SLOW_DOWN), None)
            return
        if handler.command == "PUT":
            self._take_time(len(body))
        upstream = http.client.HTTPConnection(self._upstream.hostname or "", self._upstream.port, timeout=60)
        try:
            upstream.request(handler.command, handler.path, body, dict(handler.headers))
            answer = upstream.getresponse()
            data = answer.read()
            headers = {name: value for name, value in answer.getheaders() if name.lower() not in HOP_HEADERS}
            length = int(answer.headers.get("content-length", len(data)))
            cut = self.cut_after if handler.command == "GET" and answer.status in (200, 206) else None
            _answer(handler, answer.status, headers, data[:cut], length, self.bytes_s)
            handler.close_connection = cut is not None
        finally:
            upstream.close()

    def _take_time(self, size_bytes: int) -> None:
        if self.bytes_s is not None:
            time.sleep(size_bytes / self.bytes_s)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def forward(self) -> None:
        raise NotImplementedError

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = lambda self: self.forward()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def _answer(
    handler: BaseHTTPRequestHandler,
    status: int,
    headers: dict[str, str],
    data: bytes,
    length: int,
    bytes_s: float | None,
) -> None:
    handler.send_response_only(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("content-length", str(length))
    handler.end_headers()
    for at in range(0, len(data), CHUNK_BYTES):
        chunk = data[at : at + CHUNK_BYTES]
        handler.wfile.write(chunk)
        if bytes_s is not None:
            time.sleep(len(chunk) / bytes_s)
