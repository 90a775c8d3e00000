"""A terminal's other screen, given back as it was found, however the program ends."""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import FrameType, TracebackType
from typing import NoReturn, Self

ENTER = "\x1b[?1049h\x1b[?25l"
LEAVE = "\x1b[?25h\x1b[?1049l"
HOME = "\x1b[H"
CLEAR_LINE = "\x1b[K"
CLEAR_BELOW = "\x1b[J"


def is_interactive() -> bool:
    """Say whether a person sits at both ends of this program."""
    return sys.stdin.isatty() and sys.stdout.isatty()


class Screen(AbstractContextManager["Screen"]):
    """The alternate screen, with keys read one by one. Only where `is_interactive`."""

    def __enter__(self) -> Self:
        self._input = sys.stdin.fileno()
        self._attributes = termios.tcgetattr(self._input)
        # Else these would end the program at once, and leave the terminal as it is.
        self._handlers = {number: signal.signal(number, _leave) for number in (signal.SIGTERM, signal.SIGHUP)}
        tty.setcbreak(self._input)
        self._write(ENTER)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write(LEAVE)
        termios.tcsetattr(self._input, termios.TCSADRAIN, self._attributes)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    @property
    def size(self) -> os.terminal_size:
        return shutil.get_terminal_size()

    def draw(self, lines: Sequence[str]) -> None:
        """Replace what the screen shows. The lines fit its size."""
        self._write(HOME + f"{CLEAR_LINE}\r\n".join(lines) + CLEAR_LINE + CLEAR_BELOW)

    def key(self, timeout_s: float) -> str:
        """Return the keys that were pressed within this time; "" when none was. Raises EOFError when input ended."""
        ready, _, _ = select.select([self._input], [], [], timeout_s)
        if not ready:
            return ""
        data = os.read(self._input, 64)
        if not data:
            raise EOFError
        return data.decode(errors="replace")

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def _leave(number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
