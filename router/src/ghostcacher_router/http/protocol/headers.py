"""What the heads of requests and of responses have in common."""

from __future__ import annotations

import re
from collections.abc import Sequence

HEAD_END = b"\r\n\r\n"
LENGTH_LINE = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ?([0-9]{1,18})(?=\r\n)")
"""A Content-Length as nearly everybody writes it."""
LENGTH_DIGITS_MAX = 18
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
