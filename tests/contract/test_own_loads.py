"""What a puller does with jobs whose source is its own worker: loads from the rank's own host slots."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ghostcacher_connector.core.types import MissReason
from ghostcacher_connector.transfer.base import PullOutcome, PullRequest, PullResult
from ghostcacher_connector.transfer.jobs import PullJob
from ghostcacher_connector.transfer.memory import MemoryTransport
from tests.contract.puller_fleet import Fleet, record, wait_for, wait_until


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    fleet = Fleet(own=True)
    yield fleet
    fleet.puller.close()


def test_own_worker_is_known_whatever_the_index_says(fleet: Fleet) -> None:
    """A load needs no record: it works with Redis away, and after a move to another namespace."""
    fleet.puller.update_peers([])
    fleet.puller.peers.move("m" * 32)
    result = fleet.run(fleet.write("w1", [1, 2, 3], [7, 7, 7]))
    assert result.outcome is PullOutcome.DONE
    assert [entry.result.transport for entry in result.tries] == ["local"]
    assert fleet.puller.links() == {}


def test_own_worker_is_never_read_as_another_of_its_name(fleet: Fleet) -> None:
    """A record under the own name, of a former life or of another engine, does not stand for this rank."""
    source = fleet.write("w1", [1, 2, 3], [7, 7, 7])
    fleet.puller.update_peers([record("w1", fleet.transports["w2"].endpoint(rank=0))])
    assert fleet.run(source).outcome is PullOutcome.DONE
    assert fleet.memory.holds(np.arange(10, 13), source.remote_slots, source.generations).all()


def test_entries_of_the_index_for_the_own_name_are_stale(fleet: Fleet) -> None:
    """They are of a former incarnation, of which this rank holds nothing: equal slots and generations prove nothing."""
    source = fleet.write("w1", [1, 2, 3], [7, 7, 7])
    for incarnation in (b"f" * 16, fleet.memory.table.incarnation):
        result = fleet.run(source._replace(incarnation=incarnation))
        assert (result.outcome, result.reason, result.bytes) == (
            PullOutcome.STALE,
            MissReason.STALE_GENERATION,
            0,
        )


def test_load_after_bumps_were_lost_is_stale_until_the_rank_has_moved(fleet: Fleet) -> None:
    """A rank that has missed bumps becomes another incarnation: none of its generations proves anything until then."""
    source = fleet.write("w1", [1, 2, 3], [7, 7, 7])
    fleet.memory.table.renew_incarnation()
    assert fleet.run(source).outcome is PullOutcome.STALE
    fleet.puller.peers.know_own("w1", fleet.transports["w1"].endpoint(rank=0))
    assert fleet.run(source).outcome is PullOutcome.DONE


def test_own_worker_is_not_backed_off_from(fleet: Fleet) -> None:
    """A load that came too late says nothing about the next one."""
    source = fleet.write("w1", [1, 2, 3], [7, 7, 7])
    late = source._replace(remote_slots=source.remote_slots + 1000)
    assert fleet.run(late).reason is MissReason.MALFORMED_ENTRY
    assert fleet.run(source).outcome is PullOutcome.DONE


class Hanging(MemoryTransport):
    """A transport whose pulls from peers wait until the test lets them go."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.entered = 0
        self.go_on = threading.Event()

    def pull(self, request: PullRequest) -> PullResult:
        self.entered += 1
        assert self.go_on.wait(60)
        return super().pull(request)


def test_load_does_not_wait_for_a_peer_that_hangs() -> None:
    """All threads that pull hang in READs from a peer, and more such jobs wait: loads are carried out meanwhile."""
    fleet = Fleet(own=True, pull_threads=1)
    hanging = Hanging(fleet.fabric, fleet.memory.memories, fleet.memory.table, name="me", clock=fleet.clock)
    fleet.puller._transports = (*fleet.local(), hanging)
    remote = fleet.write("w2", [1], [3])
    for number in range(2):
        fleet.puller.submit(PullJob(f"remote-{number}", np.array([number]), (remote,), fleet.clock_s + 5))
    wait_until(lambda: hanging.entered == 1)
    for number in range(3):
        result = fleet.run(fleet.write("w1", [1, 2, 3], [7 + number] * 3), remote, job_id=f"load-{number}")
        assert (result.job_id, result.outcome) == (f"load-{number}", PullOutcome.DONE)
    hanging.go_on.set()
    assert {result.job_id for result in wait_for(fleet.puller, 2)} == {"remote-0", "remote-1"}
    fleet.puller.close()
