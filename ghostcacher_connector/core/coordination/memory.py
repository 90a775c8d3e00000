"""The coordination store in this process's memory: the same contract as Redis, for tests and simulations."""

from __future__ import annotations

import copy
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from ghostcacher_connector.core import schema
from ghostcacher_connector.core.coordination.base import (
    EVENTS_AGE_S,
    EVENTS_ENTRIES_MAX,
    STREAM_START,
    UPDATES_AGE_S,
    UPDATES_ENTRIES_MAX,
    Batch,
    CoordinationStore,
    Cursor,
    DrainOrder,
    Flush,
    HeartbeatReply,
    HeldLock,
    LoadReport,
    LockGrant,
    PrefixMapUpdate,
    PromptChain,
    StampedLoad,
)
from ghostcacher_connector.core.coordination.codec import Codec, LockClaim, fields_of, time_load
from ghostcacher_connector.core.coordination.flushes import FLUSH_AGE_S, FLUSHES_MAX, FlushOrder, FlushReport
from ghostcacher_connector.core.errors import IndexUnavailable
from ghostcacher_connector.core.index.base import WorkerRef
from ghostcacher_connector.core.index.memory import Expiring
from ghostcacher_connector.core.refusals import Refusals


class _Entry(NamedTuple):
    """An entry of a stream. number: of all entries of this stream, from 1."""

    number: int
    at: float
    value: bytes


class _Stream:
    """A stream as Redis keeps it: packed entries, the oldest ones forgotten by count and by age."""

    def __init__(self, entries_max: int, age_s: float) -> None:
        self.entries: deque[_Entry] = deque(maxlen=entries_max)
        self._age_s = age_s
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

    def after(self, cursor: str, count: int, unpack: Callable[[bytes], object]) -> tuple[str, tuple[Any, ...]]:
        """Return the new cursor, and the items after the old one that are believed."""
        # Numbers follow each other: what comes after one is at a known place.
        first = self.entries[0].number if self.entries else 1
        start = max(0, _number(cursor) + 1 - first)
        found = list(islice(self.entries, start, start + count))
        items = [unpack(entry.value) for entry in found]
        cursor = f"{found[-1].number}-0" if found else cursor
        return cursor, tuple(item for item in items if item is not None)


def _number(cursor: str) -> int:
    return int(cursor.partition("-")[0])


class _Held(NamedTuple):
    token: int
    fields: tuple[bytes, bytes, bytes, bytes]
    """Router, worker, time when it is to be ready, stamp."""


class MemoryCoordinationStore(CoordinationStore):
    """A coordination store in memory; share it, or `client`s of it, where processes would share Redis.

    key: as in Redis. clock: seconds. A `read` that waits does so in real time, woken by what others append. Set
    `reachable` to False to see what callers do when the store is away.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time, key: bytes = b"") -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._loads: Expiring[bytes] = Expiring(clock)
        self._routers: Expiring[bytes] = Expiring(clock)
        self._drains: Expiring[bytes] = Expiring(clock)
        self._locks: Expiring[_Held] = Expiring(clock)
        self._sessions: Expiring[bytes] = Expiring(clock)
        self._events = _Stream(EVENTS_ENTRIES_MAX, EVENTS_AGE_S)
        self._updates = _Stream(UPDATES_ENTRIES_MAX, UPDATES_AGE_S)
        self._flushes = _Stream(FLUSHES_MAX, FLUSH_AGE_S)
        self._flush_reports: Expiring[bytes] = Expiring(clock)
        self._seed = secrets.randbits(64)
        self._tokens = [0]
        self.reachable = True
        self._use(key)

    def _use(self, key: bytes) -> None:
        self._key, self._refusals = key, Refusals("memory")
        self._codec = Codec(key, self._refusals)

    def __repr__(self) -> str:
        return f"MemoryCoordinationStore(reachable={self.reachable})"

    def client(self, key: bytes | None = None) -> MemoryCoordinationStore:
        """Return another client of the same memory, as another process is of the same Redis. key: None for the same."""
        other = copy.copy(self)
        other._use(self._key if key is None else key)
        return other

    @property
    def malformed_entries(self) -> int:
        return self._codec.malformed

    def refusals(self) -> Mapping[str, int]:
        return self._refusals.counts()

    def flush(self) -> None:
        """Lose everything, as FLUSHALL does; routers bring the seed back."""
        for values in (self._loads, self._routers, self._drains, self._locks, self._sessions, self._flush_reports):
            values.clear()
        self._events.entries.clear()
        self._updates.entries.clear()
        self._flushes.entries.clear()

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
            now = self._clock()
            if load is not None:
                stored = time_load(ref.incarnation, now, self._codec.pack_load(ref, load, now=now, ttl_s=ttl_s))
                self._loads.put(schema.load_key(ref.namespace, ref.worker), stored, ttl_s)
            listening = bool(self._routers.live())
            if listening and (chains or computed):
                self._events.add(self._codec.pack_events(ref, chains, computed, now=now), now)
                self._changed.notify_all()
            return listening

    def loads(self, refs: Sequence[WorkerRef]) -> tuple[float, list[StampedLoad | None]]:
        with self._reached():
            return self._clock(), [self._load(ref) for ref in refs]

    def _load(self, ref: WorkerRef) -> StampedLoad | None:
        stored = self._loads.get(schema.load_key(ref.namespace, ref.worker))
        return None if stored is None else self._codec.unpack_load(ref, stored, now=self._clock())

    def heartbeat(self, router: str, *, ttl_s: float) -> HeartbeatReply:
        with self._reached():
            now = self._clock()
            self._routers.put(router, self._codec.pack_router(router, now=now, ttl_s=ttl_s), ttl_s)
            found = [self._codec.unpack_router(value, now=now) for value in self._routers.live()]
            seed = self._codec.stamps.seed if self._codec.stamps.used else self._seed
            return HeartbeatReply(now, seed, len({name for name in found if name is not None} | {router}))

    def deregister(self, router: str) -> None:
        with self._reached():
            self._routers.pop(router)

    def put_drains(self, orders: Sequence[DrainOrder]) -> None:
        with self._reached():
            now = self._clock()
            for order in orders:
                if order.until > now:
                    self._drains.put(order.worker, self._codec.pack_drain(order, now=now), order.until - now)

    def drains(self, workers: Sequence[str]) -> tuple[float, list[DrainOrder | None]]:
        with self._reached():
            now, unpack = self._clock(), self._codec.unpack_drain
            found = [(worker, self._drains.get(worker)) for worker in workers]
            return now, [None if value is None else unpack(worker, value, now=now) for worker, value in found]

    def start_cursor(self) -> Cursor:
        with self._reached():
            return Cursor(self._events.tail, STREAM_START)

    def read(self, after: Cursor, *, count: int, block_s: float) -> Batch:
        with self._reached():
            self._changed.wait_for(lambda: self._anything(after), timeout=block_s)
            self._reached()
            now, codec = self._clock(), self._codec
            events_at, events = self._events.after(after.events, count, partial(codec.unpack_events, now=now))
            updates_at, updates = self._updates.after(after.updates, count, partial(codec.unpack_update, now=now))
            return Batch(Cursor(events_at, updates_at), events, updates)

    def _anything(self, after: Cursor) -> bool:
        return not self.reachable or self._events.holds_after(after.events) or self._updates.holds_after(after.updates)

    def append_updates(self, items: Sequence[PrefixMapUpdate | Flush]) -> None:
        with self._reached():
            now = self._clock()
            for item in items:
                self._updates.add(self._codec.pack_update(item, now=now), now)
            self._changed.notify_all()

    def append_flush(self, order: FlushOrder) -> None:
        with self._reached():
            now = self._clock()
            self._flushes.add(self._codec.pack_flush(order, now=now), now)

    def flush_orders(self, after: str | None) -> tuple[str, tuple[FlushOrder, ...]]:
        with self._reached():
            if after is None:
                return self._flushes.tail, ()
            return self._flushes.after(after, FLUSHES_MAX, partial(self._codec.unpack_flush, now=self._clock()))

    def put_flush_report(self, order: bytes, worker: str, report: FlushReport, *, ttl_s: float = FLUSH_AGE_S) -> None:
        with self._reached():
            packed = self._codec.pack_flush_report(order, worker, report, now=self._clock(), ttl_s=ttl_s)
            self._flush_reports.put(schema.flush_report_key(order, worker), packed, ttl_s)

    def flush_reports(self, order: bytes, workers: Sequence[str]) -> list[FlushReport | None]:
        with self._reached():
            now, unpack = self._clock(), self._codec.unpack_flush_report
            found = [(worker, self._flush_reports.get(schema.flush_report_key(order, worker))) for worker in workers]
            return [None if value is None else unpack(order, worker, value, now=now) for worker, value in found]

    def lock(self, keys: Sequence[bytes], *, router: str, worker: str, ready_at: float, ttl_s: float) -> LockGrant:
        assert keys
        with self._reached():
            held = tuple(lock for key in dict.fromkeys(keys) if (lock := self._holder(key)) is not None)
            if held:
                return LockGrant(None, held)
            self._tokens[0] += 1
            for key in keys:
                self._hold(key, self._tokens[0], LockClaim(router, worker, ready_at), ttl_s)
            return LockGrant(self._tokens[0], ())

    def renew_lock(
        self, keys: Sequence[bytes], token: int, *, router: str, worker: str, ready_at: float, ttl_s: float
    ) -> bool:
        with self._reached():
            if any(lock is None or lock.token != token for lock in map(self._locks.get, keys)):
                return False
            for key in keys:
                self._hold(key, token, LockClaim(router, worker, ready_at), ttl_s)
            return True

    def _hold(self, key: bytes, token: int, claim: LockClaim, ttl_s: float) -> None:
        stamp = self._codec.pack_claim(key, claim, now=self._clock(), ttl_s=ttl_s)
        self._locks.put(key, _Held(token, (*fields_of(claim), stamp)), ttl_s)

    def unlock(self, tokens: Mapping[bytes, int]) -> bool:
        with self._reached():
            mine = [key for key, token in tokens.items() if (held := self._locks.get(key)) and held.token == token]
            for key in mine:
                self._locks.pop(key)
            return len(mine) == len(tokens)

    def locks(self, keys: Sequence[bytes]) -> list[HeldLock | None]:
        with self._reached():
            return [self._holder(key) for key in keys]

    def _holder(self, key: bytes) -> HeldLock | None:
        held = self._locks.get(key)
        if held is None:
            return None
        return self._codec.unpack_lock(key, (b"%d" % held.token, *held.fields), now=self._clock())

    def sessions(self, keys: Sequence[bytes]) -> list[str | None]:
        with self._reached():
            now, unpack = self._clock(), self._codec.unpack_session
            found = [(key, self._sessions.get(key)) for key in keys]
            return [None if value is None else unpack(key, value, now=now) for key, value in found]

    def put_sessions(self, sessions: Mapping[bytes, str], *, ttl_s: float) -> None:
        with self._reached():
            now = self._clock()
            for key, worker in sessions.items():
                self._sessions.put(key, self._codec.pack_session(key, worker, now=now, ttl_s=ttl_s), ttl_s)

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
