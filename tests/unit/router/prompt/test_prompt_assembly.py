"""The canonical bytes of a prompt: sections, what tells prompts apart, and what does not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_router.prompt import parse_body
from tests.support.prompts import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    LONG,
    MESSAGES,
    RESPONSES,
    SEED,
    chat,
    prompt_of,
    say,
    sections,
    shape,
    shared,
)

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}},
}


def test_chat_has_sections_in_the_order_of_templates() -> None:
    """TOOLS, SYS, DOC, SESSION, USER."""
    prompt = chat(
        say("system", "s"), say("user", "1"), say("assistant", "2"), say("user", "3"), tools=[TOOL], documents=["d"]
    )
    assert sections(prompt) == ["TOOLS", "SYS", "DOC", "SESSION", "USER"]


def test_results_of_tools_are_the_last_turn() -> None:
    """What follows the model's last message is new, be it words or results."""
    prompt = chat(say("user", "1"), say("assistant", None, tool_calls=[]), say("tool", "r", tool_call_id="c"))
    assert sections(prompt) == ["SESSION", "USER"]


def test_beginning_for_the_model_belongs_to_the_last_turn() -> None:
    """An answer that the model is to continue is no history."""
    assert sections(chat(say("user", "1"), say("assistant", "Sure, "))) == ["USER"]


def test_next_turn_shares_all_of_the_turn_before() -> None:
    """The answer and a question are appended: USER becomes SESSION, and every boundary stays."""
    first = [say("system", "be brief " * 30), say("user", LONG)]
    second = [*first, say("assistant", "answer " * 200), say("user", "and then? " * 40)]
    third = [*second, say("assistant", "so " * 300), say("user", "why?")]
    one, two, three = chat(*first), chat(*second), chat(*third)
    assert set(one.digests) < set(two.digests) < set(three.digests)
    assert shared(one, two) == one.size
    assert one.prefix_key == two.prefix_key == three.prefix_key


def test_conversation_without_system_text_keeps_its_prefix_key() -> None:
    """Without sections at the front, the first message is what later turns have in common."""
    one, two = chat(say("user", "hi")), chat(say("user", "hi"), say("assistant", LONG), say("user", LONG))
    assert one.prefix_key == two.prefix_key


def test_texts_that_part_within_a_message_share_what_is_before() -> None:
    """A question after a document in one message is no reason to lose the document."""
    document = LONG * 4
    one, two = chat(say("user", document + "one?")), chat(say("user", document + "another?" + LONG))
    assert len(document) - 1024 < shared(one, two) <= len(document) + len("user") + 2


def test_system_text_ends_a_block_of_any_length() -> None:
    """The end of the system text is a boundary that all its prompts share, even when it is short."""
    one, two = chat(say("system", "s"), say("user", "1")), chat(say("system", "s"), say("user", "2"))
    assert shared(one, two) == one.ends[one.section_ends[0][1]]
    assert one.prefix_key == two.prefix_key


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ([say("user", "a"), say("user", "bc")], [say("user", "ab"), say("user", "c")]),
        ([say("user", "ab")], [say("user", ["a", "b"])]),
        ([say("user", "a"), say("user", "b")], [say("user", "ab")]),
        ([say("user", "a")], [say("usera", "")]),
        ([say("user", "a")], [say("assistant", "a")]),
        ([say("user", 'a","role":"user')], [say("user", "a"), say("user", "")]),
        ([say("user", "x", name="a")], [say("user", "x", name="b")]),
        ([say("tool", "x", tool_call_id="1")], [say("tool", "x", tool_call_id="2")]),
        ([say("assistant", None, tool_calls=[{"id": "1"}])], [say("assistant", None, tool_calls=[{"id": "2"}])]),
        ([say("user", "?user=")], [say("user", ""), say("user", "")]),
        ([say("a=b", None)], [say("a", "b")]),
        ([say("user", '{"name":"a"}')], [say("user", "", name="a")]),
        ([say("user", "\x00\x01\u00ff")], [say("user", "\x00"), say("\x01", "\u00ff")]),
    ],
)
def test_different_messages_have_different_digests(one: list[Any], two: list[Any]) -> None:
    """No content can imitate a frame: every cut into messages, parts and fields is told apart."""
    assert chat(*one).digests[-1] != chat(*two).digests[-1]


CONTENTS = st.one_of(
    st.text(max_size=20), st.lists(st.builds(lambda t: {"type": "text", "text": t}, st.text(max_size=5)), max_size=3)
)
CONVERSATIONS = st.lists(st.builds(say, st.sampled_from(["user", "assistant", "system"]), CONTENTS), max_size=4)


def normal(messages: list[Any]) -> list[Any]:
    """What a template sees: a plain text is its one part."""
    return [
        (m["role"], [m["content"]] if type(m["content"]) is str else [part["text"] for part in m["content"]])
        for m in messages
    ]


@given(CONVERSATIONS, CONVERSATIONS)
def test_equal_conversations_and_no_others_have_equal_digests(one: list[Any], two: list[Any]) -> None:
    """The canonical bytes are an injective form of the conversation."""
    first = shape(CHAT, {"messages": [*one, say("user", "end")]}).prompt
    second = shape(CHAT, {"messages": [*two, say("user", "end")]}).prompt
    assert first is not None
    assert second is not None
    assert (first.digests[-1] == second.digests[-1]) == (normal(one) == normal(two))


def test_text_in_one_part_is_plain_text() -> None:
    """Engines make one of them into the other."""
    assert chat(say("user", "x")) == chat(say("user", [{"type": "text", "text": "x"}]))


@given(st.permutations(["model", "messages", "tools", "stream", "temperature"]), st.sampled_from([None, 2]))
def test_order_of_fields_and_white_space_do_not_matter(order: list[str], indent: int | None) -> None:
    """The body is parsed: how it was written down leaves no trace."""
    body = {"model": "m", "messages": [say("user", "é\n")], "tools": [TOOL], "stream": False, "temperature": 1}
    expected = prompt_of(CHAT, body)
    assert prompt_of(CHAT, {name: body[name] for name in order}, indent=indent) == expected
    assert prompt_of(CHAT, body, ensure_ascii=False, separators=(",", ":")) == expected


def test_order_of_a_tools_own_keys_does_not_matter() -> None:
    """Engines parse a tool into a record: no template sees in which order its fields came."""
    turned = {"function": dict(reversed(TOOL["function"].items())), "type": "function"}
    assert chat(say("user", "x"), tools=[TOOL]) == chat(say("user", "x"), tools=[turned])


def test_order_of_a_tools_parameters_matters() -> None:
    """The client's own dictionaries are printed as they came: another order is another prompt."""
    turned = {"properties": {}, "type": "object"}
    other = {"type": "function", "function": {**TOOL["function"], "parameters": turned}}
    assert chat(say("user", "x"), tools=[TOOL]).digests[0] != chat(say("user", "x"), tools=[other]).digests[0]


@pytest.mark.parametrize("empty", [{"tools": None}, {"tools": []}, {"documents": []}, {"chat_template": None}])
def test_empty_fields_are_as_absent_ones(empty: dict[str, Any]) -> None:
    """What adds nothing to the prompt adds nothing to its bytes."""
    assert chat(say("user", "x"), **empty) == chat(say("user", "x"))


@pytest.mark.parametrize(
    "field",
    [
        {"cache_salt": "s"},
        {"chat_template": "{{x}}"},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"reasoning_effort": "high"},
        {"lora_path": "a"},
        {"add_special_tokens": True},
        {"model": "adapter"},
        {"previous_response_id": "r"},
    ],
)
def test_what_changes_the_first_block_changes_every_digest(field: dict[str, Any]) -> None:
    """The engine's key and what a template prints at the front are part of every boundary, and count no bytes."""
    one, two = chat(say("user", LONG)), chat(say("user", LONG), **field)
    assert not set(one.digests) & set(two.digests)
    assert one.ends == two.ends


@pytest.mark.parametrize("field", [{"temperature": 1}, {"add_generation_prompt": False}, {"user": "u"}, {"seed": 3}])
def test_what_leaves_the_text_alone_changes_no_digest(field: dict[str, Any]) -> None:
    """Sampling, and what changes the very end of the prompt, is no reason to lose what is before."""
    assert chat(say("user", LONG)) == chat(say("user", LONG), **field)._replace(hint="")


def test_tool_choice_none_is_another_prompt_with_tools_only() -> None:
    """Some servers leave the tools out then."""
    with_tools = chat(say("user", "x"), tools=[TOOL])
    assert with_tools != chat(say("user", "x"), tools=[TOOL], tool_choice="none")
    assert with_tools == chat(say("user", "x"), tools=[TOOL], tool_choice="auto")
    assert chat(say("user", "x")) == chat(say("user", "x"), tool_choice="none")


def test_apis_do_not_share_boundaries() -> None:
    """Different front ends of an engine print different prompts for the same words."""
    found = [
        chat(say("user", LONG)),
        prompt_of(MESSAGES, {"model": "m", "messages": [say("user", LONG)]}),
        prompt_of(RESPONSES, {"model": "m", "input": LONG}),
        prompt_of(COMPLETIONS, {"model": "m", "prompt": LONG}),
        prompt_of(EMBEDDINGS, {"model": "m", "input": LONG}),
    ]
    assert len({digest for prompt in found for digest in prompt.digests}) == sum(len(p.digests) for p in found)


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def test_images_count_by_their_content_and_weigh_the_same() -> None:
    """Another image is another prompt; a megabyte of base64 is no megabyte of prompt."""
    small, large = image("https://host/1.png"), image("data:image/png;base64," + "A" * 1_000_000)
    one, two = chat(say("user", ["look ", small])), chat(say("user", ["look ", large]))
    assert one.size == two.size
    assert one.digests[-1] != two.digests[-1]
    assert chat(say("user", [image("https://host/2.png")])) != chat(say("user", [small]))


def test_content_of_unknown_type_is_hashed() -> None:
    """What this router has never heard of still tells prompts apart, however its keys are ordered."""
    assert chat(say("user", [{"type": ["x"]}])) != chat(say("user", [{"type": ["y"]}]))
    one = chat(say("user", [{"type": "scent", "of": {"a": 1, "b": 2}}]))
    assert one == chat(say("user", [{"of": {"b": 2, "a": 1}, "type": "scent"}]))
    assert one != chat(say("user", [{"type": "scent", "of": {"a": 1, "b": 3}}]))


def test_breakpoints_end_sections_and_are_no_text() -> None:
    """cache_control moves from turn to turn: it ends a section and changes no digest."""
    point = {"cache_control": {"type": "ephemeral"}}
    system: list[Any] = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    plain = prompt_of(MESSAGES, {"model": "m", "system": system, "messages": [say("user", "x")]})
    system[0] |= point
    marked = prompt_of(MESSAGES, {"model": "m", "system": system, "messages": [say("user", "x")]})
    assert sections(plain) == ["SYS", "USER"]
    assert sections(marked) == ["SYS", "SYS", "USER"]
    assert set(plain.digests) < set(marked.digests)
    assert plain.prefix_key == marked.prefix_key


def test_anthropic_tools_and_results_are_read() -> None:
    """Tools, calls and results are part of the prompt; a breakpoint in a tool is not."""
    tool = {"name": "f", "input_schema": {"type": "object"}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": LONG}]}
    call = {"type": "tool_use", "id": "t", "name": "f", "input": {"b": 1, "a": 2}}
    body = {"model": "m", "tools": [tool], "messages": [say("assistant", [call]), say("user", [result])]}
    prompt = prompt_of(MESSAGES, body)
    assert sections(prompt) == ["TOOLS", "SESSION", "USER"]
    body["tools"] = [tool | {"cache_control": {"type": "ephemeral"}}]
    assert prompt_of(MESSAGES, body)._replace(hint=prompt.hint) == prompt
    call["input"] = {"b": 1, "a": 3}
    assert not set(prompt_of(MESSAGES, body).digests[1:]) & set(prompt.digests[1:])


def test_billing_line_of_a_client_is_no_text() -> None:
    """Engines take out this line, another one in each request; it would else make every prompt a new one."""
    line = "x-anthropic-billing-header: cch=123\n"
    assert chat(say("system", line + "be brief"), say("user", "x")) == chat(say("system", "be brief"), say("user", "x"))
    assert chat(say("user", line + "x")) != chat(say("user", "x"))


def test_billing_line_stays_where_an_engine_leaves_it() -> None:
    """Its prompts do begin with another line each time, and share nothing."""
    body = {"model": "m", "system": "x-anthropic-billing-header: cch=123\nbe brief", "messages": [say("user", "x")]}
    raw = json.dumps(body).encode()
    dropped = parse_body(MESSAGES, raw, {}, SEED)
    assert parse_body(MESSAGES, raw, {}, SEED, frozenset({"other", None})) == dropped
    kept = parse_body(MESSAGES, raw, {}, SEED, frozenset({"m"})).prompt
    assert kept is not None
    assert dropped.prompt is not None
    assert not set(kept.digests) & set(dropped.prompt.digests)
    assert kept.size - dropped.prompt.size == len("x-anthropic-billing-header: cch=123\n")


def test_system_text_of_anthropic_is_the_same_as_one_block() -> None:
    """A text is its one block."""
    body = {"model": "m", "messages": [say("user", "x")]}
    assert prompt_of(MESSAGES, body | {"system": "s"}) == prompt_of(
        MESSAGES, body | {"system": [{"type": "text", "text": "s"}]}
    )


def test_responses_have_instructions_items_and_calls() -> None:
    """Instructions are system text; calls are the model's turn, outputs ours."""
    items = [
        say("user", [{"type": "input_text", "text": "x"}], type="message"),
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "1"},
    ]
    prompt = prompt_of(RESPONSES, {"model": "m", "instructions": "i", "input": items, "tools": [TOOL]})
    assert sections(prompt) == ["TOOLS", "SYS", "SESSION", "USER"]


@pytest.mark.parametrize("form", [{"type": "message"}, {"type": "message", "id": "msg_1", "status": "completed"}])
def test_message_that_comes_back_as_an_item_is_the_same_text(form: dict[str, str]) -> None:
    """What a server adds to a message when it returns it is in no template."""
    turns = [say("user", LONG), say("assistant", [{"type": "output_text", "text": LONG, "annotations": []}])]
    plain = prompt_of(RESPONSES, {"model": "m", "input": turns})
    returned = prompt_of(RESPONSES, {"model": "m", "input": [turn | form for turn in turns]})
    assert returned.digests == plain.digests
    assert prompt_of(RESPONSES, {"model": "m", "input": [turns[0] | {"name": "n"}]}).digests[0] != plain.digests[0]


def test_text_input_of_responses_is_one_message_of_the_user() -> None:
    """The short form and the long form are one prompt."""
    long = [say("user", "x")]
    assert prompt_of(RESPONSES, {"input": "x"}) == prompt_of(RESPONSES, {"input": long})


def test_prompt_of_a_completion_is_one_block() -> None:
    """Plain text has no types."""
    prompt = prompt_of(COMPLETIONS, {"model": "m", "prompt": LONG})
    assert sections(prompt) == ["USER"]
    assert prompt.tokens is None
    assert prompt == prompt_of(COMPLETIONS, {"model": "m", "prompt": [LONG]})


def test_token_ids_are_counted_exactly() -> None:
    """256 ids a boundary; ids and text never share one."""
    ids = list(range(1000))
    prompt = prompt_of(COMPLETIONS, {"prompt": ids})
    assert (prompt.tokens, prompt.size, prompt.ends[0]) == (1000, 4000, 1024)
    assert prompt == prompt_of(COMPLETIONS, {"prompt": [ids, [1]]})
    assert shared(prompt, prompt_of(COMPLETIONS, {"prompt": [*ids[:600], 7]})) == 2048
    imitation = int.from_bytes(b"\xfdabc", "little")
    assert prompt_of(COMPLETIONS, {"prompt": [imitation]}).digests != prompt_of(COMPLETIONS, {"prompt": "abc"}).digests
