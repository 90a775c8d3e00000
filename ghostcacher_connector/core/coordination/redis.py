"""The coordination store in Redis >= 6.2 or Valkey: single, Sentinel or Cluster. See schema.py for the keys."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from ghostcacher_connector.core import schema
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
from ghostcacher_connector.core.coordination.codec import ITEM_BYTES_MAX, SMALL_BYTES_MAX, Codec, LockClaim
from ghostcacher_connector.core.coordination.flushes import FLUSH_AGE_S, FLUSHES_MAX, FlushOrder, FlushReport
from ghostcacher_connector.core.errors import IndexReplyTooLarge, IndexUnavailable, ProtocolError
from ghostcacher_connector.core.index.base import WorkerRef
from ghostcacher_connector.core.redis.client import Argument, RedisCalls, milliseconds
from ghostcacher_connector.core.redis.reply_bounds import PAGE_BYTES_MAX
from ghostcacher_connector.core.redis.server_clock import ServerClock
from ghostcacher_connector.core.redis.url import parse_redis_url
from ghostcacher_connector.core.refusals import Refusals

BLOCK_S_MAX = 1.0
"""Longest wait inside Redis; a longer `read` asks again. A connection that waits has so much more time to answer."""
LATE_S_MAX = 0.2
"""Redis looks ten times a second whose wait is over, and a busy one less often."""
KEYS_MAX = 1_000
"""Keys and items of one script: bounds how long it holds Redis, and Lua puts at most 8,000 values on its stack."""
ROUTERS_MAX = 1_000
"""Routers that one looks at to count those that are alive."""
LOCK_TRIES = 3
"""How often a lock is asked for while others hold it who are none of ours, and are put out of the way."""
FIELD = b"d"

T = TypeVar("T")


class RedisCoordinationStore(CoordinationStore):
    """A client of the coordination store in Redis. Makes no connection before its first call.

    timeout_s: bound of every call but `read`, which may take up to `block_s` or `BLOCK_S_MAX` longer.
    """

    def __init__(self, url: str, *, timeout_s: float = 0.25, key: bytes = b"") -> None:
        """key: the fleet's secret, by which values are stamped and believed; empty for a fleet without one."""
        self._target = parse_redis_url(url)
        self._calls = RedisCalls(self._target, scripts=__package__, timeout_s=timeout_s)
        # A read that waits gets a connection of its own, whose time-out leaves room for the wait.
        self._waiting = RedisCalls(self._target, scripts=__package__, timeout_s=timeout_s + BLOCK_S_MAX + LATE_S_MAX)
        self._refusals = Refusals(self._target.where)
        self._codec = Codec(key, self._refusals)
        self._clock = ServerClock()
        # Offered again at each heartbeat: after a loss of all data the fleet's hashes of text stay what they were.
        self._seed = secrets.token_hex(8)
        self._registered: dict[str, bytes] = {}

    def __repr__(self) -> str:
        return f"RedisCoordinationStore({self._target.kind}, {self._target.where})"

    @property
    def malformed_entries(self) -> int:
        return self._codec.malformed

    def refusals(self) -> Mapping[str, int]:
        return self._refusals.counts()

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
        now = self._now()
        packed = b"" if load is None else self._codec.pack_load(ref, load, now=now, ttl_s=ttl_s)
        events = self._codec.pack_events(ref, chains, computed, now=now) if chains or computed else b""
        age_ms = milliseconds(EVENTS_AGE_S)
        args: list[Argument] = [milliseconds(ttl_s), ref.incarnation, packed, events, EVENTS_ENTRIES_MAX, age_ms]
        seconds, us, listening = self._calls.run("publish", keys, args)
        self._clock.said(seconds, us)
        return bool(listening)

    def loads(self, refs: Sequence[WorkerRef]) -> tuple[float, list[StampedLoad | None]]:
        now, values = self._values("load", [schema.load_key(ref.namespace, ref.worker) for ref in refs])
        unpack = self._codec.unpack_load
        return now, [
            None if value is None else unpack(ref, value, now=now) for ref, value in zip(refs, values, strict=True)
        ]

    # -- routers -----------------------------------------------------------------------------------------------------

    def heartbeat(self, router: str, *, ttl_s: float) -> HeartbeatReply:
        member = self._codec.pack_router(router, now=self._now(), ttl_s=ttl_s)
        before = self._registered.get(router, b"")
        now, members = self._roster(member, ttl_s, b"" if before == member else before)
        self._registered[router] = member
        alive = {name for one in members if (name := self._codec.unpack_router(one, now=now)) is not None}
        return HeartbeatReply(now, self._agreed_seed(), len(alive | {router}))

    def deregister(self, router: str) -> None:
        self._roster(b"", 0, self._registered.pop(router, router.encode()))

    def _agreed_seed(self) -> int:
        """Return the fleet's seed. With a key it follows from that, and what lies in Redis is not asked."""
        if self._codec.stamps.used:
            return self._codec.stamps.seed
        seed = self._calls.run("seed", [schema.router_key("seed")], [self._seed, milliseconds(SEED_TTL_S)])
        self._seed = seed.decode()
        return int(self._seed, 16)

    def _roster(self, member: bytes, stay_s: float, leaving: bytes) -> tuple[float, list[bytes]]:
        """Enter a router, and strike off another one ("": none); return the time, and who is alive."""
        stay_ms = milliseconds(stay_s) if stay_s else 0
        args: list[Argument] = [member, stay_ms, leaving, SMALL_BYTES_MAX, ROUTERS_MAX]
        seconds, us, large, *members = self._calls.run("roster", [schema.router_key("routers")], args)
        if large:
            self._codec.refuse("router", ProtocolError(f"expected names of {SMALL_BYTES_MAX} bytes at most"))
        return self._clock.said(seconds, us), members

    def put_drains(self, orders: Sequence[DrainOrder]) -> None:
        now = self._now()
        for order in orders:
            if order.until > now:
                where, value = [schema.drain_key(order.worker)], self._codec.pack_drain(order, now=now)
                self._calls.run("put_values", where, [milliseconds(order.until - now), value])

    def drains(self, workers: Sequence[str]) -> tuple[float, list[DrainOrder | None]]:
        now, values = self._values("drain", list(map(schema.drain_key, workers)))
        unpack = self._codec.unpack_drain
        return now, [
            None if value is None else unpack(worker, value, now=now)
            for worker, value in zip(workers, values, strict=True)
        ]

    def _values(self, kind: str, keys: Sequence[str]) -> tuple[float, list[bytes | None]]:
        """Return the store's time and the value of each key, None when there is none or it is too large to be ours."""
        now, found = self._now(), list[bytes | None]()
        for some in _chunks(keys):
            seconds, us, large, values = self._calls.run("values", some, [SMALL_BYTES_MAX])
            now = self._clock.said(seconds, us)
            if large:
                self._codec.refuse(kind, ProtocolError(f"expected at most {SMALL_BYTES_MAX} bytes, found more"))
            found += values
        return now, found

    def _now(self) -> float:
        return self._clock.now(lambda: self._clock.said(*self._calls.time(schema.router_key("routers"))))

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
            try:
                found = dict(calls.call(lambda client: client.xread(streams, count=count, block=block_ms)) or ())  # noqa: B023
            except IndexReplyTooLarge as exc:
                self._codec.refuse("stream", exc)
                found = self._small_entries([events_key, updates_key], after, count)
            if found:
                entries = [found.get(key.encode(), ()) for key in (events_key, updates_key)]
                events, events_id = self._decoded(entries[0], self._codec.unpack_events, after.events)
                updates, updates_id = self._decoded(entries[1], self._codec.unpack_update, after.updates)
                return Batch(Cursor(events_id, updates_id), tuple(events), tuple(updates))
            after = self._not_ahead(after)
            if time.monotonic() >= deadline:
                return Batch(after, (), ())

    def _small_entries(self, keys: Sequence[str], after: Cursor, count: int) -> dict[bytes, Any]:
        """Return what XREAD returns, without the values of those entries that are too large to be ours."""
        args: list[Argument] = [*after, count, ITEM_BYTES_MAX, PAGE_BYTES_MAX]
        pages = self._calls.run("small_entries", keys, args)
        return {
            key.encode(): [(one, {FIELD: value}) for one, value in page] for key, page in zip(keys, pages, strict=True)
        }

    def append_updates(self, items: Sequence[PrefixMapUpdate | Flush]) -> None:
        now = self._now()
        for some in _chunks(items):
            packed = [self._codec.pack_update(item, now=now) for item in some]
            bounds = [UPDATES_ENTRIES_MAX, milliseconds(UPDATES_AGE_S)]
            self._calls.run("append_updates", [schema.router_key("texts")], [*bounds, *packed])

    def _not_ahead(self, cursor: Cursor) -> Cursor:
        """Begin anew with a stream whose last entry is older than the cursor: it was lost, and with it the clock.

        Ids are times. A stream that was made anew on a machine whose clock is behind would else stay unheard for long.
        """
        ends = zip(cursor, self._tails("news", "texts"), strict=True)
        return Cursor(*(at if _order(at) <= _order(last) else STREAM_START for at, last in ends))

    def _tails(self, *streams: str) -> list[str]:
        return [last.decode() for last in self._calls.run("tails", [schema.router_key(name) for name in streams], [])]

    def _decoded(self, entries: Sequence[Any], unpack: Callable[..., object], last: str) -> tuple[list[Any], str]:
        """Return the items of some entries that are believed, and the id of the last entry."""
        items, now = [], self._now()
        for entry_id, fields in entries:
            last = entry_id.decode()
            item = unpack((fields or {}).get(FIELD) or b"", now=now)
            if item is not None:
                items.append(item)
        return items, last

    # -- flushes -----------------------------------------------------------------------------------------------------

    def append_flush(self, order: FlushOrder) -> None:
        packed, bounds = self._codec.pack_flush(order, now=self._now()), [FLUSHES_MAX, milliseconds(FLUSH_AGE_S)]
        self._calls.run("append_updates", [schema.router_key("flushes")], [*bounds, packed])

    def flush_orders(self, after: str | None) -> tuple[str, tuple[FlushOrder, ...]]:
        if after is None:
            # Ids are the server's time. An order of the last second finds nothing to drop at who has just begun.
            return f"{int(self._now() - 1) * 1000}-0", ()
        args: list[Argument] = [after, FLUSHES_MAX, ITEM_BYTES_MAX, PAGE_BYTES_MAX]
        (page,) = self._calls.run("small_entries", [schema.router_key("flushes")], args)
        orders, last = self._decoded([(one, {FIELD: value}) for one, value in page], self._codec.unpack_flush, after)
        return last, tuple(orders)

    def put_flush_report(self, order: bytes, worker: str, report: FlushReport, *, ttl_s: float = FLUSH_AGE_S) -> None:
        packed = self._codec.pack_flush_report(order, worker, report, now=self._now(), ttl_s=ttl_s)
        self._calls.run("put_values", [schema.flush_report_key(order, worker)], [milliseconds(ttl_s), packed])

    def flush_reports(self, order: bytes, workers: Sequence[str]) -> list[FlushReport | None]:
        keys = [schema.flush_report_key(order, worker) for worker in workers]
        now, values = self._values("flush report", keys)
        unpack = self._codec.unpack_flush_report
        return [
            None if value is None else unpack(order, worker, value, now=now)
            for worker, value in zip(workers, values, strict=True)
        ]

    # -- ghost locks -------------------------------------------------------------------------------------------------

    def lock(self, keys: Sequence[bytes], *, router: str, worker: str, ready_at: float, ttl_s: float) -> LockGrant:
        unique = _unique(keys)
        claim = LockClaim(router, worker, ready_at)
        for _ in range(LOCK_TRIES):
            stamps = self._claims(unique, claim, ttl_s)
            where = [schema.router_key("tokens"), *map(schema.lock_key, unique)]
            args: list[Argument] = [router, worker, repr(ready_at), milliseconds(ttl_s), SMALL_BYTES_MAX, *stamps]
            reply = self._calls.run("lock", where, args)
            if isinstance(reply, bytes):
                return LockGrant(int(reply), ())
            now = self._now()
            found = [(unique[number - 1], self._held(unique[number - 1], fields, now)) for number, *fields in reply]
            held = tuple(lock for _, lock in found if lock is not None)
            if held:
                return LockGrant(None, held)
            self._calls.call(lambda client, found=found: client.unlink(*(schema.lock_key(key) for key, _ in found)))  # type: ignore[misc]
        raise IndexUnavailable(f"Redis at {self._target.where}: locks are held by somebody who is none of ours")

    def renew_lock(
        self, keys: Sequence[bytes], token: int, *, router: str, worker: str, ready_at: float, ttl_s: float
    ) -> bool:
        unique = _unique(keys)
        stamps = self._claims(unique, LockClaim(router, worker, ready_at), ttl_s)
        args: list[Argument] = [token, router, worker, repr(ready_at), milliseconds(ttl_s), *stamps]
        return bool(self._calls.run("renew_lock", list(map(schema.lock_key, unique)), args))

    def unlock(self, tokens: Mapping[bytes, int]) -> bool:
        count = 0
        for some in _chunks(list(tokens.items())):
            where, args = [schema.lock_key(key) for key, _ in some], [token for _, token in some]
            count += self._calls.run("unlock", where, args)
        return count == len(tokens)

    def locks(self, keys: Sequence[bytes]) -> list[HeldLock | None]:
        held: list[HeldLock | None] = []
        for some in _chunks(keys):
            found, now = self._calls.run("locks", list(map(schema.lock_key, some)), [SMALL_BYTES_MAX]), self._now()
            held += [self._held(key, fields, now) if fields else None for key, fields in zip(some, found, strict=True)]
        return held

    def _claims(self, keys: Sequence[bytes], claim: LockClaim, ttl_s: float) -> list[bytes]:
        now = self._now()
        return [self._codec.pack_claim(key, claim, now=now, ttl_s=ttl_s) for key in keys]

    def _held(self, key: bytes, fields: Sequence[bytes | None], now: float) -> HeldLock | None:
        return self._codec.unpack_lock(key, fields, now=now)

    # -- sessions ----------------------------------------------------------------------------------------------------

    def sessions(self, keys: Sequence[bytes]) -> list[str | None]:
        now, values = self._values("session", list(map(schema.session_key, keys)))
        unpack = self._codec.unpack_session
        return [None if value is None else unpack(key, value, now=now) for key, value in zip(keys, values, strict=True)]

    def put_sessions(self, sessions: Mapping[bytes, str], *, ttl_s: float) -> None:
        now = self._now()
        for some in _chunks(list(sessions.items())):
            where = [schema.session_key(key) for key, _ in some]
            values = [self._codec.pack_session(key, worker, now=now, ttl_s=ttl_s) for key, worker in some]
            self._calls.run("put_values", where, [milliseconds(ttl_s), *values])

    def drop_sessions(self, keys: Sequence[bytes]) -> None:
        for some in _chunks(keys):
            where = list(map(schema.session_key, some))
            self._calls.call(lambda client, where=where: client.unlink(*where))  # type: ignore[misc]

    def close(self) -> None:
        self._calls.close()
        self._waiting.close()


def _chunks(items: Sequence[T]) -> Iterator[list[T]]:
    rest = iter(items)
    while some := list(islice(rest, KEYS_MAX)):
        yield some


def _unique(keys: Sequence[bytes]) -> list[bytes]:
    assert 0 < len(keys) <= KEYS_MAX, f"keys: expected 1 to {KEYS_MAX}, got {len(keys)}"
    return list(dict.fromkeys(keys))


def _order(entry_id: str) -> tuple[int, int]:
    ms, _, number = entry_id.partition("-")
    return int(ms), int(number or 0)
