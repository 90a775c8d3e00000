"""Wire form of the values in the coordination store. What is read is checked: anybody may have written it.

All `unpack_` functions raise ProtocolError for malformed bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from ghostcacher_connector.core import schema
from ghostcacher_connector.core.coordination.base import (
    Flush,
    HeldLock,
    LoadReport,
    PrefixMapUpdate,
    PromptChain,
    WorkerEvents,
)
from ghostcacher_connector.core.errors import ProtocolError
from ghostcacher_connector.core.index.base import WorkerRef
from ghostcacher_connector.core.types import INCARNATION_BYTES

ITEM_BYTES_MAX = 4 << 20
"""Of one value: a batch of chains is some 100 KiB. Bounds what a stranger's value can cost a reader."""

STAMP_DIGITS = 16
"""Server time in us, until the year 2286."""

T = TypeVar("T")

_encode = msgspec.msgpack.Encoder().encode
_decode_load = msgspec.msgpack.Decoder(LoadReport).decode
_decode_events = msgspec.msgpack.Decoder(WorkerEvents).decode
_decode_update: Callable[[bytes], PrefixMapUpdate | Flush] = msgspec.msgpack.Decoder(PrefixMapUpdate | Flush).decode


def pack_load(load: LoadReport) -> bytes:
    return _encode(load)


def stamp_load(incarnation: bytes, now: float, packed: bytes) -> bytes:
    """Return a packed load as it is stored; in Redis the script does this, which knows the server's time."""
    return incarnation + b"%0*d" % (STAMP_DIGITS, round(now * 1e6)) + packed


def pack_events(ref: WorkerRef, chains: Sequence[PromptChain], computed: Sequence[str]) -> bytes:
    return _encode((ref.namespace, ref.worker, ref.incarnation, chains, computed))


def pack_update(item: PrefixMapUpdate | Flush) -> bytes:
    return _encode(item)


def unpack_load(value: bytes, incarnation: bytes) -> tuple[float, LoadReport] | None:
    """Return when a load was stored, server time in s, and the load; None when it is of another incarnation."""
    if len(value) <= INCARNATION_BYTES + STAMP_DIGITS:
        raise ProtocolError(f"load: expected more than {INCARNATION_BYTES + STAMP_DIGITS} bytes, found {len(value)}")
    if value[:INCARNATION_BYTES] != incarnation:
        return None
    stamp = value[INCARNATION_BYTES : INCARNATION_BYTES + STAMP_DIGITS]
    if not stamp.isdigit():
        raise ProtocolError(f"load: expected {STAMP_DIGITS} digits of time, found {stamp!r}")
    return int(stamp) / 1e6, _checked(_decode_load, value[INCARNATION_BYTES + STAMP_DIGITS :], "load")


def unpack_events(value: bytes) -> WorkerEvents:
    events = _checked(_decode_events, value, "events")
    if not schema.is_namespace(events.namespace) or not schema.is_worker(events.worker):
        raise ProtocolError(f"events: expected a namespace and a worker, found {events.namespace!r}, {events.worker!r}")
    found = len(events.incarnation)
    if found != INCARNATION_BYTES:
        raise ProtocolError(f"events: expected {INCARNATION_BYTES} bytes of incarnation, found {found}")
    return events


def unpack_update(value: bytes) -> PrefixMapUpdate | Flush:
    return _checked(_decode_update, value, "map update")


def unpack_worker(value: bytes) -> str:
    worker = value.decode(errors="replace")
    if not schema.is_worker(worker):
        raise ProtocolError(f"worker: expected a name, found {worker[:64]!r}")
    return worker


def unpack_lock(key: bytes, fields: Sequence[bytes | None]) -> HeldLock:
    """fields: token, router, worker, time when it is to be ready."""
    token, router, worker, ready_at = fields
    if token is None or router is None or worker is None or ready_at is None:
        raise ProtocolError("lock: expected four fields")
    try:
        return HeldLock(key, int(token), router.decode(), worker.decode(), float(ready_at))
    except ValueError as exc:
        raise ProtocolError(f"lock: {exc}") from exc


def _checked(decode: Callable[[bytes], T], value: bytes, what: str) -> T:
    if len(value) > ITEM_BYTES_MAX:
        raise ProtocolError(f"{what}: expected at most {ITEM_BYTES_MAX} bytes, found {len(value)}")
    try:
        return decode(value)
    except msgspec.MsgspecError as exc:
        raise ProtocolError(f"{what}: {exc}") from exc
    except (ValueError, RecursionError) as exc:
        raise ProtocolError(f"{what}: {type(exc).__name__}") from exc
