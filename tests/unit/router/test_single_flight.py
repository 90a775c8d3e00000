"""Ghost locks: here, in the store, renewed, lost, taken over, watched."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ghostcacher_connector.core.coordination.memory import MemoryCoordinationStore
from ghostcacher_router.ghostlock.ghost_lock import KEYS_MAX, GhostLock, lock_boundaries
from ghostcacher_router.ghostlock.single_flight import (
    BREAKER_S,
    CONFIRM_S,
    LOCKS_MAX,
    RENEW_S,
    SETTLE_S,
    TTL_S,
    WATCH_S,
    SingleFlight,
)
from ghostcacher_router.types import Prompt, SectionType
from tests.support.routing_sim import all_of, prompt_of, text_of
from tests.support.virtual_time import virtual

T = TypeVar("T")
DOC = text_of("document", 4000)
PROMPT = prompt_of(DOC + b"question" * 100, [(SectionType.DOC, len(DOC))])
OTHER = prompt_of(DOC + b"another" * 100, [(SectionType.DOC, len(DOC))])
ALONE = prompt_of(text_of("something else", 4000))


class Desk:
    """SingleFlight of two routers over one store."""

    def __init__(self, delay_s: float = 0.001) -> None:
        self.now = asyncio.get_running_loop().time
        self.store = MemoryCoordinationStore(clock=lambda: self.now() - 500.0)
        self.stores = [self.store.client() for _ in range(2)]
        self.results: Counter[str] = Counter()
        self.delay_s, self.looks = delay_s, 0
        self.a, self.b = (self._locks(number) for number in range(2))

    def _locks(self, number: int) -> SingleFlight:
        return SingleFlight(
            self.stores[number],
            self._soon,
            self.now,
            router=f"r{number}",
            server_offset=lambda: 500.0,
            count=lambda result: self.results.update([result]),
        )

    async def _soon(self, call: Callable[[], T], /) -> T:
        self.looks += 1
        await asyncio.sleep(self.delay_s)
        return call()

    def take(self, locks: SingleFlight, prompt: Prompt = PROMPT, worker: str = "w1") -> GhostLock:
        lock = locks.take("n", prompt, -1, worker, self.now() + 1.0)
        assert lock is not None
        return lock


@virtual
async def test_taken_lock_is_found_at_once() -> None:
    """The next request that shares the document finds the lock, before the store knows of it, up to where it shares."""
    desk = Desk()
    lock = desk.take(desk.a)
    found = desk.a.find("n", OTHER, -1)
    assert found is not None
    assert (found.lock, OTHER.ends[found.boundary]) == (lock, len(DOC))
    assert desk.a.find("n", ALONE, -1) is None
    assert desk.a.find("another namespace", OTHER, -1) is None
    assert desk.a.find("n", OTHER, found.boundary) is None


@virtual
async def test_one_router_is_granted_the_other_learns_whose_it_is() -> None:
    """Of two routers that lock the same document one gets it; the other knows then who computes, and until when."""
    desk = Desk()
    mine, theirs = desk.take(desk.a), desk.take(desk.b, OTHER, "w2")
    assert await all_of([desk.a.confirm(mine), desk.b.confirm(theirs)]) == [True, False]
    found = desk.b.find("n", OTHER, -1)
    assert found is not None
    assert (found.lock.worker, found.lock.ours, found.lock.ready_at) == ("w1", False, mine.ready_at)
    assert OTHER.ends[found.boundary] == len(DOC)
    desk.b.check_invariants()


@virtual
async def test_rest_of_a_partly_locked_prompt_can_be_locked() -> None:
    """What a live lock covers is left to it; what lies beyond gets a lock of its own."""
    desk = Desk()
    first = desk.take(desk.a)
    second = desk.take(desk.a, OTHER, "w2")
    assert not set(first.digests) & set(second.digests)
    assert desk.a.take("n", OTHER, -1, "w3", 0.0) is None


@virtual
async def test_release_wakes_and_frees() -> None:
    """Who waits is woken at once; the store is free for the next, who gets a higher token."""
    desk = Desk()
    lock = desk.take(desk.a)
    await desk.a.confirm(lock)
    started, waiting = desk.now(), asyncio.ensure_future(desk.a.wait(lock, desk.now() + 5))
    await asyncio.sleep(0.1)
    desk.a.release(lock)
    await waiting
    assert desk.now() - started == pytest.approx(0.1)
    await desk.a.drain()
    after = desk.take(desk.b)
    assert await desk.b.confirm(after)
    assert (after.token or 0) > (lock.token or 0)


@virtual
async def test_wait_for_another_router_sees_its_release() -> None:
    """Nobody tells a router that another one's lock is free: it looks, every WATCH_S, one look for all who wait."""
    desk = Desk()
    mine, theirs = desk.take(desk.a), desk.take(desk.b)
    await asyncio.gather(desk.a.confirm(mine), desk.b.confirm(theirs))
    found = desk.b.find("n", OTHER, -1)
    assert found is not None
    waiting = asyncio.gather(*[desk.b.wait(found.lock, desk.now() + 60) for _ in range(20)])
    await asyncio.sleep(1.0)
    assert not waiting.done()
    desk.a.release(mine)
    started = desk.now()
    await waiting
    assert desk.now() - started <= 2 * WATCH_S


@virtual
async def test_wait_for_another_router_ends_at_its_bound_however_slow_the_store() -> None:
    """A look at the lock goes on beside it: one for all who wait, and its answer still counts."""
    desk = Desk()
    mine, theirs = desk.take(desk.a), desk.take(desk.b)
    await asyncio.gather(desk.a.confirm(mine), desk.b.confirm(theirs))
    found = desk.b.find("n", OTHER, -1)
    assert found is not None
    desk.delay_s, desk.looks, started = 0.5, 0, desk.now()
    await asyncio.gather(*[desk.b.wait(found.lock, started + 0.1) for _ in range(20)])
    assert desk.now() - started == pytest.approx(0.1)
    assert desk.looks == 1
    desk.a.release(mine)
    await desk.b.drain()
    await desk.b.wait(found.lock, desk.now() + 60)
    assert found.lock.released


@virtual
async def test_broken_store_is_not_asked_by_who_waited_for_a_thread() -> None:
    """Threads are few: whose turn comes after one time-out must not wait for another."""
    desk = Desk(delay_s=0.2)
    lock = desk.take(desk.a)
    await desk.a.confirm(lock)
    desk.a.away(10.0)
    await desk.a.drain()
    assert lock.token is None
    assert desk.store.locks(lock.keys) == [None] * len(lock.keys)


@virtual
async def test_wait_ends_at_its_bound() -> None:
    """However long a lock is held, a wait ends when it was to end."""
    desk = Desk()
    lock = desk.take(desk.a)
    await desk.a.confirm(lock)
    started = desk.now()
    await desk.a.wait(lock, started + 3.0)
    assert desk.now() == pytest.approx(started + 3.0)
    assert not lock.released


@virtual
async def test_renewed_lock_outlives_its_ttl_and_an_orphan_does_not() -> None:
    """While its router renews, a lock stays; when the router is gone, it runs out."""
    desk = Desk()
    lock = desk.take(desk.a)
    await desk.a.confirm(lock)
    for _ in range(6):
        await asyncio.sleep(RENEW_S)
        await desk.a.renew()
    assert desk.store.locks(lock.keys)[0] is not None
    await asyncio.sleep(TTL_S + 0.01)
    assert desk.store.locks(lock.keys) == [None] * len(lock.keys)


@virtual
async def test_taken_over_lock_is_lost_by_its_owner() -> None:
    """Who takes over frees the old token and gets a higher one; the old owner finds out, and does no harm by it."""
    desk = Desk()
    mine, theirs = desk.take(desk.a), desk.take(desk.b)
    await asyncio.gather(desk.a.confirm(mine), desk.b.confirm(theirs))
    found = desk.b.find("n", PROMPT, -1)
    assert found is not None
    desk.b.take_over(found.lock)
    next_one = desk.take(desk.b, PROMPT, "w2")
    assert await desk.b.confirm(next_one, found.lock)
    await desk.a.renew()
    assert mine.released
    desk.a.release(mine)
    await desk.a.drain()
    held = desk.store.locks(next_one.keys)
    assert {one.token for one in held if one is not None} == {next_one.token}
    assert desk.results["lost"] == 1


@virtual
async def test_only_one_of_two_takes_over() -> None:
    """Two routers that both lose patience with a third: one gets the lock, the other follows it."""
    desk = Desk()
    dead = desk.store.lock(desk.take(desk.a).keys, router="r9", worker="w9", ready_at=0.0, ttl_s=100.0)
    desk.a.stop()
    attempts = []
    for locks in (desk.a, desk.b):
        lock = desk.take(locks)
        assert not await locks.confirm(lock)
        found = locks.find("n", PROMPT, -1)
        assert found is not None
        assert found.lock.token == dead.token
        locks.take_over(found.lock)
        attempts.append((locks, desk.take(locks, PROMPT, "w1"), found.lock))
    assert sorted(await asyncio.gather(*[locks.confirm(lock, old) for locks, lock, old in attempts])) == [False, True]


@virtual
async def test_store_away_locks_here_only() -> None:
    """When the store fails a lock holds within the router; for a while it is not even asked."""
    desk = Desk()
    desk.stores[0].reachable = False
    assert await desk.a.confirm(desk.take(desk.a))
    assert (desk.a.shared, desk.results["unavailable"]) == (False, 1)
    assert desk.a.find("n", PROMPT, -1) is not None
    again = desk.take(desk.a, ALONE)
    assert again.confirmed
    await asyncio.sleep(BREAKER_S)
    assert desk.a.shared


@virtual
async def test_slow_store_is_waited_for_a_bounded_time() -> None:
    """A confirmation that takes too long is not waited for; a grant that comes late is kept, and renewed."""
    desk = Desk(delay_s=0.2)
    started, lock = desk.now(), desk.take(desk.a)
    assert await desk.a.confirm(lock)
    assert desk.now() - started == pytest.approx(CONFIRM_S)
    await desk.a.drain()
    assert lock.token is not None


@virtual
async def test_late_grant_of_a_released_lock_is_given_back() -> None:
    """A request that was given up before the store answered leaves nothing there."""
    desk = Desk(delay_s=0.2)
    lock = desk.take(desk.a)
    await desk.a.confirm(lock)
    desk.a.release(lock)
    await desk.a.drain()
    assert desk.store.locks(lock.keys) == [None] * len(lock.keys)


@virtual
async def test_settled_lock_runs_out() -> None:
    """After the first byte a lock lasts only as long as publishing takes."""
    desk = Desk()
    lock = desk.take(desk.a)
    await desk.a.confirm(lock)
    desk.a.settle(lock)
    started = desk.now()
    await desk.a.wait(lock, started + 9)
    assert desk.now() - started == pytest.approx(SETTLE_S)
    assert desk.a.find("n", PROMPT, -1) is None


@virtual
async def test_locks_are_bounded_and_make_room() -> None:
    """A router that has too many locks takes no more, until some have run out; nobody has to clear up for that."""
    desk = Desk()
    desk.stores[0].reachable = False
    desk.a.away(60.0)
    prompts = [prompt_of(text_of(f"text {number}", 100)) for number in range(LOCKS_MAX + 1)]
    locks = [desk.take(desk.a, prompt) for prompt in prompts[:-1]]
    assert desk.a.take("n", prompts[-1], -1, "w", 0.0) is None
    desk.a.settle(locks[3])
    await asyncio.sleep(SETTLE_S)
    assert desk.a.take("n", prompts[-1], -1, "w", 0.0) is not None
    desk.a.check_invariants()


def test_lock_boundaries_are_few_and_shared() -> None:
    """Ends of sections and powers of two: prompts that share much meet in one, however long they are."""
    long = prompt_of(text_of("long", 200_000))
    keys = lock_boundaries(long, range(len(long.ends)))
    assert len(keys) <= KEYS_MAX
    shared = {PROMPT.digests[n] for n in lock_boundaries(PROMPT, range(len(PROMPT.ends)))}
    shared &= {OTHER.digests[n] for n in lock_boundaries(OTHER, range(len(OTHER.ends)))}
    assert PROMPT.digests[PROMPT.ends.index(len(DOC))] in shared
    assert lock_boundaries(PROMPT, [1]) == [1]


class LocksMachine(RuleBasedStateMachine):
    """Two routers that take, confirm, renew, release and take over in any order, while time passes."""

    @initialize()
    def begin(self) -> None:
        self.now = 0.0
        self.store = MemoryCoordinationStore(clock=lambda: self.now)
        self.runner = asyncio.Runner()
        self.runner.run(asyncio.sleep(0))
        self.routers = [
            SingleFlight(
                self.store, self._at_once, lambda: self.now, router=f"r{n}", server_offset=float, count=lambda _: None
            )
            for n in range(2)
        ]
        self.taken: list[tuple[SingleFlight, GhostLock]] = []

    async def _at_once(self, call: Callable[[], T], /) -> T:
        return call()

    @rule(router=st.integers(0, 1), prompt=st.sampled_from([PROMPT, OTHER, ALONE]))
    def take(self, router: int, prompt: Prompt) -> None:
        async def step() -> None:
            locks = self.routers[router]
            found, over = locks.find("n", prompt, -1), None
            if found is not None and self.now > found.lock.ready_at:
                locks.take_over(found.lock)
                over = found.lock
            lock = locks.take("n", prompt, -1, f"w{router}", self.now + 1.0)
            if lock is not None and await locks.confirm(lock, over):
                self.taken.append((locks, lock))

        self.runner.run(step())

    @rule(number=st.integers(0, 99))
    def release(self, number: int) -> None:
        async def step() -> None:
            if self.taken:
                locks, lock = self.taken.pop(number % len(self.taken))
                locks.release(lock)
                await locks.drain()

        self.runner.run(step())

    @rule(router=st.integers(0, 1), seconds=st.floats(0, 1.5))
    def renew(self, router: int, seconds: float) -> None:
        self.now += seconds
        self.runner.run(self.routers[router].renew())

    @rule(reachable=st.booleans())
    def reach(self, reachable: bool) -> None:
        self.store.reachable = reachable

    @invariant()
    def sound(self) -> None:
        if not hasattr(self, "routers"):
            return
        for locks in self.routers:
            locks.check_invariants()

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.runner.close()


LocksMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
test_locks_machine = LocksMachine.TestCase
