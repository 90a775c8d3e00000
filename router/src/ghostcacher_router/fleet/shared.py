"""Drains, as all replicas of the router see them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from ghostcacher_connector.errors import IndexUnavailable
from ghostcacher_connector.index.routing import RoutingStore


class Drains:
    """Which workers are to get no new requests, by `Worker.drain_id`.

    What is wanted here holds here at once. It is told to the store until the store has taken it; until then what the
    store says of that worker is older, and does not count. Without a store it holds for this router alone.
    """

    def __init__(
        self, store: RoutingStore | None, *, ttl_s: float, in_thread: Callable[..., Awaitable[object]]
    ) -> None:
        self._store = store
        self._ttl_s = ttl_s
        self._in_thread = in_thread
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
                seen = await self._in_thread(self._store.drains)
            except IndexUnavailable:
                return False
        assert isinstance(seen, set)
        self._seen = frozenset(seen)
        return not self._untold

    async def _tell(self, store: RoutingStore) -> None:
        for drain_id, draining in list(self._untold.items()):
            await self._in_thread(store.set_drain, drain_id, draining, ttl_s=self._ttl_s)
            self._seen = self._seen | {drain_id} if draining else self._seen - {drain_id}
            if self._untold.get(drain_id) is draining:
                del self._untold[drain_id]
