"""The ghost locks that one router knows of, by the boundaries that they cover. In memory, on the event loop only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import sha256

from ghostcacher_router.ghostlock.ghost_lock import KEYS_MAX, EncounteredLock, GhostLock, lock_boundaries
from ghostcacher_router.ports import Clock
from ghostcacher_router.types import Prompt

DIGESTS_MAX = 2048
"""Boundaries that one lock covers, the deepest of its prompt."""
LOCKS_MAX = 1024
SALT_BYTES = 8


class LockTable:
    """Boundary -> the one live lock that covers it. A lock that is added here is seen by the very next request."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._by_digest: dict[bytes, GhostLock] = {}
        self._locks: dict[GhostLock, None] = {}
        self._salts: dict[str, bytes] = {}
        self._last: tuple[Prompt, str, int, list[bytes]] | None = None
        """The prompt that was looked at last, its namespace, from which boundary on, and the digests from there on with
        their salt: it is mostly the next one that is locked."""

    def __repr__(self) -> str:
        return f"LockTable({len(self._locks)}, boundaries={len(self._by_digest)})"

    def __len__(self) -> int:
        return len(self._locks)

    def __iter__(self) -> Iterator[GhostLock]:
        return iter(list(self._locks))

    @property
    def is_full(self) -> bool:
        """Whether no lock can be added before others are removed."""
        return len(self._locks) >= LOCKS_MAX

    def is_live(self, lock: GhostLock) -> bool:
        """Return whether a lock is neither released nor has run out."""
        return not lock.released and self._clock() < lock.expires_at

    def expired(self) -> list[GhostLock]:
        """Return the locks whose time has run out."""
        now = self._clock()
        return [lock for lock in self._locks if lock.expires_at <= now]

    def find(self, namespace: str, prompt: Prompt, after: int) -> EncounteredLock | None:
        """Return the live lock that covers the most of a prompt beyond boundary `after` (-1: from its beginning)."""
        by_digest = self._by_digest
        if not by_digest:
            return None
        digests = self._digests(namespace, prompt, after + 1)
        if by_digest.keys().isdisjoint(digests):
            return None
        for index in range(len(digests) - 1, -1, -1):
            lock = by_digest.get(digests[index])
            if lock is not None and self.is_live(lock):
                return EncounteredLock(namespace, lock, after + 1 + index)
        return None

    def take(self, namespace: str, prompt: Prompt, after: int, worker: str, ready_at: float) -> GhostLock | None:
        """Add a lock of this router on a prompt beyond boundary `after`; None when nothing of it is free.

        What a live lock covers is left to that one.
        """
        if self.is_full:
            return None
        size = len(prompt.digests)
        first = max(after + 1, size - DIGESTS_MAX)
        free: Sequence[int] = range(first, size)
        digests: Sequence[bytes] = self._digests(namespace, prompt, first)
        if not self._by_digest.keys().isdisjoint(digests):
            # Looked up one by one: what lies between two locked boundaries may be free.
            held = map(self._by_digest.get, digests)
            free = [index for index, lock in zip(free, held, strict=True) if lock is None or not self.is_live(lock)]
            digests = [digests[index - first] for index in free]
        if not free:
            return None
        salt, taken_at = self._salt(namespace), self._clock()

        def keys() -> Sequence[bytes]:
            return [salt + prompt.digests[index] for index in lock_boundaries(prompt, free)]

        lock = GhostLock(digests, keys, worker, taken_at=taken_at, ready_at=ready_at, ours=True)
        self._add(lock)
        return lock

    def add_foreign(
        self, keys: Sequence[bytes], worker: str, ready_at: float, token: int | None, expires_at: float
    ) -> GhostLock | None:
        """Add a lock of another router, or process, at those of its keys that no lock here covers; return it if any."""
        free = [key for key in keys if key not in self._by_digest]
        if not free or self.is_full:
            return None
        now = self._clock()
        lock = GhostLock(free, free, worker, taken_at=now, ready_at=ready_at, ours=False)
        lock.token, lock.seen_at, lock.expires_at = token, now, expires_at
        self._add(lock)
        return lock

    def remove(self, lock: GhostLock) -> None:
        """Forget a lock. May be called again."""
        self._locks.pop(lock, None)
        for digest in lock.digests:
            if self._by_digest.get(digest) is lock:
                del self._by_digest[digest]

    def check_invariants(self) -> None:
        """Assert that digests lead to locks that are there, no two cover the same, and released ones are gone."""
        assert set(self._by_digest.values()) <= self._locks.keys(), repr(self)
        assert not any(lock.released for lock in self._locks), repr(self)
        for lock in self._locks:
            assert not self.is_live(lock) or all(self._by_digest[one] is lock for one in lock.digests), repr(lock)
        assert len(self._locks) <= LOCKS_MAX + KEYS_MAX, repr(self)

    def _add(self, lock: GhostLock) -> None:
        self._locks[lock] = None
        self._by_digest.update(dict.fromkeys(lock.digests, lock))

    def _digests(self, namespace: str, prompt: Prompt, first: int) -> list[bytes]:
        """Return the digests of a prompt from a boundary on, with the namespace's salt; not to be changed."""
        last = self._last
        if last is not None and last[0] is prompt and last[1] == namespace and last[2] == first:
            return last[3]
        salt = self._salt(namespace)
        digests = [salt + digest for digest in prompt.digests[first:]]
        self._last = prompt, namespace, first, digests
        return digests

    def _salt(self, namespace: str) -> bytes:
        salt = self._salts.get(namespace)
        if salt is None:
            if len(self._salts) > LOCKS_MAX:
                self._salts.clear()
            salt = self._salts[namespace] = sha256(namespace.encode()).digest()[:SALT_BYTES]
        return salt
