"""Which objects the garbage collector of a router looks at. Virtual time."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from ghostcacher_router import garbage
from ghostcacher_simulator.virtual_time import virtual


class Cycle:
    """Refers to itself: the garbage collector alone can free it."""

    def __init__(self) -> None:
        self.own = self


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.callbacks.remove(garbage._set_aside)
    gc.set_threshold(*before)
    gc.unfreeze()


def old_objects() -> int:
    return sum(len(gc.get_objects(generation=number)) for number in (1, 2))


def test_what_has_survived_a_collection_is_not_looked_at_again() -> None:
    """Not by a collection of older objects either. What is new, and garbage, is found."""
    garbage.set_survivors_aside()
    garbage.set_survivors_aside()
    assert gc.callbacks.count(garbage._set_aside) == 1
    gc.collect(0)
    assert old_objects() == 0
    new = weakref.ref(Cycle())
    gc.collect(0)
    assert new() is None


@virtual
async def test_garbage_that_was_set_aside_is_found_once_there_is_much_more() -> None:
    """And then everything is set aside again."""
    garbage.set_survivors_aside()
    looking = asyncio.create_task(garbage.look_through_all())
    await asyncio.sleep(0)
    kept = [Cycle()]
    late = weakref.ref(kept[0])
    gc.collect(0)
    kept.clear()
    gc.collect()
    await asyncio.sleep(garbage.LOOK_S + 1)
    assert late() is not None
    more = [Cycle() for _ in range(gc.get_freeze_count())]
    gc.collect(0)
    await asyncio.sleep(garbage.LOOK_S)
    assert late() is None
    assert len(more) < gc.get_freeze_count()
    looking.cancel()
