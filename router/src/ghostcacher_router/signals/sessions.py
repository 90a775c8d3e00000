"""Which worker a client's session is at: in this router's memory, and in the store for the other replicas.

Soft: whoever reads it decides whether the session stays. Writes go to the store behind the requests, in batches; it is
read only for a session that is not in memory.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import NamedTuple

from ghostcacher_connector.core.coordination.base import CoordinationStore
from ghostcacher_connector.core.errors import IndexUnavailable
from ghostcacher_router.ports import Clock, Offload
from ghostcacher_router.signals.coalescer import Coalescer

logger = logging.getLogger(__name__)

SESSIONS_MAX = 1 << 16
UNWRITTEN_MAX = 1 << 14
"""Of sessions whose worker the store does not know yet; the oldest are dropped when it is away for long."""

WAIT_S = 0.005
REREAD_S = 5.0
"""Another replica may have moved a session that is in use here: it is read again so often, beside the requests."""

TOUCHES_PER_TTL = 8
"""A session that stays where it is is written again so often within its TTL, which slides."""


def session_key(model: str | None, session: str) -> bytes:
    """Return what a session is stored under: a digest, since clients put all kinds of things into its name."""
    return sha256(f"{model or ''}\0{session}".encode(errors="surrogatepass")).digest()


class _Bound(NamedTuple):
    """worker: None: the store knows none. Loop clock, s: used_at; written_at; seen_at: last moved here, or read."""

    worker: str | None
    used_at: float
    written_at: float
    seen_at: float


class SessionAffinity:
    """Session key -> worker, least recently used forgotten first. On the event loop only; the store in threads."""

    def __init__(
        self,
        store: CoordinationStore | None,
        offload: Offload,
        clock: Clock,
        *,
        ttl_s: float = 3600.0,
        sessions_max: int = SESSIONS_MAX,
    ) -> None:
        self._store, self._offload, self._clock = store, offload, clock
        self._ttl_s, self._sessions_max = ttl_s, sessions_max
        self._bound: OrderedDict[bytes, _Bound] = OrderedDict()
        self._unwritten: dict[bytes, str] = {}
        self._dropped: set[bytes] = set()
        self._reads: Coalescer[bytes, str | None] = Coalescer(self._prepare, self._told, offload, clock=clock)

    def __repr__(self) -> str:
        return f"SessionAffinity(sessions={len(self._bound)}, unwritten={len(self._unwritten)})"

    def known(self, key: bytes) -> bool:
        """Return whether asking the store would tell nothing new."""
        bound = self._bound.get(key)
        fresh = bound is not None and self._clock() - bound.used_at <= self._ttl_s
        return fresh or self._store is None or self._reads.broken

    def get(self, key: bytes) -> str | None:
        """Return the worker of a session, as far as it is known here."""
        bound, now = self._bound.get(key), self._clock()
        if bound is None or now - bound.used_at > self._ttl_s:
            return None
        if self._store is not None and now - bound.seen_at > REREAD_S and key not in self._unwritten:
            self._reads.refresh(key)
        return bound.worker

    async def fetch(self, key: bytes, timeout_s: float = WAIT_S) -> None:
        """Ask the store for a session that is not known here; wait a bounded time."""
        await self._reads.wait(key, timeout_s)

    def bind(self, key: bytes, worker: str) -> None:
        """A request of the session went to a worker, now."""
        now, before = self._clock(), self._bound.get(key)
        moved = before is None or before.worker != worker
        if before is None or moved or now - before.written_at > self._ttl_s / TOUCHES_PER_TTL:
            self._unwritten.pop(key, None)
            self._unwritten[key] = worker
            self._dropped.discard(key)
            if len(self._unwritten) > UNWRITTEN_MAX:
                del self._unwritten[next(iter(self._unwritten))]
            self._put(key, _Bound(worker, now, now, now if moved or before is None else before.seen_at))
        else:
            self._put(key, before._replace(used_at=now))

    async def write(self) -> None:
        """Tell the store of the sessions that have moved since the last call. Bounded by the store's time-out."""
        if self._store is None or not (self._unwritten or self._dropped):
            return
        store, moved, dropped = self._store, self._unwritten, self._dropped
        self._unwritten, self._dropped = {}, set()

        def call() -> None:
            if dropped:
                store.drop_sessions(list(dropped))
            if moved:
                store.put_sessions(moved, ttl_s=self._ttl_s)

        try:
            await self._offload(call)
        except IndexUnavailable as exc:
            logger.debug("sessions are written later: %s", exc)
            self._unwritten = dict(list((moved | self._unwritten).items())[-UNWRITTEN_MAX:])
            self._dropped |= dropped - self._unwritten.keys()

    def drop(self, key: bytes) -> None:
        """Forget one session: here at once, in the store with the next write."""
        self._bound.pop(key, None)
        self._unwritten.pop(key, None)
        if len(self._dropped) < UNWRITTEN_MAX:
            self._dropped.add(key)

    def clear(self) -> None:
        """Forget all sessions that are known here."""
        for key in list(self._bound):
            self.drop(key)

    def stop(self) -> None:
        self._reads.stop()

    def _prepare(self, keys: Sequence[bytes]) -> Callable[[], list[str | None]]:
        store = self._store
        assert store is not None
        return lambda: store.sessions(keys)

    def _told(self, key: bytes, worker: str | None) -> None:
        now, bound = self._clock(), self._bound.get(key)
        if bound is None:
            self._put(key, _Bound(worker, now, now if worker is not None else float("-inf"), now))
        elif now - bound.seen_at > REREAD_S and key not in self._unwritten:
            # Not moved here since it was asked for. A store that knows nothing may have lost it.
            self._bound[key] = bound._replace(worker=worker or bound.worker, seen_at=now)

    def _put(self, key: bytes, bound: _Bound) -> None:
        self._bound[key] = bound
        self._bound.move_to_end(key)
        while len(self._bound) > self._sessions_max:
            self._bound.popitem(last=False)
