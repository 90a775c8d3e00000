"""The copier: how each copy ends, in which order, and what its result proves."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from ghostcacher_connector.slots import Slots
from ghostcacher_connector.transfer.copier import Copier, CopierStats
from ghostcacher_connector.transfer.jobs import CopyJob, CopyResult
from tests.support.kv_memory import KvMemory

SLOTS, HOST_SLOTS = 16, 8
WAIT_S = 60.0


class Rig:
    """A copier whose copies wait at a gate, before or after their rows were moved."""

    def __init__(self, **options: int) -> None:
        self.memory = KvMemory(SLOTS, 2, 64, host_slots=HOST_SLOTS)
        engine, host = self.memory.memories
        self.copier = Copier((engine, host), self.memory.table, **options)
        self.moved, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()
        run = self.copier._rows.run

        def gated(source: Slots, target: Slots) -> None:
            run(source, target)
            self.moved.set()
            assert self.go_on.wait(WAIT_S)

        self.copier._rows.run = gated  # type: ignore[method-assign]

    def write(self, slots: list[int], generation: int) -> None:
        self.memory.write(np.array(slots, dtype=np.int64), np.full(len(slots), generation, dtype=np.uint64))

    def bump(self, slots: list[int], generation: int) -> None:
        self.memory.table.bump(np.array(slots, dtype=np.int64), np.full(len(slots), generation, dtype=np.uint64))

    def submit(self, copy_id: int, engine: list[int], host: list[int], generation: int) -> None:
        generations = np.full(len(engine), generation, dtype=np.uint64)
        where = np.array(host, dtype=np.int64) + SLOTS
        self.copier.submit(CopyJob(copy_id, np.array(engine, dtype=np.int64), generations, where))

    def ended(self, count: int = 1) -> list[CopyResult]:
        results: list[CopyResult] = []
        while len(results) < count:
            got = self.copier.poll(wait_s=WAIT_S)
            assert got, "no copy ended"
            results.extend(got)
        return results

    def holds(self, host: list[int], engine: list[int], generation: int) -> list[bool]:
        generations = np.full(len(host), generation, dtype=np.uint64)
        held: list[bool] = self.memory.holds(np.array(host) + SLOTS, np.array(engine), generations).tolist()
        return held


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.go_on.set()
    assert rig.copier.close()


def test_copied_blocks_are_in_their_host_slots(rig: Rig) -> None:
    """All of a job is valid, and the host slots hold it."""
    rig.write([1, 2, 7], 5)
    rig.submit(1, [1, 2, 7], [3, 4, 0], 5)
    (result,) = rig.ended()
    assert (result.copy_id, result.valid.tolist(), result.bytes) == (1, [True] * 3, 3 * 128)
    assert rig.holds([3, 4, 0], [1, 2, 7], 5) == [True] * 3
    assert rig.copier.stats == CopierStats(valid=3, bytes=3 * 128, seconds=result.seconds)


def test_slot_that_was_reused_before_the_copy_is_not_copied(rig: Rig) -> None:
    """Its neighbours are; its host slot keeps what it had."""
    rig.write([1, 2], 5)
    rig.write([2], 6)
    rig.submit(1, [1, 2], [0, 1], 5)
    (result,) = rig.ended()
    assert (result.valid.tolist(), result.bytes) == ([True, False], 128)
    assert rig.holds([0], [1], 5) == [True]
    assert not any(rows[1].any() for rows in rig.memory.host_rows)
    assert (rig.copier.stats.valid, rig.copier.stats.stale) == (1, 1)


def test_slot_that_is_reused_during_the_copy_is_invalid(rig: Rig) -> None:
    """The seal is compared after the rows were moved: whatever was bumped by then is not proven."""
    rig.write([1, 2], 5)
    rig.go_on.clear()
    rig.submit(1, [1, 2], [0, 1], 5)
    assert rig.moved.wait(WAIT_S)
    rig.bump([1], 6)
    rig.go_on.set()
    assert rig.ended()[0].valid.tolist() == [False, True]


def test_copy_across_a_new_incarnation_is_invalid(rig: Rig) -> None:
    """A rank that has missed bumps knows nothing of its generations: also what was queued before is not proven."""
    rig.write([1, 2], 5)
    rig.go_on.clear()
    rig.submit(1, [1], [0], 5)
    rig.submit(2, [2], [1], 5)
    assert rig.moved.wait(WAIT_S)
    rig.memory.table.renew_incarnation()
    rig.submit(3, [2], [2], 5)
    rig.go_on.set()
    assert [result.valid.tolist() for result in rig.ended(3)] == [[False], [False], [True]]


def test_copies_end_in_the_order_in_which_they_were_submitted(rig: Rig) -> None:
    """A host slot that was given to a later job holds the later block in the end."""
    rig.write([1, 2], 5)
    for copy_id in range(1, 101):
        rig.submit(copy_id, [1 + copy_id % 2], [0], 5)
    assert [result.copy_id for result in rig.ended(100)] == list(range(1, 101))
    assert rig.holds([0], [1], 5) == [True]


def test_full_queue_ends_a_copy_with_nothing_valid() -> None:
    """It is refused at once, and counted; those that wait are carried out."""
    rig = Rig(queue_max=2)
    rig.write([1], 5)
    rig.go_on.clear()
    rig.submit(1, [1], [0], 5)
    assert rig.moved.wait(WAIT_S)
    for copy_id in (2, 3, 4):
        rig.submit(copy_id, [1], [copy_id], 5)
    assert rig.copier.queue_length == 3
    assert [(result.copy_id, result.valid.tolist(), result.bytes) for result in rig.copier.poll()] == [(4, [False], 0)]
    rig.go_on.set()
    assert [(result.copy_id, result.valid.tolist()) for result in rig.ended(3)] == [(n, [True]) for n in (1, 2, 3)]
    assert (rig.copier.stats.refused, rig.copier.queue_length) == (1, 0)
    assert rig.copier.close()


def test_close_waits_for_the_copy_under_way_and_ends_the_others() -> None:
    """Every job ends once; when close returns, nothing reads the engine's memory any more. Later jobs end at once."""
    rig = Rig()
    rig.write([1], 5)
    rig.go_on.clear()
    for copy_id in (1, 2):
        rig.submit(copy_id, [1], [copy_id], 5)
    assert rig.moved.wait(WAIT_S)
    closing = threading.Thread(target=rig.copier.close)
    closing.start()
    assert rig.ended()[0].copy_id == 2
    assert closing.is_alive()
    rig.go_on.set()
    closing.join(WAIT_S)
    assert not closing.is_alive()
    rig.submit(3, [1], [3], 5)
    assert [(result.copy_id, result.valid.tolist()) for result in rig.ended(2)] == [(1, [True]), (3, [False])]
    assert rig.copier.close()


def test_copy_that_raises_ends_with_nothing_valid(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """A job without a result would cost its host slots for ever."""

    def broken(_source: Slots, _target: Slots) -> None:
        raise ZeroDivisionError

    rig.write([1], 5)
    working, rig.copier._rows.run = rig.copier._rows.run, broken  # type: ignore[method-assign]
    rig.submit(1, [1], [0], 5)
    assert rig.ended()[0].valid.tolist() == [False]
    assert "copy 1 failed" in caplog.text
    rig.copier._rows.run = working  # type: ignore[method-assign]
    rig.submit(2, [1], [0], 5)
    assert rig.ended()[0].valid.tolist() == [True]


@pytest.mark.parametrize(("engine", "host"), [([SLOTS], [0]), ([-1], [0]), ([0], [-1]), ([0], [HOST_SLOTS])])
def test_copy_of_other_slots_is_a_bug_of_ours(rig: Rig, engine: list[int], host: list[int]) -> None:
    """Orders come from our own scheduler: copies read engine slots, and fill host slots."""
    with pytest.raises(AssertionError, match="a copy"):
        rig.submit(1, engine, host, 0)
