"""The parser of a command that has many options."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import Any, NoReturn

OPTION_SIMILARITY = 0.75
"""How alike an option has to be to the one that was written, to be the one that was meant: 0 to 1."""

UNRECOGNIZED = "unrecognized arguments: "
"""What argparse puts before the words that are none of a parser's."""


class OptionParser(argparse.ArgumentParser):
    """A parser whose refusals fit a screen: usage in one line, and the option that was probably meant.

    arguments: what stands before the options, such as ``LOAD``.
    """

    def __init__(self, command: str, arguments: str = "", **how: Any) -> None:
        prog = f"ghostcacher {command}"
        super().__init__(prog=prog, usage=" ".join([prog, *arguments.split(), "[options]"]), allow_abbrev=False, **how)

    def error(self, message: str) -> NoReturn:
        """End the program: usage, what is wrong, and where all options are listed."""
        _, unrecognized, words = message.partition(UNRECOGNIZED)
        if unrecognized:
            known = [name for action in self._actions for name in action.option_strings]
            hints = [_hint(word.partition("=")[0], known) for word in words.split() if word.startswith("--")]
            message = "; ".join([message, *filter(None, hints)])
        self.exit(2, f"usage: {self.usage}\n{self.prog}: error: {message}\n{self.prog} --help lists the options\n")


def _hint(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=OPTION_SIMILARITY)
    return f"did you mean {close[0]}?" if close else ""
