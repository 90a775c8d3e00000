"""Where the values of a JSON text lie in its bytes, so that something can be put in without writing the rest anew.

The text is known to be valid JSON in UTF-8. Nothing is decoded but short keys; what is walked is bounded. Whatever is
unusual (a key with an escape, or one that comes twice) raises `Unclear`: who asks then leaves the text as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

TOKENS_MAX: Final = 200_000
"""The most strings and signs of structure that are walked for one text: some 0.1 s."""

_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{},:]', re.DOTALL)
_SPACE = b" \t\r\n"
_OPENING, _CLOSING = frozenset(b"[{"), frozenset(b"]}")
_QUOTE, _COMMA, _COLON, _BACKSLASH = b'",:\\'


class Unclear(Exception):
    """The text is built in a way that nobody who means well needs, or is too long to be walked."""


class Place(NamedTuple):
    """The bytes ``[start, end)`` of a value, without white space around it."""

    start: int
    end: int


class Insertion(NamedTuple):
    """Bytes that are put into a text."""

    at: int
    """Before which byte of the text."""
    data: bytes


class JsonPlaces:
    """Walks one text. top: the place of its value."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self._left = TOKENS_MAX
        start = len(text) - len(text.lstrip(_SPACE))
        self.top = Place(start, len(text.rstrip(_SPACE)))

    def __repr__(self) -> str:
        return f"JsonPlaces(bytes={len(self.text)})"

    def is_object(self, place: Place) -> bool:
        return self.text[place.start : place.start + 1] == b"{"

    def is_array(self, place: Place) -> bool:
        return self.text[place.start : place.start + 1] == b"["

    def is_string(self, place: Place) -> bool:
        return self.text[place.start : place.start + 1] == b'"'

    def bytes_of(self, place: Place) -> bytes:
        return self.text[place.start : place.end]

    def fields(self, place: Place) -> dict[bytes, Place]:
        """Return the places of an object's values, by key, in their order. Raises Unclear."""
        found: dict[bytes, Place] = {}
        for piece in self._pieces(place):
            key, value = piece
            if key is None or _BACKSLASH in key or key in found:
                raise Unclear(f"a key of the object at byte {place.start} is escaped, or comes twice")
            found[key] = value
        return found

    def items(self, place: Place) -> list[Place]:
        """Return the places of an array's items. Raises Unclear."""
        return [value for _, value in self._pieces(place)]

    def _pieces(self, place: Place) -> list[tuple[bytes | None, Place]]:
        """Return key and value of what commas divide; the key is None in an array."""
        pieces: list[tuple[bytes | None, Place]] = []
        key: bytes | None = None
        string: bytes | None = None
        begin, depth = place.start + 1, 0
        for token in _TOKEN.finditer(self.text, place.start + 1, place.end):
            self._left -= 1
            if self._left < 0:
                raise Unclear(f"more than {TOKENS_MAX} strings and signs")
            at = token.start()
            sign = self.text[at]
            if sign in _OPENING:
                depth += 1
            elif depth and sign in _CLOSING:
                depth -= 1
            elif depth:
                continue
            elif sign == _QUOTE:
                string = token[0][1:-1]
            elif sign == _COLON:
                key, begin = string, at + 1
            else:  # A comma, or the end.
                value = self._stripped(begin, at)
                if value.start < value.end:
                    pieces.append((key, value))
                key, string, begin = None, None, at + 1
        return pieces

    def _stripped(self, start: int, end: int) -> Place:
        text = self.text
        while start < end and text[start] in _SPACE:
            start += 1
        while end > start and text[end - 1] in _SPACE:
            end -= 1
        return Place(start, end)


def inserted(text: bytes, insertions: Iterable[Insertion]) -> bytes:
    """Return a text with insertions; of several at one place the first given comes first."""
    pieces: list[bytes] = []
    last = 0
    for at, data in sorted(insertions, key=lambda each: each.at):
        pieces += (text[last:at], data)
        last = at
    return b"".join((*pieces, text[last:]))
