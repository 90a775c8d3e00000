"""Ghost locks of two processes of one router, and of a router elsewhere."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

from ghostcacher_connector.core.coordination.memory import MemoryCoordinationStore
from ghostcacher_router.ghostlock.ghost_lock import GhostLock, confirm_by
from ghostcacher_router.ghostlock.sibling_locks import SiblingLocks, shared_file
from ghostcacher_router.ghostlock.single_flight import CONFIRM_WATCH_S, RENEW_S, SETTLE_S, TTL_S, WATCH_S, SingleFlight
from ghostcacher_router.types import Prompt
from ghostcacher_simulator.text import text_of
from ghostcacher_simulator.virtual_time import virtual
from tests.support.routing_sim import Sim, prompt_of
from tests.support.shared_document import ENDS, question

T = TypeVar("T")
PROMPT = prompt_of(text_of("document", 4000))
MARGIN_S = 1e-6


@pytest.fixture
def file() -> Iterator[int]:
    number = shared_file()
    yield number
    os.close(number)


class Three:
    """Two processes of one router, and a router elsewhere, over one store."""

    def __init__(self, file: int, *, alone: bool = False, delay_s: float = 0.001) -> None:
        self.now = asyncio.get_running_loop().time
        self.store = MemoryCoordinationStore(clock=self.now)
        self.results: Counter[str] = Counter()
        self.delay_s, self.calls, self.alone = delay_s, 0, alone
        self.a, self.b, self.elsewhere = (self._flights(number) for number in range(3))
        for number, flights in enumerate((self.a, self.b)):
            flights.siblings = SiblingLocks(file, number, self.now)

    def _flights(self, number: int) -> SingleFlight:
        return SingleFlight(
            self.store.client(),
            self._soon,
            self.now,
            router=f"r{number}",
            clock_offset=float,
            count=lambda result: self.results.update([result]),
            alone=lambda: self.alone,
        )

    async def _soon(self, call: Callable[[], T], /) -> T:
        self.calls += 1
        await asyncio.sleep(self.delay_s)
        return call()

    def take(self, flights: SingleFlight, worker: str, replaced: GhostLock | None = None) -> GhostLock:
        lock = flights.take("n", PROMPT, -1, worker, self.now() + 1.0, replaced)
        assert lock is not None
        return lock

    def yields(self, flights: SingleFlight) -> GhostLock:
        """Let a process find out whose lock is in its way."""
        assert self.take(flights, "another").released
        return found(flights)


def found(flights: SingleFlight, prompt: Prompt = PROMPT) -> GhostLock:
    encountered = flights.find("n", prompt, -1)
    assert encountered is not None
    flights.check_invariants()
    return encountered.lock


@virtual
async def test_processes_alone_agree_without_the_store(file: int) -> None:
    """Whoever comes second knows at once who computes, and once that is over; the store hears of nothing."""
    three = Three(file, alone=True)
    mine = three.take(three.a, "w1")
    assert mine.confirmed
    theirs = three.yields(three.b)
    assert (theirs.worker, theirs.ours, theirs.confirmed, theirs.ready_at) == ("w1", False, True, mine.ready_at)
    assert await three.a.confirm(mine)
    await three.a.renew()
    three.a.release(mine)
    assert three.b.find("n", PROMPT, -1) is None
    assert not three.take(three.b, "w2").released
    await three.a.drain()
    assert three.calls == 0
    assert three.results == {"granted": 2}


@virtual
async def test_who_waits_learns_of_the_end(file: int) -> None:
    """Also of one that settles: a moment after the answer has begun."""
    three = Three(file, alone=True)
    mine = three.take(three.a, "w1")
    theirs = three.yields(three.b)
    waiting = asyncio.ensure_future(three.b.wait(theirs, three.now() + 60))
    for _ in range(4):
        await asyncio.sleep(RENEW_S)
        await three.a.renew()
    assert not waiting.done()
    three.a.settle(mine)
    began_at = three.now()
    await waiting
    assert three.now() - began_at <= SETTLE_S + WATCH_S + MARGIN_S
    assert three.b.find("n", PROMPT, -1) is None


@virtual
async def test_process_that_dies_renews_nothing(file: int) -> None:
    """Who waits goes on when its lock has run out, and whoever was late has lost it."""
    three = Three(file, alone=True)
    mine = three.take(three.a, "w1")
    began_at = three.now()
    await three.b.wait(three.yields(three.b), three.now() + 60)
    assert three.now() - began_at <= TTL_S + WATCH_S + MARGIN_S
    assert not three.take(three.b, "w2").released
    await three.a.renew()
    assert mine.released
    assert three.results["lost"] == 1


@virtual
async def test_sibling_does_not_count_on_a_lock_before_the_store_has_granted_it(file: int) -> None:
    """It waits for that, as the lock's own process does."""
    three = Three(file, delay_s=0.012)
    mine = three.take(three.a, "w1")
    theirs = three.yields(three.b)
    assert not theirs.confirmed
    began_at, confirming = three.now(), asyncio.ensure_future(three.a.confirm(mine))
    await three.b.wait(theirs, confirm_by(theirs))
    assert three.now() - began_at <= 0.012 + CONFIRM_WATCH_S + MARGIN_S
    assert await confirming
    assert found(three.b) is theirs
    assert theirs.confirmed
    assert theirs.token == mine.token


@virtual
async def test_lock_that_a_router_elsewhere_has_is_withdrawn_for_all_siblings(file: int) -> None:
    """Those who had found it decide anew, and hear of the other router from the store."""
    three = Three(file)
    first = three.take(three.elsewhere, "w0")
    assert await three.elsewhere.confirm(first)
    mine = three.take(three.a, "w1")
    theirs = three.yields(three.b)
    assert not await three.a.confirm(mine)
    assert found(three.a).worker == "w0"
    await three.b.wait(theirs, confirm_by(theirs))
    assert three.b.find("n", PROMPT, -1) is None
    again = three.take(three.b, "w2")
    assert not await three.b.confirm(again)
    assert found(three.b).worker == "w0"


@virtual
async def test_process_that_hangs_before_the_store_has_granted_a_lock_holds_up_siblings_no_longer(file: int) -> None:
    """After the same time they count on the lock, as they do where the store does not answer."""
    three = Three(file)
    three.take(three.a, "w1")
    theirs = three.yields(three.b)
    await three.b.wait(theirs, confirm_by(theirs))
    assert found(three.b) is theirs
    assert theirs.confirmed


@virtual
async def test_sibling_takes_an_overdue_lock_over_in_the_store_too(file: int) -> None:
    """One of two who would, and the router elsewhere meets that one."""
    three = Three(file)
    mine = three.take(three.a, "w1")
    assert await three.a.confirm(mine)
    overdue = three.yields(three.b)
    three.b.take_over(overdue)
    new = three.take(three.b, "w2", overdue)
    assert not new.released
    assert await three.b.confirm(new, overdue)
    assert new.token is not None
    await three.a.renew()
    assert mine.released
    third = three.take(three.elsewhere, "w3")
    assert not await three.elsewhere.confirm(third)
    assert found(three.elsewhere).worker == "w2"


@virtual
async def test_routers_of_another_memory_have_the_store_asked() -> None:
    """Two processes of one router ask it of nothing while they are alone, and of each lock as soon as they are not."""
    sim = Sim(2, 2, processes=2)
    await sim.settle()
    assert not any(router.routing.state.locks.shared for router in sim.routers)
    placed = sim.routers[0].picker.place_now(sim.routers[0].ask(question(0), ends=ENDS))
    assert placed is not None
    follower = sim.routers[1].picker.place_now(sim.routers[1].ask(question(1), ends=ENDS))
    assert follower is not None
    assert follower.worker == placed.worker

    sim = Sim(2, 3, processes=2)
    await sim.settle(5)
    assert all(router.routing.state.locks.shared for router in sim.routers)
    await sim.routers[2].routing.stop()
    await sim.settle()
    assert not any(router.routing.state.locks.shared for router in sim.routers[:2])


@virtual
async def test_process_that_ends_is_not_counted_any_more() -> None:
    """Neither one that leaves in order, nor one that dies: a router elsewhere that comes then is not overlooked."""
    sim = Sim(2, 3, processes=3)
    await sim.settle(5)
    siblings = sim.routers[0].routing.state.locks.siblings
    assert siblings is not None
    assert siblings.routers() == 3
    await sim.routers[1].routing.stop()
    assert siblings.routers() == 2
    await sim.routers[2].kill()
    await sim.settle(10)
    assert siblings.routers() == 1
