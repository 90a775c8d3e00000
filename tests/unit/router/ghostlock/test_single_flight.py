"""Ghost locks: here, in the store, renewed, lost, taken over, watched."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import pytest

from ghostcacher_connector.core.breaker import BREAKER_S
from ghostcacher_connector.core.coordination.memory import MemoryCoordinationStore
from ghostcacher_connector.core.types import SectionType
from ghostcacher_router.ghostlock.ghost_lock import CONFIRM_MAX_S, CONFIRM_MIN_S, CONFIRM_SHARE, GhostLock
from ghostcacher_router.ghostlock.lock_table import LOCKS_MAX
from ghostcacher_router.ghostlock.single_flight import (
    RENEW_S,
    SETTLE_S,
    TTL_S,
    WATCH_S,
    SingleFlight,
)
from ghostcacher_router.ghostlock.unlocks import UNLOCK_PAUSE_S
from ghostcacher_router.types import Prompt
from ghostcacher_simulator.text import text_of
from ghostcacher_simulator.virtual_time import virtual
from tests.support.routing_sim import all_of, prompt_of

T = TypeVar("T")
DOC = text_of("document", 4000)
PROMPT = prompt_of(DOC + b"question" * 100, [(SectionType.DOC, len(DOC))])
OTHER = prompt_of(DOC + b"another" * 100, [(SectionType.DOC, len(DOC))])
ALONE = prompt_of(text_of("something else", 4000))


class Pair:
    """SingleFlight of two routers over one store."""

    def __init__(self, delay_s: float = 0.001) -> None:
        self.now = asyncio.get_running_loop().time
        self.store = MemoryCoordinationStore(clock=lambda: self.now() - 500.0)
        self.stores = [self.store.client() for _ in range(2)]
        self.results: Counter[str] = Counter()
        self.delay_s, self.reads = delay_s, 0
        self.a, self.b = (self._locks(number) for number in range(2))

    def _locks(self, number: int) -> SingleFlight:
        return SingleFlight(
            self.stores[number],
            self._soon,
            self.now,
            router=f"r{number}",
            clock_offset=lambda: 500.0,
            count=lambda result: self.results.update([result]),
        )

    async def _soon(self, call: Callable[[], T], /) -> T:
        self.reads += 1
        await asyncio.sleep(self.delay_s)
        return call()

    def take(self, locks: SingleFlight, prompt: Prompt = PROMPT, worker: str = "w1") -> GhostLock:
        lock = locks.take("n", prompt, -1, worker, self.now() + 1.0)
        assert lock is not None
        return lock


@virtual
async def test_taken_lock_is_found_at_once() -> None:
    """The next request that shares the document finds the lock, before the store knows of it, up to where it shares."""
    pair = Pair()
    lock = pair.take(pair.a)
    found = pair.a.find("n", OTHER, -1)
    assert found is not None
    assert (found.lock, OTHER.ends[found.boundary]) == (lock, len(DOC))
    assert pair.a.find("n", ALONE, -1) is None
    assert pair.a.find("another namespace", OTHER, -1) is None
    assert pair.a.find("n", OTHER, found.boundary) is None


@virtual
async def test_one_router_is_granted_the_other_learns_whose_it_is() -> None:
    """Of two routers that lock the same document one gets it; the other knows then who computes, and until when."""
    pair = Pair()
    mine, theirs = pair.take(pair.a), pair.take(pair.b, OTHER, "w2")
    assert await all_of([pair.a.confirm(mine), pair.b.confirm(theirs)]) == [True, False]
    found = pair.b.find("n", OTHER, -1)
    assert found is not None
    assert (found.lock.worker, found.lock.ours, found.lock.ready_at) == ("w1", False, mine.ready_at)
    assert OTHER.ends[found.boundary] == len(DOC)
    pair.b.check_invariants()


@virtual
async def test_rest_of_a_partly_locked_prompt_can_be_locked() -> None:
    """What a live lock covers is left to it; what lies beyond gets a lock of its own."""
    pair = Pair()
    first = pair.take(pair.a)
    second = pair.take(pair.a, OTHER, "w2")
    assert not set(first.digests) & set(second.digests)
    assert pair.a.take("n", OTHER, -1, "w3", 0.0) is None


@virtual
async def test_what_is_over_within_a_moment_is_released_together() -> None:
    """The first at once; nothing stays behind."""
    pair = Pair()
    locks = [pair.take(pair.a, prompt_of(text_of(f"t{number}", 500))) for number in range(20)]
    assert all(await all_of([pair.a.confirm(lock) for lock in locks]))
    reads = pair.reads
    for number, lock in enumerate(locks):
        pair.a.release(lock)
        if number % 5 == 0:
            await asyncio.sleep(UNLOCK_PAUSE_S / 10)
    await pair.a.drain()
    assert pair.reads - reads == 2
    assert all(held is None for lock in locks for held in pair.store.locks(lock.keys))


@virtual
async def test_lock_that_is_taken_again_at_once_is_granted() -> None:
    """The one before it may not be released in the store yet: so is a retry's."""
    pair = Pair()
    before, lock = pair.take(pair.a, ALONE), pair.take(pair.a)
    assert all(await all_of([pair.a.confirm(one) for one in (before, lock)]))
    pair.a.release(before)
    await asyncio.sleep(UNLOCK_PAUSE_S / 2)
    pair.a.release(lock)
    again = pair.take(pair.a, worker="w2")
    assert await pair.a.confirm(again)
    assert again.token is not None
    await pair.a.drain()
    assert [held is not None and held.worker for held in pair.store.locks(again.keys)] == ["w2"] * len(again.keys)


@virtual
async def test_release_wakes_and_frees() -> None:
    """Who waits is woken at once; the store is free for the next, who gets a higher token."""
    pair = Pair()
    lock = pair.take(pair.a)
    await pair.a.confirm(lock)
    started, waiting = pair.now(), asyncio.ensure_future(pair.a.wait(lock, pair.now() + 5))
    await asyncio.sleep(0.1)
    pair.a.release(lock)
    await waiting
    assert pair.now() - started == pytest.approx(0.1)
    await pair.a.drain()
    after = pair.take(pair.b)
    assert await pair.b.confirm(after)
    assert (after.token or 0) > (lock.token or 0)


@virtual
async def test_wait_for_another_router_sees_its_release() -> None:
    """Nobody tells a router that another one's lock is free: it looks, every WATCH_S, one look for all who wait."""
    pair = Pair()
    mine, theirs = pair.take(pair.a), pair.take(pair.b)
    await asyncio.gather(pair.a.confirm(mine), pair.b.confirm(theirs))
    found = pair.b.find("n", OTHER, -1)
    assert found is not None
    waiting = asyncio.gather(*[pair.b.wait(found.lock, pair.now() + 60) for _ in range(20)])
    await asyncio.sleep(1.0)
    assert not waiting.done()
    pair.a.release(mine)
    started = pair.now()
    await waiting
    assert pair.now() - started <= 2 * WATCH_S


@virtual
async def test_wait_for_another_router_ends_at_its_bound_however_slow_the_store() -> None:
    """A look at the lock goes on beside it: one for all who wait, and its answer still counts."""
    pair = Pair()
    mine, theirs = pair.take(pair.a), pair.take(pair.b)
    await asyncio.gather(pair.a.confirm(mine), pair.b.confirm(theirs))
    found = pair.b.find("n", OTHER, -1)
    assert found is not None
    pair.delay_s, pair.reads, started = 0.5, 0, pair.now()
    await asyncio.gather(*[pair.b.wait(found.lock, started + 0.1) for _ in range(20)])
    assert pair.now() - started == pytest.approx(0.1)
    assert pair.reads == 1
    pair.a.release(mine)
    await pair.b.drain()
    await pair.b.wait(found.lock, pair.now() + 60)
    assert found.lock.released


@virtual
async def test_broken_store_is_not_asked_by_who_waited_for_a_thread() -> None:
    """Threads are few: whose turn comes after one time-out must not wait for another."""
    pair = Pair(delay_s=2 * CONFIRM_MAX_S)
    lock = pair.take(pair.a)
    await pair.a.confirm(lock)
    pair.a.store_failed(10.0)
    await pair.a.drain()
    assert lock.token is None
    assert pair.store.locks(lock.keys) == [None] * len(lock.keys)


@virtual
async def test_store_that_failed_is_left_alone_for_as_long_as_was_said() -> None:
    """Whoever knows when the store is tried next says so; until then no request waits for it."""
    pair = Pair()
    pair.a.store_failed(10.0)
    await asyncio.sleep(9.9)
    assert pair.a.broken
    await asyncio.sleep(0.2)
    assert not pair.a.broken


@virtual
async def test_wait_ends_at_its_bound() -> None:
    """However long a lock is held, a wait ends when it was to end."""
    pair = Pair()
    lock = pair.take(pair.a)
    await pair.a.confirm(lock)
    started = pair.now()
    await pair.a.wait(lock, started + 3.0)
    assert pair.now() == pytest.approx(started + 3.0)
    assert not lock.released


@virtual
async def test_renewed_lock_outlives_its_ttl_and_an_orphan_does_not() -> None:
    """While its router renews, a lock stays; when the router is gone, it runs out."""
    pair = Pair()
    lock = pair.take(pair.a)
    await pair.a.confirm(lock)
    for _ in range(6):
        await asyncio.sleep(RENEW_S)
        await pair.a.renew()
    assert pair.store.locks(lock.keys)[0] is not None
    await asyncio.sleep(TTL_S + 0.01)
    assert pair.store.locks(lock.keys) == [None] * len(lock.keys)


@virtual
async def test_taken_over_lock_is_lost_by_its_owner() -> None:
    """Who takes over frees the old token and gets a higher one; the old owner finds out, and does no harm by it."""
    pair = Pair()
    mine, theirs = pair.take(pair.a), pair.take(pair.b)
    await asyncio.gather(pair.a.confirm(mine), pair.b.confirm(theirs))
    found = pair.b.find("n", PROMPT, -1)
    assert found is not None
    pair.b.take_over(found.lock)
    next_one = pair.take(pair.b, PROMPT, "w2")
    assert await pair.b.confirm(next_one, found.lock)
    await pair.a.renew()
    assert mine.released
    pair.a.release(mine)
    await pair.a.drain()
    held = pair.store.locks(next_one.keys)
    assert {one.token for one in held if one is not None} == {next_one.token}
    assert pair.results["lost"] == 1


@virtual
async def test_only_one_of_two_takes_over() -> None:
    """Of two routers whose requests have waited for a third long enough, one gets the lock, the other follows it."""
    pair = Pair()
    dead = pair.store.lock(pair.take(pair.a).keys, router="r9", worker="w9", ready_at=0.0, ttl_s=100.0)
    pair.a.stop()
    attempts = []
    for locks in (pair.a, pair.b):
        lock = pair.take(locks)
        assert not await locks.confirm(lock)
        found = locks.find("n", PROMPT, -1)
        assert found is not None
        assert found.lock.token == dead.token
        locks.take_over(found.lock)
        attempts.append((locks, pair.take(locks, PROMPT, "w1"), found.lock))
    assert sorted(await asyncio.gather(*[locks.confirm(lock, old) for locks, lock, old in attempts])) == [False, True]


@virtual
async def test_store_away_locks_here_only() -> None:
    """When the store fails a lock holds within the router; for a while it is not even asked."""
    pair = Pair()
    pair.stores[0].reachable = False
    assert await pair.a.confirm(pair.take(pair.a))
    assert (pair.a.shared, pair.results["unavailable"]) == (False, 1)
    assert pair.a.find("n", PROMPT, -1) is not None
    again = pair.take(pair.a, ALONE)
    assert again.confirmed
    await asyncio.sleep(BREAKER_S)
    assert pair.a.shared


@pytest.mark.parametrize(
    ("compute_s", "waited_s"),
    [(0.01, CONFIRM_MIN_S), (0.1, CONFIRM_SHARE * 0.1), (0.4, CONFIRM_SHARE * 0.4), (60.0, CONFIRM_MAX_S)],
)
@virtual
async def test_slow_store_is_waited_for_as_long_as_computing_is_worth(compute_s: float, waited_s: float) -> None:
    """A confirmation that takes too long is not waited for; a grant that comes late is kept, and renewed."""
    pair = Pair(delay_s=2 * CONFIRM_MAX_S)
    started = pair.now()
    lock = pair.a.take("n", PROMPT, -1, "w1", started + compute_s)
    assert lock is not None
    assert await pair.a.confirm(lock)
    assert pair.now() - started == pytest.approx(waited_s)
    await pair.a.drain()
    assert lock.token is not None


@virtual
async def test_who_waits_for_a_lock_that_another_router_holds_is_woken_when_its_request_is_withdrawn() -> None:
    """Before that the request still seems to compute the prefix where it was placed, and others would go there."""
    pair = Pair()
    mine, theirs = pair.take(pair.a), pair.take(pair.b, OTHER, "w2")
    waiting = asyncio.ensure_future(pair.b.wait(theirs, pair.now() + 1.0))
    assert await all_of([pair.a.confirm(mine), pair.b.confirm(theirs)]) == [True, False]
    await asyncio.sleep(0.01)
    assert not waiting.done()
    pair.b.release(theirs)
    await asyncio.sleep(0.0)
    assert waiting.done()


@virtual
async def test_who_waits_already_is_woken_when_a_settled_lock_runs_out() -> None:
    """The wait began before the answer's first byte, when nobody knew how long the lock would last."""
    pair = Pair()
    lock = pair.take(pair.a)
    await pair.a.confirm(lock)
    waiting = asyncio.ensure_future(pair.a.wait(lock, pair.now() + 9))
    await asyncio.sleep(0.5)
    pair.a.settle(lock)
    started = pair.now()
    await waiting
    assert pair.now() - started == pytest.approx(SETTLE_S)


@virtual
async def test_late_grant_of_a_released_lock_is_given_back() -> None:
    """A request that was given up before the store answered leaves nothing there."""
    pair = Pair(delay_s=0.2)
    lock = pair.take(pair.a)
    await pair.a.confirm(lock)
    pair.a.release(lock)
    await pair.a.drain()
    assert pair.store.locks(lock.keys) == [None] * len(lock.keys)


@virtual
async def test_who_waits_for_a_confirmed_lock_waits_for_its_end() -> None:
    """And is not woken by what woke those that had waited for the confirmation."""
    pair = Pair()
    lock = pair.take(pair.a)
    waiting = asyncio.ensure_future(pair.a.wait(lock, pair.now() + 9))
    await asyncio.sleep(0)
    await pair.a.confirm(lock)
    await waiting
    started = pair.now()
    await pair.a.wait(lock, started + 0.3)
    assert pair.now() - started == pytest.approx(0.3)


@virtual
async def test_settled_lock_runs_out() -> None:
    """After the first byte a lock lasts only as long as publishing takes."""
    pair = Pair()
    lock = pair.take(pair.a)
    await pair.a.confirm(lock)
    pair.a.settle(lock)
    started = pair.now()
    await pair.a.wait(lock, started + 9)
    assert pair.now() - started == pytest.approx(SETTLE_S)
    assert pair.a.find("n", PROMPT, -1) is None


@virtual
async def test_locks_are_bounded_and_make_room() -> None:
    """A router that has too many locks takes no more, until some have run out; nobody has to clear up for that."""
    pair = Pair()
    pair.stores[0].reachable = False
    pair.a.store_failed(60.0)
    prompts = [prompt_of(text_of(f"text {number}", 100)) for number in range(LOCKS_MAX + 1)]
    locks = [pair.take(pair.a, prompt) for prompt in prompts[:-1]]
    assert pair.a.take("n", prompts[-1], -1, "w", 0.0) is None
    pair.a.settle(locks[3])
    await asyncio.sleep(SETTLE_S)
    assert pair.a.take("n", prompts[-1], -1, "w", 0.0) is not None
    pair.a.check_invariants()
