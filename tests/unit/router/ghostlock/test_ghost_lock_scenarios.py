"""Ghost locks under load and failures: real routers over simulated engines, in virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from ghostcacher_router.ghostlock.followers import WAIT_BUDGET_FACTOR
from ghostcacher_router.ghostlock.single_flight import SETTLE_S, TTL_S, WATCH_S
from ghostcacher_router.types import Outcome
from ghostcacher_simulator.text import text_of
from ghostcacher_simulator.virtual_time import virtual
from tests.support.routing_sim import DECODE_S, RATE, Sim, all_of
from tests.support.shared_document import COMPUTE_S, DOC, DOC_TOKENS, ENDS, MARGIN_S, burst, question


def check_idle(sim: Sim) -> None:
    """Nothing is left of requests that have ended."""
    for router in sim.routers:
        assert router.routing.state.queues.in_flight_total == 0
        assert len(router.routing.state.locks) == 0
        router.routing.state.queues.check_invariants()
        router.routing.state.locks.check_invariants()


@pytest.mark.parametrize(("routers", "processes"), [(1, 1), (2, 1), (3, 1), (2, 2), (4, 4), (4, 2)])
@virtual
async def test_burst_on_a_cold_prefix_computes_it_once(routers: int, processes: int) -> None:
    """32 requests over 4 workers compute a shared document once, and none waits longer than computing would take."""
    sim = Sim(4, routers, processes=processes)
    await sim.settle()
    served = await all_of(await burst(sim, 32))
    assert sim.times_computed(DOC) == 1
    assert max(one.waited_s for one in served) <= COMPUTE_S * WAIT_BUDGET_FACTOR
    assert max(one.ttft_s for one in served) <= COMPUTE_S * WAIT_BUDGET_FACTOR + 0.5
    assert len(Counter(one.worker for one in served)) == 4
    await sim.settle(3)
    check_idle(sim)


@pytest.mark.parametrize(("routers", "processes"), [(2, 1), (4, 1), (4, 2)])
@pytest.mark.parametrize("round_trip_s", [0.0005, 0.018, 0.022, 0.05])
@virtual
async def test_burst_through_several_routers_computes_a_prefix_once_however_slow_redis_is(
    round_trip_s: float, routers: int, processes: int
) -> None:
    """Routers that all want to place it at once wait for the store's word, and for each other, within the budget."""
    sim = Sim(4, routers, round_trip_s=round_trip_s, processes=processes)
    await sim.settle(4)
    served = await all_of(await burst(sim, 64))
    assert sim.times_computed(DOC) == 1
    assert max(one.waited_s for one in served) <= COMPUTE_S * WAIT_BUDGET_FACTOR + 2 * round_trip_s
    await sim.settle(3)
    check_idle(sim)


@virtual
async def test_who_waits_goes_on_when_a_short_answer_is_published() -> None:
    """A request that ended before its worker reports it still holds the lock: the late report ends it."""
    round_trip_s, publish_s = 0.01, 0.03
    assert publish_s > DECODE_S, "else the answer is longer"
    sim = Sim(4, round_trip_s=round_trip_s, publish_s=publish_s)
    await sim.settle()
    served = await all_of(await burst(sim, 64))
    assert sim.times_computed(DOC) == 1
    waited, expected = max(one.waited_s for one in served), COMPUTE_S + publish_s + 2 * round_trip_s
    assert 0 < waited <= expected + MARGIN_S < COMPUTE_S + SETTLE_S


@virtual
async def test_requests_that_come_while_it_is_computed_follow() -> None:
    """Requests that come one by one during the computing find its lock, and then its blocks."""
    sim = Sim(3)
    await sim.settle()
    tasks = []
    for number in range(20):
        tasks.append(sim.routers[0].send(question(number), ends=ENDS))
        await asyncio.sleep(COMPUTE_S / 10)
    await all_of(tasks)
    assert sim.times_computed(DOC) == 1


@pytest.mark.parametrize(("routers", "processes"), [(1, 1), (2, 1), (2, 2)])
@virtual
async def test_engines_that_do_not_share_what_they_compute_get_no_followers(routers: int, processes: int) -> None:
    """Where who comes next would compute it again, requests wait for its end, and then go there or pull it."""
    sim = Sim(3, routers, shares_prefill=False, processes=processes)
    await sim.settle()
    tasks = await burst(sim, 8)
    for number in range(8, 16):
        await asyncio.sleep(COMPUTE_S / 10)
        tasks.append(sim.routers[0].send(question(number), ends=ENDS))
    served = await all_of(tasks)
    assert sim.times_computed(DOC) == 1
    assert max(one.waited_s for one in served) <= COMPUTE_S * WAIT_BUDGET_FACTOR
    await sim.settle(3)
    check_idle(sim)


@pytest.mark.parametrize("shares_prefill", [True, False])
@virtual
async def test_mixed_fleet_computes_once_a_kind(shares_prefill: bool) -> None:
    """When the owner of one kind is full, one of the other computes, and whoever comes then honours that lock, too."""
    sim = Sim(4, namespaces=["x" * 32, *3 * ["y" * 32]], shares_prefill=shares_prefill)
    owner, *others = sim.engines.values()
    for engine in others:
        engine.extra_tokens = 10 * DOC_TOKENS
    await sim.settle()
    first = sim.routers[0].send(question(0), ends=ENDS)
    owner.extra_tokens = DOC_TOKENS
    for engine in others:
        engine.extra_tokens = 0
    await sim.settle(0.2)
    served = await all_of(await burst(sim, 48))
    assert (await first).worker == owner.name
    assert Counter(one.worker for one in served).keys() >= {engine.name for engine in others}
    assert sim.times_computed(DOC) == 2


@virtual
async def test_prefix_of_one_kind_is_cold_for_the_other() -> None:
    """What vLLM has is of no use to SGLang: when those who have it are full, one of the other kind computes it."""
    sim = Sim(4, namespaces=["x" * 32, *3 * ["y" * 32]], shares_prefill=False)
    holder, *others = sim.engines.values()
    for engine in others:
        engine.extra_tokens = 10 * DOC_TOKENS
    await sim.settle()
    assert (await sim.routers[0].send(question(99), ends=ENDS)).worker == holder.name
    holder.extra_tokens = 2 * DOC_TOKENS
    for engine in others:
        engine.extra_tokens = 0
    await sim.settle()
    served = await all_of(await burst(sim, 24))
    assert sim.times_computed(DOC) == 2
    assert holder.name not in {one.worker for one in served}
    assert max(one.waited_s for one in served) <= COMPUTE_S * WAIT_BUDGET_FACTOR


@pytest.mark.parametrize(("routers", "processes"), [(1, 1), (2, 1), (2, 2)])
@virtual
async def test_owner_killed_next_takes_over(routers: int, processes: int) -> None:
    """The owner's worker dies half way: one other computes, everybody is served, nobody waits longer than allowed."""
    sim = Sim(4, routers, processes=processes)
    await sim.settle()
    tasks = await burst(sim, 24)
    await asyncio.sleep(COMPUTE_S / 2)
    busy = max(sim.engines.values(), key=lambda engine: engine.computed_tokens)
    busy.die()
    served = await all_of(tasks)
    assert busy.name not in {one.worker for one in served}
    # Once by the owner that died, once by who took over.
    assert sim.times_computed(DOC) == 2
    assert max(one.ttft_s for one in served) <= 2 * COMPUTE_S * WAIT_BUDGET_FACTOR + 0.5


@pytest.mark.parametrize(("routers", "processes"), [(1, 1), (2, 1), (2, 2), (4, 2)])
@virtual
async def test_owner_stalled_one_follower_takes_over(routers: int, processes: int) -> None:
    """The owner's worker stops computing: a follower whose wait budget ends computes, and the rest follow that one."""
    sim = Sim(4, routers, processes=processes)
    await sim.settle()
    tasks = await burst(sim, 24)
    await asyncio.sleep(0.05)
    owner = max(sim.engines.values(), key=lambda engine: engine.computed_tokens)
    owner.hang()
    waiting = len(tasks)
    await asyncio.sleep(3 * COMPUTE_S)
    served = [task.result() for task in tasks if task.done()]
    assert waiting - len(served) < 6, "only those that had gone to the owner's worker are stuck"
    assert sim.times_computed(DOC) == 2
    assert max(one.waited_s for one in served) <= COMPUTE_S * WAIT_BUDGET_FACTOR + MARGIN_S
    assert sum(router.metrics.ghost_locks.values["taken_over",] for router in sim.routers) == 1


@virtual
async def test_late_owner_gets_no_followers() -> None:
    """Who comes when the owner is overdue does not go to its worker, whose queue seems done. It takes over."""
    sim = Sim(3)
    await sim.settle()
    text = text_of("short", 3000)
    sim.routers[0].send(text)
    await asyncio.sleep(0.1)
    owner = max(sim.engines.values(), key=lambda engine: engine.computed_tokens)
    owner.hang()
    await asyncio.sleep(0.45)
    served = await asyncio.wait_for(sim.routers[0].send(text + b"more" * 100), 5)
    assert served.worker != owner.name
    assert served.waited_s <= 3100 / RATE * WAIT_BUDGET_FACTOR + MARGIN_S


@pytest.mark.parametrize("processes", [1, 2])
@virtual
async def test_owners_router_killed_lock_expires(processes: int) -> None:
    """The router of the owner dies, or the process: its lock runs out, and the other's requests take over."""
    sim = Sim(4, 2, processes=processes)
    await sim.settle()
    long = text_of("long", 80_000)
    first, second = sim.routers
    first.send(long + b"first" * 100)
    await asyncio.sleep(0.1)
    tasks = [second.send(long + f"{number}".encode() * 200) for number in range(4)]
    await asyncio.sleep(0.5)
    await first.kill()
    started = sim.now()
    served = await all_of(tasks)
    assert sim.times_computed(long) == 2
    assert min(one.waited_s for one in served) <= 0.6 + TTL_S + 2 * WATCH_S
    assert sim.now() - started <= TTL_S + 2 * WATCH_S + 8.0 + 0.5


@virtual
async def test_redis_away_nobody_waits_for_what_cannot_be_pulled() -> None:
    """Without Redis a cold prefix is computed at most once a worker, since none can pull, and nobody waits for it."""
    sim = Sim(4)
    await sim.settle()
    sim.store.reachable = sim.index.reachable = False
    router = sim.routers[0]
    assert router.store is not None
    router.store.reachable = False
    await sim.settle(1)  # The lone router notices by its reading: it asks for nothing else.
    served = await all_of(await burst(sim, 100))
    assert max(one.waited_s for one in served) <= MARGIN_S
    assert sim.times_computed(DOC) <= 4
    assert max(one.ttft_s for one in served) <= 2 * COMPUTE_S


@virtual
async def test_follower_at_another_router_asks_the_index_again() -> None:
    """After a wait for another router's lock, what the index said before, that nobody has it, is not believed."""
    sim = Sim(3, 2)
    await sim.settle()
    one, two = sim.routers
    await one.send(question(0), ends=ENDS)
    await sim.settle()
    sim.evict()
    await sim.settle()
    first = one.send(question(0), ends=ENDS)
    await asyncio.sleep(0.01)
    owner = next(engine for engine in sim.engines.values() if one.routing.state.queues.in_flight(engine.name))
    owner.extra_tokens = 50_000
    await asyncio.sleep(COMPUTE_S - 0.3)
    ask = two.ask(question(1), ends=ENDS)
    waiting = asyncio.ensure_future(two.picker.place(ask))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    # Keeps alive what is known: nobody has it.
    await two.picker.explain(ask)
    placed = await waiting
    assert placed.worker != owner.name
    assert placed.forecast is not None
    assert placed.forecast.pulled_tokens >= DOC_TOKENS - 256
    assert placed.lock is None
    await first


@pytest.mark.parametrize("processes", [1, 2])
@virtual
async def test_client_leaves_while_waiting_nothing_is_left(processes: int) -> None:
    """Requests that are given up at any point of their way leave no lock, no reservation and no waiting follower."""
    sim = Sim(4, 2, processes=processes)
    await sim.settle()
    for delay in (0.0, 0.0003, 0.0007, 0.01, 0.3):
        tasks = await burst(sim, 8)
        await asyncio.sleep(delay)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await sim.settle(3)
        check_idle(sim)
    assert len(await all_of(await burst(sim, 8))) == 8


class Waits:
    """A trace that remembers what it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float, str]] = []

    def waited(self, began_at: float, ended_at: float, *, worker: str) -> None:
        self.seen.append((began_at, ended_at, worker))


@virtual
async def test_trace_is_told_of_waits() -> None:
    """From when to when, and whose worker was waited for; who waits for nobody tells nothing."""
    sim = Sim(3, shares_prefill=False)
    await sim.settle()
    router, traces = sim.routers[0], [Waits(), Waits()]
    first, second = (router.ask(question(n), ends=ENDS)._replace(trace=trace) for n, trace in enumerate(traces))
    owner = router.picker.place_now(first)
    assert owner is not None
    owner.sent()
    began_at = sim.now()
    placing = asyncio.ensure_future(router.picker.place(second))
    await asyncio.sleep(COMPUTE_S / 10)
    owner.ended(Outcome.FAILED, None)
    placed = await placing
    placed.ended(Outcome.CANCELLED, None)
    assert traces[0].seen == []
    assert traces[1].seen == [(began_at, pytest.approx(began_at + COMPUTE_S / 10, abs=MARGIN_S), owner.worker)]
