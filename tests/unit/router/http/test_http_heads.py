"""Heads of requests and responses: what is remembered of the ones before never changes what is read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_router.http.protocol.limits import Limits
from ghostcacher_router.http.protocol.refusal import Refusal
from ghostcacher_router.http.protocol.request_head import checked_head, read_request_head, worker_request
from ghostcacher_router.http.protocol.request_reader import HeadReader
from ghostcacher_router.http.protocol.response_head import BadResponse, ResponseHeads, read_response_head

LIMITS = Limits()
LINES = (
    b"Content-Length: 5",
    b"content-length: 17",
    b"Content-Length:0",
    b"CONTENT-LENGTH: 5",
    b"Content-Length: 5 ",
    b"Content-Length: x",
    b"X-Content-Length: 5",
    b"X: Content-Length: 5",
    b"Transfer-Encoding: chunked",
    b"Connection: close",
    b"Connection: x-a, keep-alive",
    b"X-A: 1",
    b" folded",
    b"X-Request-Id: r",
    b"Date: today",
)
SEVERAL = st.lists(st.lists(st.sampled_from(LINES), max_size=5), min_size=2, max_size=6)


@given(SEVERAL)
def test_request_heads_of_one_connection_are_read_as_if_each_were_the_first(heads: list[list[bytes]]) -> None:
    """With lengths alike and different, in any place, malformed or doubled."""
    reader = HeadReader(LIMITS)
    for lines in heads:
        raw = b"".join(b"%b\r\n" % line for line in (b"POST /a?b HTTP/1.1", b"Host: h", *lines, b""))
        try:
            expected: object = (*read_request_head(raw, LIMITS.headers_max), b"rest")
        except Refusal as refusal:
            expected = (refusal.status, refusal.message)
        try:
            found: object = reader.feed(raw + b"rest")
        except Refusal as refusal:
            found = (refusal.status, refusal.message)
        assert found == expected


@given(SEVERAL, st.sampled_from((b"200 OK", b"200", b"204 No Content", b"100 Continue")))
def test_response_heads_of_one_worker_are_read_as_if_each_were_the_first(
    heads: list[list[bytes]], status: bytes
) -> None:
    """With any status, interim ones and those without a body among them."""
    known = ResponseHeads()
    for lines in heads:
        raw = b"".join(b"%b\r\n" % line for line in (b"HTTP/1.1 " + status, *lines, b""))
        try:
            expected: object = read_response_head(raw)
        except BadResponse as exc:
            expected = str(exc)
        last = known.last_in(raw + b"rest", len(raw))
        assert last is None or (last[:2], last[2]) == (expected, len(raw))
        try:
            found: object = known.parse(raw)
        except BadResponse as exc:
            found = str(exc)
        assert found == expected


def test_head_that_differs_in_its_length_alone_is_known_again() -> None:
    """As far as it is whole, a response proper, and not too long."""
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: 1\r\n\r\n"
    known = ResponseHeads()
    head, _ = known.parse(raw)
    longer = raw.replace(b"5", b"1234")
    assert known.last_in(longer + b"body", 100) == (head, 1234, len(longer))
    assert known.last_in(longer, len(longer) - 1) is None
    assert known.last_in(longer[:-1], 100) is None
    assert known.last_in(raw.replace(b"5", b"9" * 19), 100) is None
    known.parse(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert known.last_in(raw, 100) == (head, 5, len(raw))


def test_known_request_head_that_is_too_long_with_this_length_is_refused() -> None:
    """The digits of the length count."""
    raw = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n"
    reader = HeadReader(Limits(head_bytes_max=len(raw)))
    assert reader.feed(raw) is not None
    with pytest.raises(Refusal):
        reader.feed(raw.replace(b"5", b"12"))


def test_length_beside_a_remembered_chunked_response_is_refused() -> None:
    """What is remembered was without one."""
    raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    known = ResponseHeads()
    known.parse(raw)
    with pytest.raises(BadResponse):
        known.parse(raw.replace(b"Transfer", b"Content-Length: 5\r\nTransfer"))


AMBIGUOUS = [
    [(b"Host", b"other")],
    [(b"Content-Length", b"5"), (b"content-length", b"5")],
    [(b"Transfer-Encoding", b"chunked"), (b"Transfer-Encoding", b"chunked")],
    [(b"Content-Length", b"5"), (b"Transfer-Encoding", b"chunked")],
    [(b"Transfer-Encoding", b"gzip, chunked")],
    [(b"Transfer-Encoding", b"")],
    [(b"Content-Length", b"+5")],
    [(b"Content-Length", b"5, 5")],
    [(b"Content-Length", b"")],
    [(b"Content-Length", b"9" * 19)],
]


@pytest.mark.parametrize("pairs", AMBIGUOUS)
def test_ambiguous_head_is_refused_whatever_the_parser_let_through(pairs: list[tuple[bytes, bytes]]) -> None:
    """Where a request ends does not depend on the version of llhttp."""
    assert checked_head("POST", b"/", True, [(b"Host", b"h")])[1] == 0
    with pytest.raises(Refusal):
        checked_head("POST", b"/", True, [(b"Host", b"h"), *pairs])


def test_worker_under_a_path_gets_it_before_every_other() -> None:
    """And a length, where there is a body or might be."""
    head, length = read_request_head(b"PUT /a?b=c HTTP/1.1\r\nHost: h\r\nX-A: b\r\n\r\n", LIMITS.headers_max)
    assert length == 0
    raw = worker_request(head, b"/prefix", b"Host: w:1\r\n", b"X-Request-Id: r\r\n", 0)
    assert raw.split(b"\r\n") == [
        b"PUT /prefix/a?b=c HTTP/1.1",
        b"Host: w:1",
        b"X-A: b",
        b"X-Request-Id: r",
        b"Content-Length: 0",
        b"",
        b"",
    ]
