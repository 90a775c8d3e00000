"""The coordination store in this process's memory: the same contract as Redis, for tests and simulations."""

from __future__ import annotations

import copy
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

from ghostcacher_connector.core import schema
from ghostcacher_connector.core.coordination import codec
from ghostcacher_connector.core.coordination.base import (
    EVENTS_AGE_S,
    EVENTS_ENTRIES_MAX,
    STREAM_START,
    UPDATES_AGE_S,
    UPDATES_ENTRIES_MAX,
    Batch,
    CoordinationStore,
    Cursor,
    Flush,
    HeartbeatReply,
    HeldLock,
    LoadReport,
    LockGrant,
    PrefixMapUpdate,
    PromptChain,
    StampedLoad,
)
from ghostcacher_connector.core.errors import IndexUnavailable, ProtocolError
from ghostcacher_connector.core.index.base import WorkerRef
from ghostcacher_connector.core.index.memory import Expiring

T = TypeVar("T")


class _Entry(NamedTuple):
    """An entry of a stream. number: of all entries of this stream, from 1."""

    number: int
    at: float
    value: bytes


class _Stream(Generic[T]):
    """A stream as Redis keeps it: packed entries, the oldest ones forgotten by count and by age."""

    def __init__(self, entries_max: int, age_s: float, unpack: Callable[[bytes], T]) -> None:
        self.entries: deque[_Entry] = deque(maxlen=entries_max)
        self._age_s = age_s
        self._unpack = unpack
        self._last = 0

    def add(self, value: bytes, now: float) -> None:
        self._last += 1
        self.entries.append(_Entry(self._last, now, value))
        while self.entries[0].at < now - self._age_s:
            self.entries.popleft()

    @property
    def tail(self) -> str:
        return f"{self._last}-0" if self.entries else STREAM_START

    def holds_after(self, cursor: str) -> bool:
        return bool(self.entries) and self.entries[-1].number > _number(cursor)

    def after(self, cursor: str, count: int) -> tuple[str, list[T], int]:
        """Return the new cursor, the well-formed items after the old one, and how many are malformed."""
        number = _number(cursor)
        items: list[T] = []
        malformed = 0
        for entry in [entry for entry in self.entries if entry.number > number][:count]:
            cursor = f"{entry.number}-0"
            try:
                items.append(self._unpack(entry.value))
            except ProtocolError:
                malformed += 1
        return cursor, items, malformed


def _number(cursor: str) -> int:
    return int(cursor.partition("-")[0])


class _Held(NamedTuple):
    token: int
    router: str
    worker: str
    ready_at: float


class MemoryCoordinationStore(CoordinationStore):
    """A coordination store in memory; share it, or `client`s of it, where processes would share Redis.

    clock: seconds. A `read` that waits does so in real time, woken by what others append. Set `reachable` to False to
    see what callers do when the store is away.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._loads: Expiring[bytes] = Expiring(clock)
        self._routers: Expiring[str] = Expiring(clock)
        self._drains: Expiring[str] = Expiring(clock)
        self._locks: Expiring[_Held] = Expiring(clock)
        self._sessions: Expiring[str] = Expiring(clock)
        self._events = _Stream(EVENTS_ENTRIES_MAX, EVENTS_AGE_S, codec.unpack_events)
        self._updates = _Stream(UPDATES_ENTRIES_MAX, UPDATES_AGE_S, codec.unpack_update)
        self._seed = secrets.randbits(64)
        self._tokens = [0]
        self.reachable = True
        self.malformed_entries = 0

    def __repr__(self) -> str:
        return f"MemoryCoordinationStore(reachable={self.reachable})"

    def client(self) -> MemoryCoordinationStore:
        """Return another client of the same memory, as another process is of the same Redis."""
        other = copy.copy(self)
        other.malformed_entries = 0
        return other

    def flush(self) -> None:
        """Lose everything, as FLUSHALL does; routers bring the seed back."""
        for values in (self._loads, self._routers, self._drains, self._locks, self._sessions):
            values.clear()
        self._events.entries.clear()
        self._updates.entries.clear()

    def publish(
        self,
        ref: WorkerRef,
        load: LoadReport | None,
        chains: Sequence[PromptChain],
        computed: Sequence[str],
        *,
        ttl_s: float,
    ) -> bool:
        with self._reached():
            if load is not None:
                stored = codec.stamp_load(ref.incarnation, self._clock(), codec.pack_load(load))
                self._loads.put(schema.load_key(ref.namespace, ref.worker), stored, ttl_s)
            listening = bool(self._routers.live())
            if listening and (chains or computed):
                self._events.add(codec.pack_events(ref, chains, computed), self._clock())
                self._changed.notify_all()
            return listening

    def loads(self, refs: Sequence[WorkerRef]) -> tuple[float, list[StampedLoad | None]]:
        with self._reached():
            return self._clock(), [self._load(ref) for ref in refs]

    def _load(self, ref: WorkerRef) -> StampedLoad | None:
        stored = self._loads.get(schema.load_key(ref.namespace, ref.worker))
        if stored is None:
            return None
        try:
            stamped = codec.unpack_load(stored, ref.incarnation)
        except ProtocolError:
            self.malformed_entries += 1
            return None
        return None if stamped is None else StampedLoad(*stamped)

    def heartbeat(self, router: str, *, ttl_s: float) -> HeartbeatReply:
        with self._reached():
            self._routers.put(router, router, ttl_s)
            return HeartbeatReply(self._clock(), self._seed, len(self._routers.live()))

    def deregister(self, router: str) -> None:
        with self._reached():
            self._routers.pop(router)

    def set_drain(self, worker: str, draining: bool, *, ttl_s: float) -> None:
        with self._reached():
            if draining:
                self._drains.put(schema.check_worker(worker), worker, ttl_s)
            else:
                self._drains.pop(worker)

    def drains(self) -> set[str]:
        with self._reached():
            return set(self._drains.live())

    def start_cursor(self) -> Cursor:
        with self._reached():
            return Cursor(self._events.tail, STREAM_START)

    def read(self, after: Cursor, *, count: int, block_s: float) -> Batch:
        with self._reached():
            self._changed.wait_for(lambda: self._anything(after), timeout=block_s)
            self._reached()
            events_at, events, malformed_events = self._events.after(after.events, count)
            updates_at, updates, malformed_updates = self._updates.after(after.updates, count)
            self.malformed_entries += malformed_events + malformed_updates
            return Batch(Cursor(events_at, updates_at), tuple(events), tuple(updates))

    def _anything(self, after: Cursor) -> bool:
        return not self.reachable or self._events.holds_after(after.events) or self._updates.holds_after(after.updates)

    def append_updates(self, items: Sequence[PrefixMapUpdate | Flush]) -> None:
        with self._reached():
            for item in items:
                self._updates.add(codec.pack_update(item), self._clock())
            self._changed.notify_all()

    def lock(self, keys: Sequence[bytes], *, router: str, worker: str, ready_at: float, ttl_s: float) -> LockGrant:
        assert keys
        with self._reached():
            held = tuple(lock for key in dict.fromkeys(keys) if (lock := self._holder(key)) is not None)
            if held:
                return LockGrant(None, held)
            self._tokens[0] += 1
            for key in keys:
                self._locks.put(key, _Held(self._tokens[0], router, worker, ready_at), ttl_s)
            return LockGrant(self._tokens[0], ())

    def renew_lock(self, keys: Sequence[bytes], token: int, *, ready_at: float, ttl_s: float) -> bool:
        with self._reached():
            found = [self._locks.get(key) for key in keys]
            held = [lock for lock in found if lock is not None and lock.token == token]
            if len(held) < len(keys):
                return False
            for key, lock in zip(keys, held, strict=True):
                self._locks.put(key, lock._replace(ready_at=ready_at), ttl_s)
            return True

    def unlock(self, keys: Sequence[bytes], token: int) -> bool:
        with self._reached():
            mine = [key for key in dict.fromkeys(keys) if (held := self._locks.get(key)) and held.token == token]
            for key in mine:
                self._locks.pop(key)
            return len(mine) == len(set(keys))

    def locks(self, keys: Sequence[bytes]) -> list[HeldLock | None]:
        with self._reached():
            return [self._holder(key) for key in keys]

    def _holder(self, key: bytes) -> HeldLock | None:
        held = self._locks.get(key)
        return None if held is None else HeldLock(key, *held)

    def sessions(self, keys: Sequence[bytes]) -> list[str | None]:
        with self._reached():
            return [self._sessions.get(key) for key in keys]

    def put_sessions(self, sessions: Mapping[bytes, str], *, ttl_s: float) -> None:
        with self._reached():
            for key, worker in sessions.items():
                self._sessions.put(key, schema.check_worker(worker), ttl_s)

    def drop_sessions(self, keys: Sequence[bytes]) -> None:
        with self._reached():
            for key in keys:
                self._sessions.pop(key)

    def close(self) -> None:
        self.reachable = False
        with self._changed:
            self._changed.notify_all()

    def _reached(self) -> threading.Condition:
        if not self.reachable:
            raise IndexUnavailable("coordination store in memory: expected reachable, found unreachable")
        return self._changed
