"""Where the model's output begins in a stream of /v1/responses."""

from __future__ import annotations

import pytest

from ghostcacher_router.http.protocol.output_begin import OutputFinder

HEAD = b"HTTP/1.1 200 OK\r\n\r\n"
ECHO = b'{"response":{"instructions":"\\nevent: response.output_item.added","input":"event: response.completed"}}'
BEFORE = b"".join(
    b"event: response.%b\ndata: %b\n\n" % (name, ECHO) for name in (b"created", b"queued", b"in_progress")
)
OUTPUT = b"event: response.output_item.added\ndata: {}\n\n"
FAILED = b"event: response.failed\ndata: {}\n\n"


def fed(*pieces: bytes) -> list[object]:
    """Return what was passed on, and where the output was said to begin."""
    told: list[object] = []
    finder = OutputFinder(told.append, lambda: told.append("begun"))
    for piece in pieces:
        finder(piece)
    return told


@pytest.mark.parametrize("after", [OUTPUT, FAILED])
@pytest.mark.parametrize("size", [1, 10, 1 << 16])
def test_output_begins_with_the_first_event_of_its_own(after: bytes, size: int) -> None:
    """Whatever the echo of the request holds, and in whatever pieces it comes; once."""
    before = HEAD + BEFORE
    pieces = [before[at : at + size] for at in range(0, len(before), size)]
    told = fed(*pieces, *[after] * 3)
    assert told == [*pieces, "begun", *[after] * 3]


def test_line_that_is_cut_is_found() -> None:
    whole = HEAD + BEFORE + OUTPUT
    for at in range(len(HEAD + BEFORE), len(whole)):
        assert fed(whole[:at], whole[at:]).count("begun") == 1


def test_stream_that_ends_before_says_nothing() -> None:
    assert "begun" not in fed(HEAD, BEFORE)
