"""Placement under load: real routers over simulated engines, in virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from msgspec.structs import replace

from ghostcacher_router.placement.picker import Options
from ghostcacher_router.signals.prefix_locations import REFRESH_S
from ghostcacher_router.types import Reason
from ghostcacher_simulator.text import BLOCK_TOKENS, text_of
from ghostcacher_simulator.virtual_time import virtual
from tests.support.routing_sim import RATE, Sim, all_of, make_sim
from tests.support.shared_document import DOC, DOC_TOKENS, ENDS, MARGIN_S, QUESTION_TOKENS, burst, question


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
    """Engines that report nothing get a shared prefix where it went first, until computing it elsewhere is sooner."""
    sim = Sim(4, plain=True)
    served = await all_of(await burst(sim, 4))
    assert len({one.worker for one in served}) == 1
    more = await all_of(await burst(sim, 40))
    counts = Counter(one.worker for one in more)
    assert counts.most_common(1)[0][0] == served[0].worker
    assert len(counts) == 4
    assert max(one.ttft_s for one in more) <= 1.25 * DOC_TOKENS / RATE
    assert max(one.waited_s for one in more) == 0.0


@virtual
async def test_burst_at_plain_engines_is_served_as_soon_as_if_it_were_spread() -> None:
    """Engines that cannot pull, and have nothing else to do, compute a prefix again before anybody waits longer."""
    sim, count = Sim(4, plain=True), 64
    served = await all_of(await burst(sim, count))
    spread_s = (DOC_TOKENS + QUESTION_TOKENS * count / 4) / RATE
    assert max(one.ttft_s for one in served) <= spread_s + MARGIN_S


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


@pytest.mark.parametrize("round_trip_s", [0.0005, 0.008, 0.05])
@virtual
async def test_short_answers_are_found_by_the_next_turn_however_slow_redis_is(round_trip_s: float) -> None:
    """Turns that are answered before their worker reports them, and are not found in time in the index, are known."""
    sim = Sim(4, round_trip_s=round_trip_s, publish_s=0.05, pulls=False)
    await sim.settle(4)
    turns, tokens = 5, (3000, 200)

    async def conversation(number: int) -> set[str]:
        text, workers = text_of(f"conversation {number}", tokens[0]), set()
        await asyncio.sleep(number * 0.19)
        for turn in range(turns):
            workers.add((await sim.routers[0].send(text)).worker)
            text += text_of(f"conversation {number}, turn {turn}", tokens[1])
            await asyncio.sleep(3.0)
        return workers

    workers = await all_of([conversation(number) for number in range(16)])
    assert [len(each) for each in workers] == [1] * 16
    computed = sum(engine.computed_tokens for engine in sim.engines.values())
    assert computed <= 16 * (tokens[0] + (turns - 1) * (tokens[1] + BLOCK_TOKENS))


@virtual
async def test_what_was_evicted_since_its_worker_reported_it_is_not_counted() -> None:
    """The index has the last word of what a worker has reported: its denial is an eviction, and no delay."""
    sim = await make_sim(2)
    router = sim.routers[0]
    await router.send(question(0), ends=ENDS)
    await sim.settle(0.3)
    sim.evict()
    await sim.settle()
    rows = await router.picker.explain(router.ask(question(1), ends=ENDS))
    assert [row["local_tokens"] for row in rows] == [0, 0]


@virtual
async def test_report_that_comes_after_the_end_counts() -> None:
    """A worker that reports a prompt when its short answer is over has published it: then the index is believed."""
    sim = await make_sim(2, publish_s=1.0)
    router = sim.routers[0]
    served = await router.send(question(0), ends=ENDS)
    sim.engines[served.worker].evict_all()

    async def local_tokens() -> set[object]:
        rows = await router.picker.explain(router.ask(question(1), ends=ENDS))
        return {row["local_tokens"] for row in rows}

    await sim.settle(0.9)
    assert max(await local_tokens()) > DOC_TOKENS / 2  # type: ignore[type-var]
    await sim.settle(REFRESH_S + 0.5)
    await local_tokens()
    await sim.settle(0.1)
    assert await local_tokens() == {0}


@virtual
async def test_what_another_incarnation_was_sent_is_not_counted() -> None:
    """A worker that begins anew under its name has nothing of what it answered a moment ago."""
    sim = await make_sim(2, publish_s=1.0)
    router = sim.routers[0]
    served = await router.send(question(0), ends=ENDS)
    worker = sim.engines[served.worker].worker
    assert worker.record is not None
    worker.renew(replace(worker.record, incarnation=b"n" * 16))
    rows = await router.picker.explain(router.ask(question(1), ends=ENDS))
    assert [row["local_tokens"] for row in rows] == [0, 0]
