"""Drains, as all replicas of the router see them."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable

from ghostcacher_connector.core.coordination.base import CoordinationStore
from ghostcacher_connector.core.errors import IndexUnavailable

MARK = "\u00a7"
"""Begins the mark of a router, and no drain: names of workers that get requests are ASCII."""
MARK_TTL_S = 3600.0
"""Longer than a store is usually away: a router takes one without its mark for empty. Those of dead routers run out."""


class Drains:
    """Which workers are to get no new requests, by `Worker.drain_id`.

    What is wanted here holds here at once. It is told to the store until the store has taken it; until then what the
    store says of that worker is older, and does not count. Without a store it holds for this router alone.

    A store may lose everything. Each router leaves a mark of its own among the drains: if that is gone, so are the
    others, and what was seen last holds on and is told again. If it is there, a drain that is not was taken back.
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
        self._untold: dict[str, bool] = {}
        self._seen: frozenset[str] = frozenset()
        self._exchange = asyncio.Lock()

    def __repr__(self) -> str:
        return f"Drains(seen={sorted(self._seen)}, untold={self._untold})"

    def want(self, drain_id: str, draining: bool) -> None:
        """Drain a worker, or take it back."""
        if self._store is not None:
            self._untold[drain_id] = draining
        else:
            self._seen = self._seen | {drain_id} if draining else self._seen - {drain_id}

    def hold(self, drain_id: str) -> bool:
        """Say whether a worker is to be drained."""
        return self._untold.get(drain_id, drain_id in self._seen)

    def keep_only(self, drain_ids: Iterable[str]) -> None:
        """Forget what was wanted of workers that are gone for good."""
        known = set(drain_ids)
        self._untold = {drain_id: draining for drain_id, draining in self._untold.items() if drain_id in known}
        if self._store is None:
            self._seen &= known

    async def exchange(self) -> bool:
        """Tell the store what it does not know, and ask it for the rest. Return whether every replica knows all now."""
        if self._store is None:
            return False
        async with self._exchange:
            try:
                await self._tell(self._store)
                self._seen = await self._look(self._store)
            except IndexUnavailable:
                return False
        return not self._untold

    async def forgot(self, within_s: float) -> bool:
        """Say whether the store has lost everything, as far as it was noticed, now or `within_s` before."""
        await self.exchange()
        return self._clock() - self._forgot_at < within_s

    async def _look(self, store: CoordinationStore) -> frozenset[str]:
        """Return what the store says, and what it said before it forgot."""
        seen, now = await self._in_thread(store.drains), self._clock()
        assert isinstance(seen, set)
        lost: frozenset[str] = frozenset()
        if self._marked_at is not None and self._mark not in seen:
            lost, self._forgot_at = self._seen - seen, now
        for drain_id in lost:
            await self._in_thread(store.set_drain, drain_id, True, ttl_s=self._ttl_s)
        # Last: until the mark is there, all of it is tried again.
        if self._mark not in seen or self._marked_at is None or now - self._marked_at > MARK_TTL_S / 2:
            await self._in_thread(store.set_drain, self._mark, True, ttl_s=MARK_TTL_S)
            self._marked_at = now
        return lost | {drain_id for drain_id in seen if not drain_id.startswith(MARK)}

    async def _tell(self, store: CoordinationStore) -> None:
        for drain_id, draining in list(self._untold.items()):
            await self._in_thread(store.set_drain, drain_id, draining, ttl_s=self._ttl_s)
            self._seen = self._seen | {drain_id} if draining else self._seen - {drain_id}
            if self._untold.get(drain_id) is draining:
                del self._untold[drain_id]
