"""Puts the parts of routing together for one router."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ghostcacher_connector.core.coordination.base import CoordinationStore, HeartbeatReply
from ghostcacher_connector.core.index.base import BlockIndex
from ghostcacher_router.ghostlock.locks import Locks
from ghostcacher_router.placement.context import Around, Books
from ghostcacher_router.placement.picker import Options, Picker
from ghostcacher_router.ports import Offload
from ghostcacher_router.signals.prefix_locations import Residency
from ghostcacher_router.signals.queue_estimate import Ledger
from ghostcacher_router.signals.sent_history import Memory
from ghostcacher_router.signals.sessions import Affinity
from ghostcacher_router.sync import READ_BLOCK_S, Feed, ServerOffset

T = TypeVar("T")

THREADS = 4
"""Wanted for `Around.offload`: lookups, locks, sessions, and whatever Redis delays. `read_offload` wants one."""


class Routing:
    """One router's routing. picker: the Dispatcher. feed: None without a store.

    index, store: None for a fleet of plain engines alone. router: this router's name, unique in the fleet.
    greeted: takes each hello of the store. replicas: routers alive at the last one, None before.
    """

    def __init__(
        self,
        around: Around,
        *,
        index: BlockIndex | None,
        store: CoordinationStore | None,
        router: str,
        options: Options | None = None,
        session_ttl_s: float = 3600.0,
        greeted: Callable[[HeartbeatReply], None] = lambda _: None,
        read_block_s: float = READ_BLOCK_S,
    ) -> None:
        self._tell_greeted = greeted
        clock, offload, metrics, offset = around.clock, around.offload, around.metrics, ServerOffset()
        self.replicas: int | None = None
        locks = Locks(
            store,
            offload,
            clock,
            router=router,
            server_offset=offset,
            count=metrics.ghost_locks.inc,
            alone=lambda: self.replicas == 1,
        )
        self.books = books = Books(
            Ledger(),
            Memory(),
            Residency(index, around.fleet, offload, clock, observe=metrics.lookup_s.observe),
            Affinity(store, offload, clock, ttl_s=session_ttl_s),
            locks,
        )
        self.picker = picker = Picker(around, books, options or Options())
        self.feed = (
            None
            if store is None
            else Feed(
                store,
                picker,
                around,
                books,
                offset=offset,
                router=router,
                greeted=self._greeted,
                read_block_s=read_block_s,
            )
        )

    def __repr__(self) -> str:
        return f"Routing({self.picker!r}, {self.feed!r})"

    def _greeted(self, hello: HeartbeatReply) -> None:
        self.replicas = hello.routers
        self._tell_greeted(hello)

    def start(self) -> None:
        """Begin to keep in step with the other routers; on the loop."""
        if self.feed is not None:
            self.feed.start()

    async def stop(self) -> None:
        """Leave the other routers. Bounded by the store's time-out."""
        self.books.residency.stop()
        self.books.sessions.stop()
        if self.feed is not None:
            await self.feed.stop()


def offload_to(threads: ThreadPoolExecutor) -> Offload:
    """Return what runs blocking calls in a pool of threads. Its owner shuts it down after `Routing.stop`."""

    def offload(call: Callable[[], T], /) -> Awaitable[T]:
        return asyncio.get_running_loop().run_in_executor(threads, call)

    return offload
