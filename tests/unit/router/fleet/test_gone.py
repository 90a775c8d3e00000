"""Which workers are named as gone, and for how long."""

from __future__ import annotations

import msgspec
import pytest

from ghostcacher_router.fleet.membership.gone import GONE_MAX, GoneWorkers
from ghostcacher_router.fleet.worker import Move, Worker
from ghostcacher_router.types import Endpoint
from tests.support.index_parts import FakeClock, make_record

TTL_S = 600.0


def worker(name: str, host: str = "10.0.0.1") -> Worker:
    record = msgspec.structs.replace(make_record(name), http=f"http://{host}:8000")
    return Worker(name, Endpoint(host, 8000, False, ""), record, 0.0)


def names(gone: GoneWorkers) -> list[str]:
    return [each.name for each in gone.recent()]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def gone(clock: FakeClock) -> GoneWorkers:
    return GoneWorkers(TTL_S, clock)


def test_worker_that_left_is_named_with_its_last_error(gone: GoneWorkers, clock: FakeClock) -> None:
    """And with the moment at which it left."""
    dead = worker("w")
    dead.error = "connection refused"
    gone.add(dead)
    left_at = clock()
    clock.advance(5.0)
    (found,) = gone.recent()
    assert (found.name, found.left_at, found.error) == ("w", left_at, "connection refused")
    assert (found.namespace, found.incarnation, found.endpoint) == (dead.namespace, dead.incarnation, dead.endpoint)


def test_worker_is_named_for_its_time_and_no_longer(gone: GoneWorkers, clock: FakeClock) -> None:
    """Nobody needs to clean up; one that dies again is named anew."""
    gone.add(worker("old"))
    clock.advance(TTL_S / 2)
    gone.add(worker("new"))
    clock.advance(TTL_S / 2)
    assert names(gone) == ["new", "old"]
    clock.advance(0.001)
    assert names(gone) == ["new"]
    gone.add(worker("old"))
    assert names(gone) == ["old", "new"]


def test_drained_worker_left_on_purpose(gone: GoneWorkers) -> None:
    """Whatever its state was when it left."""
    drained = worker("w")
    drained.move(Move.DRAIN, 0.0)
    gone.add(drained)
    assert names(gone) == []


def test_worker_that_is_back_is_not_gone(gone: GoneWorkers) -> None:
    """Under its name, wherever it listens; or at its address, under whatever name."""
    for name, host in (("a", "10.0.0.1"), ("b", "localhost"), ("c", "10.0.0.3")):
        gone.add(worker(name, host))
    gone.forget({"a", "other"}, [(Endpoint("127.0.0.1", 8000, False, ""), None)])
    assert names(gone) == ["c"]


@pytest.mark.parametrize(("back", "left"), [([0], ["dp1"]), ([0, 1], []), ([None], []), ([], ["dp0", "dp1"])])
def test_rank_is_gone_while_another_one_of_its_server_is_there(
    gone: GoneWorkers, back: list[int | None], left: list[str]
) -> None:
    """Ranks share an address; a server without ranks at their address has taken the place of all."""
    for rank in (1, 0):
        lost = worker(f"dp{rank}")
        lost.data_parallel_rank = rank
        gone.add(lost)
    gone.forget(set(), [(lost.endpoint, rank) for rank in back])
    assert names(gone) == left


def test_number_is_bounded(gone: GoneWorkers) -> None:
    """The latest are kept."""
    for number in range(GONE_MAX + 3):
        gone.add(worker(f"w{number}"))
    assert len(names(gone)) == GONE_MAX
    assert names(gone)[0] == f"w{GONE_MAX + 2}"
    assert repr(gone).startswith("GoneWorkers(['w10',")
