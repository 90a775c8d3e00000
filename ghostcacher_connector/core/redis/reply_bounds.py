"""Bounds of one reply of Redis: its bytes, its lines and its time. redis-py reads a reply of any announced length.

A Redis in which a stranger writes, or that is none, may answer a small question with gigabytes, with millions of tiny
elements, each of which becomes an object, or with a byte a second. So every connection reads through a socket that
counts; what is too much ends the connection, and the call with `ReplyTooLarge` or a time-out.
"""

from __future__ import annotations

import socket
import time
from typing import Any

from redis.exceptions import InvalidResponse

REPLY_BYTES_MAX = 32 << 20
"""The largest reply that we ask for is a page of records or of a stream: half of it (`PAGE_BYTES_MAX`) and a value."""

PAGE_BYTES_MAX = 16 << 20
"""Scripts that collect values end a page here."""

REPLY_LINES_MAX = 200_000
"""Each element of a reply begins a line: the largest reply of ours has a tenth of that."""

UNCOUNTED_BYTES = 64 << 10
"""Lines are counted beyond: a shorter reply has few, and nearly all are shorter."""

REPLY_TIMEOUTS = 4
"""A reply that comes in pieces may take so many time-outs in all, each piece one."""


class ReplyTooLarge(InvalidResponse):
    """A reply of Redis has more bytes or lines than any that was asked for."""


class BoundedSocket:
    """A connected socket, in all ways but one: what is received for one request is bounded."""

    def __init__(self, inner: socket.socket) -> None:
        self._inner = inner
        self._begin()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __repr__(self) -> str:
        return f"BoundedSocket({self._inner!r}, bytes={self._bytes})"

    def sendall(self, data: bytes) -> None:
        """Send a request. What is received from now on counts as its reply."""
        self._begin()
        self._inner.sendall(data)

    def recv_into(self, buffer: bytearray) -> int:
        """Receive a piece of a reply, as hiredis' parser does."""
        self._check_time()
        count = self._inner.recv_into(buffer)
        self._count(buffer, count)
        return count

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Receive a piece of a reply, as redis-py's own parser does. flags: a peek is no receiving."""
        if flags:
            return self._inner.recv(size, flags)
        self._check_time()
        data = self._inner.recv(size)
        self._count(data, len(data))
        return data

    def _begin(self) -> None:
        self._bytes = self._lines = 0
        timeout_s = self._inner.gettimeout()
        self._until = None if timeout_s is None else time.monotonic() + REPLY_TIMEOUTS * timeout_s

    def _check_time(self) -> None:
        if self._bytes and self._until is not None and time.monotonic() > self._until:
            raise TimeoutError(f"a reply of Redis has not ended after {self._bytes} bytes")

    def _count(self, data: bytes | bytearray, count: int) -> None:
        self._bytes += count
        if self._bytes > UNCOUNTED_BYTES:
            self._lines += data.count(b"\n", 0, count)
        if self._bytes > REPLY_BYTES_MAX or self._lines > REPLY_LINES_MAX:
            raise ReplyTooLarge(
                f"a reply of Redis: expected at most {REPLY_BYTES_MAX} bytes and {REPLY_LINES_MAX} lines, found more"
            )


def bound_replies(connection: Any) -> None:
    """Have a connection of redis-py that has just been made read through a `BoundedSocket`, and introduce itself.

    Given to redis-py as `redis_connect_func`, which takes the place of its own `on_connect`.
    """
    connection._sock = BoundedSocket(connection._sock)
    connection.on_connect()


def bound_cluster_replies(connection: Any) -> None:
    """Do the same for a cluster's connection, which has introduced itself before it calls this."""
    connection._sock = BoundedSocket(connection._sock)
    connection._parser.on_connect(connection)
