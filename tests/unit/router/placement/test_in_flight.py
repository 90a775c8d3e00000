"""What is noted of placed requests as they go on: computed, answered, failed, and how right their forecasts were."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from ghostcacher_connector.core.coordination.base import WorkerEvents
from ghostcacher_connector.core.index.base import WorkerRef
from ghostcacher_router.signals.engine_speeds import ANSWER_WEIGHT
from ghostcacher_router.types import Outcome
from ghostcacher_simulator.text import text_of
from ghostcacher_simulator.virtual_time import virtual
from tests.support.routing_sim import DECODE_S, make_sim

TEXT = text_of("text", 4000)
SMALL = text_of("small", 200)


@virtual
async def test_other_incarnation_of_a_worker_has_nothing() -> None:
    """What an earlier incarnation held, or claims to have computed now, does not count."""
    sim = await make_sim(2)
    router = sim.routers[0]
    await router.send(TEXT)
    await sim.settle(0.3)
    tracker, state = router.routing.tracker, router.routing.state
    asks = [router.ask(TEXT + SMALL) for _ in range(2)]
    placed = router.picker.place_now(asks[0])
    assert placed is not None
    assert placed.ref is not None
    before = repr(state.locations)
    tracker.on_computed(WorkerRef(placed.ref.namespace, placed.worker, b"x" * 16), asks[0].request_id)
    tracker.on_computed(placed.ref, "no request of ours")
    assert repr(state.locations) == before
    for engine in sim.engines.values():
        assert engine.worker.record is not None
        engine.worker.renew(replace(engine.worker.record, incarnation=b"n" * 16))
    router.fleet.changed()
    state.history.clear()
    rows = await router.picker.explain(asks[1])
    assert [row["local_tokens"] for row in rows] == [0, 0]


@pytest.mark.parametrize("reported_computed", [False, True])
@pytest.mark.parametrize(
    ("outcome", "status", "remembered"),
    [
        (Outcome.DONE, 200, True),
        (Outcome.DONE, 400, False),
        (Outcome.DONE, 503, False),
        (Outcome.REFUSED, None, False),
        (Outcome.CANCELLED, None, False),
        (Outcome.FAILED, None, False),
    ],
)
@virtual
async def test_only_what_was_computed_is_remembered(
    outcome: Outcome, status: int | None, remembered: bool, reported_computed: bool
) -> None:
    """A request that ended badly leaves neither memory nor lock, whatever was said of it; the next one may compute."""
    sim = await make_sim()
    router = sim.routers[0]
    ask = router.ask(TEXT)
    placed = await router.picker.place(ask)
    assert placed.lock is not None
    placed.sent()
    if reported_computed and placed.ref is not None:
        router.routing.tracker.on_computed(placed.ref, ask.request_id)
    placed.ended(outcome, status)
    placed.ended(outcome, status)
    await sim.settle()
    assert ask.shape.prompt is not None
    assert (router.routing.state.history.find(ask.shape.prompt, sim.now()) is not None) is remembered
    assert router.routing.state.queues.in_flight_total == 0
    assert router.routing.state.locks.find(placed.ref.namespace, ask.shape.prompt, -1) is None  # type: ignore[union-attr]


@virtual
async def test_long_answer_whose_worker_reports_nothing_ends_as_any_other() -> None:
    """When it ends nobody waits for the report any more, of which it is the only one."""
    sim = await make_sim()
    router = sim.routers[0]
    placed = await router.picker.place(router.ask(TEXT))
    placed.sent()
    placed.first_byte()
    await asyncio.sleep(60.0)
    placed.ended(Outcome.DONE, 200)
    assert router.routing.state.queues.in_flight_total == 0


@virtual
async def test_length_of_answers_is_learned_from_streams() -> None:
    """How long answers take after their first token tells how many tokens they have, where a step's time is known."""
    sim = await make_sim(2, answer_tokens=100)
    for engine in sim.engines.values():
        engine.claims = {"decode_step_s": DECODE_S}
    await sim.settle(0.3)
    speeds = sim.routers[0].routing.state.queues._speeds
    before = speeds.answer_tokens
    await sim.routers[0].send(SMALL)
    assert speeds.answer_tokens == pytest.approx(before + ANSWER_WEIGHT * (100 - before), rel=0.01)


@virtual
async def test_forecast_is_compared_with_what_was_observed() -> None:
    """Observed TTFT and its forecast are recorded, and a fleet that is slower than it says is noticed."""
    sim = await make_sim()
    router = sim.routers[0]
    for number in range(5):
        placed = await router.picker.place(router.ask(text_of(f"text {number}", 4000)))
        placed.sent()
        assert placed.forecast is not None
        await asyncio.sleep(2 * placed.forecast.total_ms / 1e3)
        placed.first_byte()
        placed.ended(Outcome.DONE, 200)
    assert router.metrics.forecast_ratio.sum / router.metrics.forecast_ratio.count == pytest.approx(2.0, rel=0.05)
    assert 1.3 < router.routing.tracker.bias < 2.0


@virtual
async def test_forecast_of_an_answer_that_is_not_streamed_is_compared_with_the_worker_event() -> None:
    """Its first byte comes with its last, so the time at which the worker says that the prompt is computed counts."""
    sim = await make_sim()
    router = sim.routers[0]
    for number in range(5):
        ask = router.ask(text_of(f"text {number}", 4000))
        placed = await router.picker.place(ask._replace(shape=ask.shape._replace(stream=False)))
        placed.sent()
        assert placed.forecast is not None
        assert placed.ref is not None  # type: ignore[attr-defined]
        await asyncio.sleep(2 * placed.forecast.total_ms / 1e3)
        for _ in range(2):
            router.routing.tracker.on_worker_events(WorkerEvents(*placed.ref, (), (ask.request_id,)))  # type: ignore[attr-defined]
        await asyncio.sleep(10)
        placed.first_byte()
        placed.ended(Outcome.DONE, 200)
    assert router.metrics.forecast_ratio.count == 0
    assert 1.3 < router.routing.tracker.bias < 1.5


@virtual
async def test_metrics_of_a_hit() -> None:
    """Prompt tokens, those that need no computing and the time that this spares are counted."""
    sim = await make_sim()
    router = sim.routers[0]
    await router.send(TEXT)
    await sim.settle(0.3)
    await router.send(TEXT)
    metrics = router.metrics
    assert metrics.prompt_tokens.total == pytest.approx(8000, rel=0.02)
    assert 3900 <= metrics.hit_tokens.total <= 4000
    assert metrics.saved_ttft_ms.total == pytest.approx(metrics.hit_tokens.total / 10, rel=0.05)


@virtual
async def test_metrics_leave_out_prompts_that_nobody_answered() -> None:
    """A giant prompt that an engine refuses is no miss of the caches, and one that is tried twice counts once."""
    sim = await make_sim()
    router = sim.routers[0]
    for outcome, status in ((Outcome.DONE, 400), (Outcome.REFUSED, None), (Outcome.CANCELLED, None)):
        placed = await router.picker.place(router.ask(TEXT))
        placed.sent()
        placed.ended(outcome, status)
    assert router.metrics.prompt_tokens.total == 0
    placed = await router.picker.place(router.ask(TEXT))
    placed.sent()
    placed.first_byte()
    assert router.metrics.prompt_tokens.total == pytest.approx(4000, rel=0.02)


@virtual
async def test_two_requests_of_one_id_teach_nothing() -> None:
    """Clients choose ids: what is told under one that two prompts have is nobody's, also when one of them has ended."""
    sim = await make_sim()
    router = sim.routers[0]
    state, texts = router.routing.state, [text_of(name, 4000) for name in ("mine", "yours")]
    placed = [await router.picker.place(router.ask(text)._replace(request_id="same")) for text in texts]
    assert [one.lock is not None for one in placed] == [True, True]
    before = repr(state.locations)
    for one in placed:
        await sim.engines[one.worker].prefill("same", texts[placed.index(one)])
        await sim.settle(0.3)
        assert not any(mine.lock is not None and mine.lock.released for mine in placed if not mine.is_ended)
        one.first_byte()
        one.ended(Outcome.DONE, 200)
    await sim.settle(0.3)
    assert (repr(state.locations), len(router.text)) == (before, 0)
    assert all(one.lock is not None and one.lock.released for one in placed)
    await router.send(texts[0])
    await sim.settle(0.3)
    assert len(router.text) > 0


@virtual
async def test_worker_events_that_make_no_sense_change_nothing() -> None:
    """Chains and ids of requests that nobody sent, from workers that nobody knows, are passed over."""
    sim = await make_sim()
    router = sim.routers[0]
    before = repr(router.picker)
    router.routing.tracker.on_worker_events(WorkerEvents("n", "stranger", b"x" * 16, (), ("one", "two")))
    assert repr(router.picker) == before


@virtual
async def test_worker_that_goes_down_has_nothing_any_more_and_one_that_fails_a_request_has() -> None:
    """A failed request says nothing of a worker's cache; a process that has ended has none."""
    sim = await make_sim(2, plain=True)
    router = sim.routers[0]
    served = await router.send(TEXT)
    prompt, history = router.ask(TEXT).shape.prompt, router.routing.state.history
    assert prompt is not None
    router.fleet.failed(served.worker, "500", "status 500", sure=True)
    found = history.find(prompt, sim.now())
    assert found is not None
    assert found.holders[0].worker == served.worker
    await sim.settle(0.01)
    router.fleet.lost(served.worker, Outcome.REFUSED)
    assert history.find(prompt, sim.now()) is None
