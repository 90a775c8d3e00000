"""What workers are told of a prompt's sections, and for how long a client wants them kept."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ghostcacher_connector.core.sections import AGENT_BYTES, decode_hint, session_tag
from ghostcacher_router.types import Prompt
from tests.support.prompts import CHAT, COMPLETIONS, LONG, MESSAGES, SEED, chat, prompt_of, say

TOOL = {"name": "f", "input_schema": {"type": "object"}}


def hint(prompt: Prompt) -> list[tuple[str, int, int]]:
    """Return type, end and retention of each run."""
    return [(section.name, end, retain_s) for section, end, retain_s in decode_hint("id" + prompt.hint).ends]


def marked(ttl: str | None, **more: Any) -> dict[str, Any]:
    mark = {"type": "ephemeral"} | ({} if ttl is None else {"ttl": ttl})
    return {"cache_control": mark} | more


def test_hint_says_where_sections_end() -> None:
    """The last end is that of the prompt."""
    prompt = chat(say("system", "s" * 100), say("user", "1"), say("assistant", "2"), say("user", "3" * 50))
    assert [section for section, _, _ in hint(prompt)] == ["SYS", "SESSION", "USER"]
    assert [end for _, end, _ in hint(prompt)] == [prompt.ends[index] for _, index in prompt.section_ends]
    assert hint(prompt)[-1][1] == prompt.size


def test_prompt_that_is_one_message_has_no_hint() -> None:
    """What is a document in it, and what a question, the router does not know."""
    assert chat(say("user", LONG)).hint == ""
    assert prompt_of(COMPLETIONS, {"model": "m", "prompt": LONG}).hint == ""
    assert prompt_of(COMPLETIONS, {"model": "m", "prompt": [1, 2, 3]}).hint == ""


@pytest.mark.parametrize(("ttl", "seconds"), [(None, 300), ("5m", 300), ("1h", 3600), ("2h", 0)])
def test_mark_of_a_client_is_a_retention(ttl: str | None, seconds: int) -> None:
    """In a system text, in a message, in a tool; Anthropic's times alone."""
    part = {"type": "text", "text": LONG}
    system = prompt_of(MESSAGES, {"system": [marked(ttl, **part), part], "messages": [say("user", "x")]})
    assert hint(system)[0][::2] == ("SYS", seconds)
    message = prompt_of(CHAT, {"messages": [say("system", [part]), say("user", [marked(ttl, **part)])]})
    assert [kept for _, _, kept in hint(message)] == [0, seconds]
    tools = prompt_of(MESSAGES, {"tools": [TOOL, TOOL | marked(ttl)], "messages": [say("user", "x")]})
    assert [(section, kept) for section, _, kept in hint(tools)] == [("TOOLS", seconds), ("USER", 0)]


def test_mark_in_one_message_alone_is_told() -> None:
    """There is something to say of such a prompt, though its one section is USER."""
    part = marked("1h", type="text", text=LONG)
    prompt = chat(say("user", [part, {"type": "text", "text": "and?"}]))
    assert [(section, kept) for section, _, kept in hint(prompt)] == [("USER", 3600), ("USER", 0)]


@pytest.mark.parametrize(
    "mark",
    [None, "1h", 5, [], {}, {"type": "ephemeral", "ttl": 5}, {"type": "ephemeral", "ttl": None}, {"type": "x"}],
)
def test_mark_of_another_form_says_nothing(mark: Any) -> None:
    """Whether it is refused is the engine's matter; the router passes it on."""
    part = {"type": "text", "text": LONG, "cache_control": mark}
    prompt = prompt_of(MESSAGES, {"system": [part], "messages": [say("user", "x")]})
    assert [kept for _, _, kept in hint(prompt)] == [0, 0]


def test_words_of_a_tool_are_no_mark() -> None:
    """A description that quotes one is text."""
    quoted = json.dumps(marked("1h"))
    tool = TOOL | {"description": f"uses {quoted}, sends {json.dumps(quoted)}"}
    prompt = prompt_of(MESSAGES, {"tools": [tool], "messages": [say("user", "x")]})
    assert [kept for _, _, kept in hint(prompt)] == [0, 0]


def test_tools_are_marked_though_their_form_is_remembered() -> None:
    """One form, two marks: what is remembered is the form alone."""
    body = {"tools": [TOOL], "messages": [say("user", "x")]}
    found = []
    for ttl in ("1h", "5m", "1h"):
        body["tools"] = [TOOL | marked(ttl)]
        found.append(hint(prompt_of(MESSAGES, body))[0][2])
    assert found == [3600, 300, 3600]


@pytest.mark.parametrize("given", [{"user": "alice"}, {"prompt_cache_key": "alice", "user": "bob"}])
def test_session_of_a_request_is_told_by_its_tag(given: dict[str, Any]) -> None:
    """Whether there is anything to say of its sections or not; never by its name."""
    for messages in ([say("user", "x")], [say("system", "s"), say("user", "x")]):
        prompt = prompt_of(CHAT, {"messages": messages, **given})
        assert decode_hint("id" + prompt.hint).session == session_tag("alice", SEED)
        assert "alice" not in prompt.hint
    by_header = prompt_of(CHAT, {"messages": [say("user", "x")]}, {b"x-session-id": b"alice"})
    assert decode_hint("id" + by_header.hint).session == session_tag("alice", SEED)


def tools_in(*tools: dict[str, Any], system: str | None = "be kind", question: str = "x", **more: Any) -> bytes | None:
    body = {"tools": list(tools), "messages": [say("user", question)]} | ({} if system is None else {"system": system})
    return decode_hint("id" + prompt_of(MESSAGES, body | more).hint).tools


def test_tools_of_a_request_are_told_by_their_tag() -> None:
    """The same in all prompts with these tools and this system text, whoever asks and for what."""
    told = tools_in(TOOL)
    assert told is not None
    assert tools_in(TOOL, question="y" * 5_000, metadata={"user_id": "alice"}) == told
    assert tools_in(TOOL, TOOL) != told
    assert tools_in(TOOL | {"input_schema": {"type": "object", "required": ["q"]}}) != told


def test_tag_of_tools_begins_with_that_of_the_system_text() -> None:
    """So that a worker tells agents of one session apart; where there is no system text they are one agent."""
    one, changed, other = tools_in(TOOL), tools_in(TOOL, TOOL), tools_in(TOOL, system="be terse")
    none, none_changed = tools_in(TOOL, system=None), tools_in(TOOL, TOOL, system=None)
    agents = [tag[:AGENT_BYTES] for tag in (one, changed, other, none, none_changed) if tag is not None]
    assert (agents[0] == agents[1], agents[3] == agents[4]) == (True, True)
    assert len(set(agents)) == 3
    assert other is not None
    assert one is not None
    assert one[AGENT_BYTES:] == other[AGENT_BYTES:]


def test_prompt_without_tools_tells_no_tag_of_them() -> None:
    assert tools_in() is None
    assert decode_hint("id" + chat(say("system", "s"), say("user", "x")).hint).tools is None
