"""What answers say that they used, in the forms of every provider and however they are cut."""

from __future__ import annotations

import json
from binascii import crc32
from struct import pack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_router.http.protocol.response_head import read_response_head
from ghostcacher_router.providers.costs import usage as usage_module
from ghostcacher_router.providers.costs.usage import AwsEventUsage, EventUsage, JsonUsage, Usage, UsageReader
from ghostcacher_router.providers.costs.usage_tap import UsageTap, reader_of

ANTHROPIC = {
    "input_tokens": 5,
    "cache_read_input_tokens": 100,
    "cache_creation_input_tokens": 30,
    "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
    "output_tokens": 7,
    "server_tool_use": {"web_search_requests": 1},
}
CHAT = {"prompt_tokens": 135, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 100}}
WRITES = {"cached_tokens": 100, "cache_write_tokens": 30, "cache_write_tokens_details": {"ttl_12h_tokens": 20}}
RESPONSES = {"input_tokens": 135, "output_tokens": 7, "input_tokens_details": WRITES}
CONVERSE = {"inputTokens": 5, "outputTokens": 7, "cacheReadInputTokens": 100, "cacheWriteInputTokens": 30}
LONG_WRITES = Usage(5, 100, 10, 20, 7)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (ANTHROPIC, LONG_WRITES),
        (ANTHROPIC | {"cache_creation": None}, Usage(5, 100, 30, 0, 7)),
        ({"input_tokens": 5, "output_tokens": 7}, Usage(5, 0, 0, 0, 7)),
        (CHAT, Usage(35, 100, 0, 0, 7)),
        (CHAT | {"prompt_tokens_details": None}, Usage(135, 0, 0, 0, 7)),
        ({"prompt_tokens": 9, "total_tokens": 9}, Usage(9, 0, 0, 0, 0)),
        (RESPONSES, LONG_WRITES),
        (CONVERSE, Usage(5, 100, 30, 0, 7)),
        ({"seconds": 4}, None),
        ({"input_tokens": "many"}, None),
        (None, None),
    ],
)
def test_usage_of_an_answer_that_is_one_object(said: Any, expected: Usage | None) -> None:
    """Each token of the prompt counts once: OpenAI counts those of the cache among the others."""
    reader = JsonUsage()
    for byte in json.dumps({"id": 1, "message": "hello", "usage": said}).encode():
        reader.feed(bytes([byte]))
    assert reader.usage() == expected


def events(*said: Any) -> bytes:
    return b"".join(b"event: e\ndata: %b\n\n" % json.dumps(each).encode() for each in said)


STREAMS = {
    "anthropic": events(
        {"type": "message_start", "message": {"usage": ANTHROPIC | {"output_tokens": 1}}},
        {"type": "content_block_delta", "delta": {"text": 'a "usage" of words'}},
        {"type": "message_delta", "usage": {"output_tokens": 7, "input_tokens": None}},
    ),
    "chat": events({"choices": [], "usage": None}, {"choices": [], "usage": CHAT}) + b"data: [DONE]\n\n",
    "responses": events(
        {"response": {"usage": None}}, {"type": "response.completed", "response": {"usage": RESPONSES}}
    ),
}
USED = {"anthropic": LONG_WRITES, "chat": Usage(35, 100, 0, 0, 7), "responses": LONG_WRITES}


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Return the data in pieces, none of them empty."""
    ends = sorted({place % len(data) for place in places} - {0})
    return [data[start:end] for start, end in zip([0, *ends], [*ends, len(data)], strict=True)]


def fed(reader: UsageReader, pieces: list[bytes]) -> Usage | None:
    for piece in pieces:
        reader.feed(piece)
    return reader.usage()


@pytest.mark.parametrize("api", list(STREAMS))
@given(places=st.lists(st.integers(0, 2000), max_size=9), crlf=st.booleans())
def test_usage_of_a_stream_of_events_however_it_is_cut(api: str, places: list[int], crlf: bool) -> None:
    data = STREAMS[api].replace(b"\n", b"\r\n") if crlf else STREAMS[api]
    assert fed(EventUsage(), cut(data, places)) == USED[api]


def test_stream_that_breaks_off_tells_what_it_has_told() -> None:
    """The prompt of an answer that nobody has read to its end is paid for."""
    begun = STREAMS["anthropic"].partition(b'event: e\ndata: {"type": "content')[0]
    assert fed(EventUsage(), [begun]) == LONG_WRITES._replace(output_tokens=1)


def aws_message(payload: dict[str, Any], headers: bytes = b"\x0b:event-type\x07\x00\x08metadata") -> bytes:
    data = json.dumps(payload).encode()
    prelude = pack(">II", 16 + len(headers) + len(data), len(headers))
    prelude += pack(">I", crc32(prelude))
    whole = prelude + headers + data
    return whole + pack(">I", crc32(whole))


@given(places=st.lists(st.integers(0, 2000), max_size=9))
def test_usage_of_a_stream_of_aws_however_it_is_cut(places: list[int]) -> None:
    delta = {"contentBlockIndex": 0, "delta": {"text": "Hello"}}
    data = aws_message(delta) + aws_message({"usage": CONVERSE, "metrics": {"latencyMs": 5}})
    assert fed(AwsEventUsage(), cut(data, places)) == Usage(5, 100, 30, 0, 7)


def test_stream_that_is_none_of_aws_tells_nothing() -> None:
    assert fed(AwsEventUsage(), [b"data: x" * 9, aws_message({"usage": CONVERSE})]) is None


@pytest.mark.parametrize("reader", [JsonUsage, EventUsage, AwsEventUsage])
def test_answers_that_are_too_long_take_no_memory(reader: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known of their usage then."""
    monkeypatch.setattr(usage_module, "BYTES_MAX", 1000)
    reading = reader()
    for _ in range(100):
        reading.feed(b"\x00\x00\x00\xff" * 50)
    assert reading.usage() is None
    held = [len(value) for value in vars(reading).values() if isinstance(value, bytearray)]
    assert sum(held) <= 1400


def test_answers_are_passed_on_whatever_is_read_of_them() -> None:
    """The head first, alone or with what follows; chunks as they are."""
    said = json.dumps({"usage": ANTHROPIC}).encode()
    for chunked in (False, True):
        passed: list[bytes] = []
        reader = JsonUsage()
        tap = UsageTap(passed.append, reader, chunked=chunked)
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(said), said) if chunked else said
        pieces = [b"HTTP/1.1 200 OK\r\na: b\r\n\r\n" + body[:9], body[9:11], body[11:]]
        for piece in pieces:
            tap(piece)
        tap.release()
        assert passed == pieces
        assert reader.usage() == LONG_WRITES


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("content-type: application/json; charset=utf-8", JsonUsage),
        ("Content-Type: text/event-stream", EventUsage),
        ("content-type: application/vnd.amazon.eventstream", AwsEventUsage),
        ("content-type: audio/mpeg", None),
        ("content-type: application/json\r\ncontent-encoding: br", None),
    ],
)
def test_what_reads_an_answer_is_chosen_by_its_head(line: str, kind: type | None) -> None:
    head, _ = read_response_head(f"HTTP/1.1 200 OK\r\n{line}\r\ncontent-length: 9\r\n\r\n".encode())
    reader = reader_of(head)
    assert (None if reader is None else type(reader)) is kind
