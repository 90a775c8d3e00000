"""`ghostcacher status` and `top` against a server's answers, in a real terminal."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ghostcacher_cli import main as cli
from ghostcacher_cli.terminal.screen import ENTER, LEAVE
from tests.support.local_http import Asked, answering

ROOT = Path(__file__).resolve().parents[3]
DEADLINE_S = 60.0
TOKEN = "correct horse battery staple"
ANSWERS: dict[str, dict[str, Any]] = {
    "/gc/status": {"version": "1.2", "uptime_s": 5.0, "ready": True, "models": ["m"]},
    "/gc/stats": {},
    "/gc/workers": {"workers": [{"id": "worker-one", "state": "ready"}]},
    "/gc/pods": {"pods": [{"id": "worker-one", "state": "ready"}]},
}


def answer(asked: Asked) -> tuple[int, bytes]:
    """Answer like a router that wants a token."""
    known = asked.headers.get("authorization") == f"Bearer {TOKEN}"
    said = ANSWERS[asked.path] if known else {"error": {"message": "expected a token"}}
    return (200 if known else 401), json.dumps(said).encode()


@pytest.fixture
def url() -> Iterator[str]:
    with answering(answer) as url:
        yield url


class Top:
    """`ghostcacher top` with a terminal of its own."""

    def __init__(self, url: str) -> None:
        self.terminal, self._end = pty.openpty()
        self.before = termios.tcgetattr(self._end)
        self.seen = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ghostcacher_cli.main", "top", "--url", url],
            cwd=ROOT,
            env={**os.environ, "GC_ROUTER_ADMIN_TOKEN": TOKEN, "COLUMNS": "100", "LINES": "20"},
            stdin=self._end,
            stdout=self._end,
            stderr=subprocess.PIPE,
        )

    def read_until(self, text: str) -> None:
        while text not in self.seen:
            self.seen += os.read(self.terminal, 4096).decode()

    def given_back(self) -> bool:
        """Say whether the terminal is as it was."""
        self.read_until(LEAVE)
        return termios.tcgetattr(self._end) == self.before

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        os.close(self.terminal)
        os.close(self._end)


@pytest.fixture
def top(url: str) -> Iterator[Top]:
    top = Top(url)
    yield top
    top.close()


@pytest.mark.parametrize("key", [b"q", b"Q", b"\x03"])
def test_top_key_ends_it(top: Top, key: bytes) -> None:
    """top shows the fleet on the other screen until q or Ctrl-C, and gives the terminal back."""
    top.read_until("worker-one")
    assert ENTER in top.seen
    # From a terminal that is nobody's controlling one a Ctrl-C sends no signal: send it as the terminal would.
    top.process.send_signal(signal.SIGINT) if key == b"\x03" else os.write(top.terminal, key)
    assert top.process.wait(DEADLINE_S) == 0
    assert top.given_back()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_top_ended_by_signal_gives_terminal_back(top: Top, number: signal.Signals) -> None:
    """A top that is ended from outside leaves the terminal as it found it, too."""
    top.read_until("worker-one")
    top.process.send_signal(number)
    assert top.process.wait(DEADLINE_S) == 128 + number
    assert top.given_back()


def test_top_router_away_keeps_looking() -> None:
    """A router that does not answer is no reason to end: it may come back."""
    top = Top("http://127.0.0.1:1")
    try:
        top.read_until("does not answer")
        os.write(top.terminal, b"q")
        assert top.process.wait(DEADLINE_S) == 0
        assert top.given_back()
    finally:
        top.close()


@pytest.mark.parametrize("command", ["status", "top"])
def test_without_terminal_printed_once(
    url: str, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody looks at a screen the fleet is printed once, without control characters."""
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    assert cli.main([command, "--url", f"{url}/v1/", "--token-env", "MY_TOKEN"]) == 0
    shown = capsys.readouterr().out
    assert "worker-one  ready" in shown
    assert "\x1b" not in shown


def test_status_json(url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """--json prints what the router answered, for programs."""
    monkeypatch.setenv("GC_ROUTER_ADMIN_TOKEN", TOKEN)
    assert cli.main(["status", "--url", url, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["pods"] == ANSWERS["/gc/pods"]
    assert shown["workers"] == ANSWERS["/gc/workers"]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_status_fails_while_a_worker_is_gone(
    options: list[str], url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fleet that serves, but has lost a worker, is not all well: whoever watches the exit code learns of it."""
    gone = {"id": "worker-two", "state": "gone", "state_s": 42.0, "why": "its lease in Redis ended"}
    monkeypatch.setitem(ANSWERS, "/gc/status", ANSWERS["/gc/status"] | {"gone": [gone]})
    monkeypatch.setitem(ANSWERS, "/gc/workers", {"workers": [*ANSWERS["/gc/workers"]["workers"], gone]})
    monkeypatch.setenv("GC_ROUTER_ADMIN_TOKEN", TOKEN)
    assert cli.main(["status", "--url", url, *options]) == 1
    assert "worker-two" in capsys.readouterr().out


def test_status_refused_names_the_option(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A router that wants a token is not called unreachable: the message says how to give one."""
    assert cli.main(["status", "--url", url]) == 1
    assert "401: expected a token; give its admin token in GC_ROUTER_ADMIN_TOKEN, or name" in capsys.readouterr().err


def test_status_refused_for_another_reason_names_no_option(capsys: pytest.CaptureFixture[str]) -> None:
    """Where the router has no token set, and so refuses everybody, none is asked for."""
    refusal = {"error": {"message": "/gc/* is off: set admin_token"}}
    with answering(lambda _: (403, json.dumps(refusal).encode())) as url:
        assert cli.main(["status", "--url", url]) == 1
    assert capsys.readouterr().err.endswith("403: /gc/* is off: set admin_token\n")


def test_status_nobody_there(capsys: pytest.CaptureFixture[str]) -> None:
    """Where no router is, that is one line and exit code 1."""
    assert cli.main(["status", "--url", "http://127.0.0.1:1"]) == 1
    assert "http://127.0.0.1:1 does not answer" in capsys.readouterr().err
