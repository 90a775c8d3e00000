"""Servers of this machine are asked past any proxy."""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ghostcacher_cli.loopback_http import open_url
from ghostcacher_cli.terminal.fleet import RouterClient, RouterUnreachable
from ghostcacher_cli.up.diagnosis import answers

PROTOCOL_ERROR = b"-ERR unknown command\r\n"
"""What a Redis answers to a request of HTTP."""


class Fine(BaseHTTPRequestHandler):
    """Answers everything with its path, as a server gets it: a proxy is told the whole URL."""

    def do_GET(self) -> None:
        body = self.path.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Fine) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_engine_and_router_of_this_machine_are_found_where_a_proxy_is_set(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy is not there, as none of this machine is on another one."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    assert answers(f"http://127.0.0.1:{port}/health")
    assert RouterClient(f"http://localhost:{port}", None).is_ready()


def test_server_of_another_machine_is_asked_as_the_environment_says(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    monkeypatch.delenv("no_proxy", raising=False)
    with open_url(urllib.request.Request("http://router.invalid/ready"), timeout_s=10.0) as reply:
        assert reply.read() == b"http://router.invalid/ready"


def test_server_that_does_not_speak_http_does_not_answer() -> None:
    """Somebody gave the port of Redis, or another program has that of an engine: no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"

        def speak() -> None:
            for _ in range(2):
                connection, _ = server.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(PROTOCOL_ERROR)

        thread = threading.Thread(target=speak, daemon=True)
        thread.start()
        assert not answers(f"{url}/health", timeout_s=10.0)
        with pytest.raises(RouterUnreachable, match=f"{url} does not answer: -ERR unknown command"):
            RouterClient(url, None, timeout_s=10.0).snapshot(0.0)
        thread.join()
