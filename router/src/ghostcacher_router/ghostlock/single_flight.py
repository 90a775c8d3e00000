"""Ghost locks: who computes a cold prefix now, so that nobody else in the fleet does.

    take (here, at once) -> confirm (in the store) -> [renewed] -> release      all went well, or failed
                                                   -> settle  -> it runs out    first byte, but no news yet
                                  |                -> lost                      somebody has taken it over
                                  +-> held by another router: withdrawn; theirs is watched instead

Who takes part: one router, through its own table, in which a taken lock is seen by the very next request; all
routers, through the store, with a fencing token. When the store is away, each router locks for itself.

The owner's router dies: nobody renews, and the store lets go after TTL_S. The owner's worker stalls: the first follower
whose patience ends takes the lock over, in the store with the token that it saw, so that only one of many can.

A lock is a hint as everything here: a lost one costs a second computing, never a wrong answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import TypeVar

from ghostcacher_connector.core.coordination.base import CoordinationStore, HeldLock, LockGrant
from ghostcacher_connector.core.errors import IndexUnavailable
from ghostcacher_router.ghostlock.ghost_lock import KEYS_MAX, Found, GhostLock, lock_boundaries
from ghostcacher_router.ports import Clock, Offload
from ghostcacher_router.types import Prompt

logger = logging.getLogger(__name__)

T = TypeVar("T")

TTL_S = 2.0
RENEW_S = 0.6
"""Three times within a TTL: two may be lost."""

CONFIRM_S = 0.02
"""Bound of a request's wait for the store to confirm its lock."""

SETTLE_S = 0.1
"""From an answer's first byte until its prompt's blocks can be pulled, should the worker not say when: publishing them
is asynchronous."""

WATCH_S = 0.05
"""Between two looks at a lock of another router, while somebody waits for it."""

BREAKER_S = 0.5
"""After a failure the store is not asked for so long: requests must not wait for one time-out after the other."""

DIGESTS_MAX = 2048
LOCKS_MAX = 1024
SALT_BYTES = 8


class SingleFlight:
    """The locks that this router has or knows of. On the event loop only; the store is asked in threads.

    router: this router's name. server_offset: loop clock less the store's clock, s. count: takes each lock's result.
    alone: whether this is the only router: then the store need not hear of locks. One that has just joined is heard of
    at the next hello, until when the two may compute a prefix each.
    """

    def __init__(
        self,
        store: CoordinationStore | None,
        offload: Offload,
        clock: Clock,
        *,
        router: str,
        server_offset: Callable[[], float],
        count: Callable[[str], None],
        alone: Callable[[], bool] = lambda: False,
    ) -> None:
        self._store, self._offload, self._clock, self._alone = store, offload, clock, alone
        self._router, self._server_offset, self._count = router, server_offset, count
        self._table: dict[bytes, GhostLock] = {}
        self._locks: dict[GhostLock, None] = {}
        self._salts: dict[str, bytes] = {}
        self._broken_until = float("-inf")
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"SingleFlight({len(self._locks)}, boundaries={len(self._table)})"

    @property
    def shared(self) -> bool:
        """Whether other routers are to be asked: there are some, and the store did not fail a moment ago."""
        return self._store is not None and not self.broken and not self._alone()

    @property
    def broken(self) -> bool:
        """Whether the store failed a moment ago."""
        return self._clock() < self._broken_until

    def away(self, for_s: float = BREAKER_S) -> None:
        """The store has failed: for a while it is not asked."""
        self._broken_until = max(self._broken_until, self._clock() + for_s)

    def __len__(self) -> int:
        return len(self._locks)

    def find(self, namespace: str, prompt: Prompt, after: int) -> Found | None:
        """Return the live lock that covers the most of a prompt beyond boundary `after` (-1: from its beginning)."""
        if not self._locks:
            return None
        salt, table = self._salt(namespace), self._table
        for index in range(len(prompt.digests) - 1, after, -1):
            lock = table.get(salt + prompt.digests[index])
            if lock is not None and self._live(lock):
                return Found(lock, index)
        return None

    def take(self, namespace: str, prompt: Prompt, after: int, worker: str, ready_at: float) -> GhostLock | None:
        """Lock a prompt beyond boundary `after` for this router, at once; None when nothing of it is free.

        What a live lock covers is left to it.
        """
        if len(self._locks) >= LOCKS_MAX:
            self._expire()
        salt, size = self._salt(namespace), len(prompt.digests)
        # Looked up one by one: what lies between two locked boundaries may be free.
        free = [
            index
            for index in range(max(after + 1, size - DIGESTS_MAX), size)
            if (held := self._table.get(salt + prompt.digests[index])) is None or not self._live(held)
        ]
        if not free or len(self._locks) >= LOCKS_MAX:
            return None
        keys = [salt + prompt.digests[index] for index in lock_boundaries(prompt, free)]
        lock = GhostLock([salt + prompt.digests[index] for index in free], keys, worker, ready_at, ours=True)
        self._enter(lock)
        if not self.shared:
            self._confirmed(lock, "unavailable" if self.broken else "granted")
        return lock

    async def confirm(self, lock: GhostLock, taken_over: GhostLock | None = None) -> bool:
        """Ask the store for a lock that was taken; return False when another router has it, whose lock is known then.

        taken_over: whose keys to free first. Waits CONFIRM_S at most; the answer counts also when it comes later.
        """
        if self._store is None or lock.confirmed:
            return True
        task = asyncio.get_running_loop().create_task(self._acquire(self._store, lock, taken_over))
        self._keep(task)
        await asyncio.wait({task}, timeout=CONFIRM_S)
        if not lock.confirmed and not lock.released:
            self._confirmed(lock, "unavailable")
        return lock.confirmed

    def release(self, lock: GhostLock) -> None:
        """The prefix is computed, or its computing has failed: whoever waits looks again. May be called again."""
        if lock.released:
            return
        lock.released = True
        self._remove(lock)
        lock.changed.set()
        if lock.ours and lock.token is not None and self._store is not None:
            store, keys, token = self._store, lock.keys, lock.token
            self._keep(asyncio.get_running_loop().create_task(self._quietly(lambda: store.unlock(keys, token))))

    def settle(self, lock: GhostLock) -> None:
        """The prefix is computed; its blocks can be pulled soon, when the worker says so or at the latest then."""
        lock.expires_at = min(lock.expires_at, self._clock() + SETTLE_S)

    async def wait(self, lock: GhostLock, until: float) -> None:
        """Return when a lock is confirmed, released or lost, has run out, or at `until` (loop clock)."""
        changed = lock.changed
        while not changed.is_set() and self._live(lock) and (now := self._clock()) < until:
            pause_s = min(until, lock.expires_at) - now
            if not lock.ours:
                pause_s = min(pause_s, WATCH_S)
            try:
                async with asyncio.timeout(max(0.0, pause_s)):
                    await changed.wait()
            except TimeoutError:
                if not lock.ours:
                    self._look(lock)
        if not self._live(lock):
            self.release(lock)

    def take_over(self, lock: GhostLock) -> None:
        """Stop believing in a lock: its owner is overdue. Followers look again, and find who comes next."""
        lock.released = True
        self._remove(lock)
        lock.changed.set()

    async def renew(self) -> None:
        """Renew what this router holds in the store, once; to be called every RENEW_S."""
        self._expire()
        if self._store is None:
            return
        store, offset = self._store, self._server_offset()
        held = [lock for lock in self._locks if lock.ours and lock.token is not None]

        def call() -> list[bool]:
            return [
                store.renew_lock(lock.keys, lock.token, ready_at=lock.ready_at - offset, ttl_s=TTL_S)
                for lock in held
                if lock.token is not None
            ]

        try:
            kept = await self._offload(call) if held else []
        except IndexUnavailable as exc:
            logger.debug("locks are renewed later: %s", exc)
            return
        for lock, still_ours in zip(held, kept, strict=True):
            if not still_ours and not lock.released:
                self._count("lost")
                lock.token = None
                self.release(lock)

    def stop(self) -> None:
        """Release everything, so that nobody waits for this router."""
        for lock in list(self._locks):
            self.release(lock)

    async def drain(self) -> None:
        """Wait for what is being told to the store. Bounded by its time-out."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def check_invariants(self) -> None:
        """Assert that the table leads to locks that are there, no two cover the same, and released ones are gone."""
        assert set(self._table.values()) <= self._locks.keys(), repr(self)
        assert not any(lock.released for lock in self._locks), repr(self)
        for lock in self._locks:
            assert not self._live(lock) or all(self._table[digest] is lock for digest in lock.digests), repr(lock)
        assert len(self._locks) <= LOCKS_MAX + KEYS_MAX, repr(self)

    def _expire(self) -> None:
        now = self._clock()
        for lock in [lock for lock in self._locks if lock.expires_at <= now]:
            self.release(lock)

    def _live(self, lock: GhostLock) -> bool:
        return not lock.released and self._clock() < lock.expires_at

    def _enter(self, lock: GhostLock) -> None:
        self._locks[lock] = None
        self._table.update(dict.fromkeys(lock.digests, lock))

    def _remove(self, lock: GhostLock) -> None:
        self._locks.pop(lock, None)
        for digest in lock.digests:
            if self._table.get(digest) is lock:
                del self._table[digest]

    def _confirmed(self, lock: GhostLock, result: str) -> None:
        self._count(result)
        lock.confirmed = True
        # Who has waited for the answer looks again; who will wait for the end gets an event of its own.
        lock.changed.set()
        lock.changed = asyncio.Event()

    async def _acquire(self, store: CoordinationStore, lock: GhostLock, taken_over: GhostLock | None) -> None:
        offset = self._server_offset()

        def call() -> LockGrant:
            if taken_over is not None and taken_over.token is not None:
                store.unlock(taken_over.keys, taken_over.token)
            return store.lock(
                lock.keys, router=self._router, worker=lock.worker, ready_at=lock.ready_at - offset, ttl_s=TTL_S
            )

        try:
            grant = await self._offload(self._unless_broken(call))
        except IndexUnavailable as exc:
            logger.debug("the lock is this router's only: %s", exc)
            if not self.broken:
                self.away()
            return
        if grant.token is not None:
            lock.token = grant.token
            if lock.released:
                await self._quietly(lambda: store.unlock(lock.keys, grant.token or 0))
            elif not lock.confirmed:
                self._confirmed(lock, "granted")
        elif not lock.released and not lock.confirmed:
            self._withdraw(lock, grant.held)

    def _withdraw(self, lock: GhostLock, held: Iterable[HeldLock]) -> None:
        lock.released = True
        self._remove(lock)
        self._learn(held)
        lock.changed.set()

    def _learn(self, held: Iterable[HeldLock]) -> None:
        now, offset = self._clock(), self._server_offset()
        by_token: dict[int, list[HeldLock]] = {}
        for one in held:
            by_token.setdefault(one.token, []).append(one)
        for token, ones in by_token.items():
            keys = [one.key for one in ones if one.key not in self._table]
            if keys and len(self._locks) < LOCKS_MAX:
                lock = GhostLock(keys, keys, ones[0].worker, ones[0].ready_at + offset, ours=False)
                lock.token, lock.seen_at, lock.expires_at = token, now, now + TTL_S
                self._enter(lock)

    def _look(self, lock: GhostLock) -> None:
        """See whether another router still holds a lock, beside those who wait, however many: one look at a time."""
        # Half: a timer may be a little early, and must not miss its turn for it.
        if self._store is not None and self._clock() - lock.seen_at >= WATCH_S / 2:
            lock.seen_at = float("inf")
            self._keep(asyncio.get_running_loop().create_task(self._watch(self._store, lock)))

    async def _watch(self, store: CoordinationStore, lock: GhostLock) -> None:
        began_at = self._clock()
        try:
            held = await self._offload(self._unless_broken(lambda: store.locks(lock.keys[-1:])))
        except IndexUnavailable:
            return  # It runs out by itself.
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

    async def _quietly(self, call: Callable[[], object]) -> None:
        try:
            await self._offload(call)
        except IndexUnavailable as exc:
            logger.debug("a lock runs out by itself: %s", exc)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _salt(self, namespace: str) -> bytes:
        salt = self._salts.get(namespace)
        if salt is None:
            if len(self._salts) > LOCKS_MAX:
                self._salts.clear()
            salt = self._salts[namespace] = sha256(namespace.encode()).digest()[:SALT_BYTES]
        return salt
