"""Pulls of one rank from several of a peer, each of which has some of its heads: a block is there when all of it is."""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest

from ghostcacher_connector.core.types import MissReason
from ghostcacher_connector.transfer.base import PullOutcome
from ghostcacher_connector.transfer.jobs import JobResult, PullJob, PullSource
from ghostcacher_connector.transfer.memory import Fabric, Fault, MemoryTransport
from ghostcacher_connector.transfer.puller import Puller
from ghostcacher_connector.transfer.shares import Share
from tests.contract.puller_fleet import wait_for
from tests.support.index_parts import rank_record
from tests.support.kv_memory import KvMemory

NAMESPACE, ROW_BYTES, SLOTS = "n", 4096, 16
REMOTE, LOCAL, GENERATIONS = np.arange(3), np.arange(5, 8), np.array([7, 8, 9])


class TwoRanks:
    """A worker of two ranks, and a rank of another one that has what both have, side by side."""

    def __init__(self, row_bytes: int = ROW_BYTES // 2) -> None:
        self.fabric = Fabric()
        self.memory = KvMemory(SLOTS, slot_bytes=ROW_BYTES)
        self.owners = [KvMemory(SLOTS, slot_bytes=row_bytes) for _ in range(2)]
        self.transports = [
            MemoryTransport(self.fabric, owner.memories, owner.table, name=f"w-{number}")
            for number, owner in enumerate(self.owners)
        ]
        transport = MemoryTransport(self.fabric, self.memory.memories, self.memory.table, name="me")
        share = Share.of(0, 1, 1, divided=True)
        self.puller = Puller([transport], self.memory.rank, namespace=NAMESPACE, share=share)
        ranks = tuple(transport.endpoint(rank=number) for number, transport in enumerate(self.transports))
        self.puller.update_peers([msgspec.structs.replace(rank_record("w", ranks[0], NAMESPACE), ranks=ranks)])
        for number, owner in enumerate(self.owners):  # a rank's own number in its rows, so that no two are alike
            owner.write(REMOTE, GENERATIONS)
            for rows in owner.rows:
                rows[REMOTE, 0] = number

    def pull(self) -> JobResult:
        source = PullSource("w", self.owners[0].table.incarnation, REMOTE, GENERATIONS.astype(np.uint64))
        self.puller.submit(PullJob("j", LOCAL, (source,), time.monotonic() + 5))
        return wait_for(self.puller)[0]


@pytest.fixture
def two() -> Iterator[TwoRanks]:
    fleet = TwoRanks()
    yield fleet
    fleet.puller.close()


def test_both_halves_arrive(two: TwoRanks) -> None:
    result = two.pull()
    assert result.outcome is PullOutcome.DONE
    assert result.bytes == 3 * 3 * ROW_BYTES
    for number, rows in enumerate(two.memory.rows):
        halves = [owner.rows[number][REMOTE] for owner in two.owners]
        assert np.array_equal(rows[LOCAL], np.concatenate(halves, axis=1))


@pytest.mark.parametrize("rank", [0, 1])
def test_block_that_one_rank_has_reused_is_missing(two: TwoRanks, rank: int) -> None:
    """Its neighbours are kept, whichever rank it is."""
    two.owners[rank].table.bump(np.array([1]), np.array([99], np.uint64))
    result = two.pull()
    assert (result.outcome, result.valid.tolist()) == (PullOutcome.STALE, [True, False, True])


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("fault", [Fault.UNREACHABLE, Fault.STALLED])
def test_nothing_counts_when_one_rank_cannot_be_read(two: TwoRanks, rank: int, fault: Fault) -> None:
    two.fabric.inject(two.transports[rank].agent_name, fault)
    result = two.pull()
    assert (result.outcome, result.valid.any()) == (PullOutcome.FAILED, False)


def test_worker_whose_rows_do_not_come_out_even_is_refused() -> None:
    two = TwoRanks(row_bytes=ROW_BYTES)
    assert "bytes per slot" in two.puller.peers.refused["w"]
    result = two.pull()
    assert {failure.reason for failure in result.failures} == {MissReason.PEER_UNREACHABLE}
    two.puller.close()
