"""Shares drains with all replicas of the router, through the coordination store."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable

from ghostcacher_connector.core.coordination.base import CoordinationStore, DrainOrder
from ghostcacher_connector.core.errors import IndexUnavailable
from ghostcacher_router.ports import Offload

MARK = "\u00a7"
"""Begins the mark of a router, and no drain, since the names of workers that get requests are ASCII."""
MARK_TTL_S = 3600.0
"""How long a mark lasts without being renewed. This is longer than a store is usually away: a router takes a store that
lacks its mark for one that has lost everything. Marks of routers that are gone end by themselves."""
LATER_S = 1e-3
"""An order that replaces another is later than that by as much at least, whatever the store's clock says."""


class Drains:
    """Which workers are to get no new requests, by `Worker.drain_id`.

    A drain that is asked for here holds here at once, and becomes an order when the store is met: of two orders for a
    worker, to drain it or no longer to, the later one counts. Each router keeps the latest order that it has seen of
    each worker, and writes it again where the store has none, or an older one. So an order that is missing was lost, or
    taken away by a stranger, and never taken back. Without a store a drain holds for this router alone.

    Each router leaves a mark of its own among the orders. If the mark is gone, the store has lost everything, which
    others need to know of.
    """

    def __init__(
        self,
        store: CoordinationStore | None,
        *,
        ttl_s: float,
        offload: Offload,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """ttl_s: after which an order ends by itself. offload: calls the store. clock: in seconds."""
        self._store = store
        self._ttl_s = ttl_s
        self._offload = offload
        self._clock = clock
        self._mark = MARK + secrets.token_hex(8)
        self._marked_at: float | None = None
        self._forgot_at = float("-inf")
        self._wanted: dict[str, bool] = {}
        self._orders: dict[str, DrainOrder] = {}
        self._followed: set[str] = set()
        self._exchange = asyncio.Lock()

    def __repr__(self) -> str:
        drained = sorted(name for name, order in self._orders.items() if order.draining)
        return f"Drains(drained={drained}, wanted={self._wanted})"

    def want(self, drain_id: str, draining: bool) -> None:
        """Drain a worker, or take it back."""
        self._wanted[drain_id] = draining

    def hold(self, drain_id: str) -> bool:
        """Say whether a worker is to be drained."""
        order = self._orders.get(drain_id)
        return self._wanted.get(drain_id, order is not None and order.draining)

    def follow(self, drain_ids: Iterable[str]) -> None:
        """Ask for the orders of these workers from now on, and forget those of all others."""
        self._followed = set(drain_ids)
        self._wanted = {name: draining for name, draining in self._wanted.items() if name in self._followed}
        self._orders = {name: order for name, order in self._orders.items() if name in self._followed}

    async def exchange(self, also: Iterable[str] = ()) -> bool:
        """Write to the store what it lacks, and read the rest. Return whether every replica can know all of it now.

        also: workers that are about to be followed.
        """
        if self._store is None:
            return False
        async with self._exchange:
            try:
                await self._meet(self._store, {*self._followed, *self._wanted, *also})
            except IndexUnavailable:
                return False
        return not self._wanted

    async def forgot(self, within_s: float) -> bool:
        """Say whether the store was seen to have lost everything, now or in the `within_s` before."""
        await self.exchange()
        return self._clock() - self._forgot_at < within_s

    async def _meet(self, store: CoordinationStore, names: Iterable[str]) -> None:
        asked = [*sorted(names), self._mark]
        store_now, found = await self._offload(lambda: store.drains(asked))
        now, wanted = self._clock(), dict(self._wanted)
        missing = self._merge(asked[:-1], found[:-1], store_now)
        orders = {name: self._order(name, draining, store_now) for name, draining in wanted.items()}
        if found[-1] is None and self._marked_at is not None:
            self._forgot_at = now
        writes = [*({order.worker: order for order in missing} | orders).values()]
        marks = found[-1] is None or self._marked_at is None or now - self._marked_at > MARK_TTL_S / 2
        if marks:
            # The mark comes last: until it is there, all of this is tried again.
            writes.append(DrainOrder(self._mark, True, store_now, store_now + MARK_TTL_S))
        if writes:
            await self._offload(lambda: store.put_drains(writes))
        self._marked_at = now if marks else self._marked_at
        self._orders |= orders
        self._wanted = {name: one for name, one in self._wanted.items() if wanted.get(name) is not one}

    def _merge(self, names: Iterable[str], found: Iterable[DrainOrder | None], store_now: float) -> list[DrainOrder]:
        """Take over orders that are later than those known; return those known that the store lacks."""
        missing = []
        for name, stored in zip(names, found, strict=True):
            known = self._orders.get(name)
            if known is not None and known.until <= store_now:
                del self._orders[name]
                known = None
            if stored is not None and (known is None or stored.at > known.at):
                self._orders[name] = stored
            elif known is not None and (stored is None or stored.at < known.at):
                missing.append(known)
        return missing

    def _order(self, name: str, draining: bool, store_now: float) -> DrainOrder:
        known = self._orders.get(name)
        at = store_now if known is None else max(store_now, known.at + LATER_S)
        return DrainOrder(name, draining, at, at + self._ttl_s)
