"""A reply of Redis is bounded in bytes, lines and time, by whichever of redis-py's parsers it is read."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from ghostcacher_connector.core.redis import reply_bounds
from ghostcacher_connector.core.redis.reply_bounds import BoundedSocket, ReplyTooLarge

Read = Callable[[BoundedSocket], int]


def by_redis_py(bounded: BoundedSocket) -> int:
    return len(bounded.recv(1 << 16))


def by_hiredis(bounded: BoundedSocket) -> int:
    return bounded.recv_into(bytearray(1 << 16))


READERS = pytest.mark.parametrize("read", [by_redis_py, by_hiredis])


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the bounds reached soon."""
    monkeypatch.setattr(reply_bounds, "REPLY_BYTES_MAX", 1000)
    monkeypatch.setattr(reply_bounds, "REPLY_LINES_MAX", 100)
    monkeypatch.setattr(reply_bounds, "UNCOUNTED_BYTES", 50)


@pytest.fixture
def pair() -> Iterator[tuple[BoundedSocket, socket.socket]]:
    """A bounded socket, and who sends to it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(30.0)
        yield BoundedSocket(ours), theirs


@READERS
def test_reply_of_too_many_bytes_is_refused(read: Read, pair: tuple[BoundedSocket, socket.socket]) -> None:
    """Though it comes in pieces none of which is; the reply to the next request is another one."""
    bounded, server = pair
    for _ in range(3):
        bounded.sendall(b"a question")
        for piece in (b"x" * 400, b"x" * 600):
            server.sendall(piece)
            assert read(bounded) == len(piece)
    server.sendall(b"x")
    with pytest.raises(ReplyTooLarge, match="at most 1000 bytes and 100 lines"):
        read(bounded)


@READERS
def test_reply_of_too_many_lines_is_refused(read: Read, pair: tuple[BoundedSocket, socket.socket]) -> None:
    """Each element becomes an object, however short it is; those of a short reply are not counted."""
    bounded, server = pair
    bounded.sendall(b"a question")
    for piece in (b"\n" * 50, b"\n" * 100):
        server.sendall(piece)
        assert read(bounded) == len(piece)
    server.sendall(b"\n")
    with pytest.raises(ReplyTooLarge):
        read(bounded)


@READERS
def test_reply_that_takes_too_long_in_all_is_given_up(
    read: Read, pair: tuple[BoundedSocket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first byte may be as late as one wait allows: an engine of Redis may block for that long."""
    bounded, server = pair
    monkeypatch.setattr(reply_bounds, "REPLY_TIMEOUTS", -1)
    bounded.sendall(b"a question")
    server.sendall(b"x")
    assert read(bounded) == 1
    server.sendall(b"x")
    with pytest.raises(TimeoutError, match="after 1 bytes"):
        read(bounded)


def test_looking_ahead_is_no_receiving(pair: tuple[BoundedSocket, socket.socket]) -> None:
    """Whether a connection is still there is asked with a peek."""
    bounded, server = pair
    bounded.sendall(b"a question")
    server.sendall(b"x" * 900)
    for _ in range(3):
        assert len(bounded.recv(1000, socket.MSG_PEEK)) == 900
    assert by_redis_py(bounded) == 900
