"""Placement under load: real routers over simulated engines, in virtual time."""

from __future__ import annotations

from collections import Counter

from ghostcacher_router.placement.picker import Options
from ghostcacher_router.types import Reason
from ghostcacher_simulator.text import text_of
from ghostcacher_simulator.virtual_time import virtual
from tests.support.routing_sim import RATE, Sim, all_of
from tests.support.shared_document import DOC, ENDS, burst, question


@virtual
async def test_reports_stop_own_history_is_used() -> None:
    """When no load is reported any more, a text goes where it went before, as far as that worker is not full."""
    sim = Sim(4)
    await sim.settle()
    first = await sim.routers[0].send(question(0), ends=ENDS)
    sim._reporting.cancel()
    await sim.settle(3)
    served = await all_of(await burst(sim, 3))
    assert {one.worker for one in served} == {first.worker}
    assert {one.reason for one in served} == {Reason.MEMORY}


@virtual
async def test_distinct_requests_at_once_spread_evenly() -> None:
    """100 simultaneous requests that share nothing see each other's placements: no herd."""
    sim = Sim(5)
    await sim.settle()
    served = await all_of([sim.routers[0].send(text_of(f"text {number}", 2000)) for number in range(100)])
    counts = Counter(one.worker for one in served)
    assert set(counts.values()) == {20}


@virtual
async def test_hot_worker_overloaded_others_pull() -> None:
    """A worker that has what everybody wants gets what it can do and no more: the others pull it from there."""
    sim = Sim(4)
    await sim.settle()
    router = sim.routers[0]
    await router.send(question(0), ends=ENDS)
    await sim.settle()
    served = await all_of([router.send(DOC + text_of(f"long question {n}", 1000), ends=ENDS) for n in range(80)])
    counts = Counter(one.worker for one in served)
    assert sim.times_computed(DOC) == 1
    assert max(counts.values()) <= 26
    assert min(counts.values()) >= 12


@virtual
async def test_slow_worker_gets_its_share() -> None:
    """A worker of a fifth of the speed is neither starved nor flooded."""
    sim = Sim(4, rates=[RATE, RATE, RATE, RATE / 5])
    await sim.settle()
    served = await all_of([sim.routers[0].send(text_of(f"text {number}", 2000)) for number in range(96)])
    counts = Counter(one.worker for one in served)
    assert 3 <= counts["w3"] <= 9


@virtual
async def test_replicas_agree() -> None:
    """Two routers that have read the same store pick the same worker for a text that one of them has placed."""
    sim = Sim(4, 2)
    await sim.settle()
    first = await sim.routers[0].send(question(0), ends=ENDS)
    await sim.settle()
    second = await sim.routers[1].send(question(1), ends=ENDS)
    assert second.worker == first.worker
    assert sim.times_computed(DOC) == 1


@virtual
async def test_new_replica_is_warm() -> None:
    """A router that starts later knows from the store what the fleet has learned."""
    from tests.support.routing_sim import Router

    sim = Sim(4)
    await sim.settle()
    first = await sim.routers[0].send(question(0), ends=ENDS)
    await sim.settle(5)
    late = Router(sim, "late", Options())
    await sim.settle()
    assert late.routing.sync is not None
    assert late.routing.sync.warm
    served = await late.send(question(1), ends=ENDS)
    assert served.worker == first.worker
    assert sim.times_computed(DOC) == 1


@virtual
async def test_plain_engines_follow_until_full() -> None:
    """Engines that report nothing get a shared prefix where it went first, until that worker is full."""
    sim = Sim(4, plain=True)
    served = await all_of(await burst(sim, 4))
    assert len({one.worker for one in served}) == 1
    more = await all_of(await burst(sim, 40))
    counts = Counter(one.worker for one in more)
    assert max(counts.values()) <= 14
    assert max(one.waited_s for one in more) == 0.0


@virtual
async def test_session_stays_and_is_shared() -> None:
    """A session's next request goes to its worker, also through another router, though its text is new."""
    sim = Sim(4, 2)
    await sim.settle()
    first = await sim.routers[0].send(text_of("a", 200), session="s")
    await sim.settle(2)
    others = [await sim.routers[1].send(text_of(f"b{number}", 200), session="s") for number in range(4)]
    assert {one.worker for one in others} == {first.worker}


@virtual
async def test_session_leaves_an_overloaded_worker() -> None:
    """A session does not wait in a long queue only because it was there before."""
    sim = Sim(4)
    await sim.settle()
    router = sim.routers[0]
    first = await router.send(text_of("a", 200), session="s")
    for engine in sim.engines.values():
        engine.extra_tokens = 50_000 if engine.name == first.worker else 0
    await sim.settle()
    second = await router.send(text_of("b", 200), session="s")
    assert second.worker != first.worker
