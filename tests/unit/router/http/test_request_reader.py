"""Reading the requests of one connection: wherever its bytes are cut, they are the same requests."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_router.http.protocol.limits import Limits
from ghostcacher_router.http.protocol.refusal import Refusal
from ghostcacher_router.http.protocol.request_reader import RequestReader

HEAD = b"POST /%d HTTP/1.1\r\nHost: h\r\n"
BODIES = st.lists(st.binary(max_size=40), min_size=1, max_size=4)
CUTS = st.lists(st.integers(0, 400), max_size=12)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """Return the data cut at these places; no piece is empty."""
    places = [0, *sorted(place for place in cuts if place < len(data)), len(data)]
    return [data[start:end] for start, end in pairwise(places) if start < end]


def read_all(reader: RequestReader, data: list[bytes]) -> list[tuple[str, bytes]]:
    """Return path and body of every request, in order; each is answered before the next one is read."""
    found = []
    for piece in data:
        body = reader.feed(piece)
        while body is not None:
            assert reader.head is not None
            found.append((reader.head.path, body))
            ahead = bytes(reader.pending)
            reader.pending.clear()
            body = reader.feed(ahead) if ahead else None
    return found


@given(BODIES, CUTS)
def test_requests_with_lengths_are_read_wherever_they_are_cut(bodies: list[bytes], cuts: list[int]) -> None:
    """None loses a byte to the one behind it."""
    requests = [
        HEAD % number + b"Content-Length: %d\r\n\r\n%b" % (len(body), body) for number, body in enumerate(bodies)
    ]
    reader = RequestReader(Limits())
    found = read_all(reader, pieces(b"".join(requests), cuts))
    assert found == [(f"/{number}", body) for number, body in enumerate(bodies)]
    assert (reader.in_body, reader.keep_alive, bytes(reader.pending)) == (False, True, b"")


@given(st.binary(min_size=1, max_size=60), CUTS)
def test_chunked_request_is_read_wherever_it_is_cut(body: bytes, cuts: list[int]) -> None:
    """Its content alone; while it comes, what is held and what has come are known."""
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:7], body[7:]) if part) + b"0\r\n\r\n"
    reader = RequestReader(Limits())
    for piece in pieces(HEAD % 0 + b"Transfer-Encoding: chunked\r\n\r\n" + chunks, cuts)[:-1]:
        assert reader.feed(piece) is None
        assert reader.body_bytes <= reader.received_bytes
        assert reader.in_body is (reader.head is not None)
    reader = RequestReader(Limits())
    data = HEAD % 0 + b"Transfer-Encoding: chunked\r\n\r\n" + chunks
    assert read_all(reader, pieces(data, cuts)) == [("/0", body)]
    assert (reader.in_body, reader.keep_alive) == (False, True)


def test_what_follows_a_chunked_request_ends_the_connection() -> None:
    """Where the next request begins is not known."""
    reader = RequestReader(Limits())
    assert reader.feed(HEAD % 0 + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n" + HEAD % 1) == b"a"
    assert not reader.keep_alive


def test_body_that_is_announced_too_large_is_refused_with_its_head_known() -> None:
    """The error is to be in the shape of the API that was asked."""
    reader = RequestReader(Limits(body_bytes_max=10))
    with pytest.raises(Refusal, match="at most 10 bytes"):
        reader.feed(HEAD % 0 + b"Content-Length: 11\r\n\r\n")
    assert reader.head is not None
    assert reader.head.path == "/0"


def test_released_reader_holds_nothing() -> None:
    """Neither half a head nor half a body."""
    for data in (
        HEAD % 0,
        HEAD % 0 + b"Content-Length: 9\r\n\r\nhalf",
        HEAD % 0 + b"Transfer-Encoding: chunked\r\n\r\n4",
    ):
        reader = RequestReader(Limits())
        assert reader.feed(data) is None
        reader.release()
        assert (reader.head, reader.in_body, reader.body_bytes, bytes(reader.pending)) == (None, False, 0, b"")
