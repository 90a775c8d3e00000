"""What signals do to a router process: none but the second SIGTERM or SIGINT ends what is in flight."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from benchmarks.harness.router import RouterProcess
from tests.support.index_parts import wait_until

PATIENCE_S = 60.0
REQUEST = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"


class SilentEngine:
    """A server that takes connections, tells its health and one model, and answers everything else when it is told."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(PATIENCE_S)
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self.waiting: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        """Answer probes until another request has come, which then waits."""
        while not self.waiting:
            peer, _ = self._server.accept()
            peer.settimeout(PATIENCE_S)
            head = peer.recv(65536)
            if head.startswith(b"POST"):
                self.waiting.append(peer)
                continue
            body = b'{"object": "list", "data": [{"id": "m"}]}' if b"/v1/models" in head else b"{}"
            peer.sendall(answer(body, b"connection: close\r\n"))
            peer.close()

    def close(self) -> None:
        self._thread.join(PATIENCE_S)
        for peer in (*self.waiting, self._server):
            peer.close()


def answer(body: bytes, more: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\n%bcontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        more,
        len(body),
        body,
    )


class InFlight:
    """A router with one request in flight."""

    def __init__(self, router: RouterProcess, engine: SilentEngine, client: socket.socket) -> None:
        self.router, self._engine, self._client = router, engine, client

    def send(self, number: signal.Signals) -> None:
        os.kill(self.router.process.pid, number)

    def said(self, text: str) -> bool:
        return text in self.router.process.log_tail(200)

    def finish(self) -> bytes:
        """Let the engine answer; return what the client gets until the connection ends or pauses."""
        self._engine.waiting[0].sendall(answer(b"done"))
        return self._client.recv(65536)


@contextmanager
def in_flight(folder: Path, *arguments: str) -> Iterator[InFlight]:
    with closing(SilentEngine()) as engine:
        words = ("--drain-timeout-s", "3000", "--health-interval-s", "600", *arguments)
        with RouterProcess(workers=[engine.url], arguments=words, log_dir=folder) as router:
            address = ("127.0.0.1", router.port)
            router.wait_workers(1)
            with socket.create_connection(address, timeout=PATIENCE_S) as client:
                client.sendall(REQUEST)
                wait_until(lambda: engine.waiting, PATIENCE_S, "the request to be in flight")
                yield InFlight(router, engine, client)
                router.process.kill()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_other_signals_end_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """The router logs the signal and goes on: the request in flight is answered, and so is the next one."""
    with in_flight(tmp_path) as run:
        run.send(number)
        wait_until(lambda: run.said(number.name), PATIENCE_S, f"a line about {number.name}")
        assert run.finish().endswith(b"done")
        assert run.router.get("/health") == {"status": "ok"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_to_end_lets_requests_end(tmp_path: Path, number: signal.Signals) -> None:
    """The request in flight is answered, and then the process ends with 0, long before the time for that is over."""
    with in_flight(tmp_path) as run:
        run.send(number)
        wait_until(lambda: run.said("1 requests in flight"), PATIENCE_S, "the end to begin")
        assert run.finish().endswith(b"done")
        wait_until(lambda: run.router.process.poll() is not None, PATIENCE_S, "the router to end")
        assert run.router.process.poll() == 0


def test_requests_that_take_too_long_are_cut_and_counted(tmp_path: Path) -> None:
    """The log says how many there were."""
    with in_flight(tmp_path, "--drain-timeout-s", "0.2") as run:
        run.send(signal.SIGTERM)
        wait_until(lambda: run.router.process.poll() is not None, PATIENCE_S, "the router to end")
        assert run.router.process.poll() == 0
        assert run.said("1 requests have not ended, and are cut off")


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_to_end_ends_at_once(tmp_path: Path, second: signal.Signals) -> None:
    """Nobody has to wait for `drain_timeout_s` who asks twice."""
    with in_flight(tmp_path) as run:
        run.send(signal.SIGTERM)
        wait_until(lambda: run.said("1 requests in flight"), PATIENCE_S, "the end to begin")
        run.send(second)
        wait_until(lambda: run.router.process.poll() is not None, PATIENCE_S, "the router to end")
        assert run.router.process.poll() == 128 + second


def test_sighup_takes_over_what_changes_nothing_in_flight(tmp_path: Path) -> None:
    """The file is read again: the access log begins, what needs a restart is named, and a bad file changes nothing."""
    file = tmp_path / "router.toml"
    file.write_text("access_log = false")
    with in_flight(tmp_path, "--config", str(file)) as run:
        file.write_text("access_log = 7")
        run.send(signal.SIGHUP)
        wait_until(lambda: run.said("the settings stay as they are"), PATIENCE_S, "the bad file to be refused")
        file.write_text("access_log = true\nretries_max = 1\nadmin_token = '0123456789abcdef'")
        run.send(signal.SIGHUP)
        wait_until(lambda: run.said("changed: access_log"), PATIENCE_S, "the settings to be read")
        assert run.said("need a restart: admin_token, retries_max")
        assert not run.said("0123456789abcdef")
        run.router.get("/health")
        wait_until(lambda: run.said('"GET /health" 200'), PATIENCE_S, "a line of the access log")
