"""The coordination store in Redis >= 6.2 or Valkey: single, Sentinel or Cluster. See schema.py for the keys."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from ghostcacher_connector.core import schema
from ghostcacher_connector.core.coordination import codec
from ghostcacher_connector.core.coordination.base import (
    EVENTS_AGE_S,
    EVENTS_ENTRIES_MAX,
    SEED_TTL_S,
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
from ghostcacher_connector.core.errors import ProtocolError
from ghostcacher_connector.core.index.base import WorkerRef
from ghostcacher_connector.core.redis.client import Argument, RedisCalls, milliseconds
from ghostcacher_connector.core.redis.url import parse_redis_url

logger = logging.getLogger(__name__)

BLOCK_S_MAX = 1.0
"""Longest wait inside Redis; a longer `read` asks again. A connection that waits has so much more time to answer."""
LATE_S_MAX = 0.2
"""Redis looks ten times a second whose wait is over, and a busy one less often."""
KEYS_MAX = 1_000
"""Keys and items of one script: bounds how long it holds Redis, and Lua puts at most 8,000 values on its stack."""
FIELD = b"d"

T = TypeVar("T")
Decoded = TypeVar("Decoded")


class RedisCoordinationStore(CoordinationStore):
    """A client of the coordination store in Redis. Makes no connection before its first call.

    timeout_s: bound of every call but `read`, which may take up to `block_s` or `BLOCK_S_MAX` longer.
    """

    def __init__(self, url: str, *, timeout_s: float = 0.25) -> None:
        self._target = parse_redis_url(url)
        self._calls = RedisCalls(self._target, scripts=__package__, timeout_s=timeout_s)
        # A read that waits gets a connection of its own, whose time-out leaves room for the wait.
        self._waiting = RedisCalls(self._target, scripts=__package__, timeout_s=timeout_s + BLOCK_S_MAX + LATE_S_MAX)
        self._count_lock = threading.Lock()
        # Offered again at each heartbeat: after a loss of all data the fleet's hashes of text stay what they were.
        self._seed = secrets.token_hex(8)
        self.malformed_entries = 0

    def __repr__(self) -> str:
        return f"RedisCoordinationStore({self._target.kind}, {self._target.where})"

    # -- workers -----------------------------------------------------------------------------------------------------

    def publish(
        self,
        ref: WorkerRef,
        load: LoadReport | None,
        chains: Sequence[PromptChain],
        computed: Sequence[str],
        *,
        ttl_s: float,
    ) -> bool:
        keys = [schema.load_key(ref.namespace, ref.worker), schema.router_key("news"), schema.router_key("routers")]
        packed = b"" if load is None else codec.pack_load(load)
        events = codec.pack_events(ref, chains, computed) if chains or computed else b""
        age_ms = milliseconds(EVENTS_AGE_S)
        args: list[Argument] = [milliseconds(ttl_s), ref.incarnation, packed, events, EVENTS_ENTRIES_MAX, age_ms]
        return bool(self._calls.run("publish", keys, args))

    def loads(self, refs: Sequence[WorkerRef]) -> tuple[float, list[StampedLoad | None]]:
        if not refs:
            return self._roster("routers", "", 0)[0], []
        now, found = 0.0, []
        for some in _chunks(refs):
            keys = [schema.load_key(ref.namespace, ref.worker) for ref in some]
            seconds, us, values = self._calls.run("loads", keys, [])
            now = _time(seconds, us)
            found += [self._load(ref, value) for ref, value in zip(some, values, strict=True)]
        return now, found

    def _load(self, ref: WorkerRef, value: bytes | None) -> StampedLoad | None:
        if value is None:
            return None
        stamped = self._decode_or_none(lambda: codec.unpack_load(value, ref.incarnation))
        return StampedLoad(*stamped) if stamped is not None else None

    # -- routers -----------------------------------------------------------------------------------------------------

    def heartbeat(self, router: str, *, ttl_s: float) -> HeartbeatReply:
        now, routers = self._roster("routers", router, ttl_s)
        seed = self._calls.run("seed", [schema.router_key("seed")], [self._seed, milliseconds(SEED_TTL_S)])
        self._seed = seed.decode()
        return HeartbeatReply(now, int(self._seed, 16), len(routers))

    def deregister(self, router: str) -> None:
        self._roster("routers", router, 0)

    def set_drain(self, worker: str, draining: bool, *, ttl_s: float) -> None:
        self._roster("drains", schema.check_worker(worker), ttl_s if draining else 0)

    def drains(self) -> set[str]:
        _, members = self._roster("drains", "", 0)
        return {name for member in members if (name := self._worker(member)) is not None}

    def _roster(self, name: str, member: str, stay_s: float) -> tuple[float, list[bytes]]:
        stay_ms = milliseconds(stay_s) if stay_s else 0
        seconds, us, members = self._calls.run("roster", [schema.router_key(name)], [member, stay_ms])
        return _time(seconds, us), members

    # -- streams -----------------------------------------------------------------------------------------------------

    def start_cursor(self) -> Cursor:
        (events,) = self._tails("news")
        return Cursor(events, STREAM_START)

    def read(self, after: Cursor, *, count: int, block_s: float) -> Batch:
        events_key, updates_key = schema.router_key("news"), schema.router_key("texts")
        deadline = time.monotonic() + block_s
        while True:
            wait_s = min(deadline - time.monotonic(), BLOCK_S_MAX)
            calls, block_ms = (self._waiting, milliseconds(wait_s)) if wait_s > 0 else (self._calls, None)
            streams: dict[Any, Any] = {events_key: after.events, updates_key: after.updates}
            # The values are bound now: the command runs before the loop goes on.
            found = dict(calls.call(lambda client: client.xread(streams, count=count, block=block_ms)) or ())  # noqa: B023
            if found:
                entries = [found.get(key.encode(), ()) for key in (events_key, updates_key)]
                events, events_id = self._decoded(entries[0], codec.unpack_events, after.events)
                updates, updates_id = self._decoded(entries[1], codec.unpack_update, after.updates)
                return Batch(Cursor(events_id, updates_id), tuple(events), tuple(updates))
            after = self._not_ahead(after)
            if time.monotonic() >= deadline:
                return Batch(after, (), ())

    def append_updates(self, items: Sequence[PrefixMapUpdate | Flush]) -> None:
        for some in _chunks(items):
            bounds = [UPDATES_ENTRIES_MAX, milliseconds(UPDATES_AGE_S)]
            self._calls.run("append_updates", [schema.router_key("texts")], [*bounds, *map(codec.pack_update, some)])

    def _not_ahead(self, cursor: Cursor) -> Cursor:
        """Begin anew with a stream whose last entry is older than the cursor: it was lost, and with it the clock.

        Ids are times. A stream that was made anew on a machine whose clock is behind would else stay unheard for long.
        """
        ends = zip(cursor, self._tails("news", "texts"), strict=True)
        return Cursor(*(at if _order(at) <= _order(last) else STREAM_START for at, last in ends))

    def _tails(self, *streams: str) -> list[str]:
        return [last.decode() for last in self._calls.run("tails", [schema.router_key(name) for name in streams], [])]

    def _decoded(
        self, entries: Sequence[Any], unpack: Callable[[bytes], Decoded], last: str
    ) -> tuple[list[Decoded], str]:
        """Return the well-formed items of some entries, and the id of the last entry."""
        items = []
        for entry_id, fields in entries:
            last = entry_id.decode()
            value = (fields or {}).get(FIELD, b"")
            item = self._decode_or_none(lambda value=value: unpack(value))  # type: ignore[misc]
            if item is not None:
                items.append(item)
        return items, last

    # -- ghost locks -------------------------------------------------------------------------------------------------

    def lock(self, keys: Sequence[bytes], *, router: str, worker: str, ready_at: float, ttl_s: float) -> LockGrant:
        unique = _unique(keys)
        where = [schema.router_key("tokens"), *map(schema.lock_key, unique)]
        reply = self._calls.run("lock", where, [router, worker, repr(ready_at), milliseconds(ttl_s)])
        if isinstance(reply, bytes):
            return LockGrant(int(reply), ())
        held = [self._held(unique[number - 1], fields) for number, *fields in reply]
        return LockGrant(None, tuple(lock for lock in held if lock is not None))

    def renew_lock(self, keys: Sequence[bytes], token: int, *, ready_at: float, ttl_s: float) -> bool:
        where = list(map(schema.lock_key, _unique(keys)))
        return bool(self._calls.run("renew_lock", where, [token, repr(ready_at), milliseconds(ttl_s)]))

    def unlock(self, keys: Sequence[bytes], token: int) -> bool:
        where = list(map(schema.lock_key, _unique(keys)))
        return bool(self._calls.run("unlock", where, [token]) == len(where))

    def locks(self, keys: Sequence[bytes]) -> list[HeldLock | None]:
        held: list[HeldLock | None] = []
        for some in _chunks(keys):
            found = self._calls.run("locks", list(map(schema.lock_key, some)), [])
            held += [self._held(key, fields) if fields else None for key, fields in zip(some, found, strict=True)]
        return held

    def _held(self, key: bytes, fields: Sequence[bytes | None]) -> HeldLock | None:
        return self._decode_or_none(lambda: codec.unpack_lock(key, fields))

    # -- sessions ----------------------------------------------------------------------------------------------------

    def sessions(self, keys: Sequence[bytes]) -> list[str | None]:
        workers: list[str | None] = []
        for some in _chunks(keys):
            where = list(map(schema.session_key, some))
            found = self._calls.call(lambda client, where=where: client.mget(where))  # type: ignore[misc]
            workers += [None if value is None else self._worker(value) for value in found]
        return workers

    def put_sessions(self, sessions: Mapping[bytes, str], *, ttl_s: float) -> None:
        for some in _chunks(list(sessions.items())):
            where = [schema.session_key(key) for key, _ in some]
            self._calls.run("put_values", where, [milliseconds(ttl_s), *(schema.check_worker(w) for _, w in some)])

    def drop_sessions(self, keys: Sequence[bytes]) -> None:
        for some in _chunks(keys):
            where = list(map(schema.session_key, some))
            self._calls.call(lambda client, where=where: client.unlink(*where))  # type: ignore[misc]

    def close(self) -> None:
        self._calls.close()
        self._waiting.close()

    def _worker(self, value: bytes) -> str | None:
        return self._decode_or_none(lambda: codec.unpack_worker(value))

    def _decode_or_none(self, unpack: Callable[[], T]) -> T | None:
        """Return the decoded value; None, and count it, when it is malformed."""
        try:
            return unpack()
        except ProtocolError as exc:
            with self._count_lock:
                self.malformed_entries += 1
            logger.debug("%s", exc)
            return None


def _chunks(items: Sequence[T]) -> Iterator[list[T]]:
    rest = iter(items)
    while some := list(islice(rest, KEYS_MAX)):
        yield some


def _unique(keys: Sequence[bytes]) -> list[bytes]:
    assert 0 < len(keys) <= KEYS_MAX, f"keys: expected 1 to {KEYS_MAX}, got {len(keys)}"
    return list(dict.fromkeys(keys))


def _time(seconds: bytes, us: bytes) -> float:
    return int(seconds) + int(us) / 1e6


def _order(entry_id: str) -> tuple[int, int]:
    ms, _, number = entry_id.partition("-")
    return int(ms), int(number or 0)
