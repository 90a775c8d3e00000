"""Wire form of the values in the coordination store. What is read is checked: anybody may have written it.

With a key every value lies behind a stamp (core/stamps.py) for its place. The method that reads one kind of value
returns None, or leaves out, what is malformed or not believed, and notes it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from math import isfinite
from typing import NamedTuple, TypeVar

import msgspec

from ghostcacher_connector.core import schema
from ghostcacher_connector.core.coordination.base import (
    EVENTS_AGE_S,
    UPDATES_AGE_S,
    DrainOrder,
    Flush,
    HeldLock,
    LoadReport,
    PrefixMapUpdate,
    PromptChain,
    StampedLoad,
    WorkerEvents,
)
from ghostcacher_connector.core.coordination.flushes import FLUSH_AGE_S, FlushOrder, FlushReport
from ghostcacher_connector.core.errors import ProtocolError
from ghostcacher_connector.core.index.base import WorkerRef
from ghostcacher_connector.core.refusals import Refusals
from ghostcacher_connector.core.stamps import BACK_S_MAX, STAMP_BYTES, Rising, Stamps
from ghostcacher_connector.core.types import INCARNATION_BYTES

ITEM_BYTES_MAX = 4 << 20
"""Of one value: a batch of chains is some 100 KiB. Bounds what a stranger's value can cost a reader."""

SMALL_BYTES_MAX = 1 << 10
"""Of a value that is no item of a stream: a load, a lock's field, a session, a drain, a router."""

TIME_DIGITS = 16
"""Server time in us, until the year 2286."""

STEP_S = 2e-6
"""Between two values of one writer: times are kept in us, and a float of today's is about a quarter of one wrong."""

T = TypeVar("T")

_encode = msgspec.msgpack.Encoder().encode
_decode_flush = msgspec.msgpack.Decoder(FlushOrder).decode
_decode_flush_report = msgspec.msgpack.Decoder(FlushReport).decode
_decode_load = msgspec.msgpack.Decoder(LoadReport).decode
_decode_events = msgspec.msgpack.Decoder(WorkerEvents).decode
_decode_update: Callable[[bytes], PrefixMapUpdate | Flush] = msgspec.msgpack.Decoder(PrefixMapUpdate | Flush).decode
_decode_drain = msgspec.msgpack.Decoder(tuple[bool, float, float]).decode


class LockClaim(NamedTuple):
    """What the holder of a lock says of it."""

    router: str
    worker: str
    ready_at: float


class Codec:
    """Packs values, and unpacks what one client of a store finds. Any thread."""

    def __init__(self, key: bytes, refusals: Refusals) -> None:
        """key: of the fleet, empty without one. refusals: told of everything that is not believed."""
        self.stamps = Stamps(key)
        self._refusals = refusals
        self._lock = threading.Lock()
        self._rising = Rising()
        self._last_at = 0.0
        self.malformed = 0
        """Values met so far that were malformed or not believed."""

    def __repr__(self) -> str:
        return f"Codec({self.stamps!r}, malformed={self.malformed})"

    # -- of workers --------------------------------------------------------------------------------------------------

    def pack_load(self, ref: WorkerRef, load: LoadReport, *, now: float, ttl_s: float) -> bytes:
        return self.stamps.put(("load", *ref), _encode(load), at=self._risen(now), ttl_s=ttl_s)

    def unpack_load(self, ref: WorkerRef, value: bytes, *, now: float) -> StampedLoad | None:
        """Return the load that lies in the store; None, too, when it is of another incarnation."""
        return self._believed("load", lambda: self._load(ref, value, now))

    def _load(self, ref: WorkerRef, value: bytes, now: float) -> StampedLoad | None:
        if len(value) <= INCARNATION_BYTES + TIME_DIGITS:
            raise ProtocolError(f"load: expected more than {INCARNATION_BYTES + TIME_DIGITS} bytes, found {len(value)}")
        if value[:INCARNATION_BYTES] != ref.incarnation:
            return None
        digits = value[INCARNATION_BYTES : INCARNATION_BYTES + TIME_DIGITS]
        if not digits.isdigit():
            raise ProtocolError(f"load: expected {TIME_DIGITS} digits of time, found {digits!r}")
        found = self.stamps.take(("load", *ref), value[INCARNATION_BYTES + TIME_DIGITS :], now=now)
        load = _checked(_decode_load, found.body, "load")
        self._in_order(b"load" + ref.incarnation, found.at, now=now, again=True)
        return StampedLoad(int(digits) / 1e6 if found.at is None else found.at, load)

    def pack_events(
        self, ref: WorkerRef, chains: Sequence[PromptChain], computed: Sequence[str], *, now: float
    ) -> bytes:
        body = _encode((ref.namespace, ref.worker, ref.incarnation, chains, computed))
        return self.stamps.put(("events",), body, at=self._risen(now), ttl_s=EVENTS_AGE_S)

    def unpack_events(self, value: bytes, *, now: float) -> WorkerEvents | None:
        def unpack() -> WorkerEvents:
            body, at = self.stamps.take(("events",), value, now=now)
            events = _checked(_decode_events, body, "events")
            if not schema.is_namespace(events.namespace) or not schema.is_worker(events.worker):
                names = events.namespace, events.worker
                raise ProtocolError(f"events: expected a namespace and a worker, found {names!r}")
            found = len(events.incarnation)
            if found != INCARNATION_BYTES:
                raise ProtocolError(f"events: expected {INCARNATION_BYTES} bytes of incarnation, found {found}")
            self._in_order(b"events" + events.incarnation, at, now=now, again=False)
            return events

        return self._believed("events", unpack)

    # -- of routers --------------------------------------------------------------------------------------------------

    def pack_update(self, item: PrefixMapUpdate | Flush, *, now: float) -> bytes:
        return self.stamps.put(("update",), _encode(item), at=self._risen(now), ttl_s=UPDATES_AGE_S)

    def unpack_update(self, value: bytes, *, now: float) -> PrefixMapUpdate | Flush | None:
        def unpack() -> PrefixMapUpdate | Flush:
            body, at = self.stamps.take(("update",), value, now=now)
            item = _checked(_decode_update, body, "map update")
            self._in_order(item.router, at, now=now, again=False)
            return item

        return self._believed("map update", unpack)

    def pack_router(self, router: str, *, now: float, ttl_s: float) -> bytes:
        return self.stamps.put(("router",), router.encode(), at=self._risen(now), ttl_s=ttl_s)

    def unpack_router(self, value: bytes, *, now: float) -> str | None:
        return self._believed("router", lambda: _name(self.stamps.take(("router",), value, now=now).body))

    def pack_session(self, key: bytes, worker: str, *, now: float, ttl_s: float) -> bytes:
        body = schema.check_worker(worker).encode()
        return self.stamps.put(("session", key), body, at=self._risen(now), ttl_s=ttl_s)

    def unpack_session(self, key: bytes, value: bytes, *, now: float) -> str | None:
        return self._believed("session", lambda: _name(self.stamps.take(("session", key), value, now=now).body))

    def pack_drain(self, order: DrainOrder, *, now: float) -> bytes:
        place, ttl_s = ("drain", schema.check_worker(order.worker)), max(0.001, order.until - now)
        return self.stamps.put(place, _encode(order[1:]), at=now, ttl_s=ttl_s)

    def unpack_drain(self, worker: str, value: bytes, *, now: float) -> DrainOrder | None:
        def unpack() -> DrainOrder:
            body = self.stamps.take(("drain", worker), value, now=now).body
            order = DrainOrder(worker, *_checked(_decode_drain, body, "drain"))
            if not isfinite(order.at + order.until):
                raise ProtocolError(f"drain: expected finite times, found {order.at}, {order.until}")
            return order

        return self._believed("drain", unpack)

    def pack_flush(self, order: FlushOrder, *, now: float) -> bytes:
        return self.stamps.put(("flush",), _encode(order), at=self._risen(now), ttl_s=FLUSH_AGE_S)

    def unpack_flush(self, value: bytes, *, now: float) -> FlushOrder | None:
        def unpack() -> FlushOrder:
            body, at = self.stamps.take(("flush",), value, now=now)
            order = _checked(_decode_flush, body, "flush")
            self._in_order(b"flush" + order.router.encode(), at, now=now, again=False)
            return order

        return self._believed("flush", unpack)

    def pack_flush_report(self, order: bytes, worker: str, report: FlushReport, *, now: float, ttl_s: float) -> bytes:
        place = "flushed", order, schema.check_worker(worker)
        return self.stamps.put(place, _encode(report), at=now, ttl_s=ttl_s)

    def unpack_flush_report(self, order: bytes, worker: str, value: bytes, *, now: float) -> FlushReport | None:
        def unpack() -> FlushReport:
            body = self.stamps.take(("flushed", order, worker), value, now=now).body
            return _checked(_decode_flush_report, body, "flush report")

        return self._believed("flush report", unpack)

    # -- of locks ----------------------------------------------------------------------------------------------------

    def pack_claim(self, key: bytes, claim: LockClaim, *, now: float, ttl_s: float) -> bytes:
        """Return the stamp that lies beside the fields of a lock; nothing without a key."""
        body = b"\0".join(fields_of(claim))
        return self.stamps.put(("lock", key), body, at=now, ttl_s=ttl_s)[:STAMP_BYTES] if self.stamps.used else b""

    def unpack_lock(self, key: bytes, fields: Sequence[bytes | None], *, now: float) -> HeldLock | None:
        """fields: token, router, worker, time when it is to be ready, stamp."""

        def unpack() -> HeldLock:
            token, router, worker, ready_at, stamp = fields
            if token is None or router is None or worker is None or ready_at is None:
                raise ProtocolError("lock: expected four fields")
            self.stamps.take(("lock", key), (stamp or b"") + b"\0".join((router, worker, ready_at)), now=now)
            try:
                held = HeldLock(key, int(token), router.decode(), worker.decode(), float(ready_at))
            except ValueError as exc:
                raise ProtocolError(f"lock: {exc}") from exc
            if not isfinite(held.ready_at):
                raise ProtocolError(f"lock: expected a finite time, found {held.ready_at}")
            return held

        return self._believed("lock", unpack)

    # -- all of them -------------------------------------------------------------------------------------------------

    def refuse(self, kind: str, why: Exception) -> None:
        """Note a value that is not even looked at."""
        with self._lock:
            self.malformed += 1
        self._refusals.note(kind, why)

    def _believed(self, kind: str, unpack: Callable[[], T]) -> T | None:
        try:
            return unpack()
        except ProtocolError as exc:
            self.refuse(kind, exc)
            return None

    def _risen(self, now: float) -> float:
        """Return a time later than of all values before: whoever reads them in order can tell old ones apart."""
        with self._lock:
            went_back = self._last_at > now + BACK_S_MAX
            self._last_at = now if went_back else max(now, self._last_at + STEP_S)
            return self._last_at

    def _in_order(self, writer: str | bytes, at: float | None, *, now: float, again: bool) -> None:
        with self._lock:
            self._rising.check(writer, at, now=now, again=again)


def time_load(incarnation: bytes, now: float, value: bytes) -> bytes:
    """Return a packed load as it is stored; in Redis the script does this, which knows the server's time."""
    return incarnation + b"%0*d" % (TIME_DIGITS, round(now * 1e6)) + value


def fields_of(claim: LockClaim) -> tuple[bytes, bytes, bytes]:
    """Return the fields of a lock in the store that say the claim."""
    return claim.router.encode(), claim.worker.encode(), repr(claim.ready_at).encode()


def _name(value: bytes) -> str:
    name = value.decode(errors="replace")
    if not schema.is_worker(name):
        raise ProtocolError(f"expected a name, found {name[:64]!r}")
    return name


def _checked(decode: Callable[[bytes], T], value: bytes, what: str) -> T:
    if len(value) > ITEM_BYTES_MAX:
        raise ProtocolError(f"{what}: expected at most {ITEM_BYTES_MAX} bytes, found {len(value)}")
    try:
        return decode(value)
    except msgspec.MsgspecError as exc:
        raise ProtocolError(f"{what}: {exc}") from exc
    except (ValueError, RecursionError) as exc:
        raise ProtocolError(f"{what}: {type(exc).__name__}") from exc
