"""What a person sees: plain-text tables, one progress line, and programs that can be interrupted."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn, TextIO

from ghostcacher_cli.terminal.text import milliseconds, percentile, table

__all__ = [
    "Interrupted",
    "ProgressLine",
    "interruptible",
    "mebibytes",
    "milliseconds",
    "now",
    "percentile",
    "rate",
    "table",
]

PLAIN_INTERVAL_S = 10.0
"""Between lines of progress where they cannot be overwritten."""


def mebibytes(count: float) -> str:
    return f"{count / (1 << 20):,.1f} MiB"


def rate(count: float, seconds: float) -> str:
    """Return bytes over seconds in GB/s (10^9 bytes)."""
    return f"{count / seconds / 1e9:.2f} GB/s" if seconds > 0 else "-"


def now() -> float:
    """Return the clock for measurements, in seconds."""
    return time.perf_counter()


class ProgressLine:
    """One line that is overwritten on a terminal; elsewhere a line now and then, and whenever `done` is called."""

    def __init__(self, stream: TextIO | None = None, *, timed: bool = False) -> None:
        """timed: each line begins with the seconds since now."""
        self._stream = stream or sys.stderr
        self._since = time.monotonic() if timed else None
        self._terminal = self._stream.isatty()
        self._printed_at = float("-inf")
        self._width = 0

    def __call__(self, text: str) -> None:
        """Show the state of affairs."""
        text = self._stamped(text)
        if self._terminal:
            print("\r" + text.ljust(self._width), end="", file=self._stream, flush=True)
            self._width = len(text)
        elif time.monotonic() - self._printed_at >= PLAIN_INTERVAL_S:
            print(text, file=self._stream, flush=True)
            self._printed_at = time.monotonic()

    def done(self, text: str) -> None:
        """Show the outcome, and leave it standing."""
        lead = "\r" if self._terminal else ""
        print(lead + self._stamped(text).ljust(self._width), file=self._stream, flush=True)
        self._width = 0
        self._printed_at = float("-inf")

    def _stamped(self, text: str) -> str:
        return text if self._since is None else f"[{time.monotonic() - self._since:3.0f} s] {text}"


class Interrupted(BaseException):
    """The program was asked to end by a signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.exit_status = 128 + number


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into `Interrupted`, so that everything that was started is ended.

    Further signals are ignored while that happens: it is bounded (seconds), and cutting it short would leave orphans.
    """

    def interrupt(number: int, _: FrameType | None) -> NoReturn:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(number)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
