"""Bodies nested too deeply are refused, wherever the nesting is: an engine's core may not survive it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_router.prompt import BadBody, parse_body, parse_now, structure
from ghostcacher_router.prompt.bodies import DEPTH_MAX, TooDeep
from ghostcacher_router.prompt.parse import _chat, _completion, _embeddings, _responses
from ghostcacher_router.prompt.structure import CONTAINERS_MAX, structure_of
from tests.support.prompts import CHAT, COMPLETIONS, EMBEDDINGS, KNOWN, MESSAGES, RESPONSES, SEED, say

SLACK = 8
"""Levels by which a place may be judged as deeper than it is."""


def nested(depth: int, opening: str = "[", closing: str = "]") -> Any:
    return json.loads(f"{opening * (depth - 1)}[]{closing * (depth - 1)}")


def towers(depth: int) -> list[Any]:
    """Return values with so many levels, of arrays and of objects that have other things inside."""
    wide: Any = 1
    for _ in range(depth):
        wide = {"a": wide, "b": [1, 2], "c": "]}{["}
    return [nested(depth), nested(depth, '{"a":', "}"), wide]


PLACES: list[tuple[str, str]] = [
    *((path, "kv_transfer_params") for path in (*KNOWN, "/inference/v1/generate", "/tokenize")),
    *((path, "metadata") for path in KNOWN),
    (CHAT, "stop"),
    (CHAT, "input"),
    (CHAT, "prompt"),
    (CHAT, "cache_salt"),
    (CHAT, "response_format"),
    (CHAT, "tool_choice"),
    (CHAT, "documents"),
    (CHAT, "user"),
    (COMPLETIONS, "chat_template_kwargs"),
    (COMPLETIONS, "messages"),
    (COMPLETIONS, "suffix"),
    (RESPONSES, "prompt"),
    (RESPONSES, "conversation"),
]


def body_of(path: str, **fields: Any) -> bytes:
    needed: dict[str, Any] = {"messages": [say("user", "x")], "prompt": "x", "input": "x"}
    need = {COMPLETIONS: "prompt", RESPONSES: "input", EMBEDDINGS: "input"}.get(path, "messages")
    return json.dumps({"model": "m", need: needed[need], **fields}).encode()


def refused(path: str, body: bytes) -> bool:
    """Say whether a body is refused as too deep, and make sure that both ways of reading agree."""
    found = []
    for parse in (parse_now, parse_body):
        try:
            parse(path, body, {}, SEED)
        except TooDeep:
            found.append(True)
        else:
            found.append(False)
    assert found[0] is found[1], body
    return found[0]


@pytest.mark.parametrize(("path", "field"), PLACES)
def test_deep_field_is_refused(path: str, field: str) -> None:
    """Wherever it stands, and whether or not the router reads the field."""
    for tower in towers(900) + towers(DEPTH_MAX):
        assert refused(path, body_of(path, **{field: tower}))
    for tower in towers(DEPTH_MAX - 1 - SLACK):
        assert not refused(path, body_of(path, **{field: tower}))


def test_message_says_how_deep_a_body_may_be() -> None:
    """The client can tell what to change."""
    with pytest.raises(BadBody, match=f"nested too deeply: expected at most {DEPTH_MAX} levels"):
        parse_body(CHAT, body_of(CHAT, x=nested(900)), {}, SEED)


@pytest.mark.parametrize("prompt", [None, ""])
@pytest.mark.parametrize("field", ["cache_salt", "suffix"])
def test_deep_field_beside_no_prompt_is_refused(prompt: str | None, field: str) -> None:
    """Where the prompt comes as embeddings, what would be hashed with it is not read."""
    assert refused(COMPLETIONS, body_of(COMPLETIONS, prompt=prompt, prompt_embeds="AAAA", **{field: nested(900)}))


@pytest.mark.parametrize("depth", [DEPTH_MAX, 400])
def test_deep_part_of_a_prompt_is_refused(depth: int) -> None:
    """In tools, calls, results, unknown parts, extra fields and items."""
    tower = nested(depth)
    result: Any = "x"
    for _ in range(depth // 2):
        result = [{"type": "tool_result", "content": result}]
    messages: list[Any] = [
        say("user", [{"type": "tool_use", "input": tower}]),
        say("user", [{"type": "scent", "of": tower}]),
        say("user", "x", extra=tower),
        say("user", result),
    ]
    for message in messages:
        for path in (CHAT, MESSAGES):
            assert refused(path, body_of(path, messages=[message]))
    tool = {"type": "function", "function": {"name": "f", "parameters": tower}}
    assert refused(CHAT, body_of(CHAT, tools=[tool]))
    assert refused(CHAT, body_of(CHAT, tools=[tool])), "a second time"
    assert refused(RESPONSES, body_of(RESPONSES, input=[{"type": "function_call", "arguments": tower}]))
    assert refused(EMBEDDINGS, body_of(EMBEDDINGS, input=[{"text": tower}]))


@pytest.mark.parametrize("path", KNOWN)
def test_deep_value_is_refused_in_every_field_and_beside_every_other(path: str) -> None:
    """Also where nothing reads it: behind the first of several prompts, and what another kind of prompt stands in."""
    walked = {name for decoder in (_chat, _embeddings, _completion, _responses) for name in decoder.walked}
    needed = {"messages": [say("user", "x")], "prompt": "x", "input": "x"}
    tower = nested(900)
    for name in walked | {"documents", "prompt_embeds", "prompt_token_ids"}:
        for value in (tower, ["x", tower], [[1, 2], tower], [say("user", "x"), tower], [say("user", "x", z=tower)]):
            for body in (body_of(path, **{name: value}), json.dumps({"model": "m", **needed, name: value}).encode()):
                for parse in (parse_now, parse_body):
                    with pytest.raises(BadBody):
                        parse(path, body, {}, SEED)


def test_walk_of_what_is_not_read_is_bounded() -> None:
    """Short arrays without number are left to the process that parses long bodies; numbers are many in any batch."""
    arrays: list[Any] = ["x", *[[[]]] * 20_000]
    assert parse_now(COMPLETIONS, body_of(COMPLETIONS, prompt=arrays), {}, SEED) is None
    batch = [[7] * 20_000] * 4
    assert parse_now(COMPLETIONS, body_of(COMPLETIONS, prompt=batch), {}, SEED) is not None


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_deep_field_is_refused_in_any_encoding(encoding: str) -> None:
    """What engines read is looked at as they read it."""
    body = body_of(CHAT, kv_transfer_params=nested(900)).decode().encode(encoding)
    assert refused(CHAT, body)
    assert refused(CHAT, body_of(CHAT, kv_transfer_params=nested(900), top_p=float("nan")))


def test_brackets_in_text_are_no_nesting() -> None:
    """Escaped quotes and backslashes neither end a text nor begin one."""
    code = "[{" * 500 + '\\"' + '"[{"' * 300 + "\\"
    body = body_of(CHAT, metadata={"a": code}, messages=[say("user", code)], unread={"b": [code, code]})
    assert not refused(CHAT, body)
    assert structure_of(body).depth == 3


def test_body_of_a_million_arrays_is_refused_before_it_is_decoded() -> None:
    """Whichever field they are in."""
    arrays = b"[" + b"[]," * CONTAINERS_MAX + b"[]]"
    for path, field in ((CHAT, b"messages"), (CHAT, b"x"), (RESPONSES, b"input"), ("/tokenize", b"model")):
        with pytest.raises(BadBody, match="too many parts"):
            parse_body(path, b'{"model":"m",%b:%b}' % (json.dumps(field.decode()).encode(), arrays), {}, SEED)


JSON = st.recursive(
    st.none() | st.integers() | st.text(st.sampled_from('a"\\[]{},:\n')),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.sampled_from('b"\\[]{},:')), inner),
    max_leaves=30,
)


def counted(value: Any) -> tuple[int, int]:
    """Return how many arrays and objects there are, and how deep."""
    if not isinstance(value, list | dict):
        return 0, 0
    inner = [counted(one) for one in (value.values() if isinstance(value, dict) else value)]
    return 1 + sum(count for count, _ in inner), 1 + max((depth for _, depth in inner), default=0)


@given(JSON, st.integers(1, 40), st.booleans())
def test_structure_is_that_of_the_decoded_value(value: Any, piece_bytes: int, spaces: bool) -> None:
    """Also where it is looked at in small pieces."""
    text = json.dumps(value, indent=1 if spaces else None, ensure_ascii=False).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(structure, "PIECE_BYTES", piece_bytes)
        found = structure_of(text)
    assert (found.containers, found.depth, found.closed) == (*counted(value), True)


@given(st.binary(max_size=60) | st.text(st.sampled_from('"\\[]{},')).map(str.encode))
def test_any_bytes_have_a_structure(data: bytes) -> None:
    """Nothing is raised for what is no JSON."""
    assert structure_of(data).containers <= len(data)
