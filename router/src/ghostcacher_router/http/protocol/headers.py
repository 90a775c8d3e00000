"""What the heads of requests and of responses have in common."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

HEAD_END = b"\r\n\r\n"
LENGTH_LINE = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ?([0-9]{1,18})(?=\r\n)")
"""A Content-Length as nearly everybody writes it."""
LENGTH_DIGITS_MAX = 18


class KnownHead(NamedTuple):
    """A head that was read, around the digits of its length: one that differs in these alone needs no parsing."""

    before: bytes
    """Up to the digits; all of it where the head names no length."""
    behind: bytes | None
    """From behind them to its end; None where the head names no length."""

    def found_in(self, data: bytes) -> tuple[int | None, int] | None:
        """Return the length that such a head names at the beginning of `data`, and where it ends; None for another."""
        before, behind = self
        if not data.startswith(before):
            return None
        at = len(before)
        if behind is None:
            return None, at
        end = data.find(b"\r", at, at + LENGTH_DIGITS_MAX + 1)
        if end < 0:
            return None
        digits = data[at:end]
        if not digits.isdigit() or not data.startswith(behind, end):
            return None
        return int(digits), end + len(behind)


CHUNKED = b"chunked"
WEBSOCKET = b"websocket"
"""The only protocol that a connection may be switched to."""

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    }
)


def listed_in(connection: bytes) -> set[bytes]:
    """Return the tokens of a Connection header, which names further headers that are hop-by-hop."""
    return {token.strip(b" \t") for token in connection.split(b",")}


def without_listed(lines: Sequence[bytes], listed: set[bytes]) -> list[bytes]:
    """Return the header lines whose names are not among `listed`, which are in lower case."""
    return [line for line in lines if line[: line.index(b":")].lower() not in listed]
