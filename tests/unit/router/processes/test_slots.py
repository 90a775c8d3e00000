"""Which child accepts for a slot that has none of its own."""

from __future__ import annotations

from typing import cast

from ghostcacher_router.processes.child import Child
from ghostcacher_router.processes.slots import Slots


class Told:
    """A child that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def tell(self, line: str) -> None:
        self.lines.append(line)

    def new(self) -> list[str]:
        lines, self.lines = self.lines, []
        return lines


def children(slots: Slots) -> list[Told]:
    """Put a child in each slot, and forget what they were told meanwhile."""
    made = [Told() for _ in slots]
    for slot, child in zip(slots, made, strict=True):
        slots.put(slot, cast(Child, child))
    for child in made:
        child.new()
    return made


def test_another_child_accepts_until_there_is_a_new_one() -> None:
    """It is told once, and told when that is over."""
    slots = Slots(2)
    (_, dead), (stand_in, _) = list(slots), children(slots)
    slots.put(dead, None)
    assert stand_in.new() == ["adopt 1"]
    new = Told()
    slots.put(dead, cast(Child, new))
    assert (stand_in.new(), new.new()) == (["return 1"], [])


def test_slot_whose_stand_in_dies_gets_another_one() -> None:
    """And so does the slot of the stand-in."""
    slots = Slots(3)
    all_slots, all_children = list(slots), children(slots)
    slots.put(all_slots[2], None)
    (first,) = (index for index in (0, 1) if all_children[index].lines)
    left = all_children[1 - first]
    slots.put(all_slots[first], None)
    assert left.new() == [f"adopt {first}", "adopt 2"]


def test_successor_of_a_stand_in_stands_in() -> None:
    """The old one accepts for nobody any more."""
    slots = Slots(2)
    (mine, dead), (_, _) = list(slots), children(slots)
    slots.put(dead, None)
    successor = Told()
    slots.put(mine, cast(Child, successor))
    assert successor.new() == ["adopt 1"]


def test_first_child_that_comes_back_accepts_for_all() -> None:
    """While there is none, connections wait."""
    slots = Slots(3)
    children(slots)
    for slot in slots:
        slots.put(slot, None)
    back = Told()
    slots.put(list(slots)[1], cast(Child, back))
    assert back.new() == ["adopt 0", "adopt 2"]
