"""A few lines at the bottom of a terminal that are overwritten, with permanent lines above them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import TextIO

from ghostcacher_cli.terminal.text import fit

UP = "\x1b[{}A"
CLEAR_BELOW = "\x1b[J"


class Live:
    """Permanent lines, and below them a region that changes. Where there is no terminal, permanent lines only."""

    def __init__(self, stream: TextIO) -> None:
        self.terminal = stream.isatty()
        self._stream = stream
        self._shown: list[str] = []

    def note(self, *lines: str) -> None:
        """Print lines that stay; without any, nothing is drawn."""
        if lines:
            self._write(self._erase() + "".join(f"{line}\n" for line in lines) + self._region())

    def show(self, lines: Sequence[str]) -> None:
        """Replace the region. Lines are cut at the terminal's width: a wrapped one could not be overwritten."""
        if not self.terminal:
            return
        size = shutil.get_terminal_size()
        erase = self._erase()
        self._shown = [fit(line, size.columns - 1) for line in lines[: max(1, size.lines - 2)]]
        self._write(erase + self._region())

    def clear(self) -> None:
        """Remove the region."""
        self._write(self._erase())
        self._shown = []

    def _erase(self) -> str:
        return f"\r{UP.format(len(self._shown))}{CLEAR_BELOW}" if self._shown else ""

    def _region(self) -> str:
        return "".join(f"{line}\n" for line in self._shown)

    def _write(self, text: str) -> None:
        if text:
            self._stream.write(text)
            self._stream.flush()
