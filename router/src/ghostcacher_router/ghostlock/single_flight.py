"""Single flight: of all requests for a cold prefix one has it computed, in this router and in the whole fleet.

    take (here, at once) -> confirm (in the store) -> [renewed] -> release      computed, or failed
                                                   -> settle  -> it expires     first byte, but no worker event yet
                                  |                -> lost                      another router has taken it over
                                  +-> held by another router: withdrawn; the other's lock is watched instead

Within one process the lock table decides, in which the very next request sees a lock that was taken. Among processes of
one router the memory decides that they share (sibling_locks.py), at once, and where there are no other routers, the
store is not asked. Among routers the store decides, with a fencing token. While it is away, each locks for itself.

Should the owner's router die, nobody renews its lock, and the store drops it after TTL_S. Should the owner's worker
stall, the first follower whose wait budget ends takes the lock over: in the store with the token that it saw, so that
only one of many can.

A lock is a hint, as is everything here: when one is lost, a prefix is computed twice, and no answer is wrong.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from ghostcacher_connector.core.breaker import Breaker
from ghostcacher_connector.core.coordination.base import CoordinationStore, HeldLock, LockGrant
from ghostcacher_connector.core.errors import IndexUnavailable
from ghostcacher_router.ghostlock.ghost_lock import EncounteredLock, GhostLock, confirm_by
from ghostcacher_router.ghostlock.lock_table import LockTable
from ghostcacher_router.ghostlock.sibling_locks import SiblingLocks
from ghostcacher_router.ghostlock.unlocks import Unlocks
from ghostcacher_router.ports import Clock, Offload
from ghostcacher_router.types import Prompt

logger = logging.getLogger(__name__)

T = TypeVar("T")

TTL_S = 2.0
"""Of a lock in the store, unless it is renewed."""
RENEW_S = 0.6
"""Three times within a TTL: two may fail."""

SETTLE_S = 0.1
"""From an answer's first byte until its prompt's blocks can be pulled, should the worker not report when: publishing
them is asynchronous."""

TIMER_EARLY_S = 1e-8
"""A loop's timer may run early by its clock's resolution; who is woken then must find that the time has come."""

WATCH_S = 0.05
"""Between two reads of another router's lock, while a request waits for it."""
CONFIRM_WATCH_S = 0.005
"""The same, while the store has yet to confirm a lock of another process of this router."""


class SingleFlight:
    """The ghost locks of one router process. On the event loop only; the store is asked in threads."""

    def __init__(
        self,
        store: CoordinationStore | None,
        offload: Offload,
        clock: Clock,
        *,
        router: str,
        clock_offset: Callable[[], float],
        count: Callable[[str], None],
        alone: Callable[[], bool] = lambda: False,
    ) -> None:
        """Make one that holds no lock.

        store: None for a router that locks for itself only.
        router: this router's name in the fleet.
        clock_offset: returns the loop's clock less the store's, in seconds.
        count: takes the result of each lock, a label value of ``gc_ghost_locks_total``.
        alone: returns whether there are no other routers, but for processes of this one: then the store need not hear
            of locks. A router that has just joined is noticed at the next heartbeat; until then the two may compute a
            prefix each.
        """
        self._store, self._offload, self._clock, self._alone = store, offload, clock, alone
        self._router, self._clock_offset, self._count = router, clock_offset, count
        self._table = LockTable(clock)
        self.siblings: SiblingLocks | None = None
        """The locks of all processes of this router, where it has several."""
        self._breaker = Breaker(clock)
        self._tasks: set[asyncio.Task[None]] = set()
        self._unlocks = None if store is None else Unlocks(store, offload)

    def __repr__(self) -> str:
        return f"SingleFlight({self._table!r})"

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[GhostLock]:
        return iter(self._table)

    @property
    def shared(self) -> bool:
        """Whether other routers are to be asked: there are some, and the store did not fail a moment ago."""
        return self._store is not None and not self.broken and not self._alone()

    @property
    def broken(self) -> bool:
        """Whether the store failed a moment ago."""
        return self._breaker.open

    def store_failed(self, for_s: float | None = None) -> None:
        """Note that the store has failed: for so long, or for the breaker's usual time, it is not asked."""
        self._breaker.trip(for_s)

    def find(self, namespace: str, prompt: Prompt, after: int) -> EncounteredLock | None:
        """Return the live lock that covers the most of a prompt beyond boundary `after` (-1: from its beginning)."""
        found = self._table.find(namespace, prompt, after)
        while found is not None and self._is_over(found.lock):
            found = self._table.find(namespace, prompt, after)
        return found

    def take(
        self,
        namespace: str,
        prompt: Prompt,
        after: int,
        worker: str,
        ready_at: float,
        replaced: GhostLock | None = None,
    ) -> GhostLock | None:
        """Lock a prompt beyond boundary `after` for this router, at once; None when nothing of it is free.

        What a live lock covers is left to that one. One that is released already was in the way of another process's,
        which is in the table now: decide anew. replaced: an overdue lock that this one takes over.
        """
        if self._table.is_full:
            self._release_expired()
        lock = self._table.take(namespace, prompt, after, worker, ready_at)
        if lock is None or (self.siblings is not None and not self._agreed(self.siblings, lock, replaced)):
            return lock
        if not self.shared:
            self._confirmed(lock, "unavailable" if self.broken else "granted")
        return lock

    async def confirm(self, lock: GhostLock, replaced: GhostLock | None = None) -> bool:
        """Ask the store for a lock that was taken here. Waits until `confirm_by` at most.

        replaced: an overdue lock that this one takes over, released in the store first.
        Returns False when another router holds it; then that router's lock is in the table, and this one is to be
        released once its request is withdrawn. Without an answer in time
        the lock counts as confirmed; an answer that comes later still counts.
        """
        if self._store is None or lock.confirmed:
            return True
        assert self._unlocks is not None
        task = asyncio.get_running_loop().create_task(self._acquire(self._store, self._unlocks, lock, replaced))
        self._keep(task)
        await asyncio.wait({task}, timeout=max(0.0, confirm_by(lock) - self._clock()))
        if not lock.confirmed and not lock.released:
            self._confirmed(lock, "unavailable")
        return lock.confirmed

    def release(self, lock: GhostLock) -> None:
        """End a lock: the prefix is computed, or computing it has failed. Who waits decides anew. May be repeated."""
        if lock.released:
            lock.wake()
            return
        self._drop(lock)
        if lock.ours and lock.token is not None and self._unlocks is not None:
            self._unlocks.add(lock.keys, lock.token)

    def settle(self, lock: GhostLock) -> None:
        """Let a lock end soon: its prefix is computed, and can be pulled when the worker says so, or after SETTLE_S."""
        if not lock.released and lock.expires_at == float("inf"):
            lock.expires_at = self._clock() + SETTLE_S
            if lock.is_awaited or self.shared or lock.token is not None or lock.sibling_token is not None:
                # Who waits already sleeps until something happens. Any other lock is over then, and swept away later.
                asyncio.get_running_loop().call_later(SETTLE_S + TIMER_EARLY_S, self.release, lock)

    def take_over(self, lock: GhostLock) -> None:
        """Stop honouring a lock whose owner is overdue. Who waits decides anew, and finds the lock that replaces it."""
        self._drop(lock)

    async def wait(self, lock: GhostLock, until: float, changed: asyncio.Event | None = None) -> None:
        """Return when a lock is confirmed or over, or at `until` (loop clock). changed: its event, as it was before."""
        changed = changed or lock.changed
        while not changed.is_set() and self._table.is_live(lock) and (now := self._clock()) < until:
            pause_s = min(until, lock.expires_at) - now
            if not lock.ours:
                pause_s = min(pause_s, WATCH_S if lock.confirmed else CONFIRM_WATCH_S)
            try:
                async with asyncio.timeout(max(0.0, pause_s)):
                    await changed.wait()
            except TimeoutError:
                if not lock.ours and not self._is_over(lock) and lock.sibling_token is None:
                    self._start_watch(lock)
        if not self._table.is_live(lock):
            self.release(lock)

    async def renew(self) -> None:
        """Renew in the store, and among siblings, what this router holds, once. To be called every RENEW_S."""
        self._release_expired()
        self._renew_here()
        if self._store is None:
            return
        store, offset = self._store, self._clock_offset()
        held = [lock for lock in self._table if lock.ours and lock.token is not None]

        def call() -> list[bool]:
            return [
                store.renew_lock(
                    lock.keys,
                    lock.token,
                    router=self._router,
                    worker=lock.worker,
                    ready_at=lock.ready_at - offset,
                    ttl_s=TTL_S,
                )
                for lock in held
                if lock.token is not None
            ]

        try:
            kept = await self._offload(call) if held else []
        except IndexUnavailable as exc:
            logger.debug("ghost locks are renewed later: %s", exc)
            return
        for lock, still_ours in zip(held, kept, strict=True):
            if not still_ours and not lock.released:
                self._count("lost")
                lock.token = None
                self.release(lock)

    def stop(self) -> None:
        """Release everything, so that nobody waits for this router."""
        for lock in self._table:
            self.release(lock)

    async def drain(self) -> None:
        """Wait until everything has been written to the store. Bounded by its time-out."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._unlocks is not None:
            await self._unlocks.drain()

    def check_invariants(self) -> None:
        """Assert that the table is consistent."""
        self._table.check_invariants()

    def _release_expired(self) -> None:
        for lock in self._table.expired():
            self.release(lock)

    def _drop(self, lock: GhostLock) -> None:
        """End a lock here, and wake who waits for it."""
        self._withdraw(lock)
        lock.wake()

    def _withdraw(self, lock: GhostLock) -> None:
        lock.released = True
        self._table.remove(lock)
        if self.siblings is not None and lock.ours and lock.sibling_token is not None:
            self.siblings.release(lock.sibling_token)

    def _confirmed(self, lock: GhostLock, result: str) -> None:
        self._count(result)
        self._may_count_on(lock)

    def _may_count_on(self, lock: GhostLock) -> None:
        """Let requests count on a lock."""
        lock.confirmed = True
        self._tell_siblings(lock)
        # Who has waited for the confirmation decides anew; who comes now waits for the end.
        lock.wake()

    # The other processes of this router

    def _tell_siblings(self, lock: GhostLock) -> None:
        """Let requests of other processes count on a lock."""
        if self.siblings is not None and lock.ours and lock.sibling_token is not None:
            self.siblings.grant(lock.sibling_token, lock.token)

    def _agreed(self, siblings: SiblingLocks, lock: GhostLock, replaced: GhostLock | None) -> bool:
        """Return whether no other process has a lock that was taken here; else withdraw it, and add theirs."""
        before = None if replaced is None else replaced.sibling_token
        lock.sibling_token, held = siblings.take(lock.keys, lock.worker, lock.ready_at, TTL_S, replaced=before)
        if not held:
            return True
        self._withdraw(lock)
        for found, keys in held.items():
            expires_at = self._clock() + TTL_S
            theirs = self._table.add_foreign(keys, found.worker, found.ready_at, found.store_token, expires_at)
            if theirs is not None:
                theirs.sibling_token, theirs.confirmed = found.token, found.granted
        return False

    def _is_over(self, lock: GhostLock) -> bool:
        """Look at the lock of another process, and return whether it is over. Of any other lock it is not known."""
        if self.siblings is None or lock.ours or lock.sibling_token is None:
            return False
        found = self.siblings.look(lock.sibling_token)
        if found is None:
            self._drop(lock)
            return True
        lock.expires_at, lock.token = self._clock() + TTL_S, found.store_token
        if not lock.confirmed and (found.granted or self._clock() >= confirm_by(lock)):
            self._may_count_on(lock)
        return False

    def _renew_here(self) -> None:
        siblings = self.siblings
        if siblings is None:
            return
        for lock in self._table:
            if lock.ours and lock.sibling_token is not None and not siblings.renew(lock.sibling_token, TTL_S):
                self._count("lost")
                self.release(lock)

    # The store

    async def _acquire(
        self, store: CoordinationStore, unlocks: Unlocks, lock: GhostLock, replaced: GhostLock | None
    ) -> None:
        offset = self._clock_offset()
        # Else the lock before this one, which is over here, would be in its way.
        first = unlocks.pop(lock.keys)
        if replaced is not None and replaced.token is not None:
            first |= dict.fromkeys(replaced.keys, replaced.token)

        def call() -> LockGrant:
            if first:
                store.unlock(first)
            return store.lock(
                lock.keys, router=self._router, worker=lock.worker, ready_at=lock.ready_at - offset, ttl_s=TTL_S
            )

        try:
            grant = await self._offload(self._unless_broken(call))
        except IndexUnavailable as exc:
            logger.debug("a ghost lock holds within this router only: %s", exc)
            if not self.broken:
                self.store_failed()
            return
        if grant.token is not None:
            lock.token = grant.token
            if lock.released:
                unlocks.add(lock.keys, grant.token)
            elif not lock.confirmed:
                self._confirmed(lock, "granted")
            else:
                self._tell_siblings(lock)
        elif not lock.released and not lock.confirmed:
            self._yield_to(lock, grant.held)

    def _yield_to(self, lock: GhostLock, held: Iterable[HeldLock]) -> None:
        """Withdraw a lock whose keys other routers hold, and add theirs to the table.

        Who waits for it is woken by `release`, when its request has been withdrawn, too: before that the request seems
        to compute the prefix where it was placed, and others would go there.
        """
        self._withdraw(lock)
        expires_at, offset = self._clock() + TTL_S, self._clock_offset()
        by_token: dict[int, list[HeldLock]] = {}
        for one in held:
            by_token.setdefault(one.token, []).append(one)
        for token, (first, *rest) in by_token.items():
            keys = [first.key, *(one.key for one in rest)]
            self._table.add_foreign(keys, first.worker, first.ready_at + offset, token, expires_at)

    def _start_watch(self, lock: GhostLock) -> None:
        """Read whether another router still holds a lock, without waiting: one read at a time, however many wait."""
        # Half: a timer may be a little early, and must not miss its turn for it.
        if self._store is not None and self._clock() - lock.seen_at >= WATCH_S / 2:
            lock.seen_at = float("inf")
            self._keep(asyncio.get_running_loop().create_task(self._watch(self._store, lock)))

    async def _watch(self, store: CoordinationStore, lock: GhostLock) -> None:
        began_at = self._clock()
        try:
            held = await self._offload(self._unless_broken(lambda: store.locks(lock.keys[-1:])))
        except IndexUnavailable:
            return  # It expires by itself.
        finally:
            lock.seen_at = began_at
        if held[0] is not None and held[0].token == lock.token:
            lock.expires_at = self._clock() + TTL_S
        else:
            self.release(lock)

    def _unless_broken(self, call: Callable[[], T]) -> Callable[[], T]:
        """Return a call that fails at once if the store has failed while it waited for a thread."""

        def checked() -> T:
            if self.broken:
                raise IndexUnavailable("the store failed a moment ago")
            return call()

        return checked

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
