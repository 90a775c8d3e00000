"""A publisher whose worker becomes another incarnation in another namespace."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from ghostcacher_connector.core.errors import IndexUnavailable
from ghostcacher_connector.core.index.base import Drop, Entry, WorkerRef, ref_of
from ghostcacher_connector.core.index.memory import MemoryIndex
from ghostcacher_connector.core.types import WorkerRecord
from ghostcacher_connector.publish.publisher import BACKOFF_MAX_S, Publisher
from tests.support.index_parts import FakeClock, chain, make_record

LEASE_S = 9.0


class Watched(MemoryIndex):
    """An index that lets a test act while a batch is on its way, and that can lose it."""

    on_apply: Callable[[], None] | None = None

    def apply(self, ref: WorkerRef, entries: Sequence[Entry], drops: Sequence[Drop], *, lease_ttl_s: float) -> None:
        if (act := self.on_apply) is not None:
            self.on_apply = None
            act()
        super().apply(ref, entries, drops, lease_ttl_s=lease_ttl_s)


class Bench:
    """A publisher that has published four blocks, and the record of its next life."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.index = Watched(partitions=4, clock=self.clock)
        self.old, self.new = make_record("w1"), make_record("w1", namespace="another")
        self.publisher = Publisher(self.index, self.old, lease_ttl_s=LEASE_S, clock=self.clock)
        self.blocks = chain(4)
        self.publish(self.blocks)
        self.publisher.step()

    def publish(self, blocks: Sequence[bytes]) -> None:
        for slot, block in enumerate(blocks):
            self.publisher.publish(slot, block, blocks[0], 1)

    def held(self, record: WorkerRecord, blocks: Sequence[bytes]) -> int:
        hits = self.index.lookup([ref_of(record)], blocks)
        return hits[0].length if hits else 0


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_move_takes_nothing_along(bench: Bench) -> None:
    """The old record and its blocks are gone, the new one is there with what was published since."""
    later = chain(3, seed=1)
    assert bench.held(bench.old, bench.blocks) == 4
    bench.publisher.move(bench.new)
    bench.publish(later)
    bench.publisher.step()
    assert bench.index.workers() == [bench.new]
    assert bench.held(bench.old, bench.blocks) == 0
    assert bench.held(bench.new, bench.blocks) == 0
    assert bench.held(bench.new, later) == 3
    assert bench.publisher.stats().blocks_held == 3
    assert bench.publisher.applied(bench.clock())


def test_batch_on_its_way_is_of_the_life_that_it_was_published_in(bench: Bench) -> None:
    """What is published after the move is never sent under the old record, however the move meets the thread."""
    early, later = chain(2, seed=1), chain(2, seed=2)

    def move() -> None:
        bench.publisher.move(bench.new)
        bench.publish(later)

    bench.publish(early)
    bench.index.on_apply = move
    bench.publisher.step()
    assert not bench.publisher.applied(bench.clock())
    assert bench.held(bench.old, later) == 0
    bench.publisher.step()
    assert (bench.held(bench.new, early), bench.held(bench.new, later)) == (0, 2)


def test_batch_that_was_lost_is_not_sent_in_the_next_life(bench: Bench) -> None:
    """An index that fails keeps the batch waiting: the move forgets it."""
    early = chain(2, seed=1)

    def lose() -> None:
        raise IndexUnavailable("lost")

    bench.publish(early)
    bench.index.on_apply = lose
    bench.publisher.step()
    bench.publisher.move(bench.new)
    bench.clock.advance(BACKOFF_MAX_S)
    bench.publisher.step()
    assert bench.held(bench.new, early) == 0
    assert bench.index.workers() == [bench.new]


def test_index_that_is_away_is_left_and_joined_once_it_answers(bench: Bench) -> None:
    """Several moves meanwhile end in the last one, and the first record does not stay behind."""
    last = make_record("w1", namespace="last")
    bench.index.reachable = False
    for record in (bench.new, last):
        bench.publisher.move(record)
        bench.publisher.step()
    bench.index.reachable = True
    bench.clock.advance(BACKOFF_MAX_S)
    bench.publisher.step()
    assert bench.index.workers() == [last]


def test_lease_of_the_new_record_is_renewed(bench: Bench) -> None:
    bench.publisher.move(bench.new)
    for _ in range(6):
        bench.publisher.step()
        bench.clock.advance(LEASE_S / 3)
    assert bench.index.workers() == [bench.new]
