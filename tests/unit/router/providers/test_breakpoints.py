"""Marks for Anthropic's cache: where they are put, and that nothing else of a body changes."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.types import SectionType
from ghostcacher_router.config import RouterSettings
from ghostcacher_router.providers.bodies.breakpoints import DEFAULT_TTL, parse_ttl, tokens_min_of, with_breakpoints
from ghostcacher_router.providers.bodies.json_places import Unclear
from tests.support.providers.anthropic_api import MARK, prompt_of

MODEL = "claude-sonnet-5"
LONG = "word " * 700
"""Long enough for this model."""
HOUR, MINUTES = {"type": "ephemeral", "ttl": "1h"}, {"type": "ephemeral"}
ADDED = r',"cache_control":\{"type":"ephemeral"(?:,"ttl":"1h")?\}'
WRAPPED = re.compile(r'\[\{"type":"text","text":("(?:[^"\\]|\\.)*+")' + ADDED + r"\}\]")


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; no key of it comes twice."""
    assert len(dict(pairs)) == len(pairs), pairs
    return dict(pairs)


def marked(body: dict[str, Any], documents: tuple[int, ...] = (), **ttl: str) -> dict[str, Any]:
    """Return the body with marks, which the API would take, and which without them is the one that was given."""
    before = json.dumps(body)
    times = dict(DEFAULT_TTL) | {SectionType[name.upper()]: value for name, value in ttl.items()}
    after = with_breakpoints(before.encode(), body["model"], documents, times).decode()
    # The bodies here have a space behind each comma and colon, and what is added has none.
    bare = re.sub(ADDED, "", WRAPPED.sub(lambda found: found[1], after))
    assert bare == before
    found: dict[str, Any] = json.loads(after, object_pairs_hook=each_once)
    prompt_of(found)
    return found


def request(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]} | fields


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "description": LONG, "input_schema": {"type": "object"}} | more


def text(said: str = LONG, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": said} | more


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def test_each_section_gets_a_mark_at_its_end() -> None:
    """Tools and the system prompt for an hour, the rest for five minutes; the user's turn has none."""
    document = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": LONG}}
    turns = [turn("user", [document, text("q")]), turn("assistant", [text("a"), text("b")]), turn("user", LONG)]
    found = marked(request(tools=[tool("a"), tool("b")], system=[text(), text()], messages=turns))
    assert [MARK in each for each in found["tools"]] == [False, True]
    assert found["tools"][1][MARK] == found["system"][1][MARK] == HOUR
    assert MARK not in found["system"][0]
    assert found["messages"][0]["content"][0][MARK] == MINUTES
    assert MARK not in found["messages"][0]["content"][1]
    assert found["messages"][1]["content"][1][MARK] == MINUTES
    assert found["messages"][2] == turns[2]


def test_bare_strings_become_blocks_of_the_same_text() -> None:
    said = 'with "quotes", \\ and \u00e9 ' + LONG
    found = marked(request(system=said, messages=[turn("user", "q"), turn("assistant", said), turn("user", "r")]))
    assert found["system"] == [text(said) | {MARK: HOUR}]
    assert found["messages"][1]["content"] == [text(said) | {MARK: MINUTES}]
    assert found["messages"][0] == turn("user", "q")


def test_client_names_documents() -> None:
    """Whatever the messages are; places that do not exist name none."""
    turns = [turn("user", LONG), turn("user", LONG), turn("user", "q")]
    found = marked(request(messages=turns), documents=(0, 1, 99))
    assert found["messages"][1]["content"][0][MARK] == MINUTES
    assert [found["messages"][0], found["messages"][2]] == [turns[0], turns[2]]


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        ("claude-haiku-4-5-20251001", 4096),
        ("claude-opus-4-6", 4096),
        ("claude-opus-4-20250514", 1024),
        ("claude-opus-5", 512),
        ("claude-sonnet-5-5", 512),
        ("claude-opus-4-7-20260416", 2048),
        ("claude-3-5-haiku-latest", 2048),
        ("claude-3-haiku-20240307", 2048),
        ("claude-3-5-sonnet-latest", 1024),
        ("claude-sonnet-4-6", 1024),
        ("eu.anthropic.claude-haiku-4-5-20251001-v1:0", 4096),
        ("claude-of-tomorrow", 1024),
    ],
)
def test_prompt_that_is_too_short_for_the_model_gets_no_mark(model: str, tokens: int) -> None:
    """A token is taken for three bytes: rather a mark too many than one too few."""
    assert tokens_min_of(model) == tokens
    for size, marks in ((3 * tokens - 100, False), (3 * tokens + 100, True)):
        body = marked(request(model=model, system="x" * size))
        assert isinstance(body["system"], list) is marks


def test_prefix_counts_what_stands_before_in_the_prompt_and_not_in_the_body() -> None:
    """Tools come first, wherever the body has them."""
    half = "x" * 2000
    after = {"model": MODEL, "max_tokens": 5, "messages": [turn("user", "q")], "system": half}
    assert isinstance(marked(after)["system"], str)
    assert isinstance(marked(after | {"tools": [tool("a", description=half)]})["system"], list)


def test_marks_of_the_client_stay_and_count() -> None:
    """Four are the most; with fewer places than sections the system prompt and the history come first."""
    turns = [turn("user", "q"), turn("assistant", LONG), turn("user", "r")]
    body = request(tools=[tool("a")], system=[text(cache_control=HOUR), text()], messages=turns)
    found = marked(body)
    assert found["system"][0] == body["system"][0]
    assert sum(MARK in each for each in (*found["tools"], *found["system"], found["messages"][1]["content"][0])) == 4
    many = request(
        tools=[tool("a")], system=[text(cache_control=HOUR), text(cache_control=HOUR), text()], messages=turns
    )
    found = marked(many)
    assert MARK in found["system"][2]
    assert MARK in found["messages"][1]["content"][0]
    assert found["tools"] == many["tools"]
    full = request(tools=[tool("a", cache_control=HOUR) for _ in range(4)], system=LONG, messages=turns)
    assert marked(full) == full


def test_mark_at_the_end_of_a_section_is_enough() -> None:
    """A second one in the same object would be a field twice."""
    body = request(tools=[tool("a", cache_control=MINUTES)], system=[text(cache_control=None)])
    assert marked(body) == body


def test_time_of_a_mark_fits_those_of_the_client() -> None:
    """One for an hour must not follow one for five minutes: the API refuses such a request."""
    turns = [turn("user", "q"), turn("assistant", LONG), turn("user", "r")]
    short_first = marked(request(tools=[tool("a", cache_control=MINUTES)], system=LONG, messages=turns))
    assert short_first["system"][0][MARK] == MINUTES
    hour_last = marked(request(system=LONG, messages=[*turns[:2], turn("user", [text(cache_control=HOUR)])]))
    assert hour_last["messages"][1]["content"][0][MARK] == HOUR
    automatic = marked(request(system=LONG, messages=turns, cache_control=HOUR), sys="5m")
    assert automatic["system"][0][MARK] == HOUR
    assert marked(request(system=LONG, tools=[tool("a")]), tools="5m")["system"][0][MARK] == MINUTES
    assert marked(request(system=LONG, messages=turns), session="1h")["messages"][1]["content"][0][MARK] == HOUR


def test_what_must_not_carry_a_mark_gets_none() -> None:
    """The block before it does: empty texts, thinking, tools that are loaded later, tools of the server."""
    thinking = {"type": "thinking", "thinking": LONG, "signature": "s"}
    turns = [turn("user", "q"), turn("assistant", [text(), thinking]), turn("user", "r")]
    found = marked(request(tools=[tool("a"), tool("b", defer_loading=True)], messages=turns))
    assert [MARK in each for each in found["tools"]] == [True, False]
    assert [MARK in each for each in found["messages"][1]["content"]] == [True, False]
    found = marked(request(system=[text(), text(" \n")], messages=[turn("user", [text(), text("")]), turn("user", "")]))
    assert [MARK in each for each in found["system"]] == [True, False]
    assert marked(request(system=" " * 9000)) == request(system=" " * 9000)
    for odd in ([turn("user", "q"), turn("assistant", [thinking]), turn("user", "r")], [turn("user", LONG)]):
        body = request(messages=odd)
        assert marked(body) == body


def test_beginning_that_the_model_is_to_continue_is_part_of_the_turn() -> None:
    """It changes with every request."""
    turns = [turn("user", "q"), turn("assistant", LONG), turn("user", "r"), turn("assistant", LONG)]
    found = marked(request(messages=turns))
    assert found["messages"][1]["content"][0][MARK] == MINUTES
    assert found["messages"][3] == turns[3]


def test_two_sections_that_end_at_one_place_get_one_mark() -> None:
    turns = [turn("user", "q"), turn("assistant", [text()]), turn("user", "r")]
    assert marked(request(messages=turns), documents=(1,))["messages"][1]["content"] == [text() | {MARK: MINUTES}]


@pytest.mark.parametrize("field", ["system", "s\\u0079stem"])
def test_body_with_a_field_twice_is_left_alone(field: str) -> None:
    """Which of both counts is not known here."""
    with pytest.raises(Unclear):
        with_breakpoints(f'{{"system": "{LONG}", "{field}": "{LONG}"}}'.encode(), MODEL, ())


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b'{"model": "m"}',
        b'{"tools": 5, "system": 7, "messages": {"a": 1}}',
        b'{"tools": [1, [], "x"], "system": [1, [], "x"], "messages": [1, [], "x", 2]}',
        b'{"messages": [{"role": "user"}, {"content": 5}, {"role": "assistant", "content": 5}, {}]}',
        b'{"messages": [{"role": "assistant", "content": [{"type": 5}, {"text": 6}, {}]}, {}]}',
    ],
)
def test_odd_body_stays_as_it_is(body: bytes) -> None:
    """What it is to mean is the provider's business."""
    assert with_breakpoints(body, MODEL, (0,)) == body


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
BLOCKS = st.fixed_dictionaries({"type": st.just("text"), "text": st.sampled_from(["a", LONG, '"\\', "\u20ac" * 3000])})
MARKED = st.builds(lambda block, mark: block | mark, BLOCKS, st.sampled_from([{}, {}, {MARK: HOUR}]))
CONTENTS = st.sampled_from(["a", LONG]) | st.lists(MARKED, min_size=1, max_size=3)
TOOLS = st.builds(lambda schema: {"name": "n", "description": LONG, "input_schema": schema}, VALUES)


@given(
    system=CONTENTS,
    tools=st.lists(TOOLS, max_size=2),
    contents=st.lists(st.tuples(st.sampled_from(["user", "assistant"]), CONTENTS), min_size=1, max_size=5),
    order=st.permutations(["model", "max_tokens", "messages", "system", "tools", "metadata"]),
    more=VALUES,
)
def test_whatever_the_body_only_marks_are_added_and_the_api_takes_them(
    system: Any, tools: list[Any], contents: list[tuple[str, Any]], order: list[str], more: Any
) -> None:
    """Bodies with up to four marks of the client for an hour."""
    fields = {"system": system, "tools": tools, "messages": [turn(*each) for each in contents], "metadata": more}
    body = request(**fields)
    body = {name: body[name] for name in order}
    if json.dumps(body).count(MARK) <= 4:
        marked(body)


def test_times_of_sections_are_settings() -> None:
    assert parse_ttl(["doc=1h"], "t")[SectionType.DOC] == "1h"
    assert parse_ttl([], "t") == DEFAULT_TTL
    for wrong in ("doc=2h", "user=1h", "doc", "=1h"):
        with pytest.raises(ConfigError, match="provider_ttl: expected section=time"):
            RouterSettings(upstreams=("openai=https://a",), provider_ttl=(wrong,))
