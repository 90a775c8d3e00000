"""Server-sent events, however their bytes come."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher.client import event_decoder
from ghostcacher.client.errors import AnswerMalformed
from ghostcacher.client.event_decoder import Event, EventDecoder

STREAM = (
    "\ufeff: a comment\n\nevent: a\ndata: {}\n\ndata:x\r\ndata: \U0001f600\r\n\r\n"
    "id: 1\n\ndata\n\nevent: b\rdata:  y\r\rdata: cut"
).encode()
EVENTS = [Event("a", "{}"), Event("", "x\n\U0001f600"), Event("", ""), Event("b", " y")]


@given(st.sets(st.integers(1, len(STREAM) - 1)))
def test_however_bytes_are_cut_the_events_are_the_same(cuts: set[int]) -> None:
    """With all three ends of lines; an event that is not ended is none."""
    decoder = EventDecoder()
    places = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[begin:end] for begin, end in pairwise(places)]
    assert [event for piece in pieces for event in decoder.feed(piece)] == EVENTS


@pytest.mark.parametrize("piece", [b"x" * 20, b"data: x\n" * 3], ids=["one line", "many lines"])
def test_event_without_an_end_is_bounded(monkeypatch: pytest.MonkeyPatch, piece: bytes) -> None:
    monkeypatch.setattr(event_decoder, "EVENT_BYTES_MAX", 200)
    decoder = EventDecoder()
    with pytest.raises(AnswerMalformed, match="expected events of at most 200 bytes"):
        _ = [decoder.feed(piece) for _ in range(12)]
