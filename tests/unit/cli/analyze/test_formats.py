"""Each kind of line, and what is said of one that is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ghostcacher_cli.analyze.formats import (
    BATCH,
    CHATS,
    HASHES,
    ID_BYTES,
    IDS,
    RESPONSES,
    TEXTS,
    TOKEN_IDS,
    BadLine,
    Kind,
    kind_of,
    read_line,
)
from ghostcacher_connector.core.types import SectionType

OPENAI = {
    "model": "m",
    "tools": [{"type": "function", "function": {"name": "find"}}],
    "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}],
}
ANTHROPIC = {"model": "m", "system": "be brief", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
BATCHED = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": OPENAI}
LINES: list[tuple[dict[str, Any], Kind]] = [
    ({"prompt": "hello"}, TEXTS),
    ({"prompt": [1, 2, 3]}, IDS),
    ({"prompt_token_ids": [1, 2, 3]}, TOKEN_IDS),
    (OPENAI, CHATS),
    (ANTHROPIC, CHATS),
    ({"input": "hello", "instructions": "be brief"}, RESPONSES),
    (BATCHED, BATCH),
    ({"hash_ids": [0, 7], "input_length": 600, "timestamp": 1500}, HASHES),
]


def line_of(fields: Any) -> bytes:
    return json.dumps(fields).encode() + b"\n"


@pytest.mark.parametrize(("fields", "kind"), LINES, ids=lambda each: each.field if isinstance(each, Kind) else None)
def test_kind_is_known_by_the_field_that_holds_the_prompt(fields: dict[str, Any], kind: Kind) -> None:
    assert kind_of(line_of(fields)) == kind
    assert read_line(kind, line_of(fields)).data


def test_chat_text_stands_in_the_order_of_the_template() -> None:
    """Tools, system, conversation, wherever the body has them; each section is known."""
    request = read_line(CHATS, line_of(OPENAI))
    assert isinstance(request.data, bytes)
    places = [request.data.index(word) for word in (b"find", b"be brief", b"hello")]
    assert places == sorted(places)
    assert [section for section, _ in request.sections] == [SectionType.TOOLS, SectionType.SYS, SectionType.USER]
    assert request.sections[-1][1] == len(request.data)


def test_requests_to_two_models_share_nothing() -> None:
    """Text is equal, and what stands before it is not, as in an engine."""
    one, other = (read_line(TEXTS, line_of({"model": model, "prompt": "hello"})) for model in "ab")
    assert one.data == other.data
    assert one.preamble != other.preamble


def test_token_ids_are_the_same_in_both_forms() -> None:
    long, short = (
        read_line(IDS, line_of({"prompt": [1, 70_000]})),
        read_line(TOKEN_IDS, b'{"prompt_token_ids":[1,70000]}'),
    )
    assert long.data == short.data
    assert len(long.data) == 2 * ID_BYTES
    assert long.tokens == short.tokens == 2


def test_block_hashes_say_when_they_came() -> None:
    """Milliseconds of the file are seconds here; hashes may be text; what is not said is not known."""
    assert read_line(HASHES, b'{"hash_ids": [1, "f0"], "input_length": 600, "timestamp": 1500}').arrived_s == 1.5
    bare = read_line(HASHES, b'{"hash_ids": [1]}')
    assert (bare.tokens, bare.arrived_s) == (None, None)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            {"text": "hello", "id": 1},
            "expected a field prompt, prompt_token_ids, messages, input, body or hash_ids, which holds the prompt; "
            "the line has id, text",
        ),
        ({}, "the line has no field"),
        ({str(number): 1 for number in range(8)}, "the line has 0, 1, 2, 3, 4, 5 and 2 more"),
        ([1], "expected `object`, got `array`"),
        (3, "expected `object`, got `int`"),
    ],
)  # fmt: skip
def test_first_line_without_a_prompt_is_refused(line: Any, said: str) -> None:
    with pytest.raises(BadLine) as refused:
        kind_of(line_of(line))
    assert said in str(refused.value)


@pytest.mark.parametrize("line", [b"hello\n", b'{"prompt": "x"', b"\xff\xfe\n", b'{"a":' * 5000])
def test_what_is_no_json_is_refused(line: bytes) -> None:
    with pytest.raises(BadLine, match="expected one JSON object, got what is no JSON"):
        kind_of(line)


@pytest.mark.parametrize(
    ("kind", "line", "said"),
    [
        (TEXTS, {"hash_ids": [1]}, "prompt: expected as in the first line, the line has hash_ids"),
        (TEXTS, {"prompt": [1]}, "prompt: expected text, as in the first line, got token ids"),
        (IDS, {"prompt": "x"}, "prompt: expected token ids, as in the first line, got text"),
        (TEXTS, {"prompt": ["x", "y"]}, "prompt: expected one prompt, text or token ids, got a list of prompts"),
        (IDS, {"prompt": [[1], [2]]}, "prompt: expected one prompt, text or token ids, got a list of prompts"),
        (TEXTS, {"prompt": 5}, "Invalid type for 'prompt': expected a string or an array, got integer."),
        (TEXTS, {"prompt": None}, "expected a prompt of text or token ids, got none"),
        (TOKEN_IDS, {"prompt_token_ids": [1, "x"]}, "prompt_token_ids[1]: expected `int`, got `str`"),
        (TOKEN_IDS, {"prompt_token_ids": [-1]}, "prompt_token_ids: expected token ids from 0 to 4294967295"),
        (TOKEN_IDS, {"prompt": [1]}, "object missing required field `prompt_token_ids`"),
        (CHATS, {"messages": [{"content": "x"}]}, "Invalid type for 'messages[0].role': expected a string, got null."),
        (CHATS, {"messages": "x"}, "'messages'"),
        (BATCH, {"url": "/v2/chat", "body": {}}, "url: expected one of /v1/chat/completions, /v1/completions"),
        (BATCH, {"url": "/v1/chat/completions", "body": {"messages": 1}}, "'messages'"),
        (HASHES, {"hash_ids": [0, None]}, "hash_ids[1]: expected `int | str`, got `null`"),
        (HASHES, {"hash_ids": 5}, "hash_ids: expected `array`, got `int`"),
        (HASHES, {"hash_ids": [0], "input_length": -1}, "input_length: expected `int` >= 0"),
        (HASHES, {"hash_ids": [0], "timestamp": "now"}, "timestamp: expected `float | null`, got `str`"),
        (HASHES, {"prompt": "x"}, "object missing required field `hash_ids`"),
    ],
)  # fmt: skip
def test_wrong_line_is_refused_by_its_field(kind: Kind, line: Any, said: str) -> None:
    """The message names the field, what was expected and what came."""
    with pytest.raises(BadLine) as refused:
        read_line(kind, line_of(line))
    assert said in str(refused.value)
