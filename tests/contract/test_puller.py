"""The puller over the in-memory fake of a transport and over real NIXL: jobs, sources, peers, and how each job ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from ghostcacher_connector.core.types import MissReason, Segment
from ghostcacher_connector.transfer.base import PullOutcome, PullRequest, PullResult, failed_result
from ghostcacher_connector.transfer.jobs import PullJob, PullSource
from ghostcacher_connector.transfer.memory import Fabric, Fault, MemoryTransport
from ghostcacher_connector.transfer.nixl.transport import NixlTransport
from ghostcacher_connector.transfer.puller import Puller
from ghostcacher_connector.transfer.shares import Share
from tests.contract.puller_fleet import NAMESPACE, Fleet, record, wait_for, wait_until
from tests.support.kv_memory import KvMemory
from tests.support.owner_client import OwnerProcess


class UnfinishedTransport(MemoryTransport):
    """READs from slot 1 fail, and may still land until `over` is set."""

    over = threading.Event()

    def pull(self, request: PullRequest) -> PullResult:
        if 1 not in request.remote_slots:
            return super().pull(request)
        failed = failed_result(len(request.local_slots), self.name, MissReason.TRANSFER_FAILED, "a rail failed")
        return failed._replace(over=self.over)


def test_job_that_may_still_land_is_kept_back_and_asked_of_nobody_else() -> None:
    """What another source delivered would be overwritten; its thread serves others, its result comes when it may."""
    fabric, memory = Fabric(), KvMemory()
    transport = UnfinishedTransport(fabric, memory.memories, memory.table, name="me")
    transport.over = threading.Event()
    puller = Puller([transport], memory.rank, namespace=NAMESPACE, share=Share.of(0, 1, 1), pull_threads=1)
    owner = KvMemory()
    peer = MemoryTransport(fabric, owner.memories, owner.table, name="w1")
    puller.update_peers([record("w1", peer.endpoint(rank=0))])
    owner.write(np.arange(8, dtype=np.int64), np.full(8, 7, dtype=np.uint64))

    def source(*slots: int) -> PullSource:
        where = np.array(slots, dtype=np.int64)
        return PullSource("w1", owner.table.incarnation, where, np.full(len(slots), 7, dtype=np.uint64))

    until = time.monotonic() + 60
    puller.submit(PullJob("stuck", np.array([10, 11]), (source(1, 2), source(3, 4)), until))
    puller.submit(PullJob("good", np.array([12, 13]), (source(5, 6),), until))
    assert [result.job_id for result in wait_for(puller)] == ["good"]
    assert puller.quarantined_count == 1
    assert puller.poll() == []
    assert not memory.rows[0][10:12].any()
    transport.over.set()
    (stuck,) = puller.poll()
    assert (stuck.job_id, stuck.outcome, stuck.reason) == ("stuck", PullOutcome.FAILED, MissReason.TRANSFER_FAILED)
    assert len(stuck.tries) == 1
    assert puller.quarantined_count == 0
    puller.close()


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    fleet = Fleet()
    yield fleet
    fleet.puller.close()


@pytest.fixture(params=["peer", "own"])
def any_fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """One whose first owner is a peer, and one where it is the puller's rank itself, with its host slots."""
    fleet = Fleet(own=request.param == "own")
    yield fleet
    fleet.puller.close()


def test_job_with_one_good_source_is_done(any_fleet: Fleet) -> None:
    """All blocks arrive from the first source."""
    source = any_fleet.write("w1", [1, 2, 3], [7, 8, 9])
    result = any_fleet.run(source)
    assert result.outcome is PullOutcome.DONE
    assert result.reason is None
    assert result.bytes == 3 * any_fleet.memory.rank.bytes_per_slot
    assert any_fleet.memory.holds(np.arange(10, 13), source.remote_slots, source.generations).all()


def test_stale_blocks_are_fetched_from_the_next_source(any_fleet: Fleet) -> None:
    """Only what the first source did not deliver is asked of the second."""
    first = any_fleet.write("w1", [1, 2, 3], [7, 7, 7])
    any_fleet.owners["w1"].table.bump(first.remote_slots[1:2], np.array([8], dtype=np.uint64))
    second = any_fleet.write("w2", [4, 5, 6], [3, 3, 3])
    result = any_fleet.run(first, second)
    assert result.outcome is PullOutcome.DONE
    assert [(t.worker, t.asked, t.valid) for t in result.tries] == [("w1", 3, 2), ("w2", 1, 1)]
    sources = np.array([first.remote_slots[0], 5, first.remote_slots[2]])
    assert any_fleet.memory.holds(np.array([10, 11, 12]), sources, np.array([7, 3, 7])).all()


def test_dead_source_is_replaced_by_the_next(fleet: Fleet) -> None:
    """A source that fails costs nothing but time."""
    first = fleet.write("w1", [1, 2, 3], [7, 7, 7])
    fleet.fabric.inject(fleet.agent("w1"), Fault.UNREACHABLE)
    assert fleet.run(first, fleet.write("w2", [4, 5, 6], [3, 3, 3])).outcome is PullOutcome.DONE


def test_shorter_source_delivers_its_part_and_the_rest_says_why(any_fleet: Fleet) -> None:
    """A source may hold fewer blocks; those that nobody holds are reported as not indexed."""
    result = any_fleet.run(any_fleet.write("w1", [1, 2], [7, 7]))
    assert result.valid.tolist() == [True, True, False]
    assert [(f.reason, f.blocks.tolist()) for f in result.failures] == [(MissReason.NOT_INDEXED, [2])]


def test_reused_during_the_read_ends_as_stale(fleet: Fleet) -> None:
    """Slots bumped between data and seal are refused."""
    source = fleet.write("w1", [1, 2, 3], [7, 7, 7])
    fleet.fabric.inject(fleet.agent("w1"), Fault.REUSED_AFTER_READ)
    result = fleet.run(source)
    assert (result.outcome, result.reason) == (PullOutcome.STALE, MissReason.STALE_GENERATION)
    assert not result.valid.any()


def test_unknown_peer_fails_as_unreachable(any_fleet: Fleet) -> None:
    """A worker that is not in the directory cannot be pulled from."""
    result = any_fleet.run(PullSource("nobody", bytes(16), np.array([1]), np.array([1], dtype=np.uint64)), count=1)
    assert (result.outcome, result.reason) == (PullOutcome.FAILED, MissReason.PEER_UNREACHABLE)


def test_failing_peer_is_backed_off_from_and_tried_again_later(fleet: Fleet) -> None:
    """After a failure the peer is not asked until the pause is over, and then serves again."""
    source = fleet.write("w1", [1, 2, 3], [7, 7, 7])
    fleet.fabric.inject(fleet.agent("w1"), Fault.STALLED)
    assert fleet.run(source).reason is MissReason.TIMEOUT
    fleet.fabric.inject(fleet.agent("w1"), None)
    assert not fleet.puller.links()["w1"].ready
    assert fleet.run(source).reason is MissReason.PEER_UNREACHABLE
    fleet.clock_s += 1.0
    assert fleet.run(source).outcome is PullOutcome.DONE
    assert fleet.puller.links()["w1"].ready
    assert fleet.puller.links()["w1"].failures == 1


def test_deadline_passed_in_the_queue_fails_as_timeout(any_fleet: Fleet) -> None:
    """A job that comes too late reads nothing."""
    result = any_fleet.run(any_fleet.write("w1", [1, 2, 3], [7, 7, 7]), seconds=-1.0)
    assert (result.outcome, result.reason, result.bytes) == (PullOutcome.FAILED, MissReason.TIMEOUT, 0)


class Gate(MemoryTransport):
    """A transport whose pulls wait until the test lets them go."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.entered = 0
        self.open = False

    def pull(self, request: PullRequest) -> PullResult:
        self.entered += 1
        wait_until(lambda: self.open)
        return super().pull(request)


def gated(**options: Any) -> tuple[Fleet, Gate]:
    """A fleet whose only pulling thread hangs in a first job."""
    fleet = Fleet(pull_threads=1, **options)
    gate = Gate(fleet.fabric, fleet.memory.memories, fleet.memory.table, name="gate", clock=fleet.clock)
    fleet.puller._transports = (gate,)
    source = fleet.write("w1", [1, 2, 3], [7, 7, 7])
    fleet.puller.submit(PullJob("running", np.arange(3), (source,), fleet.clock_s + 5))
    wait_until(lambda: gate.entered == 1)
    return fleet, gate


def test_cancel_ends_a_queued_job_at_once_and_leaves_a_running_one() -> None:
    """A queued job ends CANCELLED without touching its slots; the running one runs to its end."""
    fleet, gate = gated()
    fleet.puller.submit(PullJob("queued", np.arange(3, 6), (), fleet.clock_s + 5))
    assert fleet.puller.cancel("queued")
    assert not fleet.puller.cancel("running")
    assert not fleet.puller.cancel("unknown")
    [cancelled] = fleet.puller.poll()
    assert (cancelled.job_id, cancelled.outcome) == ("queued", PullOutcome.CANCELLED)
    gate.open = True
    assert [(r.job_id, r.outcome) for r in wait_for(fleet.puller)] == [("running", PullOutcome.DONE)]
    fleet.puller.close()


def test_full_queue_ends_the_next_job_as_failed() -> None:
    """The queue is bounded, and a job beyond it ends at once rather than never."""
    fleet, gate = gated(queue_max=1)
    fleet.puller.submit(PullJob("a", np.arange(3), (), fleet.clock_s + 5))
    fleet.puller.submit(PullJob("b", np.arange(3), (), fleet.clock_s + 5))
    [refused] = fleet.puller.poll()
    assert (refused.job_id, refused.outcome) == ("b", PullOutcome.FAILED)
    gate.open = True
    assert {r.job_id for r in wait_for(fleet.puller, 2)} == {"running", "a"}
    fleet.puller.close()


def test_deadline_passes_while_every_thread_hangs_and_the_job_ends() -> None:
    """A queued job does not wait for a READ that hangs: polling ends it at its deadline."""
    fleet, gate = gated()
    fleet.puller.submit(PullJob("queued", np.arange(3, 6), (), fleet.clock_s + 5))
    assert fleet.puller.poll() == []
    fleet.clock_s += 6
    [late] = fleet.puller.poll()
    assert (late.job_id, late.outcome, late.reason) == ("queued", PullOutcome.FAILED, MissReason.TIMEOUT)
    gate.open = True
    assert [r.job_id for r in wait_for(fleet.puller)] == ["running"]
    fleet.puller.close()


def test_close_cancels_what_is_queued_and_every_job_ends_once() -> None:
    """After close each submitted job has exactly one result."""
    fleet, gate = gated()
    for name in ("a", "b"):
        fleet.puller.submit(PullJob(name, np.arange(3), (), fleet.clock_s + 5))
    gate.open = True
    fleet.puller.close()
    fleet.puller.submit(PullJob("late", np.arange(3), (), fleet.clock_s + 5))
    ended = sorted((r.job_id, r.outcome.value) for r in fleet.puller.poll())
    assert ("running", "done") in ended
    assert ("late", "cancelled") in ended
    assert len(ended) == 4
    assert fleet.puller.poll() == []


class Broken(MemoryTransport):
    """A transport with a bug: it raises."""

    def pull(self, request: PullRequest) -> PullResult:  # noqa: ARG002
        raise RuntimeError("a bug")


def test_bug_in_a_transport_still_ends_the_job() -> None:
    """A job without a result would hang its request for ever."""
    fleet = Fleet()
    fleet.puller._transports = (Broken(fleet.fabric, fleet.memory.memories, fleet.memory.table, name="broken"),)
    result = fleet.run(fleet.write("w1", [1, 2, 3], [7, 7, 7]))
    assert result.outcome is PullOutcome.FAILED
    assert fleet.run(fleet.write("w1", [], []), count=0).outcome is PullOutcome.DONE
    fleet.puller.close()


def test_records_of_other_kinds_are_refused_by_name(fleet: Fleet) -> None:
    """Another namespace, other row sizes or a damaged endpoint are never pulled from, and say why."""
    good = fleet.transports["w1"].endpoint(rank=0)
    engine = good.memories[0]
    halved = tuple(Segment(s.base, s.stride_bytes, s.slot_bytes // 2) for s in engine.segments)
    other_rows = (msgspec.structs.replace(engine, segments=halved),)
    fleet.puller.update_peers(
        [
            record("w1", good),
            record("other-namespace", good, namespace="m" * 32),
            record(
                "other-rows",
                msgspec.structs.replace(good, memories=other_rows),
            ),
            record("damaged", msgspec.structs.replace(good, incarnation=b"")),
            msgspec.structs.replace(record("no-rank", good), ranks=()),
            record("other-rank", msgspec.structs.replace(good, rank=1)),
        ]
    )
    assert set(fleet.puller.links()) == {"w1"}
    refused = fleet.puller.peers.refused
    assert {worker: why.split(":")[0] for worker, why in refused.items()} == {
        "other-namespace": "fingerprint_mismatch",
        "other-rows": "fingerprint_mismatch",
        "damaged": "malformed_entry",
        "no-rank": "fingerprint_mismatch",
        "other-rank": "malformed_entry",
    }


def test_restarted_peer_starts_with_a_clean_slate(fleet: Fleet) -> None:
    """A new incarnation is not held to the failures of the one before; its entries are good, earlier ones are stale."""
    source = fleet.write("w1", [1, 2, 3], [7, 7, 7])
    fleet.fabric.inject(fleet.agent("w1"), Fault.STALLED)
    assert fleet.run(source).outcome is PullOutcome.FAILED
    fleet.fabric.inject(fleet.agent("w1"), None)
    fleet.owners["w1"].table.renew_incarnation()
    fleet.publish()
    result = fleet.run(source)
    assert (result.outcome, result.reason, result.bytes) == (PullOutcome.STALE, MissReason.STALE_GENERATION, 0)
    assert fleet.run(fleet.write("w1", [1, 2, 3], [7, 7, 7])).outcome is PullOutcome.DONE
    assert fleet.puller.links()["w1"].failures == 0


def test_new_peer_is_connected_in_the_background_and_measured() -> None:
    """With real NIXL: the link is up before the first job, and what is pulled is counted."""
    memory = KvMemory(64, 4, 64 << 10)
    transport = NixlTransport(memory.memories, memory.table, name="reader")
    puller = Puller([transport], memory.rank, namespace=NAMESPACE, share=Share.of(0, 1, 1))
    with OwnerProcess({"memory": {"slot_count": 64, "segment_count": 4, "slot_bytes": 64 << 10}}) as owner:
        owner.call("overwrite", range(64), [0] * 64)
        puller.update_peers([record("w1", owner.endpoint)])
        wait_until(lambda: puller.links()["w1"].connected)
        slots = np.arange(64, dtype=np.int64)
        source = PullSource("w1", owner.endpoint.incarnation, slots, np.zeros(64, dtype=np.uint64))
        puller.submit(PullJob("j", slots, (source,), time.monotonic() + 60))
        assert wait_for(puller)[0].outcome is PullOutcome.DONE
        link = puller.links()["w1"]
        assert link.transport == "nixl"
        assert link.rtt_s is not None
        assert link.bytes == 16 << 20
        assert puller.probe("w1", slots[:2]).current
        puller.update_peers([])
        assert puller.links() == {}
    puller.close()


def test_poll_waits_for_a_result_and_no_longer() -> None:
    """A caller that has nothing else to do is woken by the result; without one it gets nothing in time."""
    fleet = Fleet()
    try:
        assert fleet.puller.poll(wait_s=0.01) == []
        source = fleet.write("w1", [1, 2, 3], [4, 4, 4])
        fleet.puller.submit(PullJob("j", np.arange(10, 13, dtype=np.int64), (source,), fleet.clock_s + 5.0))
        (result,) = fleet.puller.poll(wait_s=30.0)
        assert result.outcome is PullOutcome.DONE
    finally:
        fleet.puller.close()
