"""A router's own routing under flow control, before plain or reporting workers, in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

from ghostcacher_connector.core.coordination.base import LoadReport, StampedLoad
from ghostcacher_router.flow.flow_control import FlowControl
from ghostcacher_router.flow.settings import FlowSettings
from ghostcacher_router.types import Ask, NoWorker, Outcome, Placement, Prompt, RequestShape, Turn
from ghostcacher_simulator.machines.workers import fleet_of
from ghostcacher_simulator.replay.routers import SimulatedRouter
from ghostcacher_simulator.replay.stores import Stores
from ghostcacher_simulator.replay.workers import SimulatedWorker

PATH = "/v1/completions"


class Controlled:
    """Requests before so many workers. All settings are those of flow control, without `flow_`."""

    def __init__(self, workers: int = 1, *, stores: Stores | None = None, replicas: int = 1, **given: Any) -> None:
        spec = fleet_of(workers, 1000, 10_000.0).worker
        self.workers = [SimulatedWorker(f"w{number}", spec, stores) for number in range(workers)]
        self.router = SimulatedRouter("r", self.workers, stores, replicas)
        defaults = {"queue_max": 100, "worker_requests_max": 1}
        chosen = {f"flow_{name}": value for name, value in (defaults | given).items()}
        self.router.routing.control_flow(FlowSettings(**chosen))
        flow = self.router.routing.flow
        assert flow is not None
        self.flow: FlowControl = flow
        self.order: list[str] = []
        """The ids of requests in the order in which they were placed."""
        self.running: dict[str, Placement] = {}
        self.tasks: dict[str, asyncio.Task[Placement]] = {}
        self._clock = asyncio.get_running_loop().time

    def ask(self, name: str, *headers: tuple[bytes, bytes], tokens: int = 4, **more: Any) -> Ask:
        """Return a request of this id. more: fields of its shape, or of the Ask."""
        shape = RequestShape("m", True, Prompt((64,), (b"d" * 16,), (), name.encode(), tokens), None)
        of_shape = {key: more.pop(key) for key in ("priority", "cache_salt", "prompt", "needs_id") if key in more}
        turn = Turn(self._clock(), more.pop("size", 10))
        given = {"method": "POST", "path": PATH, "headers": dict(headers), "turn": turn} | more
        return Ask(name, shape=shape._replace(**of_shape), **given)

    async def place(self, ask: Ask) -> Placement:
        """Have a request placed, as the proxy does."""
        placement = self.flow.place_now(ask) or await self.flow.place(ask)
        self.order.append(ask.request_id)
        self.running[ask.request_id] = placement
        placement.sent()
        return placement

    async def send(self, ask: Ask) -> asyncio.Task[Placement]:
        """Begin to place a request; return when it is placed or waits."""
        task = self.tasks[ask.request_id] = asyncio.create_task(self.place(ask))
        await settled()
        return task

    async def end(self, name: str) -> None:
        """Let a worker answer a request as a whole."""
        self.running.pop(name).ended(Outcome.DONE, 200)
        await settled()

    async def finish(self) -> None:
        """Answer whatever is placed until nobody waits; then assert that nothing is held."""
        while self.running:
            await self.end(next(iter(self.running)))
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        self.check_idle()

    def check_idle(self) -> None:
        assert len(self.flow.queue) == 0, self.flow
        assert not self.flow._placing, self.flow._placing
        assert self.router.routing.state.queues.in_flight_total == 0

    def refusals(self) -> dict[str, float]:
        return {
            key: value
            for key, value in self.router.routing._dependencies.metrics.flow.refusals.by("reason").items()
            if value
        }


def report(worker: SimulatedWorker, now: float, **given: int) -> None:
    """Let a worker have reported its load just now."""
    plain = {"running": 0, "waiting": 0, "waiting_tokens": 0, "kv_blocks_used": 0}
    load = LoadReport(
        **(plain | given),
        kv_blocks_total=1000,
        block_tokens=16,
        block_bytes=1 << 14,
        prefill_tokens_per_s=10_000.0,
        pull_bytes_per_s=1e9,
        pull_fixed_s=0.004,
    )
    worker.worker.load, worker.worker.load_measured_at = StampedLoad(now, load), now


def header(name: bytes, value: object) -> tuple[bytes, bytes]:
    return name, str(value).encode()


async def settled() -> None:
    """Let everybody go on who can; no time passes."""
    for _ in range(12):
        await asyncio.sleep(0)


async def refused(task: asyncio.Task[Placement]) -> NoWorker:
    """Return the error with which a request ended."""
    try:
        await task
    except NoWorker as exc:
        return exc
    raise AssertionError("it was placed")
