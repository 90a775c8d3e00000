"""Reading a worker's responses: wherever their bytes are cut, the client gets the same ones, and their end is found."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_router.http.protocol.response_head import ResponseHead, ResponseHeads
from ghostcacher_router.upstreams.response_reader import INTERIM_COUNT_MAX, ResponseReader
from ghostcacher_router.upstreams.response_receiver import Sink

HEAD_BYTES_MAX = 1000
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
CUTS = st.lists(st.integers(0, 200), max_size=8)


class Receiver:
    """Records what it is told, and the bytes behind the head."""

    def __init__(self, *, no_body: bool = False, plain: bool = False, switching: bool = False) -> None:
        self.no_body, self.plain, self.switching = no_body, plain, switching
        self.told: list[str] = []
        self.body = b""
        self.announced: tuple[int | None, bool] | None = None
        self.error: str | None = None

    def response_head(self, head: ResponseHead, length: int | None, *, whole: bool) -> tuple[bytes, Sink]:
        self.told.append(f"head {head.status}")
        self.announced = (length, whole)
        return b"", self._take

    def _take(self, data: bytes) -> None:
        assert "begins" in self.told, self.told
        self.body += data

    def response_first_byte(self) -> None:
        self.told.append("first_byte")

    def response_begins(self) -> None:
        self.told.append("begins")

    def response_end(self, *, clean: bool) -> None:
        self.told.append("end" if clean else "end with surplus")

    def response_lost(self, error: str, *, began: bool) -> None:
        self.told.append(f"lost, {began}")
        self.error = error

    def response_bad(self, error: str) -> None:
        self.told.append("bad")
        self.error = error


class Subject:
    """A reader, and its owner, which detaches it as a connection does."""

    def __init__(self, head_bytes_max: int = HEAD_BYTES_MAX, heads: ResponseHeads | None = None) -> None:
        self.reusable: list[bool] = []
        self.reader = ResponseReader(heads or ResponseHeads(), head_bytes_max, self)

    def response_read(self, *, reusable: bool) -> None:
        self.reusable.append(reusable)
        self.reader.detach(reusable=reusable)

    def abort(self) -> None:
        self.reusable.append(False)
        self.reader.detach(reusable=False)

    def read(self, receiver: Receiver, data: bytes, cuts: list[int]) -> None:
        self.reader.begin(receiver)
        places = [0, *sorted(place for place in cuts if place < len(data)), len(data)]
        for start, end in pairwise(places):
            if start < end:
                self.reader.feed(data[start:end])


def chunks(body: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:5], body[5:]) if part) + b"0\r\n\r\n"


@given(st.binary(min_size=1, max_size=60), CUTS, st.sampled_from(("length", "chunked", "plain")))
def test_response_is_passed_on_whole_wherever_it_is_cut(body: bytes, cuts: list[int], kind: str) -> None:
    """A chunked one in its chunks, or out of them for a client that takes none; then the next response is read."""
    subject = Subject()
    for turn in range(2):
        receiver = Receiver(plain=kind == "plain")
        raw = OK + b"Content-Length: %d\r\n\r\n%b" % (len(body), body) if kind == "length" else CHUNKED + chunks(body)
        subject.read(receiver, raw, cuts)
        assert receiver.body == (chunks(body) if kind == "chunked" else body)
        assert receiver.told[0] == "head 200"
        assert sorted(receiver.told[1:]) == ["begins", "end", "first_byte"]
        assert subject.reusable == [True] * (turn + 1)


def test_response_that_comes_in_one_piece_is_announced_as_whole() -> None:
    """A chunked one, too, unless something is behind it."""
    body = chunks(b"in two chunks")
    for data, whole in ((body, True), (body[:-1], False), (body + b"0\r\n\r\n", False)):
        subject, receiver = Subject(), Receiver()
        subject.read(receiver, CHUNKED + data, [])
        assert receiver.announced == (None, whole), data
        assert receiver.body == body[: len(data)] or not whole


@given(CUTS)
def test_response_to_head_ends_with_its_head(cuts: list[int]) -> None:
    """The length it names is that of a body that does not come."""
    subject, receiver = Subject(), Receiver(no_body=True)
    subject.read(receiver, b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 9\r\n\r\n", cuts)
    assert (receiver.told, receiver.body, subject.reusable) == (["head 200", "begins", "end"], b"", [True])
    assert receiver.announced == (9, True)


def test_response_without_length_ends_with_its_connection() -> None:
    """Unless the connection broke: then it is not known to be whole."""
    for error, told in ((None, "end"), ("reset", "lost, True")):
        subject, receiver = Subject(), Receiver()
        subject.read(receiver, OK + b"\r\nall of it", [30])
        subject.reader.end_of_stream(error)
        assert (receiver.body, receiver.told[-1]) == (b"all of it", told)


@pytest.mark.parametrize(
    ("data", "told", "body"),
    [
        (b"nonsense\r\n\r\n", ["bad"], b""),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", ["bad"], b""),
        (OK + b"X: " + b"a" * HEAD_BYTES_MAX, ["bad"], b""),
        (OK + b"X: " + b"a" * HEAD_BYTES_MAX + b"\r\nContent-Length: 0\r\n\r\n", ["bad"], b""),
        (CHUNKED + b"zz\r\n", ["head 200", "first_byte", "bad"], b""),
        (OK + b"Content-Length: 2\r\n\r\nhi!", ["head 200", "first_byte", "begins", "end with surplus"], b"hi"),
    ],
)
def test_connection_with_a_bad_response_is_not_used_again(data: bytes, told: list[str], body: bytes) -> None:
    """What cannot be passed on, and bytes behind an end, reach nobody."""
    subject, receiver = Subject(), Receiver()
    subject.read(receiver, data, [])
    assert (receiver.told, receiver.body, subject.reusable) == (told, body, [False])
    assert (receiver.error is not None) is ("bad" in told)


@given(CUTS, st.booleans())
def test_bytes_behind_a_response_reach_nobody(cuts: list[int], chunked: bool) -> None:
    """Wherever the pieces begin, no more than the response is passed on; the connection is not used again."""
    body = chunks(b"hello world") if chunked else b"hello world"
    head = CHUNKED if chunked else OK + b"Content-Length: %d\r\n\r\n" % len(body)
    subject, receiver = Subject(), Receiver()
    subject.read(receiver, head + body + b"HTTP/1.1 204 No Content\r\n\r\n", cuts)
    assert body.startswith(receiver.body)
    assert subject.reusable[-1] is False


def test_bytes_that_nobody_asked_for_close_the_connection() -> None:
    """A response to somebody else, or a worker gone wrong."""
    subject = Subject()
    subject.reader.feed(OK)
    assert subject.reusable == [False]


def test_detached_receiver_hears_no_more() -> None:
    """It has left; what still comes is thrown away."""
    subject, receiver = Subject(), Receiver()
    subject.read(receiver, CHUNKED + b"5\r\nhello\r\n", [])
    subject.abort()
    told = list(receiver.told)
    subject.reader.feed(b"0\r\n\r\n")
    subject.reader.end_of_stream(None)
    assert (receiver.told, receiver.body) == (told, b"5\r\nhello\r\n")


@pytest.mark.parametrize(("data", "began"), [(b"", False), (b"H", True), (b"HTTP/1.1 100 Continue\r\n\r\n", True)])
def test_connection_that_breaks_says_whether_a_response_had_begun(data: bytes, began: bool) -> None:
    """Only what had not begun may be asked of another worker."""
    subject, receiver = Subject(), Receiver()
    subject.read(receiver, data, [])
    subject.reader.end_of_stream("reset")
    assert (receiver.told, receiver.error) == ([f"lost, {began}"], "reset")


SHORTEST = b"HTTP/1.1 102 \r\n\r\n"


@pytest.mark.parametrize("cuts", [[], [1, 50, 900, 5000], list(range(1, 6000))])
@pytest.mark.parametrize("header", [b"", b"X: " + b"a" * 100 + b"\r\n"])
def test_interim_responses_are_bounded_in_number_and_in_bytes(header: bytes, cuts: list[int]) -> None:
    """Together they may have as many bytes as one head, and be no more than a patient server sends."""
    interim = SHORTEST[:-2] + header + b"\r\n"
    heads_max = 100_000 if not header else HEAD_BYTES_MAX
    fitting = INTERIM_COUNT_MAX if not header else (HEAD_BYTES_MAX - len(OK) - 21) // len(interim)
    for count in (fitting, fitting + 1):
        subject, receiver = Subject(heads_max), Receiver()
        subject.read(receiver, interim * count + OK + b"Content-Length: 0\r\n\r\n", cuts)
        assert receiver.told == (["head 200", "begins", "end"] if count == fitting else ["bad"])
    subject, receiver = Subject(heads_max), Receiver()
    subject.read(receiver, OK + b"Content-Length: 0\r\n\r\n", [])
    assert receiver.told == ["head 200", "begins", "end"]


def test_interim_responses_are_counted_anew_for_each_response() -> None:
    """A connection that is kept for long does not use up what one response may have."""
    subject = Subject(100_000)
    for _ in range(3):
        receiver = Receiver()
        subject.read(receiver, SHORTEST * INTERIM_COUNT_MAX + OK + b"Content-Length: 0\r\n\r\n", [])
        assert receiver.told == ["head 200", "begins", "end"]


@pytest.mark.interpreted
def test_no_more_of_a_flood_of_interim_responses_is_parsed_than_is_allowed() -> None:
    """However many of them come in one piece."""
    parsed = []

    class Heads(ResponseHeads):
        def parse(self, raw: bytes) -> tuple[ResponseHead, int | None]:
            parsed.append(len(raw))
            return super().parse(raw)

    subject, receiver = Subject(1 << 20, Heads()), Receiver()
    subject.read(receiver, SHORTEST * 50_000, [])
    assert (receiver.told, len(parsed)) == (["bad"], INTERIM_COUNT_MAX + 1)
