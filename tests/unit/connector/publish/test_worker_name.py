"""A worker whose name another live engine has."""

from __future__ import annotations

import logging

import msgspec
import pytest

from ghostcacher_connector.core.index.base import ref_of
from ghostcacher_connector.core.index.memory import MemoryIndex
from ghostcacher_connector.core.types import OwnerProcess
from ghostcacher_connector.publish.publisher import Publisher
from ghostcacher_connector.publish.worker_name import REFUSED_REPORT, RETRY_S, RefusedEngine
from tests.support.index_parts import NAMESPACE, FakeClock, chain, make_record

LEASE_S = 9.0
BLOCKS = chain(3)


class Pair:
    """Two engines of one name; `second` comes when `first` has joined."""

    def __init__(self, *, first_has_ended: bool = False) -> None:
        self.clock = FakeClock()
        self.index = MemoryIndex(clock=self.clock)
        self.first, self.second = make_record(token="one"), make_record(token="two")
        self.index.join(self.first, lease_ttl_s=LEASE_S)
        self.asked: list[OwnerProcess] = []

        def has_ended(owner: OwnerProcess) -> bool:
            self.asked.append(owner)
            return first_has_ended

        self.publisher = Publisher(self.index, self.second, lease_ttl_s=LEASE_S, has_ended=has_ended, clock=self.clock)
        for slot, block in enumerate(BLOCKS):
            self.publisher.publish(slot, block, BLOCKS[0], 1)

    def run(self, seconds: float) -> None:
        until = self.clock.now + seconds
        while self.clock.now < until:
            self.clock.advance(max(0.001, self.publisher.step()))

    def published(self) -> int:
        return sum(hit.length for hit in self.index.lookup([ref_of(self.second)], BLOCKS))


def test_second_engine_waits_for_the_name_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    """It serves without sharing; the log names the setting, the name, and where both engines are."""
    pair = Pair()
    with caplog.at_level(logging.INFO):
        assert pair.publisher.step() == RETRY_S
        pair.run(LEASE_S / 3)
    assert pair.index.workers() == [pair.first]
    assert (pair.publisher.name_taken, pair.publisher.available, pair.published()) == (True, False, 0)
    (error,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert error.startswith("worker_id: ")
    for part in ("w1", "http://127.0.0.1:8000", "process 1 on m-one", "process 1 on m-two"):
        assert part in error
    report = pair.index.reports(NAMESPACE, "w1", REFUSED_REPORT)["engine"]
    assert "m-two" in msgspec.json.decode(report, type=RefusedEngine).where


def test_second_engine_shares_when_the_lease_of_the_first_has_ended() -> None:
    """A second after it at the latest, with all that it has computed meanwhile."""
    pair = Pair()
    pair.run(LEASE_S - RETRY_S)
    assert pair.published() == 0
    pair.run(2 * RETRY_S)
    assert pair.index.workers() == [pair.second]
    assert (pair.publisher.name_taken, pair.publisher.available, pair.published()) == (False, True, len(BLOCKS))


def test_engine_that_was_started_again_does_not_wait() -> None:
    """Its earlier process has ended, and can be seen to have."""
    pair = Pair(first_has_ended=True)
    pair.run(0.1)
    assert pair.asked == [pair.first.owner]
    assert pair.index.workers() == [pair.second]
    assert pair.published() == len(BLOCKS)


def test_refused_engine_that_stops_takes_nothing_with_it() -> None:
    """The name is the other's."""
    pair = Pair()
    pair.publisher.step()
    pair.publisher.start()
    pair.publisher.stop()
    assert pair.index.workers() == [pair.first]


def test_engine_that_was_away_too_long_learns_that_its_name_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    """It lost its lease, another one took the name; it says so, and has the name back when that one leaves."""
    pair = Pair()
    pair.run(LEASE_S + RETRY_S)
    third = make_record(token="three")
    pair.clock.advance(2 * LEASE_S)
    assert pair.index.join(third, lease_ttl_s=LEASE_S) is None
    with caplog.at_level(logging.ERROR):
        pair.run(0.1)
    assert pair.publisher.name_taken
    assert "process 1 on m-three" in caplog.text
    pair.index.leave(ref_of(third))
    pair.run(LEASE_S)
    assert not pair.publisher.name_taken
    assert pair.index.workers() == [pair.second]
    assert pair.published() == len(BLOCKS)
