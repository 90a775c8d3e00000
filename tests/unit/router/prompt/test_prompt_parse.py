"""What is read of a body, what is refused, and how."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_router.prompt import PROMPT_PATHS, BadBody, Reading, parse_body, read_prompt
from ghostcacher_router.types import RequestShape
from tests.support.prompts import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    KNOWN,
    MESSAGES,
    RESPONSES,
    SEED,
    prompt_of,
    say,
    sections,
    shape,
)


def test_head_of_a_request_is_read() -> None:
    """The model as written, and whether the answer is streamed."""
    found = shape(CHAT, {"model": "org/m", "stream": True, "messages": [say("user", "x")]})
    assert (found.model, found.stream, found.session) == ("org/m", True, None)


@pytest.mark.parametrize("given_prompt", [None, "", [], [""], [[]]])
def test_empty_prompt_is_none(given_prompt: Any) -> None:
    """What an engine makes of it is its own affair."""
    assert shape(COMPLETIONS, {"model": "m", "prompt": given_prompt}) == RequestShape("m", False, None, None)


def test_empty_conversation_has_no_prompt() -> None:
    """An empty list of messages is the engine's to refuse."""
    assert shape(CHAT, {"model": "m", "messages": []}).prompt is None


def test_embeddings_take_text_ids_and_messages() -> None:
    """All that an engine prefills for an embedding."""
    assert prompt_of(EMBEDDINGS, {"input": ["x", "y"]}) == prompt_of(EMBEDDINGS, {"input": "x"})
    assert prompt_of(EMBEDDINGS, {"input": [1, 2]}).tokens == 2
    assert sections(prompt_of(EMBEDDINGS, {"messages": [say("user", "x")]})) == ["USER"]


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'{"model": "m", "prompt": "x"}', "m"),
        (b'{"model": 5}', None),
        (b"[1]", None),
        (b"--boundary\r\n", None),
        (b"", None),
        (b"\xff", None),
        (b'{"model": "m", "x": ' + b"[" * 100_000, None),
    ],
)
def test_of_another_path_the_model_is_read_if_there_is_one(body: bytes, model: str | None) -> None:
    """Any body is taken: what it means is the engine's affair."""
    for path in ("/tokenize", "/v1/audio/transcriptions"):
        assert parse_body(path, body, {}, SEED) == RequestShape(model, False, None, None)


def test_query_of_a_path_is_ignored() -> None:
    """A query does not hide the API."""
    body = {"messages": [say("user", "x")]}
    assert prompt_of(CHAT + "?api-version=1", body) == prompt_of(CHAT, body)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {"model": 5, "messages": []}, "model"),
        (CHAT, {"model": "m"}, "messages"),
        (CHAT, {"messages": "x"}, "messages"),
        (CHAT, {"messages": ["x"]}, "messages[0]"),
        (CHAT, {"messages": [{"content": "x"}]}, "messages[0].role"),
        (CHAT, {"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
        (CHAT, {"messages": [say("user", "x"), say("user", 5)]}, "messages[1].content"),
        (CHAT, {"messages": [say("user", [5])]}, "messages[0].content[0]"),
        (CHAT, {"messages": [say("user", [{"type": "text", "text": 5}])]}, "messages[0].content[0].text"),
        (CHAT, {"messages": [], "tools": {}}, "tools"),
        (CHAT, {"messages": [], "tools": "x"}, "tools"),
        (CHAT, [], None),
        (COMPLETIONS, {"prompt": {}}, "prompt"),
        (COMPLETIONS, {"prompt": 5}, "prompt"),
        (COMPLETIONS, {"prompt": [1, "x"]}, "prompt"),
        (COMPLETIONS, {"prompt": [-1]}, "prompt"),
        (COMPLETIONS, {"prompt": [[1.5]]}, "prompt[0]"),
        (COMPLETIONS, {"prompt": [1 << 40]}, "prompt"),
        (MESSAGES, {"messages": [], "system": 5}, "system"),
        (MESSAGES, {"messages": [], "system": [5]}, "system[0]"),
        (RESPONSES, {"input": 5}, "input"),
        (RESPONSES, {"input": ["x"]}, "input[0]"),
        (RESPONSES, {"input": "x", "instructions": 5}, "instructions"),
        (EMBEDDINGS, {"input": {}}, "input"),
        (CHAT, {"messages": [say("user", "x")], "metadata": {"gc_blocks": 5}}, "metadata.gc_blocks"),
        (CHAT, {"messages": [say("user", "x")], "metadata": {"gc_blocks": "doc=1"}}, "metadata.gc_blocks"),
        (CHAT, {"messages": [say("user", "x")], "metadata": {"gc_blocks": "tools=0"}}, "metadata.gc_blocks"),
    ],
)
def test_wrong_type_is_refused_by_name(path: str, body: Any, param: str | None) -> None:
    """The client learns which field is wrong."""
    with pytest.raises(BadBody) as caught:
        shape(path, body)
    assert caught.value.param == param
    assert (param or "body") in caught.value.message


def test_message_of_an_error_says_expected_and_got() -> None:
    """In words of JSON."""
    with pytest.raises(BadBody) as caught:
        shape(CHAT, {"model": 5, "messages": []})
    assert caught.value.message == "Invalid type for 'model': expected string or null, got integer."


@pytest.mark.parametrize("path", KNOWN)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"not json",
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"messages": [{"role": "user", "content": [' + b'{"type":"tool_result","content":[' * 900,
    ],
)
def test_malformed_body_is_refused(path: str, body: bytes) -> None:
    """Half a body, bytes that are no text, a tower of brackets: the body as a whole is wrong."""
    with pytest.raises(BadBody) as caught:
        parse_body(path, body, {}, SEED)
    assert caught.value.param is None


@pytest.mark.parametrize("depth", [10, 100, 200, 300, 400, 490])
def test_nested_body_is_a_shape_or_bad_body(depth: int) -> None:
    """However deep brackets or results of tools are nested, nothing else is raised."""
    tools = b'{"messages": [], "tools": ' + b"[" * depth + b"]" * depth + b"}"
    result = b'{"type":"tool_result","content":[' * depth + b"]}" * depth
    for body in (tools, b'{"messages": [{"role": "user", "content": [' + result + b"]}]}"):
        with suppress(BadBody):
            parse_body(CHAT, body, {}, SEED)


@given(st.sampled_from(KNOWN), st.binary(max_size=200))
def test_any_bytes_are_a_shape_or_bad_body(path: str, body: bytes) -> None:
    """No body raises anything else."""
    try:
        parse_body(path, body, {}, SEED)
    except BadBody:
        return


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 70) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = ["model", "messages", "prompt", "input", "system", "tools", "documents", "metadata", "user", "instructions"]


@given(st.sampled_from(KNOWN), st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_any_json_is_a_shape_or_bad_body(path: str, body: dict[str, Any]) -> None:
    """No value in any field raises anything else."""
    try:
        shape(path, body)
    except BadBody:
        return


@pytest.mark.parametrize(
    ("fields", "headers", "session"),
    [
        ({"user": "u", "prompt_cache_key": "k"}, {b"x-session-id": b"h", b"x-gc-session": b"g"}, "h"),
        ({"user": "u", "prompt_cache_key": "k"}, {b"x-gc-session": b"g"}, "g"),
        ({"user": "u", "prompt_cache_key": "k"}, {}, "k"),
        ({"user": "u", "previous_response_id": "r"}, {}, "u"),
        ({"metadata": {"user_id": "a"}}, {}, "a"),
        ({"previous_response_id": "r"}, {}, "r"),
        ({"session_id": "s", "user": "u"}, {}, "s"),
        ({"session_id": "s", "prompt_cache_key": "k"}, {}, "s"),
        ({"user": 5}, {}, None),
        ({"user": ""}, {b"x-session-id": b""}, None),
    ],
)
def test_session_is_the_most_specific_name(fields: Any, headers: Any, session: str | None) -> None:
    """Header, then prompt_cache_key, then user, then the response that is continued."""
    assert shape(CHAT, {"messages": [say("user", "x")], **fields}, headers).session == session


def test_long_session_is_bounded_and_stays_distinct() -> None:
    """A megabyte of a name costs 64 characters; two of them are two sessions."""
    one, two = (shape(COMPLETIONS, {"prompt": "x", "user": "u" * 10_000 + end}).session for end in "ab")
    assert one is not None
    assert two is not None
    assert len(one) == len(two) == 64
    assert one != two


def test_prompt_as_text_is_what_is_hashed() -> None:
    """The text of a body, in the order of the template, hashes to the prompt that routing sees; so do token ids."""
    chat = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "tools": [{"type": "function"}]}
    bodies = {
        "/v1/chat/completions": chat,
        "/v1/messages": chat | {"system": "short answers"},
        "/v1/completions": {"model": "m", "prompt": [1, 2, 3]},
        "/v1/responses": {"model": "m", "input": "hello"},
        "/v1/embeddings": {"model": "m", "input": "hello"},
    }
    assert set(bodies) == PROMPT_PATHS
    for path, body in bodies.items():
        encoded = json.dumps(body).encode()
        text = read_prompt(path, encoded, Reading(SEED))
        assert text is not None
        assert text.hashed(SEED) == parse_body(path, encoded, {}, SEED).prompt
    text = read_prompt("/v1/messages", json.dumps(bodies["/v1/messages"]).encode(), Reading(SEED))
    assert text is not None
    assert text.text.index(b"function") < text.text.index(b"short answers") < text.text.index(b"hello")
    assert read_prompt("/v1/completions", b"{}", Reading(SEED)) is None
