"""Stamps: what makes a value in Redis believable to all who share the fleet's `index_key`.

    a stamp     when the value was made (store's clock, us, 8 bytes), how long it counts (ms, 4 bytes), and a digest
                (16 bytes) under the key of both, of the value's place and of the value
    a place     what kind of value it is and whose: ("load", namespace, worker, incarnation), ("session", key)

A value that stands at another place, was changed, was made with another key or with none, or whose time is over, is
refused. So whoever may write to Redis, but does not know the key, can only take values away, or put back one whose time
is not over. A `Rising` shortens that: it lets nothing older follow what it has seen.

Without a key there are no stamps: a value is what lies there.
"""

from __future__ import annotations

import hmac
import struct
from collections import OrderedDict
from functools import lru_cache
from typing import NamedTuple

from ghostcacher_connector.core.errors import DigestMismatch, ValueExpired
from ghostcacher_connector.core.schema import keyed_digest

DIGEST_BYTES = 16
_TIMES = struct.Struct("<QI")
STAMP_BYTES = _TIMES.size + DIGEST_BYTES

AHEAD_S_MAX = 60.0
"""How far a value may come from the future: the clock of a Redis that takes over may be behind the one before."""

BACK_S_MAX = 50.0
"""A writer whose store's clock has gone back by less goes on from its last time, so that its values still rise, and are
not too far in the future. By more, it follows the clock."""

FORGET_S = 40.0
"""A reader forgets the last time of a writer that is farther in the future: less than `BACK_S_MAX`, so that it never
takes a writer that follows the clock for somebody who puts old values back."""

GRACE_S = 1.0
"""A value counts for so much longer than its time: a reader's idea of the time is a little off."""

TTL_MS_MAX = (1 << 32) - 1
WRITERS_MAX = 10_000
PLACES_MAX = 4_096

Place = tuple[str | bytes, ...]


class Stamped(NamedTuple):
    """A value that was believed."""

    body: bytes
    at: float | None
    """When it was made, in seconds of the store's clock; None without a key."""


class Stamps:
    """Stamps values with one key, and checks stamped ones. Any thread."""

    def __init__(self, key: bytes) -> None:
        """key: of any length; empty for a fleet without one."""
        self.used = bool(key)
        """Whether there is a key."""
        self._state = keyed_digest("stamp", DIGEST_BYTES, key)
        self._seed = keyed_digest("seed", 8, key).digest()

    def __repr__(self) -> str:
        return f"Stamps(used={self.used})"

    @property
    def seed(self) -> int:
        """Return 64 bits that all who have the key have in common, and nobody else knows."""
        return int.from_bytes(self._seed, "little")

    def put(self, place: Place, body: bytes, *, at: float, ttl_s: float) -> bytes:
        """Return a value behind its stamp; without a key the value alone.

        at: when it is made, in seconds of the store's clock. ttl_s: how long it counts.
        """
        if not self.used:
            return body
        times = _TIMES.pack(max(0, round(at * 1e6)), min(TTL_MS_MAX, max(1, round(ttl_s * 1e3))))
        return times + self._digest(place, times, body) + body

    def take(self, place: Place, value: bytes, *, now: float) -> Stamped:
        """Return the value behind a stamp. now: seconds of the store's clock.

        Raises DigestMismatch when it was not stamped with this key for this place, ValueExpired when its time is over.
        """
        if not self.used:
            return Stamped(value, None)
        times, digest, body = value[: _TIMES.size], value[_TIMES.size : STAMP_BYTES], value[STAMP_BYTES:]
        if len(value) < STAMP_BYTES or not hmac.compare_digest(digest, self._digest(place, times, body)):
            raise DigestMismatch(f"{place[0]!s}: not stamped with our index_key for the place where it lies")
        at_us, ttl_ms = _TIMES.unpack(times)
        at = at_us / 1e6
        if not at - AHEAD_S_MAX <= now <= at + ttl_ms / 1e3 + GRACE_S:
            raise ValueExpired(f"{place[0]!s}: expected to count for {ttl_ms / 1e3:g} s, found it {now - at:.1f} s old")
        return Stamped(body, at)

    def _digest(self, place: Place, times: bytes, body: bytes) -> bytes:
        state = self._state.copy()
        state.update(_packed(place) + times)
        state.update(body)
        return state.digest()


@lru_cache(maxsize=PLACES_MAX)
def _packed(place: Place) -> bytes:
    """Return the bytes of a place. Lengths come first: those of no two places are the same."""
    fields = [field.encode() if isinstance(field, str) else field for field in place]
    return b"%d" % len(fields) + b"".join([len(field).to_bytes(4, "little") + field for field in fields])


class Rising:
    """Remembers when each writer's last value was made: an older one that comes now was put back by somebody else."""

    def __init__(self) -> None:
        self._last: OrderedDict[str | bytes, float] = OrderedDict()

    def __repr__(self) -> str:
        return f"Rising(writers={len(self._last)})"

    def check(self, writer: str | bytes, at: float | None, *, now: float, again: bool) -> None:
        """Note when a value was made. Raises ValueExpired for one that is older than the last one of its writer.

        now: seconds of the store's clock. again: whether the last one may come again.
        """
        if at is None:
            return
        last = self._last.get(writer)
        if last is not None and last <= now + FORGET_S and (at < last or (at == last and not again)):
            raise ValueExpired(f"a value of {last - at:.3f} s before the last one of its writer")
        self._last[writer] = at
        self._last.move_to_end(writer)
        if len(self._last) > WRITERS_MAX:
            self._last.popitem(last=False)
