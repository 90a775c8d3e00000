"""Shares drains with all replicas of the router, through the coordination store."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable

from ghostcacher_connector.core.coordination.base import CoordinationStore
from ghostcacher_connector.core.errors import IndexUnavailable

MARK = "\u00a7"
"""Begins the mark of a router, and no drain, since the names of workers that get requests are ASCII."""
MARK_TTL_S = 3600.0
"""How long a mark lasts without being renewed. This is longer than a store is usually away: a router takes a store that
lacks its mark for one that has lost everything. Marks of routers that are gone end by themselves."""


class Drains:
    """Which workers are to get no new requests, by `Worker.drain_id`.

    A drain that is asked for here holds here at once. It is written to the store until the store has taken it; until
    then what the store says of that worker is older, and does not count. Without a store it holds for this router
    alone.

    A store may lose everything. So each router leaves a mark of its own among the drains. If the mark is gone, so are
    the drains: those that were seen last hold on, and are written again. If the mark is there, a drain that is missing
    was taken back.
    """

    def __init__(
        self,
        store: CoordinationStore | None,
        *,
        ttl_s: float,
        in_thread: Callable[..., Awaitable[object]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._ttl_s = ttl_s
        self._in_thread = in_thread
        self._clock = clock
        self._mark = MARK + secrets.token_hex(8)
        self._marked_at: float | None = None
        self._forgot_at = float("-inf")
        self._unwritten: dict[str, bool] = {}
        self._seen: frozenset[str] = frozenset()
        self._exchange = asyncio.Lock()

    def __repr__(self) -> str:
        return f"Drains(seen={sorted(self._seen)}, unwritten={self._unwritten})"

    def want(self, drain_id: str, draining: bool) -> None:
        """Drain a worker, or take it back."""
        if self._store is not None:
            self._unwritten[drain_id] = draining
        else:
            self._seen = self._seen | {drain_id} if draining else self._seen - {drain_id}

    def hold(self, drain_id: str) -> bool:
        """Say whether a worker is to be drained."""
        return self._unwritten.get(drain_id, drain_id in self._seen)

    def keep_only(self, drain_ids: Iterable[str]) -> None:
        """Forget drains of workers that are gone for good."""
        known = set(drain_ids)
        self._unwritten = {drain_id: draining for drain_id, draining in self._unwritten.items() if drain_id in known}
        if self._store is None:
            self._seen &= known

    async def exchange(self) -> bool:
        """Write to the store what it lacks, and read the rest. Return whether every replica can know all of it now."""
        if self._store is None:
            return False
        async with self._exchange:
            try:
                await self._write(self._store)
                self._seen = await self._read(self._store)
            except IndexUnavailable:
                return False
        return not self._unwritten

    async def forgot(self, within_s: float) -> bool:
        """Say whether the store was seen to have lost everything, now or in the `within_s` before."""
        await self.exchange()
        return self._clock() - self._forgot_at < within_s

    async def _read(self, store: CoordinationStore) -> frozenset[str]:
        """Return the drains in the store, and those that it had before it lost everything."""
        seen, now = await self._in_thread(store.drains), self._clock()
        assert isinstance(seen, set)
        lost: frozenset[str] = frozenset()
        if self._marked_at is not None and self._mark not in seen:
            lost, self._forgot_at = self._seen - seen, now
        for drain_id in lost:
            await self._in_thread(store.set_drain, drain_id, True, ttl_s=self._ttl_s)
        # The mark comes last: until it is there, all of this is tried again.
        if self._mark not in seen or self._marked_at is None or now - self._marked_at > MARK_TTL_S / 2:
            await self._in_thread(store.set_drain, self._mark, True, ttl_s=MARK_TTL_S)
            self._marked_at = now
        return lost | {drain_id for drain_id in seen if not drain_id.startswith(MARK)}

    async def _write(self, store: CoordinationStore) -> None:
        for drain_id, draining in list(self._unwritten.items()):
            await self._in_thread(store.set_drain, drain_id, draining, ttl_s=self._ttl_s)
            self._seen = self._seen | {drain_id} if draining else self._seen - {drain_id}
            if self._unwritten.get(drain_id) is draining:
                del self._unwritten[drain_id]
