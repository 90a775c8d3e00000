"""The routing of one router of a simulated fleet, without its front: prompts in, placements out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from random import Random
from typing import TypeVar

from ghostcacher_router.build import Routing
from ghostcacher_router.flow.settings import FlowSettings
from ghostcacher_router.flow.wishes import DEADLINE
from ghostcacher_router.metrics.catalog import RouterMetrics
from ghostcacher_router.placement.context import Dependencies
from ghostcacher_router.placement.picker import Options
from ghostcacher_router.prefix_map import PendingPrompts, PrefixMap
from ghostcacher_router.prompt.boundaries import hash_prompt
from ghostcacher_router.types import Ask, Placement, RequestShape, Turn
from ghostcacher_simulator.load.requests import Request
from ghostcacher_simulator.replay.fleet_view import FleetView
from ghostcacher_simulator.replay.stores import Stores
from ghostcacher_simulator.replay.workers import MODEL, SimulatedWorker

T = TypeVar("T")

ROUND_TRIP_S = 0.0005
READ_S = 0.008
"""From the report of a prompt until a router has read it."""
READ_BLOCK_S = 1.0
"""How long a read waits for something new."""
LEAVE_STEP_S = 0.1
"""Between two looks of a router that ends whether anything is under way."""
DIGEST_SEED = 7


class SimulatedRouter:
    """One router."""

    def __init__(
        self,
        name: str,
        workers: Sequence[SimulatedWorker],
        stores: Stores | None,
        replicas: int = 1,
        flow: FlowSettings | None = None,
    ) -> None:
        """stores: None where all engines are plain. replicas: how many routers there are. flow: of flow control."""
        clock = asyncio.get_running_loop().time
        self.placing = 0
        """Requests that wait for a worker to be chosen."""
        self._news = asyncio.Event() if stores is None else stores.coordination.reader()
        self.fleet = FleetView(workers, clock)
        dependencies = Dependencies(
            self.fleet,
            PrefixMap(name, clock=clock),
            PendingPrompts(clock=clock),
            RouterMetrics(),
            clock,
            # One of its own: routers that draw the same numbers pick the same worker.
            Random(name),  # noqa: S311 - no secret
            self._call,
            self._read,
        )
        self.routing = Routing(
            dependencies,
            index=None if stores is None else stores.index,
            store=None if stores is None else stores.client(),
            router=name,
            options=Options(),
            replicas=replicas,
            read_block_s=0.0,
        )
        if flow is not None:
            self.routing.control_flow(flow)
        if self.routing.flow is not None:
            self.fleet.when_changed = self.routing.flow.changed
        self.routing.start()

    async def place(self, request: Request, exclude: frozenset[str], turn: Turn | None = None) -> Placement:
        """Choose a worker, once the request has its turn. exclude: those that have refused it. Raises NoWorker."""
        text = request.text()
        prompt = hash_prompt(text, (), request.text_sections(), preamble=b"", seed=DIGEST_SEED)
        shape = RequestShape(MODEL, True, prompt, request.session, priority=request.priority, cache_salt=request.tenant)
        deadline = {} if request.deadline_s is None else {DEADLINE: b"%d" % (request.deadline_s * 1e3)}
        ask = Ask(request.request_id, "POST", "/v1/completions", shape, deadline, exclude, turn=turn)
        dispatcher = self.routing.dispatcher
        self.placing += 1
        try:
            return dispatcher.place_now(ask) or await dispatcher.place(ask)
        finally:
            self.placing -= 1

    async def leave(self) -> None:
        """End when no request is under way here any more, as a router does that was told to stop."""
        while self.placing or self.routing.state.queues.in_flight_total:
            await asyncio.sleep(LEAVE_STEP_S)
        await self.routing.stop()

    async def _call(self, call: Callable[[], T], /) -> T:
        await asyncio.sleep(ROUND_TRIP_S)
        return call()

    async def _read(self, call: Callable[[], T], /) -> T:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READ_BLOCK_S):
                await self._news.wait()
        self._news.clear()
        await asyncio.sleep(READ_S)
        return call()
