"""Puts the parts of routing together for one router."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ghostcacher_connector.core.coordination.base import CoordinationStore, HeartbeatReply
from ghostcacher_connector.core.index.base import BlockIndex
from ghostcacher_router.ghostlock.single_flight import SingleFlight
from ghostcacher_router.placement.context import Dependencies, RoutingState
from ghostcacher_router.placement.picker import Options, Picker
from ghostcacher_router.ports import Offload
from ghostcacher_router.signals.prefix_locations import PrefixLocations
from ghostcacher_router.signals.queue_estimate import QueueEstimator
from ghostcacher_router.signals.sent_history import SentHistory
from ghostcacher_router.signals.sessions import SessionAffinity
from ghostcacher_router.sync import READ_BLOCK_S, RouterSync, ServerOffset

T = TypeVar("T")

THREADS = 4
"""Wanted for `Dependencies.offload`: lookups, locks, sessions, and whatever Redis delays. `read_offload` wants one."""


class Routing:
    """One router's routing. picker: the Dispatcher. feed: None without a store.

    index, store: None for a fleet of plain engines alone. router: this router's name, unique in the fleet.
    greeted: takes each hello of the store. replicas: routers alive at the last one, None before.
    """

    def __init__(
        self,
        dependencies: Dependencies,
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
        clock, offload, metrics, offset = dependencies.clock, dependencies.offload, dependencies.metrics, ServerOffset()
        self.replicas: int | None = None
        locks = SingleFlight(
            store,
            offload,
            clock,
            router=router,
            server_offset=offset,
            count=metrics.ghost_locks.inc,
            alone=lambda: self.replicas == 1,
        )
        self.state = state = RoutingState(
            QueueEstimator(),
            SentHistory(),
            PrefixLocations(index, dependencies.fleet, offload, clock, observe=metrics.lookup_s.observe),
            SessionAffinity(store, offload, clock, ttl_s=session_ttl_s),
            locks,
        )
        self.picker = picker = Picker(dependencies, state, options or Options())
        self.sync = (
            None
            if store is None
            else RouterSync(
                store,
                picker,
                dependencies,
                state,
                offset=offset,
                router=router,
                greeted=self._greeted,
                read_block_s=read_block_s,
            )
        )

    def __repr__(self) -> str:
        return f"Routing({self.picker!r}, {self.sync!r})"

    def _greeted(self, hello: HeartbeatReply) -> None:
        self.replicas = hello.routers
        self._tell_greeted(hello)

    def start(self) -> None:
        """Begin to keep in step with the other routers; on the loop."""
        if self.sync is not None:
            self.sync.start()

    async def stop(self) -> None:
        """Leave the other routers. Bounded by the store's time-out."""
        self.state.locations.stop()
        self.state.sessions.stop()
        if self.sync is not None:
            await self.sync.stop()


def offload_to(threads: ThreadPoolExecutor) -> Offload:
    """Return what runs blocking calls in a pool of threads. Its owner shuts it down after `Routing.stop`."""

    def offload(call: Callable[[], T], /) -> Awaitable[T]:
        return asyncio.get_running_loop().run_in_executor(threads, call)

    return offload
