"""Bodies that begin as others did: what comes of them is what reading them as a whole gives, at less cost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import accumulate
from random import Random
from typing import Any

import pytest
from xxhash import xxh3_128

from ghostcacher_connector.core.types import SectionType
from ghostcacher_router.prompt import BadBody, known_chats, parse, parse_body, parse_now
from ghostcacher_router.prompt.boundaries import Running, hash_prompt
from ghostcacher_router.prompt.chat_begin import PARTS_MAX
from ghostcacher_router.prompt.known_chats import MISSES_MAX, TOUCHED_EVERY, KnownChats
from ghostcacher_router.types import RequestShape

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
SEED = 7
SYSTEM = "You are an assistant. " * 100
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"b": 1, "a": 2}}}]


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> KnownChats:
    fresh = KnownChats()
    monkeypatch.setattr(parse, "_known_chats", fresh)
    return fresh


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def body_of(messages: list[Any], **more: Any) -> bytes:
    return json.dumps({"model": "m", "messages": messages, **more}).encode()


def shared(number: int, **more: Any) -> bytes:
    return body_of([said("system", SYSTEM), said("user", f"question {number}")], **more)


def read(body: bytes, path: str = CHAT, headers: dict[bytes, bytes] | None = None, seed: int = SEED) -> RequestShape:
    """Return the shape of a body, which is that of the whole."""
    shape = parse_now(path, body, headers or {}, seed)
    assert shape is not None
    assert shape == parse_body(path, body, headers or {}, seed)
    return shape


def begins_known(known: KnownChats, body: bytes, family: str = "chat") -> int:
    """Return how many messages of a body are known."""
    found = known.find(family, body, parse.Reading(SEED)).known
    return 0 if found is None else found.count


def test_third_body_with_same_messages_begins_known(known: KnownChats) -> None:
    """What two bodies had in common with each other is known when a third one has it, and not before."""
    for number in range(3):
        assert begins_known(known, shared(number)) == 0
        read(shared(number))
    assert begins_known(known, shared(3)) == 1
    read(shared(3))


def test_growing_conversation_is_known_further(known: KnownChats) -> None:
    """Each turn adds to what is known, so that the rest stays short."""
    messages = [said("system", SYSTEM)]
    left = []
    for turn in range(24):
        messages += [said("user", f"question {turn} " * 50), said("assistant", f"answer {turn} " * 50)]
        asked = [*messages, said("user", "and now?")]
        left.append(len(asked) - begins_known(known, body_of(asked)))
        read(body_of(asked))
    assert max(left[6:]) <= 10


def test_unrelated_bodies_are_not_taken_for_each_other(known: KnownChats) -> None:
    """Bodies that differ behind their first bytes only share what they have in common."""
    first = said("system", "Alike. " * 100)
    for number in range(12):
        second = said("user", ("a", "b")[number % 2] * 2000)
        read(body_of([first, second, said("assistant", "x"), said("user", f"{number}" * 600)]))
    both = [body_of([first, said("user", each * 2000), said("user", "z" * 600)]) for each in "ab"]
    assert all(begins_known(known, body) >= 1 for body in both)
    assert read(both[0]).prompt != read(both[1]).prompt


VARIANTS: list[dict[str, Any]] = [
    {"stream": True, "temperature": 0.5, "user": "u"},
    {"model": "n"},
    {"cache_salt": "s", "priority": 3},
    {"tools": TOOLS},
    {"tools": TOOLS, "tool_choice": "none"},
    {"tools": [{**TOOLS[0], "cache_control": {"type": "ephemeral"}}]},
    {"functions": TOOLS},
    {"documents": [{"text": "d"}]},
    {"unheard_of": {"deep": [1, 2]}},
    {"metadata": {"gc_sections": "doc=0", "user_id": "u"}},
    {"metadata": {"user_id": "u"}},
    {"system": "Front. " * 20},
    {"system": [{"type": "text", "text": "Front", "cache_control": {"type": "ephemeral"}}]},
    {"system": [{"type": "text", "text": SYSTEM, "cache_control": {"type": "unknown"}}, {"type": "text", "text": "b"}]},
    {"session_params": {"id": "x"}},
    {"kv_transfer_params": {"remote_host": "h", "do_remote_prefill": True}},
    {"chat_template_kwargs": {"a": 1}},
    {"temperature": float("nan")},
]


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.parametrize("learned", range(len(VARIANTS)))
def test_fields_beside_the_messages_have_their_effect(learned: int, path: str) -> None:
    """A body with other fields than those from which its messages are known has the prompt of these fields."""
    for number in range(4):
        read(shared(number, **VARIANTS[learned]), path)
    for number, fields in enumerate(VARIANTS):
        read(shared(number, **fields), path)
        read(shared(number + 1, **fields), path)


RESTS: list[list[Any]] = [
    [],
    [said("user", "q")],
    [said("system", "more"), said("user", "q")],
    [said("developer", "more " * 100)],
    [said("assistant", "begun")],
    [said("user", "q" * 3000), said("assistant", "a" * 130), said("user", "é\u0000\ud83d\ude00" * 40)],
    [
        said("user", "q", name="n"),
        said("assistant", None, tool_calls=[{"id": "1"}]),
        said("tool", "r", tool_call_id="1"),
    ],
    [said("user", [{"type": "text", "text": "t"}, {"type": "image_url", "image_url": {"url": "http://a"}}])],
    [said("user", [{"type": "text", "text": "t", "cache_control": {"type": "ephemeral", "ttl": "1h"}}, "more"])],
    [said("user", [{"type": "text", "text": "t", "cache_control": {"type": "unknown"}}, "more"])],
    [said("user", "")],
    [said("user", "a")] * 40,
]


@pytest.mark.parametrize("tools", [{}, {"tools": TOOLS}])
def test_whatever_follows_is_read_as_in_the_whole(tools: dict[str, Any]) -> None:
    """Roles, parts, marks and lengths of the rest place sections and boundaries as if nothing had been known."""
    for count in (1, 3, 4):
        first = [said("system", f"{count}{SYSTEM}"), said("user", "first " * 40)]
        known = [*first, said("assistant", "a " * 99), said("user", "b")]
        for number in range(4):
            read(body_of([*known[:count], said("user", f"{number}")], **tools))
        for rest in RESTS:
            read(body_of([*known[:count], *rest], **tools))


def test_marks_among_known_messages_count() -> None:
    """A part that ends a section for its own sake ends it in every body, also where others had an end there anyway."""
    marked = {"type": "text", "text": SYSTEM, "cache_control": {"type": "unknown"}}
    for front in (said("user", [marked, {"type": "text", "text": "b" * 700}]), said("system", [marked])):
        for number in range(5):
            read(body_of([front, said("assistant", "x" * 600), said("user", f"{number}")]))
            read(body_of([front, said("system", "x" * 600), said("user", f"{number}")]))


@pytest.mark.parametrize("tools", [{}, {"tools": TOOLS}])
def test_front_that_goes_on_differently_has_names_of_its_own(tools: dict[str, Any]) -> None:
    """Where only the first of several system messages is known, what names the front is made of all of them."""
    keys = set()
    for number in range(6):
        front = [said("system", SYSTEM), said("developer", f"{number}" * 300)]
        prompt = read(body_of([*front, said("user", "q")], **tools)).prompt
        assert prompt is not None
        keys.add(prompt.prefix_key)
    assert len(keys) == 6


@pytest.mark.parametrize("seed", range(20))
def test_running_boundaries_are_those_of_the_whole(seed: int) -> None:
    """However a text comes in parts, and is taken in, its boundaries are those that `hash_prompt` places."""
    random = Random(seed)
    sizes = [random.choice([1, 60, 127, 128, 129, 500, 895, 896, 1024, 3000]) for _ in range(random.randrange(1, 40))]
    part_ends = list(accumulate(sizes))
    text = random.randbytes(part_ends[-1])
    running, at = Running(xxh3_128(b"p", SEED)), 0
    while at < len(sizes):
        marks = [(SectionType.SYS, random.choice(part_ends)), (SectionType.USER, part_ends[-1])]
        if marks[0][1] == marks[1][1]:
            del marks[0]
        whole = hash_prompt(text, part_ends, marks, preamble=b"p", seed=SEED)
        assert whole is not None
        assert running.boundaries(text[running.size :], part_ends[at:], marks) == (whole.ends, whole.digests)
        more = min(len(sizes), at + random.randrange(1, 5))
        running = running.grown(text[running.size : part_ends[more - 1]], part_ends[at:more])
        at = more


@pytest.mark.parametrize(
    "rest",
    [
        b'{"role":"user","content":1}]}',
        b'"a"]}',
        b'{"role":"user","content":"q"}],"messages":[{"role":"user","content":"other"}]}',
        b'{"role":"user","content":"q"}],"mess\\u0061ges":[{"role":"user","content":"other"}]}',
        b'{"role":"user","content":"q"}],"messages":null}',
        b'{"role":"user","content":"q"}],"messages":[]}',
        b'{"role":"user","content":"q"}],"model":5}',
        b'{"role":"user","content":"q"}]} more',
        b'{"role":"user","content":"q"}]',
        b'{"role":"user","content":"\xff"}]}',
        b'{"role":"user","content":"q"}],"x":' + b"[" * 200 + b"]" * 200 + b"}",
        b'{"role":"user","content":' + b"[" * 200 + b"]" * 200 + b"}]}",
        b'{"role":"user","content":"q"}],"temperature":NaN}',
        b"",
    ],
)
def test_bad_or_odd_rest_is_told_as_of_the_whole(rest: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong types, malformed JSON, depth, and fields that come twice have the same result, in the same words."""

    def outcome(body: bytes) -> object:
        try:
            return parse_now(CHAT, body, {}, SEED)
        except BadBody as exc:
            return exc.message, exc.param

    for number in range(4):
        read(shared(number))
    body = shared(0)
    body = body[: body.index(b'{"role": "user"')] + rest
    told = outcome(body)
    monkeypatch.setattr(parse, "_known_chats", KnownChats())
    assert told == outcome(body)


def test_messages_that_stand_elsewhere_too_are_found_or_left_alone() -> None:
    """What looks like the messages, before them in another field, changes nothing."""
    for number in range(5):
        messages = [said("system", SYSTEM), said("user", f"question {number}")]
        for before in (
            {"metadata": {"x": messages}},
            {"x": {"messages": messages}},
            {"x": messages[:1]},
            {"x": [SYSTEM]},
        ):
            read(json.dumps({**before, "messages": messages, "model": "m"}).encode())
            read(json.dumps({**before, "model": "m", "messages": messages}, indent=1).encode())


def test_stand_in_cannot_be_forged(known: KnownChats) -> None:
    """A body whose second list of messages begins with any stand-in that was ever used is read as engines read it."""
    for number in range(4):
        read(shared(number))
    found = known.find("chat", shared(4), parse.Reading(SEED)).known
    assert found is not None
    read(shared(4))
    forged = shared(5)[:-1] + b',"messages":["%b",{"role":"user","content":"q"}]}' % b"0123456789abcdef"
    with pytest.raises(BadBody, match=r"messages\[0\]"):
        parse_now(CHAT, forged, {}, SEED)
    assert len(found.mark) == 32


def test_headers_and_seed_have_their_effect() -> None:
    """Sections that a header names, a session, and another seed of the fleet count whatever is known."""
    for number in range(4):
        read(shared(number))
    read(shared(5), headers={b"x-gc-sections": b"doc=0"})
    assert read(shared(5), headers={b"x-session-id": b"s"}).session == "s"
    assert read(shared(5), seed=SEED + 1).prompt != read(shared(5)).prompt


def test_line_that_engines_drop_is_dropped_as_long_as_they_do() -> None:
    """Whether a client's billing line is part of the prompt is asked for each request."""
    text, second = "x-anthropic-billing-header: 1\n" + SYSTEM, "x-anthropic-billing-header: 2\nmore"
    rests = ([], [said("system", second)])
    bodies = [body_of([said("system", text), *rests[number % 2], said("user", f"{number}")]) for number in range(8)]
    kept = frozenset({"m"})
    for models in (frozenset[str | None](), kept, frozenset[str | None]()):
        for body in bodies:
            assert parse_now(CHAT, body, {}, SEED, models) == parse_body(CHAT, body, {}, SEED, models)


def test_too_many_items_are_too_many_however_much_is_known(known: KnownChats) -> None:
    """A body of which too much would be walked is left to another process, also where most of it is known."""
    front = [said("user", "a")] * (PARTS_MAX - 1)
    for number in range(5):
        read(body_of([*front, said("user", f"{number}" * 600)]))
    assert begins_known(known, body_of([*front, said("user", "9" * 600)])) > 1000
    for rest in (said("user", "q"), said("user", "q", name="n")):
        asked = [*front, *[rest] * (parse.NOW_ITEMS_MAX - len(front))]
        assert parse_now(CHAT, body_of(asked), {}, SEED) is not None
        assert parse_now(CHAT, body_of([*asked, rest]), {}, SEED) is None


def test_too_many_nodes_are_too_many_however_much_is_known(known: KnownChats, monkeypatch: pytest.MonkeyPatch) -> None:
    """The preamble counts, too: a body has as many nodes as it has where nothing is known of it."""
    for number in range(4):
        read(shared(number))
    are_read = set[bool]()
    for count in range(parse.NOW_NODES_MAX - 12, parse.NOW_NODES_MAX):
        body = body_of([said("system", SYSTEM), said("user", "q", x=[0] * count)])
        assert begins_known(known, body) == 1
        shape = parse_now(CHAT, body, {}, SEED)
        with monkeypatch.context() as patch:
            patch.setattr(parse, "_known_chats", KnownChats())
            assert shape == parse_now(CHAT, body, {}, SEED)
        are_read.add(shape is not None)
    assert are_read == {True, False}


@pytest.mark.interpreted
def test_bodies_that_never_have_anything_in_common_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only the first bytes are ever the same, messages are no longer looked for."""
    looked = []
    ends_in = known_chats._ends_in
    monkeypatch.setattr(known_chats, "_ends_in", lambda *asked: looked.append(1) or ends_in(*asked))
    for number in range(4 * MISSES_MAX):
        read(body_of([said("user", "alike " * 100 + f"{number}" * 600)]))
    assert 2 <= len(looked) <= MISSES_MAX + 1


@pytest.mark.interpreted
def test_memory_is_bounded(known: KnownChats, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many bodies come, so many beginnings are remembered; the ones in use stay."""
    monkeypatch.setattr(known_chats, "PLACES_MAX", 40)
    monkeypatch.setattr(known_chats, "CANDIDATES_MAX", 50)
    for number in range(4):
        read(shared(number))
    for other in range(100):
        for number in range(3):
            parse_now(CHAT, body_of([said("system", f"{other}{SYSTEM}"), said("user", f"{number}")]), {}, SEED)
        assert begins_known(known, shared(other)) == 1
        for number in range(TOUCHED_EVERY):
            parse_now(CHAT, shared(number), {}, SEED)
    assert (len(known._places), len(known._candidates)) == (40, 0)


@pytest.mark.interpreted
def test_what_never_comes_again_pushes_nothing_out(known: KnownChats, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long ends of bodies that all differ are forgotten before what they begin with."""
    monkeypatch.setattr(known_chats, "CANDIDATES_MAX", 50)
    for number in range(200):
        parse_now(CHAT, body_of([said("system", SYSTEM), said("user", f"{number}" * 600)]), {}, SEED)
    assert begins_known(known, shared(0)) == 1
    assert (len(known._places), len(known._candidates)) == (1, 50)


def conversations(random: Random) -> Iterator[bytes]:
    """Yield bodies of a few conversations that share beginnings and go on, with what clients do beside."""
    fronts = [[], [said("system", SYSTEM)], [said("system", "s" * 600), said("developer", "d" * random.randrange(900))]]
    talks: list[list[Any]] = []
    for _ in range(60):
        if not talks or random.random() < 0.2:
            talks.append(list(random.choice(fronts)))
        talk = random.choice(talks)
        for _ in range(random.randrange(1, 4)):
            role = random.choice(["user", "assistant", "user", "tool"])
            text = random.choice(["w", "é", '"', "\\"]) * random.choice([0, 1, 100, 127, 128, 129, 900, 1024, 5000])
            talk.append(said(role, random.choice([text, text, [{"type": "text", "text": text}], None])))
        fields = random.choice([{}, {}, {"tools": TOOLS}, {"stream": True}])
        before = random.choice([{}, {}, {"tools": TOOLS, "model": "m"}])
        yield json.dumps(
            {**before, "messages": talk, "model": "m", **fields}, ensure_ascii=random.random() < 0.8
        ).encode()


@pytest.mark.parametrize("seed", range(12))
def test_any_conversations_are_read_as_a_whole(seed: int, known: KnownChats) -> None:
    """Whatever was read before, and in whatever order."""
    count = 0
    for body in conversations(Random(seed)):
        count += begins_known(known, body) > 0
        read(body)
    assert count > 5
