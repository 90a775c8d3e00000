"""Session affinity: which worker a client's session went to last, shared by all routers through the store.

It is a preference: the picker decides whether the session stays. Writes reach the store after the request, in batches;
the store is read only for a session that is not in memory, or to learn whether another router has moved it.
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
"""Sessions that wait to be written to the store; the oldest are dropped when it is away for long."""

WAIT_S = 0.005
"""Bound of a request's wait for the store."""
REREAD_S = 5.0
"""A session in use is read again so often, without anybody waiting: another router may have moved it."""

TOUCHES_PER_TTL = 8
"""A session that stays where it is is written again so often within its TTL, which counts from its last use."""


def session_key(model: str | None, session: str) -> bytes:
    """Return the key of a session in the store: a digest, since clients put all kinds of things into its name."""
    return sha256(f"{model or ''}\0{session}".encode(errors="surrogatepass")).digest()


class _Binding(NamedTuple):
    """Where a session is. Times are the loop's clock, in seconds."""

    worker: str | None
    """None when the store knows none."""
    used_at: float
    """Last request of the session."""
    written_at: float
    """Last time that it was given to the store."""
    seen_at: float
    """Last time that it was moved here, or read from the store."""


class SessionAffinity:
    """Session key -> worker, the least recently used forgotten first.

    On the event loop only; the store is asked in threads.
    """

    def __init__(
        self,
        store: CoordinationStore | None,
        offload: Offload,
        clock: Clock,
        *,
        ttl_s: float = 3600.0,
        forget_evicted: bool = False,
    ) -> None:
        """Make one that knows nothing.

        forget_evicted: what is forgotten here for want of room leaves the store, too; and a key that the store does not
        know is not remembered as such, so that asking for many pushes nothing out.
        """
        self._forget_evicted = forget_evicted
        self._store, self._offload, self._clock = store, offload, clock
        self._ttl_s = ttl_s
        self._bindings: OrderedDict[bytes, _Binding] = OrderedDict()
        self._unwritten: dict[bytes, str] = {}
        self._dropped: set[bytes] = set()
        self._reads: Coalescer[bytes, str | None] = Coalescer(self._prepare, self._received, offload, clock=clock)

    def __repr__(self) -> str:
        return f"SessionAffinity(sessions={len(self._bindings)}, unwritten={len(self._unwritten)})"

    def known(self, key: bytes) -> bool:
        """Return whether the store need not be asked: the session is known here, or there is no store to ask."""
        binding = self._bindings.get(key)
        fresh = binding is not None and self._clock() - binding.used_at <= self._ttl_s
        return fresh or not self.askable

    @property
    def askable(self) -> bool:
        """Return whether there is a store, and it has not failed a moment ago."""
        return self._store is not None and not self._reads.broken

    def get(self, key: bytes) -> str | None:
        """Return the worker of a session, as far as it is known here."""
        binding, now = self._bindings.get(key), self._clock()
        if binding is None or now - binding.used_at > self._ttl_s:
            return None
        if self._store is not None and now - binding.seen_at > REREAD_S and key not in self._unwritten:
            self._reads.refresh(key)
        return binding.worker

    async def fetch(self, key: bytes, timeout_s: float = WAIT_S) -> bool:
        """Read a session from the store, and wait for that at most `timeout_s`; return whether the store answered."""
        return await self._reads.wait(key, timeout_s)

    def bind(self, key: bytes, worker: str) -> None:
        """Note that a request of the session goes to a worker now."""
        now, before = self._clock(), self._bindings.get(key)
        moved = before is None or before.worker != worker
        if before is None or moved or now - before.written_at > self._ttl_s / TOUCHES_PER_TTL:
            self._unwritten.pop(key, None)
            self._unwritten[key] = worker
            self._dropped.discard(key)
            if len(self._unwritten) > UNWRITTEN_MAX:
                del self._unwritten[next(iter(self._unwritten))]
            self._put(key, _Binding(worker, now, now, now if moved or before is None else before.seen_at))
        else:
            self._put(key, before._replace(used_at=now))

    async def write(self) -> None:
        """Write the sessions that have moved since the last call to the store. Bounded by the store's time-out."""
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
        self._bindings.pop(key, None)
        self._unwritten.pop(key, None)
        if len(self._dropped) < UNWRITTEN_MAX:
            self._dropped.add(key)

    def clear(self) -> None:
        """Forget all sessions that are known here."""
        for key in list(self._bindings):
            self.drop(key)

    def stop(self) -> None:
        """Read nothing more."""
        self._reads.stop()

    def _prepare(self, keys: Sequence[bytes]) -> Callable[[], list[str | None]]:
        store = self._store
        assert store is not None
        return lambda: store.sessions(keys)

    def _received(self, key: bytes, worker: str | None) -> None:
        now, binding = self._clock(), self._bindings.get(key)
        if binding is None:
            if worker is None and self._forget_evicted:
                return
            self._put(key, _Binding(worker, now, now if worker is not None else float("-inf"), now))
        elif now - binding.seen_at > REREAD_S and key not in self._unwritten:
            # Not moved here since it was asked for. A store that knows nothing may have lost it.
            self._bindings[key] = binding._replace(worker=worker or binding.worker, seen_at=now)

    def _put(self, key: bytes, binding: _Binding) -> None:
        self._bindings[key] = binding
        self._bindings.move_to_end(key)
        too_old = self._clock() - self._ttl_s
        while (oldest := next(iter(self._bindings.values()))).used_at < too_old and oldest.seen_at < too_old:
            self._bindings.popitem(last=False)  # In the store its time is over, too.
        while len(self._bindings) > SESSIONS_MAX:
            evicted, _ = self._bindings.popitem(last=False)
            if self._forget_evicted:
                self.drop(evicted)
