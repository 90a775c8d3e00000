"""Assembles the parts that route requests, for one router."""

from __future__ import annotations

from collections.abc import Callable

from ghostcacher_connector.core.coordination.base import CoordinationStore, HeartbeatReply
from ghostcacher_connector.core.index.base import BlockIndex
from ghostcacher_router.feed.subscription import Subscription
from ghostcacher_router.flow.flow_control import FlowControl
from ghostcacher_router.flow.make import make_flow_control
from ghostcacher_router.flow.settings import FlowSettings
from ghostcacher_router.ghostlock.sibling_locks import SiblingLocks
from ghostcacher_router.ghostlock.single_flight import SingleFlight
from ghostcacher_router.placement.context import Dependencies, RoutingState
from ghostcacher_router.placement.in_flight import InFlightTracker
from ghostcacher_router.placement.picker import Options, Picker
from ghostcacher_router.signals.adapter_costs import AdapterCosts
from ghostcacher_router.signals.eviction_regret import EvictionRegret
from ghostcacher_router.signals.hot_prefixes import HotPrefixes
from ghostcacher_router.signals.prefix_locations import PrefixLocations
from ghostcacher_router.signals.queue_estimate import QueueEstimator
from ghostcacher_router.signals.sent_caches import SentCaches
from ghostcacher_router.signals.sent_history import SentHistory
from ghostcacher_router.signals.sessions import SessionAffinity
from ghostcacher_router.signals.stored_objects import TTL_S as STORED_TTL_S
from ghostcacher_router.signals.stored_objects import StoredObjects
from ghostcacher_router.sync import HEARTBEAT_S, HEARTBEAT_TTL_S, READ_BLOCK_S, RouterSync, StoreClockOffset
from ghostcacher_router.types import Dispatcher

THREADS = 4
"""For `Dependencies.offload`: lookups, locks, sessions, and whatever Redis delays. `read_offload` needs one more."""


class Routing:
    """The routing of one router: its state, who reads and writes it, and what keeps it in step with other routers."""

    def __init__(
        self,
        dependencies: Dependencies,
        *,
        index: BlockIndex | None,
        store: CoordinationStore | None,
        router: str,
        options: Options | None = None,
        session_ttl_s: float = 3600.0,
        stored_ttl_s: float = STORED_TTL_S,
        replicas: int = 1,
        on_heartbeat: Callable[[HeartbeatReply], None] = lambda _: None,
        read_block_s: float = READ_BLOCK_S,
    ) -> None:
        """Assemble it; `start` begins.

        index, store: None for a fleet of plain engines, or without Redis.
        router: this router's name, unique in the fleet.
        session_ttl_s: how long a session is kept at its worker after its last request.
        stored_ttl_s: how long the worker of a stored answer, file or batch is remembered after its last use.
        replicas: routers before the same workers, this one included, until a heartbeat tells.
        on_heartbeat, read_block_s: see RouterSync.
        """
        self._replicas_given = replicas
        self.replicas: int | None = None
        """Routers alive at the last heartbeat; None before the first one."""
        self._alone = False
        """Whether those were this one, and other processes of it."""
        self._forward_heartbeat = on_heartbeat
        clock_offset = StoreClockOffset()
        self.state = state = self._make_state(
            dependencies, index, store, router, clock_offset, session_ttl_s=session_ttl_s, stored_ttl_s=stored_ttl_s
        )
        self.tracker = tracker = InFlightTracker(dependencies, state)
        self.picker = Picker(dependencies, state, tracker, options or Options())
        """Chooses workers."""
        self.dispatcher: Dispatcher = self.picker
        """The Dispatcher of types.py."""
        self.flow: FlowControl | None = None
        """Decides whose turn it is; None without flow control. It wants to be told when the fleet has `changed`."""
        self._dependencies = dependencies
        self.sync: RouterSync | None = None
        """None without a store."""
        if store is not None:
            self.sync = RouterSync(
                store,
                tracker,
                dependencies,
                state,
                clock_offset=clock_offset,
                router=router,
                on_heartbeat=self._on_heartbeat,
                read_block_s=read_block_s,
            )
            tracker.on_named = self.sync.named

    def __repr__(self) -> str:
        return f"Routing({self.picker!r}, {self.sync!r})"

    @property
    def refused(self) -> str | None:
        """Why the store refuses some of what keeps this router in step, for people; None when it does not."""
        return None if self.sync is None else self.sync.refused

    def start(self) -> None:
        """Begin to keep in step with the other routers; on the event loop."""
        if self.sync is not None:
            self.sync.start()

    def join(self, feed: Subscription | None, siblings: SiblingLocks | None) -> None:
        """Be one process of several. To be called before the start.

        feed: tells what it has read of the store; None: that is read here. siblings: the ghost locks of all processes.
        """
        if self.sync is not None:
            self.sync.feed, self.state.locks.siblings = feed, siblings

    async def stop(self) -> None:
        """Leave the other routers. Bounded by the store's time-out."""
        self.state.locations.stop()
        self.state.sessions.stop()
        self.state.stored.stop()
        if self.sync is not None:
            await self.sync.stop()
        if self.state.locks.siblings is not None:
            self.state.locks.siblings.here_until(0.0)

    def control_flow(self, settings: FlowSettings) -> None:
        """Have requests wait for their turn from now on, as far as settings want that. To be called once at most."""
        have, queues = self._dependencies, self.state.queues
        flow = make_flow_control(
            settings,
            self.picker,
            have.fleet,
            queues,
            have.metrics,
            routers=lambda: self._routers,
            clock=have.clock,
        )
        if flow is not None:
            self.flow = self.dispatcher = flow
            self.tracker.on_freed = flow.freed

    @property
    def _routers(self) -> int:
        return self.replicas or self._replicas_given

    def _make_state(
        self,
        dependencies: Dependencies,
        index: BlockIndex | None,
        store: CoordinationStore | None,
        router: str,
        clock_offset: StoreClockOffset,
        *,
        session_ttl_s: float,
        stored_ttl_s: float,
    ) -> RoutingState:
        clock, offload, metrics = dependencies.clock, dependencies.offload, dependencies.metrics
        locks = SingleFlight(
            store,
            offload,
            clock,
            router=router,
            clock_offset=clock_offset,
            count=metrics.ghost_locks.inc,
            alone=lambda: self._alone,
        )
        return RoutingState(
            QueueEstimator(),
            SentHistory(),
            PrefixLocations(index, dependencies.fleet, offload, clock, observe=metrics.lookup_s.observe),
            SessionAffinity(store, offload, clock, ttl_s=session_ttl_s),
            locks,
            StoredObjects(store, offload, clock, ttl_s=stored_ttl_s),
            SentCaches(),
            EvictionRegret(),
            HotPrefixes(clock),
            AdapterCosts(),
            several=lambda: self._routers > 1,
        )

    def _on_heartbeat(self, reply: HeartbeatReply) -> None:
        self.replicas, siblings = reply.routers, self.state.locks.siblings
        if siblings is None:
            self._alone = reply.routers == 1
        else:
            # A moment less than in the store: one that is counted here only would hide a router elsewhere.
            siblings.here_until(self._dependencies.clock() + HEARTBEAT_TTL_S - HEARTBEAT_S)
            self._alone = reply.routers <= siblings.routers()
        self._forward_heartbeat(reply)
