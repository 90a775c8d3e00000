"""Objects of a worker with two ranks: real memories, real files, and the scheduler's part that orders it all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ghostcacher_connector.core.retention.base import BlockTraits
from ghostcacher_connector.core.retention.retention_settings import RetentionSettings
from ghostcacher_connector.core.types import SectionType
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.objects.directory import ObjectDirectory
from ghostcacher_connector.objects.tier_options import TierOptions
from ghostcacher_connector.tiers.candidates import Candidate
from ghostcacher_connector.tiers.host_tier import HostTier
from ghostcacher_connector.tiers.object_orders import ObjectOrders
from ghostcacher_connector.transfer.jobs import CopyJob, CopyResult
from ghostcacher_connector.worker.host_objects import HostObjects
from tests.support.index_parts import wait_until
from tests.support.object_tiers import chain
from tests.support.tier_rank import HOST_SLOTS, NAMESPACE, SLOTS, WAIT_S, TierRank, same

COUNT, GENERATION = 3, 5
BLOCKS = chain(COUNT)
ENGINE = np.arange(1, COUNT + 1, dtype=np.int64)


class Sink:
    """Takes what is published."""

    def publish(self, slot: int, block: bytes, root: bytes, generation: int) -> None:
        """Nobody looks for it."""

    def withdraw(self, slot: int) -> None:
        """Nobody looks for it."""

    def withdraw_from(self, first_slot: int) -> None:
        """Nobody looks for it."""


class Worker:
    """Two ranks, and what their scheduler has of the tiers."""

    def __init__(self, ranks: list[TierRank], url: str) -> None:
        self.ranks = ranks
        row_bytes = ranks[0].memory.rank.bytes_per_slot
        self.tier = HostTier(
            Sink(),
            Recorder(),
            worker="w",
            first_slot=SLOTS,
            slot_count=HOST_SLOTS,
            ranks=len(ranks),
            block_bytes=row_bytes,
            retention=RetentionSettings(),
        )
        self.orders = ObjectOrders(
            self.tier,
            lambda namespace: ObjectDirectory.open(
                url,
                namespace=namespace.encode(),
                block_bytes=[row_bytes] * len(ranks),
                options=TierOptions(),
                recorder=Recorder(),
            ),
            namespace=NAMESPACE,
            ranks=len(ranks),
        )
        assert self.orders.directory.wait_listed(WAIT_S)
        for rank in ranks:
            rank.runtime.open_objects("bfloat16")
            assert self.objects_of(rank).tier.wait_listed(WAIT_S)
        self._bump()

    def compute_and_store(self) -> None:
        """Compute blocks, copy them down and write them to objects."""
        for number, rank in enumerate(self.ranks):
            rank.memory.table.bump(ENGINE, same(COUNT, GENERATION))
            rank.memory.fill(ENGINE, self.owners(number), same(COUNT, GENERATION))
        for index, slot in enumerate(ENGINE.tolist()):
            self.tier.engine_holds(slot, candidate(index), GENERATION)
        # As vLLM gives them up: the last one of a prompt first.
        for job in self.tier.order(ENGINE[::-1].tolist()):
            for rank in self.ranks:
                assert rank.runtime.copier is not None
                rank.runtime.copier.submit(job)
            self._reported()
        (store,) = self.orders.take_stores()
        assert store.hashes == tuple(BLOCKS)
        assert store.position == 0
        for rank in self.ranks:
            self.objects_of(rank).store(store)
        wait_until(
            lambda: all(self.objects_of(rank).tier.catalogue.block_count == COUNT for rank in self.ranks), WAIT_S
        )

    def fetch(self) -> int:
        """Read what the directory knows of; return how many blocks are held then."""
        count = self.orders.longest(BLOCKS)
        self.orders.fetch([candidate(index) for index in range(count)], WAIT_S)
        self._bump()
        for job in self.orders.take_fetches():
            for rank in self.ranks:
                self.objects_of(rank).fetch(job)
            self._reported()
        assert self.orders.take_stores() == []
        self.tier.ledger.check_invariants()
        return len(self.tier.ledger.prefix(BLOCKS, 0))

    def right(self) -> bool:
        """Say whether every rank has its own part of each block in its host slots."""
        slots = np.array([location.slot for location in self.tier.ledger.prefix(BLOCKS, 0)], dtype=np.int64)
        return all(
            rank.memory.holds(slots, self.owners(number), same(COUNT, GENERATION)).all()
            for number, rank in enumerate(self.ranks)
        )

    def hang(self, goes: threading.Event) -> None:
        """Have reads of objects wait for an event."""
        for rank in self.ranks:
            store = self.objects_of(rank).tier._objects.store
            store.read = partial(_read_once_it_goes, goes, store.read)  # type: ignore[method-assign]

    def idle(self) -> bool:
        """Say whether no rank has anything left to copy."""
        return all(rank.runtime.copier is not None and not rank.runtime.copier.queue_length for rank in self.ranks)

    @staticmethod
    def objects_of(rank: TierRank) -> HostObjects:
        assert rank.runtime.objects is not None
        return rank.runtime.objects

    @staticmethod
    def owners(rank: int) -> np.ndarray:
        """Return what names a rank's part of the blocks."""
        return ENGINE + 100 * rank

    def _bump(self) -> None:
        bumped = self.tier.ledger.take_bumps()
        for rank in self.ranks:
            rank.memory.table.bump(*bumped)

    def _reported(self) -> None:
        for rank in self.ranks:
            assert rank.runtime.copier is not None
            (result,) = rank.runtime.copier.poll(wait_s=WAIT_S)
            self.tier.reported(result.copy_id, result.valid.tolist())
            self.orders.reported(result)


def _read_once_it_goes(
    goes: threading.Event, read: Callable[[str, int], memoryview], name: str, size: int
) -> memoryview:
    assert not name.startswith("v1/objects/") or goes.wait(WAIT_S)
    return read(name, size)


def candidate(index: int) -> Candidate:
    traits = BlockTraits(SectionType.DOC, index, 16, 3 * 4096)
    return Candidate(BLOCKS[index], BLOCKS[0], BLOCKS[index - 1] if index else None, traits)


@contextmanager
def worker(folder: Path) -> Iterator[Worker]:
    url = f"file://{folder}/objects"
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(TierRank(rank=number, object_url=url, object_compression="never")) for number in (0, 1)
        ]
        made = Worker(ranks, url)
        yield made
        made.orders.close()


def objects_of(folder: Path, rank: int) -> list[Path]:
    """Return the files of one rank."""
    objects = folder / "objects" / "v1" / "objects"
    return [path for path in objects.rglob("*") if path.is_file() and f"/{rank}/" in f"{path.relative_to(objects)}"]


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Return the folder in which a worker that is gone has stored blocks."""
    with worker(tmp_path) as before:
        before.compute_and_store()
    return tmp_path


def test_each_rank_finds_its_own_part_after_a_restart(stored: Path) -> None:
    with worker(stored) as after:
        assert after.fetch() == COUNT
        assert after.right()


def test_what_one_rank_lacks_is_held_by_none(stored: Path) -> None:
    """Its object is damaged: the other rank has read its own in vain, and nothing is asked again for a while."""
    (path,) = objects_of(stored, 1)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with worker(stored) as after:
        # The last block alone is damaged.
        assert after.fetch() == COUNT - 1
        path.unlink(missing_ok=True)
    for path in objects_of(stored, 0):
        path.unlink()
    with worker(stored) as later:
        assert later.fetch() == 0
        assert later.orders.longest(BLOCKS) == 0


def test_fetch_that_was_given_up_holds_nothing_when_it_is_reported(stored: Path) -> None:
    """The tier was emptied meanwhile."""
    with worker(stored) as after:
        after.orders.fetch([candidate(index) for index in range(COUNT)], WAIT_S)
        (job,) = after.orders.take_fetches()
        after.tier.clear()
        for _ in after.ranks:
            done = CopyResult(job.copy_id, np.ones(COUNT, dtype=np.bool_), 0, 0.0)
            after.tier.reported(done.copy_id, done.valid.tolist())
            assert after.orders.reported(done) is None
        assert len(after.tier.ledger) == 0
        assert after.fetch() == COUNT
        assert after.right()


def given_to_another_copy(after: Worker) -> CopyJob:
    """Drop what is being fetched, and have its slots given to a copy of other blocks; return that copy."""
    after.tier.ledger.drop(lambda block: block == BLOCKS[0])
    for number, rank in enumerate(after.ranks):
        rank.memory.table.bump(ENGINE, same(COUNT, GENERATION + 1))
        rank.memory.fill(ENGINE, after.owners(number) + 50, same(COUNT, GENERATION + 1))
    for index, slot in enumerate(ENGINE.tolist()):
        after.tier.engine_holds(slot, candidate(index), GENERATION + 1)
    (copy,) = after.tier.order(ENGINE.tolist())
    after._bump()
    return copy


def test_fetch_that_was_given_up_before_its_step_fills_no_slot_of_another_copy(stored: Path) -> None:
    """An order to flush may come between the two. The slots are given to copies of the same step."""
    with worker(stored) as after:
        after.orders.fetch([candidate(index) for index in range(COUNT)], WAIT_S)
        copy = given_to_another_copy(after)
        for rank in after.ranks:  # in the order in which a rank begins a step
            assert rank.runtime.copier is not None
            rank.runtime.copier.submit(copy)
        fetches = after.orders.take_fetches()
        for rank in after.ranks:
            for fetch in fetches:
                after.objects_of(rank).fetch(fetch)
            wait_until(lambda rank=rank: rank.runtime.copier.queue_length == 0, WAIT_S)  # type: ignore[misc]
        for rank in after.ranks:
            assert rank.runtime.copier is not None
            for result in rank.runtime.copier.poll():
                after.tier.reported(result.copy_id, result.valid.tolist())
        slots = np.array([location.slot for location in after.tier.ledger.prefix(BLOCKS, 0)], dtype=np.int64)
        assert len(slots) == COUNT
        for number, rank in enumerate(after.ranks):
            assert rank.memory.holds(slots, after.owners(number) + 50, same(COUNT, GENERATION + 1)).all()
        assert fetches == []


def test_blocks_whose_copies_are_gone_are_not_stored(tmp_path: Path) -> None:
    """Between the copy and the order the tier has given their slots away."""
    with worker(tmp_path) as one:
        for index, slot in enumerate(ENGINE.tolist()):
            one.tier.engine_holds(slot, candidate(index), GENERATION)
        (job,) = one.tier.order(ENGINE.tolist())
        for _ in one.ranks:
            one.tier.reported(job.copy_id, [True] * COUNT)
        assert one.orders.waiting
        one.tier.ledger.drop(lambda block: block == BLOCKS[1])
        first, last = one.orders.take_stores()
        assert (first.hashes, last.hashes) == ((BLOCKS[0],), (BLOCKS[2],))
        assert (first.position, last.position) == (0, 2)
        assert not one.orders.waiting


def test_move_of_a_rank_is_not_held_up_by_a_store_that_hangs(stored: Path) -> None:
    with worker(stored) as one:
        rank = one.ranks[0]
        over = np.zeros(1)
        store = one.objects_of(rank).tier._objects.store

        def hang(*_: object) -> memoryview:
            while not over[0]:
                time.sleep(0.01)
            return memoryview(b"")

        store.read = hang  # type: ignore[method-assign]
        one.orders.fetch([candidate(index) for index in range(COUNT)], WAIT_S)
        (job,) = one.orders.take_fetches()
        one.objects_of(rank).fetch(job)
        rank.runtime.move("m" * 32)
        over[0] = 1
        assert rank.runtime.copier is not None
        (result,) = rank.runtime.copier.poll(wait_s=WAIT_S)
        assert not result.valid.any()


def test_store_that_hangs_holds_up_no_copy_to_the_host_tier(stored: Path) -> None:
    """A fetch waits for it on a thread of its own; what is copied behind it is held meanwhile."""
    with worker(stored) as after:
        goes = threading.Event()
        after.hang(goes)
        after.orders.fetch([candidate(0)], WAIT_S)
        after._bump()
        (fetch,) = after.orders.take_fetches()
        for rank in after.ranks:
            after.objects_of(rank).fetch(fetch)
        other = Candidate(b"other" * 6 + b"..", BLOCKS[0], None, candidate(0).traits)
        after.tier.engine_holds(int(ENGINE[0]), other, GENERATION)
        for number, rank in enumerate(after.ranks):
            rank.memory.table.bump(ENGINE[:1], same(1, GENERATION))
            rank.memory.fill(ENGINE[:1], after.owners(number)[:1], same(1, GENERATION))
        (copy,) = after.tier.order([int(ENGINE[0])])
        after._bump()
        for rank in after.ranks:
            assert rank.runtime.copier is not None
            rank.runtime.copier.submit(copy)
        after._reported()
        assert after.tier.ledger.holds(other.block)
        assert not after.tier.ledger.holds(BLOCKS[0])
        goes.set()
        after._reported()
        assert after.tier.ledger.holds(BLOCKS[0])


@pytest.mark.parametrize("placed", [False, True])
def test_fetch_that_comes_late_fills_no_slot_that_was_given_to_a_copy(stored: Path, placed: bool) -> None:
    """The ledger has given it up while its store hung, and its slots are a copy's now."""
    with worker(stored) as after:
        goes = threading.Event()
        if placed:
            goes.set()
        after.hang(goes)
        after.orders.fetch([candidate(index) for index in range(COUNT)], WAIT_S)
        after._bump()
        (fetch,) = after.orders.take_fetches()
        for rank in after.ranks:
            after.objects_of(rank).fetch(fetch)
        copy = given_to_another_copy(after)
        assert set(copy.host_slots.tolist()) & set(fetch.host_slots.tolist())
        for rank in after.ranks:
            assert rank.runtime.copier is not None
            rank.runtime.copier.submit(copy)
        wait_until(after.idle, WAIT_S)
        goes.set()
        wait_until(lambda: not any(after.objects_of(rank)._fetches for rank in after.ranks), WAIT_S)
        wait_until(after.idle, WAIT_S)
        for rank in after.ranks:
            assert rank.runtime.copier is not None
            for result in rank.runtime.copier.poll():
                after.tier.reported(result.copy_id, result.valid.tolist())
        slots = np.array([location.slot for location in after.tier.ledger.prefix(BLOCKS, 0)], dtype=np.int64)
        assert len(slots) == COUNT
        for number, rank in enumerate(after.ranks):
            assert rank.memory.holds(slots, after.owners(number) + 50, same(COUNT, GENERATION + 1)).all()
