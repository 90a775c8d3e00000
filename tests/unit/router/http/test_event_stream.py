"""Streams of events that break off: wherever that is, the error event that follows is one that parsers see."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from httptools import HttpResponseParser
from hypothesis import example, given
from hypothesis import strategies as st

from ghostcacher_router.http.protocol.event_stream import ChunkPosition, EventStream
from ghostcacher_router.http.protocol.refusal import Refusal

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
BROKE = Refusal(502, "the worker broke off", code="bad_gateway")
CHAT = "/v1/chat/completions"
EVENTS = b'data: {"n": 1}\n\ndata: {"n": 2}\r\n\r\n: ping\n\ndata: {"n": 3}\n\n'
SPLITS = st.lists(st.integers(1, len(EVENTS) - 1), max_size=8)
CUTS = st.lists(st.integers(0, 200), max_size=8)


class Read:
    """A chunked response as a client reads it."""

    def __init__(self, raw: bytes) -> None:
        self.content = b""
        self.ended = False
        HttpResponseParser(self).feed_data(raw)

    def on_body(self, data: bytes) -> None:
        self.content += data

    def on_message_complete(self) -> None:
        self.ended = True


def events_of(content: bytes) -> list[bytes]:
    """Return the lines of each event as the standard has it; a last one without an end is none."""
    lines = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    events, event = list[bytes](), list[bytes]()
    for line in lines:
        if line:
            event.append(line)
        elif event:
            events.append(b"\n".join(event))
            event = []
    return events


def chunked(content: bytes, splits: list[int], extension: bytes = b"") -> bytes:
    places = [0, *sorted(set(splits)), len(content)]
    parts = [content[start:end] for start, end in pairwise(places)]
    return b"".join(b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in parts if part) + b"0\r\n\r\n"


def passed(raw: bytes, cuts: list[int], *, chunked: bool = True) -> tuple[bytes, EventStream]:
    """Pass on a head and `raw` in pieces; return what the client has, and the stream."""
    got = bytearray()
    stream = EventStream(got.extend, chunked=chunked)
    whole = HEAD + raw
    places = [0, len(HEAD), *sorted(len(HEAD) + cut for cut in cuts if cut < len(raw)), len(whole)]
    for start, end in pairwise(places):
        if start < end:
            stream.write(whole[start:end])
    return bytes(got), stream


@example([1, 2, 3, 4, 5, 6, 7, 56], [], 101, b"")
@example([1], [], 6, b"")
@given(SPLITS, CUTS, st.integers(0, 200), st.sampled_from([b"", b";a=b", b";" + b"x" * 60]))
def test_error_is_the_last_event_wherever_chunks_break_off(
    splits: list[int], cuts: list[int], at: int, extension: bytes
) -> None:
    """The client's framing stays right and has no end; the error is an event of its own, unless nothing may follow."""
    raw = chunked(EVENTS, splits, extension)[:at]
    got, stream = passed(raw, cuts)
    ending = stream.ending(CHAT, BROKE)
    before, after = Read(got), Read(got + ending)
    line = raw.rpartition(b"\n")[2] if not raw.endswith(b"\n") else b""
    if ending:
        assert (after.ended, after.content.startswith(before.content)) == (False, True)
        error = events_of(after.content)[-1].removeprefix(b"data: ")
        assert json.loads(error)["error"]["message"] == "the worker broke off"
        whole_before = events_of(before.content)
        assert events_of(after.content)[: len(whole_before)] == whole_before
    else:
        assert line or raw.endswith((b"0\r\n", b"0%b\r\n" % extension, b"0\r\n\r\n", extension + b"\r\n\r\n"))


def test_error_follows_an_event_without_another_empty_line() -> None:
    """Where an event has ended, or none has begun, nothing is to be ended; a cut line is."""
    for body, prefix in ((b"", b""), (b"data: 1\n\n", b""), (b"data: 1\r\n\r\n", b""), (b"data: 1", b"\n\n")):
        _, stream = passed(body, [], chunked=False)
        assert stream.ending(CHAT, BROKE).partition(b"data: ")[0] == prefix


def test_error_within_a_chunk_ends_the_chunk() -> None:
    """As far as its size goes; the rest is a chunk of its own. A chunk with more room than that stays open."""
    _, stream = passed(b"data: ", [], chunked=False)
    size = len(stream.ending(CHAT, BROKE))
    for room in (1, 2, 5, 40, size - 1, size, size + 1, size + 2, size + 99):
        _, stream = passed(b"%x\r\ndata: " % (6 + room), [])
        got = Read(HEAD + b"%x\r\ndata: " % (6 + room) + stream.ending(CHAT, BROKE))
        assert b'"bad_gateway"' in got.content
        assert not got.ended
        assert got.content.endswith(b"}\n\n")


def test_nothing_follows_the_last_chunk_or_a_cut_size() -> None:
    """It would be read as a trailer, or as digits of that size."""
    for raw in (
        b"5\r\nhello\r\n0\r\n",
        b"00\r\n\r\n",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\r\n5",
        b"5\r",
        b"5;" + b"a" * 5000,
    ):
        _, stream = passed(raw, [2, 3])
        assert stream.ending(CHAT, BROKE) == b"", raw


@pytest.mark.parametrize(
    ("path", "event", "data"),
    [
        (
            "/v1/chat/completions",
            None,
            {"error": {"message": "m", "type": "server_error", "param": None, "code": "bad_gateway"}},
        ),
        ("/v1/messages", b"error", {"type": "error", "error": {"type": "api_error", "message": "m"}}),
        (
            "/v1/responses",
            b"error",
            {"type": "error", "sequence_number": 8, "code": "bad_gateway", "message": "m", "param": None},
        ),
    ],
)
def test_error_has_the_form_of_its_api(path: str, event: bytes | None, data: dict[str, object]) -> None:
    """As the API's own libraries raise it; an event with a number gets the next one."""
    _, stream = passed(b'data: {"sequence_number":6}\n\ndata: {"sequence_number": 7}\n\n', [], chunked=False)
    lines = stream.ending(path, Refusal(502, "m", code="bad_gateway")).split(b"\n")
    assert lines[-2:] == [b"", b""]
    assert lines[:-3] == ([] if event is None else [b"event: " + event])
    assert json.loads(lines[-3].removeprefix(b"data: ")) == data


@given(CUTS)
def test_position_does_not_depend_on_where_pieces_begin(cuts: list[int]) -> None:
    """Sizes in either case and with extensions, cut anywhere."""
    raw = b"A;x\r\n0123456789\r\n0b\r\n0123"
    position = ChunkPosition()
    places = [0, *sorted(cut for cut in cuts if cut < len(raw)), len(raw)]
    for start, end in pairwise(places):
        position.feed(raw[start:end])
    assert (position.missing_bytes, position.extensible) == (9, True)
