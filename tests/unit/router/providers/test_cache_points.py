"""Cache points for Bedrock: where they are put, and that nothing else of a body changes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ghostcacher_router.providers.bodies.cache_points import POINT, with_cache_points

CLAUDE = "eu.anthropic.claude-sonnet-4-5-20250929-v1:0"
LONG = "word " * 700
CACHED = {"cachePoint": {"type": "default"}}
TOOL = {"toolSpec": {"name": "t", "description": LONG, "inputSchema": {"json": {}}}}
DOCUMENT = {"document": {"name": "d", "format": "txt", "source": {"text": LONG}}}


def pointed(body: dict[str, Any], model: str = CLAUDE) -> dict[str, Any]:
    """Return the body with cache points; without them it is the one that was given."""
    before = json.dumps(body).encode()
    after = with_cache_points(before, model)
    assert after.replace(POINT, b"") == before
    return dict(json.loads(after))


def turn(role: str, *blocks: Any) -> dict[str, Any]:
    return {"role": role, "content": list(blocks)}


TURNS = [
    turn("user", DOCUMENT, {"text": "q"}),
    turn("assistant", {"text": LONG}),
    turn("user", {"text": LONG}),
    turn("assistant", {"text": "a"}),
    turn("user", {"text": "r"}),
]
WHOLE = {"toolConfig": {"tools": [TOOL]}, "system": [{"text": LONG}], "messages": TURNS}


def test_each_section_ends_with_a_point() -> None:
    """Tools, system, documents, and the history up to the user's last answered turn."""
    found = pointed(WHOLE)
    assert found["toolConfig"]["tools"] == [TOOL, CACHED]
    assert found["system"] == [{"text": LONG}, CACHED]
    assert found["messages"][0]["content"] == [DOCUMENT, CACHED, {"text": "q"}]
    assert found["messages"][2]["content"] == [{"text": LONG}, CACHED]
    assert found["messages"][1::2] == TURNS[1::2]
    assert found["messages"][4] == TURNS[4]


@pytest.mark.parametrize(
    ("model", "points"),
    [
        (CLAUDE, 4),
        ("anthropic.claude-3-5-haiku-20241022-v1:0", 3),
        ("anthropic.claude-3-7-sonnet-20250219-v1:0", 4),
        ("anthropic.claude-opus-5", 4),
        ("anthropic.claude-3-haiku-20240307-v1:0", 0),
        ("anthropic.claude-v2:1", 0),
        ("us.amazon.nova-pro-v1:0", 3),
        ("amazon.nova-canvas-v1:0", 0),
        ("meta.llama3-3-70b-instruct-v1:0", 0),
        ("arn:aws:bedrock:eu-central-1:1:application-inference-profile/x", 0),
        ("", 0),
    ],
)
def test_models_that_know_no_points_get_none(model: str, points: int) -> None:
    """They would refuse the request. Nova takes none among tools, and these are too short for Haiku 3.5."""
    body = WHOLE | {"system": [{"text": LONG * 4}]}
    assert json.dumps(pointed(body, model)).count("cachePoint") == points
    if "nova-pro" in model:
        assert pointed(body, model)["toolConfig"] == body["toolConfig"]


def test_points_of_the_client_stay_and_count() -> None:
    mine = WHOLE | {"system": [{"text": LONG}, CACHED, {"text": "x"}, CACHED]}
    found = pointed(mine)
    assert found["system"] == mine["system"]
    assert json.dumps(found).count("cachePoint") == 4
    full = WHOLE | {"system": [{"text": LONG}, CACHED, CACHED, CACHED, CACHED, {"text": "x"}]}
    assert pointed(full) == full
    after = [turn("user", DOCUMENT, CACHED, {"text": "q"})]
    assert pointed({"messages": after}) == {"messages": after}


def test_short_prompts_and_odd_bodies_stay_as_they_are() -> None:
    for body in (
        {"system": [{"text": "short"}], "messages": [turn("user", {"text": "q"})]},
        {"system": LONG, "messages": {"a": LONG}, "toolConfig": [LONG]},
        {"system": [LONG], "messages": [1, {}, turn("user", LONG), {"content": LONG}]},
        {"system": [], "messages": [], "toolConfig": {"tools": []}},
    ):
        assert pointed(body) == body
    assert with_cache_points(b"[]", CLAUDE) == b"[]"


def test_conversation_without_documents_and_one_of_one_turn() -> None:
    """What only one request has is not worth a place."""
    one = {"messages": [turn("user", {"text": LONG})]}
    assert pointed(one) == one
    begun = {"messages": [turn("user", {"text": LONG}), turn("assistant", {"text": "a"})]}
    assert pointed(begun) == begun
