"""Numbers of a command line, checked as argparse wants it."""

from __future__ import annotations

import argparse

NUMBER_MAX = 1e12


class Whole:
    """Takes a whole number from a range."""

    def __init__(self, least: int, most: int) -> None:
        self._least, self._most = least, most

    def __call__(self, text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = self._least - 1
        if not self._least <= value <= self._most:
            expected = f"expected a whole number from {self._least} to {self._most}"
            raise argparse.ArgumentTypeError(f"{expected}, got {text!r}")
        return value


class Number:
    """Takes a number above 0, or from 0 on."""

    def __init__(self, *, at_least_0: bool = False) -> None:
        self._zero = at_least_0

    def __call__(self, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not (0 < value <= NUMBER_MAX or (value == 0 and self._zero)):
            raise argparse.ArgumentTypeError(f"expected a number {'from' if self._zero else 'above'} 0, got {text!r}")
        return value
