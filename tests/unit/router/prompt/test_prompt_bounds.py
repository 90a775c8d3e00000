"""Bodies of a legal size with more parts than are looked at: the prompt is not understood, and little time is spent."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

import pytest

from ghostcacher_router.prompt import parse_body, parse_now
from ghostcacher_router.prompt.assembly import ITEMS_MAX
from ghostcacher_router.prompt.canonical import NODES_MAX
from ghostcacher_router.prompt.parse import NOW_BYTES_MAX, NOW_ITEMS_MAX, NOW_NODES_MAX
from ghostcacher_router.types import RequestShape
from tests.support.prompts import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES, SEED

S = TypeVar("S")
BODY_BYTES = 4 << 20
CALLS_MAX = 6 * NODES_MAX
"""Some calls for each part that may be looked at. Without a bound there are more than a million."""


def many(item: str) -> str:
    """Return a JSON array of 4 MiB."""
    return f"[{','.join([item] * (BODY_BYTES // (len(item) + 1)))}]"


def said(content: str) -> str:
    """Return messages of which one has this content."""
    return f'"messages":[{{"role":"user","content":{content}}}]'


IMAGE = '{"type":"image"}'
TURN = '{"role":"user","content":"x"}'
KEYS = ",".join(f'"{number}":1' for number in range(BODY_BYTES // 12))
IMAGES = many(IMAGE)
ALBUM = '{"role":"user","content":[' + ",".join([IMAGE] * 300) + "]}"
FORMS = {
    "media": (CHAT, said(IMAGES)),
    "texts": (CHAT, said(many('""'))),
    "unknown parts": (CHAT, said(many('{"a":1}'))),
    "parts of a result": (MESSAGES, said(f'[{{"type":"tool_result","content":{IMAGES}}}]')),
    "parts of many messages": (CHAT, f'"messages":{many(ALBUM)}'),
    "one wide part": (CHAT, said(f"[{{{KEYS}}}]")),
    "wide result": (MESSAGES, said(f'[{{"type":"tool_result",{KEYS}}}]')),
    "wide message": (CHAT, f'"messages":[{{"role":"user",{KEYS}}}]'),
    "messages": (CHAT, f'"messages":{many(TURN)}'),
    "messages to embed": (EMBEDDINGS, f'"messages":{many(TURN)}'),
    "system": (MESSAGES, f'"messages":[],"system":{IMAGES}'),
    "items": (RESPONSES, f'"input":{many(IMAGE)}'),
    "items with a role": (RESPONSES, f'"input":{many(TURN)}'),
    "one deep item": (RESPONSES, f'"input":[{{"type":"call","of":{IMAGES}}}]'),
    "tools": (CHAT, f'"tools":{IMAGES},{said("null")}'),
    "functions": (CHAT, f'"functions":{IMAGES},{said("null")}'),
    "salt": (CHAT, f'"cache_salt":{many("1")},{said("null")}'),
    "template": (COMPLETIONS, f'"prompt":"x","chat_template_kwargs":{{{KEYS}}}'),
    "suffix": (COMPLETIONS, f'"prompt":[1,2],"suffix":{IMAGES}'),
    "stored prompt": (RESPONSES, f'"input":"x","prompt":{IMAGES}'),
}


def counted(parse: Callable[[], S]) -> tuple[S, int]:
    """Return what was parsed, and the number of calls that it took."""
    calls = 0

    def count(frame: FrameType, event: str, arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        return parse(), calls
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("form", FORMS)
def test_body_of_too_many_parts_is_not_understood(form: str) -> None:
    """Its head is read all the same; the work is bounded."""
    path, text = FORMS[form]
    body = f'{{"model":"m","stream":true,"user":"u",{text}}}'.encode()
    found, calls = counted(lambda: parse_body(path, body, {}, SEED))
    assert found[:4] == RequestShape("m", True, None, "u")[:4]
    assert calls < CALLS_MAX


@pytest.mark.parametrize(("count", "understood"), [(ITEMS_MAX - 1, True), (ITEMS_MAX, False)])
def test_as_many_items_as_allowed_are_understood(count: int, understood: bool) -> None:
    """The message that has them counts, too."""
    parts = ",".join(['"x"'] * count)
    body = f"{{{said(f'[{parts}]')}}}".encode()
    assert (parse_body(CHAT, body, {}, SEED).prompt is not None) is understood


def test_tools_that_are_remembered_take_nothing_from_the_rest() -> None:
    """The same body is understood, or not, whether it has been seen before or not."""
    tools = ",".join(['{"a":1}'] * (NODES_MAX // 2))
    images = ",".join([IMAGE] * 1000)
    body = f'{{{said(f"[{images}]")},"tools":[{tools}]}}'.encode()
    assert parse_body(CHAT, body, {}, SEED).prompt == parse_body(CHAT, body, {}, SEED).prompt is not None


SHORT = {
    "media": (CHAT, said("[" + ",".join([IMAGE] * 15_000) + "]")),
    "messages": (CHAT, '"messages":[' + ",".join([TURN] * 8_000) + "]"),
    "tools": (CHAT, '"tools":[' + ",".join(['{"a":1}'] * 30_000) + f"],{said('null')}"),
    "arguments": (CHAT, said('[{"type":"x","a":[' + ",".join(["[]"] * 80_000) + "]}]")),
    "NaN": (CHAT, f'"x":NaN,"y":[{",".join(["[]"] * 80_000)}],{said("null")}'),
    "NaN, another path": ("/tokenize", f'"x":NaN,"y":[{",".join(["[]"] * 80_000)}]'),
}
CALLS_NOW_MAX = 6 * (NOW_NODES_MAX + NOW_ITEMS_MAX)


@pytest.mark.parametrize("form", SHORT)
def test_short_body_that_would_take_long_is_not_read_at_once(form: str) -> None:
    """It is given up after a bounded amount of work; it can be read at leisure."""
    path, text = SHORT[form]
    body = f'{{"model":"m",{text}}}'.encode()
    assert len(body) <= NOW_BYTES_MAX
    found, calls = counted(lambda: parse_now(path, body, {}, SEED))
    assert found is None
    assert calls < CALLS_NOW_MAX
    assert parse_body(path, body, {}, SEED).model == "m"
