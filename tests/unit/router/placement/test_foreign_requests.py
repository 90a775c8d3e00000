"""What a router knows of other routers' requests between two load reports."""

from __future__ import annotations

import asyncio

import pytest

from ghostcacher_connector.core.coordination.base import PromptChain, WorkerEvents
from ghostcacher_router.placement.foreign_requests import FOREIGN_MAX, FOREIGN_S, ForeignRequests
from ghostcacher_router.signals.worker_queue import QueueEstimate
from ghostcacher_simulator.text import text_of
from ghostcacher_simulator.virtual_time import virtual
from tests.support.routing_sim import RATE, Sim, make_sim

TOKENS = 4000


def queue_of(sim: Sim, router: int, worker: str) -> QueueEstimate:
    return sim.routers[router].routing.state.queues.estimate(sim.engines[worker].worker, sim.now())


def recent(sim: Sim, router: int, worker: str) -> float:
    return sim.routers[router].routing.state.queues.recent(worker, sim.now())


@virtual
async def test_what_another_router_has_placed_is_seen_before_any_report() -> None:
    """Two routers place one prompt each at once on idle engines, a moment apart: at different engines."""
    sim = await make_sim(2, routers=2)
    sim._reporting.cancel()
    first = sim.routers[0].send(text_of("first", TOKENS))
    await asyncio.sleep(0.05)
    (busy,) = [name for name in sim.engines if queue_of(sim, 1, name).prefilling]
    assert queue_of(sim, 1, busy).queue_ms == pytest.approx(TOKENS / RATE * 1e3, rel=0.15)
    second = await sim.routers[1].send(text_of("second", TOKENS))
    assert (await first).worker == busy != second.worker
    await asyncio.sleep(0.1)
    for router in (0, 1):
        assert [recent(sim, router, name) for name in sim.engines] == [pytest.approx(1.0, abs=0.1)] * 2
        assert [queue_of(sim, router, name).prefilling for name in sim.engines] == [0, 0]
        sim.routers[router].routing.state.queues.check_invariants()


@virtual
async def test_own_requests_are_counted_once() -> None:
    """What a worker tells of this router's own request adds nothing to its queue."""
    sim = await make_sim(1)
    sim._reporting.cancel()
    sent = sim.routers[0].send(text_of("own", TOKENS))
    await asyncio.sleep(0.05)
    assert queue_of(sim, 0, "w0").prefilling == 1
    assert recent(sim, 0, "w0") == pytest.approx(1.0, abs=0.1)
    await sent


@virtual
async def test_foreign_requests_are_bounded_and_do_not_stay() -> None:
    """Prompts that no worker reports as computed are forgotten after a while, and are never too many."""
    sim = await make_sim(1)
    state, worker = sim.routers[0].routing.state, sim.engines["w0"].worker
    foreign, ref = ForeignRequests(sim.routers[0].fleet, state.queues, state.locations), worker.ref
    assert ref is not None
    for number in range(FOREIGN_MAX + 10):
        foreign.received(ref, PromptChain(f"r{number}", 10, (), ()), 0.0, own=False)
    assert len(foreign) == FOREIGN_MAX
    foreign.computed(WorkerEvents(*ref, (), (f"r{FOREIGN_MAX}",)))
    assert len(foreign) == FOREIGN_MAX - 1
    foreign.received(ref._replace(incarnation=b"another"), PromptChain("x", 10, (), ()), 0.0, own=False)
    foreign.received(ref, PromptChain("late", 10, (), ()), FOREIGN_S + 1.0, own=False)
    assert len(foreign) == 1
    state.queues.check_invariants()


@virtual
async def test_what_two_foreign_requests_share_is_computed_once() -> None:
    """The second request on a document that its worker is computing for another one adds its question only."""
    sim = await make_sim(2, routers=2)
    sim._reporting.cancel()
    document = text_of("document", TOKENS)
    placed = [sim.routers[0].send(document + text_of(f"question {number}", 100)) for number in range(2)]
    await asyncio.sleep(0.05)
    queues = sorted(queue_of(sim, 1, name).queue_ms for name in sim.engines)
    assert queues[0] == 0.0
    assert queues[1] < 1.2 * TOKENS / RATE * 1e3
    await asyncio.gather(*placed)
