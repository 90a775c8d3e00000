"""A rank's host tier, with real memory and real NIXL and without Redis: down, up, to peers, and its ends."""

from __future__ import annotations

import numpy as np
import pytest

from ghostcacher_connector.core.types import MissReason
from ghostcacher_connector.transfer.base import PullOutcome
from tests.support.tier_rank import HOST_SLOTS, SLOTS, TierRank, same

ENGINE, HOST, ELSEWHERE = (np.array(slots, dtype=np.int64) for slots in ([1, 2, 7], [3, 4, 0], [10, 8, 9]))
GENERATION = 5


def computed_and_copied(rank: TierRank) -> None:
    """Compute three blocks and copy them down; then the engine reuses their slots."""
    rank.write(ENGINE, GENERATION)
    assert rank.copy_down(ENGINE, HOST, GENERATION).valid.all()
    rank.write(ENGINE, GENERATION + 1)


def holds(rank: TierRank, slots: np.ndarray) -> bool:
    return bool(rank.memory.holds(slots, ENGINE, same(len(ENGINE), GENERATION)).all())


@pytest.mark.parametrize("layout", ["layers", "blocks", "gaps"])
def test_block_that_the_engine_evicted_is_loaded_from_the_host_tier_without_redis(layout: str) -> None:
    """Down, evicted, up again into other slots, in each layout; the self-check has read a slot of both memories."""
    with TierRank(layout=layout) as rank:
        rank.runtime.start()
        computed_and_copied(rank)
        result = rank.load(rank.source(HOST, GENERATION), ELSEWHERE)
        assert result.outcome is PullOutcome.DONE
        assert [entry.result.transport for entry in result.tries] == ["local"]
        assert holds(rank, ELSEWHERE)
        rank.runtime.record_metrics()
        counted = rank.recorder.drain()
        assert counted["gc_tier_copied_blocks_total"]["valid"] == 3
        assert counted["gc_tier_copied_bytes_total"][""] == 3 * rank.memory.rank.bytes_per_slot
        assert counted["gc_self_check_ok"]["0"] == 1


def test_peer_reads_host_slots_until_they_are_given_away() -> None:
    """A remote host hit lands straight in the reader's engine slots; a bumped host slot is stale."""
    with TierRank("owner") as owner, TierRank("reader") as reader:
        computed_and_copied(owner)
        reader.runtime.puller.update_peers([owner.record()])
        source = owner.source(HOST, GENERATION, owner.record().incarnation)
        result = reader.load(source, ELSEWHERE)
        assert result.outcome is PullOutcome.DONE
        assert [entry.result.transport for entry in result.tries] == ["nixl"]
        assert holds(reader, ELSEWHERE)
        owner.memory.table.bump(HOST[:1] + SLOTS, same(1, GENERATION + 1))
        assert reader.load(source, ELSEWHERE).valid.tolist() == [False, True, True]


def test_restarted_engine_of_the_same_name_has_none_of_the_host_slots_of_before() -> None:
    """Neither a peer nor the engine itself takes them over, though slots and generations are the same by chance."""
    with TierRank("reader") as reader:
        with TierRank("w") as before:
            computed_and_copied(before)
            reader.runtime.puller.update_peers([before.record()])
            entries = before.source(HOST, GENERATION, before.record().incarnation)
            assert reader.load(entries, ELSEWHERE).outcome is PullOutcome.DONE
        with TierRank("w") as after:
            after.memory.table.bump(HOST + SLOTS, same(len(HOST), GENERATION))
            assert not reader.load(entries, ELSEWHERE).valid.any()
            reader.runtime.puller.update_peers([after.record()])
            for rank in (reader, after):
                result = rank.load(entries, ELSEWHERE)
                assert (result.outcome, result.reason, result.bytes) == (
                    PullOutcome.STALE,
                    MissReason.STALE_GENERATION,
                    0,
                )


def test_every_rank_copies_and_loads_its_own_part() -> None:
    """Each rank proves its part; a slot that one rank reused first is invalid there, and so for the worker."""
    with TierRank(rank=0) as first, TierRank(rank=1) as second:
        for rank in (first, second):
            rank.write(ENGINE, GENERATION)
        second.write(ENGINE[:1], GENERATION + 1)
        assert [rank.copy_down(ENGINE, HOST, GENERATION).valid.tolist() for rank in (first, second)] == [
            [True, True, True],
            [False, True, True],
        ]
        for rank in (first, second):
            assert rank.load(rank.source(HOST[1:], GENERATION), ELSEWHERE[1:]).outcome is PullOutcome.DONE
            assert rank.memory.holds(ELSEWHERE[1:], ENGINE[1:], same(2, GENERATION)).all()


def test_rank_that_moved_refuses_peers_and_serves_its_own_later_copies() -> None:
    """A move makes peers refuse all that was published; the rank itself knows its new incarnation at once."""
    with TierRank("owner") as owner, TierRank("reader") as reader:
        computed_and_copied(owner)
        reader.runtime.puller.update_peers([owner.record()])
        entries = owner.source(HOST, GENERATION, owner.record().incarnation)
        owner.runtime.move("m" * 32)
        assert reader.load(entries, ELSEWHERE).outcome is PullOutcome.STALE
        owner.write(ENGINE, GENERATION + 2)
        assert owner.copy_down(ENGINE, HOST, GENERATION + 2).valid.all()
        assert owner.load(owner.source(HOST, GENERATION + 2), ELSEWHERE).outcome is PullOutcome.DONE


def test_stop_with_copies_and_loads_in_flight_ends_each_once_and_gives_the_memory_back() -> None:
    """After `stop` nothing touches either memory: the engine frees its own next."""
    rank = TierRank()
    computed_and_copied(rank)
    rank.write(ENGINE, GENERATION + 2)
    assert rank.runtime.copier is not None
    assert rank.host is not None
    for _ in range(100):
        rank.submit_copy(ENGINE, HOST + 1, GENERATION + 2)
        rank.submit_load(rank.source(HOST[2:], GENERATION), ELSEWHERE[2:])
    rank.runtime.stop()
    copies, loads = rank.runtime.copier.poll(), rank.runtime.puller.poll()
    assert len(copies) == len(loads) == 100
    assert rank.host.closed
    rank.submit_load(rank.source(HOST[2:], GENERATION), ELSEWHERE[2:])
    assert rank.runtime.puller.poll()[0].outcome is PullOutcome.CANCELLED
    rank.runtime.stop()


def test_host_slots_are_as_many_as_the_setting_has_room_for() -> None:
    """The table has one generation for each slot of both memories."""
    with TierRank() as rank:
        assert [memory.slot_count for memory in rank.runtime.endpoint.memories] == [SLOTS, HOST_SLOTS]
        assert rank.runtime.endpoint.slot_count == rank.memory.table.slot_count == SLOTS + HOST_SLOTS
