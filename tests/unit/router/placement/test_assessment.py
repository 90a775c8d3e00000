"""What is known of a request's candidates, as /gc/explain shows it."""

from __future__ import annotations

import pytest

from ghostcacher_connector.core.coordination.tier_load import TierLoad
from ghostcacher_connector.core.types import Tier
from ghostcacher_router.placement.picker import Options
from ghostcacher_router.signals.prefix_locations import HeldPrefix
from ghostcacher_router.signals.working_sets import capacity_tokens
from ghostcacher_router.types import Reason, WorkerState
from ghostcacher_simulator.text import BLOCK_TOKENS, text_of
from ghostcacher_simulator.virtual_time import virtual
from tests.support.routing_sim import make_sim

TEXT = text_of("text", 4000)


@virtual
async def test_explain_shows_every_term_and_changes_nothing() -> None:
    """Every worker comes with its terms, best first; the same is picked after, and nothing was placed."""
    sim = await make_sim()
    router = sim.routers[0]
    await router.send(TEXT)
    await sim.settle(2)
    before = repr(router.routing.state.history), router.metrics.prompt_tokens.total
    rows = await router.picker.explain(router.ask(TEXT))
    assert (repr(router.routing.state.history), router.metrics.prompt_tokens.total) == before
    assert router.routing.state.queues.in_flight_total == 0
    assert [row["total_ms"] for row in rows] == sorted(row["total_ms"] for row in rows)  # type: ignore[type-var]
    assert {"worker", "queue_ms", "pull_ms", "compute_ms", "local_tokens", "load_reported"} <= rows[0].keys()
    assert [bool(row["local_tokens"]) for row in rows] == [True, False, False]
    assert (await router.picker.place(router.ask(TEXT))).worker == rows[0]["worker"]


@virtual
async def test_down_worker_is_not_pulled_from() -> None:
    """What only a worker has that is down cannot be had."""
    sim = await make_sim(2)
    router = sim.routers[0]
    served = await router.send(TEXT)
    await sim.settle(0.3)
    sim.engines[served.worker].worker.state = WorkerState.DOWN
    router.fleet.changed()
    rows = {row["worker"]: row for row in await router.picker.explain(router.ask(TEXT))}
    other = next(name for name in rows if name != served.worker)
    assert rows[other]["pulled_tokens"] == 0


@virtual
async def test_change_of_holders_or_of_the_fleet_is_seen_at_once() -> None:
    """Who holds a prefix is remembered only while the index says the same and the workers are the same."""
    sim = await make_sim(3)
    router = sim.routers[0]
    served = await router.send(TEXT)
    await sim.settle(2)
    ask, state = router.ask(TEXT), router.routing.state
    state.history.clear()

    async def tokens() -> dict[str, tuple[int, int]]:
        rows = await router.picker.explain(ask)
        return {str(row["worker"]): (row["local_tokens"], row["pulled_tokens"]) for row in rows}  # type: ignore[misc]

    before = await tokens()
    others = [name for name in before if name != served.worker]
    assert before[served.worker][0] > 0
    assert before[others[0]][0] == 0 < before[others[1]][1]
    ref, prompt = sim.engines[others[0]].worker.ref, ask.shape.prompt
    assert ref is not None
    assert prompt is not None
    known = router.text.known(ref.namespace, prompt)
    state.locations.seed(ref.namespace, known, others[0], HeldPrefix(ref.incarnation, known[-1].block_count))
    assert (await tokens())[others[0]][0]
    for name in (served.worker, others[0]):
        sim.engines[name].worker.state = WorkerState.DOWN
    router.fleet.changed()
    assert (await tokens())[others[1]] == (0, 0)


@pytest.mark.parametrize("shares_prefill", [True, False])
@virtual
async def test_what_is_being_computed_is_local_where_it_is_shared(shares_prefill: bool) -> None:
    """A text that a worker computes at this moment is found there by the next request, unless only what is done is."""
    sim = await make_sim(shares_prefill=shares_prefill, options=Options(ghost_lock=False))
    router = sim.routers[0]
    first = router.picker.place_now(router.ask(TEXT))
    assert first is not None
    first.sent()

    async def local_tokens() -> int:
        rows = await router.picker.explain(router.ask(TEXT))
        (row,) = [row for row in rows if row["worker"] == first.worker]
        assert isinstance(row["local_tokens"], int)
        return row["local_tokens"]

    assert (await local_tokens() > 0) is shares_prefill
    first.first_byte()
    await sim.settle(1)
    assert await local_tokens() > 0


@virtual
async def test_host_tier_is_room_for_documents() -> None:
    """A worker's caches hold what fits into its engine and its host tier; objects are no part of its own caches."""
    sim = await make_sim(1, kv_blocks=100)
    engine = sim.engines["w0"]
    assert capacity_tokens(engine.worker) == 100 * BLOCK_TOKENS
    host = TierLoad(Tier.HOST, 7, 60, (0, 0, 7, 0, 0), 0, 0, 0, 0)
    engine.claims["tiers"] = (host, TierLoad(Tier.OBJECT, 7, 1000, (0, 0, 7, 0, 0), 0, 0, 0, 0))
    engine.report()
    assert capacity_tokens(engine.worker) == 160 * BLOCK_TOKENS


@virtual
async def test_lone_worker_is_not_looked_up() -> None:
    """Whatever it has of a prompt, nobody else can be chosen: the request is placed without asking the index."""
    sim = await make_sim(1, routers=2)
    await sim.routers[0].send(TEXT)
    await sim.settle(3)
    placed = sim.routers[1].picker.place_now(sim.routers[1].ask(TEXT))
    assert placed is not None
    assert (placed.worker, placed.reason) == ("w0", Reason.ONLY)
