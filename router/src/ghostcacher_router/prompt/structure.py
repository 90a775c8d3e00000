"""How JSON is built, found out without building it: how many values it has, and how deeply they are nested.

Decoding makes an object of each value, forty times the bytes of ``[],[],...``, and an engine that passes nested values
on to its core may not survive them. So both are counted in the bytes alone, by operations that run at the speed of
memory: what is escaped goes first, then all that is no structure, then the strings. Only the brackets that are left are
walked.
"""

from __future__ import annotations

import re
from itertools import accumulate
from typing import NamedTuple

from ghostcacher_router.prompt.bodies import DEPTH_MAX, TooDeep

CONTAINERS_MAX = 1 << 20
"""The most objects and arrays in a body that is passed on. A conversation that fills a million tokens has some ten
thousand; an engine makes an object of each, whatever it stands for."""

PIECE_BYTES = 1 << 20
"""Bytes looked at in one go, which bounds the memory that this takes."""

_BACKSLASHES = re.compile(rb"\\*")
_STRUCTURE = b'"[]{},:'
_NO_STRUCTURE = bytes(sorted(set(range(256)) - set(_STRUCTURE)))
_ALIKE = bytes.maketrans(b"{}", b"[]")
_STEPS = [0] * 256
_STEPS[ord("[")], _STEPS[ord("]")] = 1, -1


class Structure(NamedTuple):
    """What was counted in JSON, or in what may be some."""

    values: int
    """Commas, colons and opening brackets outside strings: no fewer than the objects that decoding makes, but one."""
    containers: int
    """Opening brackets outside strings; counting ends where there are more than `CONTAINERS_MAX`."""
    depth: int
    """How many brackets are open at most."""
    closed: bool
    """Whether there are as many closing brackets; False also where counting ended at `CONTAINERS_MAX`."""


def structure_of(json: bytes) -> Structure:
    """Return how `json` is built. It is in UTF-8, and need not be valid.

    Takes some milliseconds per MiB at most, and a few MiB of memory whatever its size.
    """
    values = containers = start = 0
    in_string = False
    brackets = bytearray()
    while start < len(json) and containers <= CONTAINERS_MAX:
        end = _end_of_piece(json, start)
        outside, in_string = _outside_strings(json[start:end], in_string)
        start = end
        found = outside.translate(_ALIKE, b",:")
        opened = found.count(b"[")
        values += len(outside) - len(found) + opened
        containers += opened
        brackets += found
    if containers > CONTAINERS_MAX:
        return Structure(values, containers, 0, False)
    closed = not in_string and 2 * containers == len(brackets)
    return Structure(values, containers, _depth(brackets), closed)


def check_depth(json: bytes, depth: int) -> None:
    """Raise TooDeep where a value that stands `depth` levels deep makes its body too deep."""
    if structure_of(json).depth > DEPTH_MAX - depth:
        raise TooDeep


def _depth(brackets: bytearray) -> int:
    return max(accumulate(map(_STEPS.__getitem__, brackets)), default=0)


def _end_of_piece(json: bytes, start: int) -> int:
    """Return where a piece ends: not between a backslash and what it escapes."""
    end = start + PIECE_BYTES
    if end >= len(json) or json[end - 1 : end] != b"\\":
        return min(end, len(json))
    found = _BACKSLASHES.match(json, end)
    assert found is not None
    return found.end() + 1


def _outside_strings(piece: bytes, in_string: bool) -> tuple[bytes, bool]:
    """Return the structure in a piece without that in strings, and whether a string goes on behind it."""
    if b"\\" in piece:
        piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
    parts = piece.translate(None, _NO_STRUCTURE).split(b'"')
    outside = b"".join(parts[1::2] if in_string else parts[::2])
    return outside, in_string ^ (len(parts) % 2 == 0)
