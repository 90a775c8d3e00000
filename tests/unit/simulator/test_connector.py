"""The connector of a simulated engine over stores in memory: what it sends, and what a flush of the store costs."""

from __future__ import annotations

import pytest

from ghostcacher_connector.core.coordination.memory import MemoryCoordinationStore
from ghostcacher_connector.core.errors import IndexUnavailable
from ghostcacher_connector.core.index.memory import MemoryIndex
from ghostcacher_simulator.connector import UNSENT_MAX, Connector
from ghostcacher_simulator.pool import HeldBlock
from tests.support.index_parts import FakeClock, chain, make_record

BLOCKS = chain(4)
HELD = [HeldBlock(block, slot, 1) for slot, block in enumerate(BLOCKS)]


class Subject:
    def __init__(self) -> None:
        clock = FakeClock()
        self.index = MemoryIndex(clock=clock)
        self.connector = Connector(self.index, MemoryCoordinationStore(clock=clock), make_record(), lease_ttl_s=10.0)
        self.connector.join()

    def indexed(self) -> int:
        hits = self.index.lookup([self.connector.ref], BLOCKS)
        return hits[0].length if hits else 0


def test_blocks_are_sent_by_a_flush_and_withdrawn_in_order() -> None:
    """Published, then evicted before anything was sent: nothing stays in the index."""
    subject = Subject()
    subject.connector.computed("r", HELD)
    assert subject.indexed() == 0
    subject.connector.evicted(HELD[2:])
    subject.connector.flush()
    assert subject.indexed() == 2


def test_lost_entries_are_entered_again() -> None:
    """A renewal notices that the index has forgotten entries."""
    subject = Subject()
    subject.connector.computed("r", HELD)
    subject.connector.flush()
    subject.index.clear(subject.connector.ref, 0)
    assert subject.indexed() == 0
    subject.connector.renew()
    assert subject.indexed() == 4


def test_unsent_changes_wait_for_the_index() -> None:
    """A flush that fails keeps what it could not send."""
    subject = Subject()
    subject.connector.computed("r", HELD)
    subject.index.reachable = False
    with pytest.raises(IndexUnavailable):
        subject.connector.flush()
    subject.index.reachable = True
    subject.connector.flush()
    assert subject.indexed() == 4


def test_block_that_goes_while_the_index_is_away_is_withdrawn_however_much_follows() -> None:
    """More changes than prompts are kept: the withdrawal is none that gives way to them."""
    subject = Subject()
    subject.connector.computed("r", HELD)
    subject.connector.flush()
    subject.index.reachable = False
    subject.connector.evicted(HELD[1:])
    for number in range(UNSENT_MAX + 1):
        others = [HeldBlock(block, 9, 1) for block in chain(1, number + 1)]
        subject.connector.computed(None, others)
        if number:
            subject.connector.evicted(others)
        with pytest.raises(IndexUnavailable):
            subject.connector.flush()
    subject.index.reachable = True
    subject.connector.flush()
    assert subject.indexed() == 1
    assert subject.connector.published.keys() == {BLOCKS[0], *chain(1, 1)}


def test_what_changes_while_a_flush_fails_is_later_than_what_it_could_not_send(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an engine's loop does, beside the thread that flushes."""
    subject = Subject()
    subject.connector.computed("r", HELD)

    def fail(*_: object, **__: object) -> None:
        subject.connector.evicted(HELD[3:])
        raise IndexUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(subject.index, "apply", fail)
        with pytest.raises(IndexUnavailable):
            subject.connector.flush()
    subject.connector.flush()
    assert subject.indexed() == 3
