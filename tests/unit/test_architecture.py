"""The arrows of the design: who may import whom, read from the sources."""

from __future__ import annotations

import pytest

from tests.unit.architecture import PACKAGES, circle_in, file_arrows, imports_of, room_of, sources
from tests.unit.arrows import ARROWS, BASICS

PACKAGES_BELOW = {
    "ghostcacher_cli": {"ghostcacher_router", "ghostcacher_simulator"},
    "ghostcacher_simulator": {"ghostcacher_router"},
}
"""Package -> the packages beside the connector that its rooms may import."""


def allowed(room: str, target: str) -> bool:
    rules = ARROWS[room]
    package = target.partition(".")[0]
    connector = package not in PACKAGES
    return target in rules | BASICS | {room} or (connector and "*" in rules) or f"{package}.*" in rules


@pytest.mark.parametrize("module", sorted(sources()))
def test_imports_follow_the_arrows(module: str) -> None:
    """cli -> simulator -> router -> core, connector -> core, and inside each of them as the table says."""
    room = room_of(module)
    if module in PACKAGES or room in {"core", "engines"}:
        return
    wrong = [
        f"line {line}: {room} must not import {name}"
        for name, line in imports_of(sources()[module])
        if name in sources() and not allowed(room, room_of(name))
    ]
    assert not wrong, wrong


def test_every_room_is_in_the_table() -> None:
    """A folder that the table does not name would be free of rules; a rule about one that is gone guards nothing."""
    rooms = {room_of(module) for module in sources() if module not in PACKAGES} - {"core", "engines"}
    assert rooms == set(ARROWS) - {"engines"}


def test_table_has_no_circle_and_no_way_back() -> None:
    """The rooms have an order: no rule leads back to its own room, and nothing imports engines or the CLI."""
    exact = {room: {rule for rule in rules if "*" not in rule} for room, rules in ARROWS.items()}
    assert circle_in(exact) is None
    for room, rules in exact.items():
        package = room.partition(".")[0]
        outside = {rule.partition(".")[0] for rule in rules} & set(PACKAGES) - {package}
        assert outside <= PACKAGES_BELOW.get(package, set()), room
        assert not any(rule.startswith("engines") for rule in rules), room


def test_no_circle_of_files() -> None:
    """No module imports, over others or for types only, itself."""
    circle = circle_in(file_arrows())
    assert circle is None, " -> ".join(circle or [])


def test_circles_are_found() -> None:
    """The search itself: a circle behind a detour is found, a graph whose branches meet has none."""
    assert circle_in({"a": ["b", "c"], "b": ["d"], "c": ["d"], "d": []}) is None
    assert circle_in({"a": ["b"], "b": ["c", "d"], "c": [], "d": ["b"]}) == ["b", "d", "b"]
