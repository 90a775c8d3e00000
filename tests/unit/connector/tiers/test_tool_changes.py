"""When a conversation has other tools than before."""

from __future__ import annotations

from ghostcacher_connector.core.sections import tools_tag
from ghostcacher_connector.tiers.tool_changes import CONVERSATIONS_MAX, SETS_MAX, ToolChanges

ALICE, BOB = b"alice.", b"bobbob"


def tools(name: str, system: str = "s") -> bytes:
    return tools_tag(system.encode(), name.encode(), 7)


def test_new_tools_replace_those_of_before() -> None:
    """Once: afterwards they are what the conversation has."""
    changes = ToolChanges()
    found = [changes.replaced(ALICE, tools(name)) for name in ("a", "a", "b", "b", "c")]
    assert found == [None, None, tools("a"), None, tools("b")]


def test_conversations_of_others_replace_nothing() -> None:
    """Nor do agents of one session, whose system texts differ, nor other tenants."""
    changes = ToolChanges()
    changes.replaced(ALICE, tools("a"))
    assert changes.replaced(BOB, tools("b")) is None
    assert changes.replaced(ALICE, tools("b", "other")) is None
    assert changes.replaced(ALICE, tools("b") + b"tenant") is None
    assert changes.replaced(ALICE, tools("b")) == tools("a")


def test_tools_that_come_back_are_one_of_several_sets() -> None:
    """Neither is then over whenever the other one is used."""
    changes = ToolChanges()
    found = [changes.replaced(ALICE, tools(name)) for name in "abababab"]
    assert found == [None, tools("a"), *[None] * 6]


def test_memory_is_bounded_for_whoever_changes_everything_all_the_time() -> None:
    """In conversations, and in sets of one of them."""
    changes = ToolChanges()
    for number in range(CONVERSATIONS_MAX + 10):
        changes.replaced(b"%06d" % number, tools("a"))
    assert len(changes) == CONVERSATIONS_MAX
    for number in range(SETS_MAX + 1):
        changes.replaced(ALICE, tools(f"t{number}"))
    assert changes.replaced(ALICE, tools("t0")) == tools(f"t{SETS_MAX}"), "it was forgotten, and is new"
