"""Picking a worker: errors, reasons, what is noted when a request goes well or badly, explaining."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from ghostcacher_connector.core.coordination.base import WorkerEvents
from ghostcacher_connector.core.index.base import WorkerRef
from ghostcacher_router.ghostlock.single_flight import SETTLE_S
from ghostcacher_router.placement.picker import Options
from ghostcacher_router.types import Ask, NoWorker, Outcome, Reason, RequestShape, WorkerState
from ghostcacher_simulator.text import text_of
from ghostcacher_simulator.virtual_time import virtual
from tests.support.routing_sim import make_sim

TEXT = text_of("text", 4000)
SMALL = text_of("small", 200)


def of_model(ask: Ask, model: str | None) -> Ask:
    return ask._replace(shape=ask.shape._replace(model=model))


@virtual
async def test_unknown_model_names_those_that_exist() -> None:
    """A model that nobody serves is the client's error, with the names that would do."""
    sim = await make_sim()
    router = sim.routers[0]
    with pytest.raises(NoWorker) as error:
        router.picker.place_now(of_model(router.ask(SMALL), "x"))
    assert (error.value.status, error.value.kind) == (404, "model_not_found")
    assert error.value.message == "The model `x` does not exist. Known models: m"
    assert router.routing.state.queues.in_flight_total == 0


@virtual
async def test_nobody_ready_is_a_503_with_a_time() -> None:
    """A model whose workers are all out, and a request that all of them have refused, can come again."""
    sim = await make_sim(2)
    router = sim.routers[0]
    tired = router.ask(SMALL)._replace(exclude=frozenset({"w0", "w1"}))
    for name in ("w0", "w1"):
        router.fleet.refused(name)
    for ask in (router.ask(SMALL), of_model(router.ask(SMALL), None), tired):
        with pytest.raises(NoWorker) as error:
            await router.picker.place(ask)
        assert error.value.status == 503
        assert error.value.retry_after_s


@virtual
async def test_refused_worker_is_left_out() -> None:
    """A request goes to none of those that have refused it."""
    sim = await make_sim()
    router = sim.routers[0]
    ask = router.ask(SMALL)._replace(exclude=frozenset({"w0", "w2"}))
    placed = await router.picker.place(ask)
    assert (placed.worker, placed.reason) == ("w1", Reason.ONLY)


@virtual
async def test_no_prompt_goes_by_load() -> None:
    """A request that prefills nothing goes where least is ahead, and is counted as such."""
    sim = await make_sim()
    for name in ("w0", "w2"):
        sim.engines[name].extra_tokens = 5000
    await sim.settle()
    router = sim.routers[0]
    ask = Ask("r", "GET", "/odd", RequestShape(None, False, None, None), {})
    placed = router.picker.place_now(ask)
    assert placed is not None
    assert (placed.worker, placed.reason, placed.forecast) == ("w1", Reason.LEAST_LOAD, None)
    assert router.metrics.fallbacks.values["prompt",] == 1


@virtual
async def test_known_text_is_placed_without_waiting() -> None:
    """What must be asked is awaited once; then requests for the text are placed at once, with its tokens forecast."""
    sim = await make_sim()
    router = sim.routers[0]
    sim.store.heartbeat("another", ttl_s=60.0)
    await sim.settle()
    assert router.picker.place_now(router.ask(TEXT)) is None, "a cold text needs a lock that the store confirms"
    served = await router.send(TEXT)
    await sim.settle(0.3)
    placed = router.picker.place_now(router.ask(TEXT + SMALL))
    assert placed is not None
    assert placed.forecast is not None
    assert placed.worker == served.worker
    assert placed.forecast.cached_tokens >= 3700
    placed.ended(Outcome.CANCELLED, None)


@virtual
async def test_other_life_of_a_worker_has_nothing() -> None:
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
    state.history.clear()
    rows = await router.picker.explain(asks[1])
    assert [row["local_tokens"] for row in rows] == [0, 0]


@pytest.mark.parametrize("told_computed", [False, True])
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
    outcome: Outcome, status: int | None, remembered: bool, told_computed: bool
) -> None:
    """A request that ended badly leaves neither memory nor lock, whatever was said of it; the next one may compute."""
    sim = await make_sim()
    router = sim.routers[0]
    ask = router.ask(TEXT)
    placed = await router.picker.place(ask)
    assert placed.lock is not None
    placed.sent()
    if told_computed and placed.ref is not None:
        router.routing.tracker.on_computed(placed.ref, ask.request_id)
    placed.ended(outcome, status)
    placed.ended(outcome, status)
    await sim.settle()
    assert ask.shape.prompt is not None
    assert (router.routing.state.history.find(ask.shape.prompt, sim.now()) is not None) is remembered
    assert router.routing.state.queues.in_flight_total == 0
    assert router.routing.state.locks.find(placed.ref.namespace, ask.shape.prompt, -1) is None  # type: ignore[union-attr]


@virtual
async def test_forecast_is_held_against_the_fact() -> None:
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
async def test_forecast_of_an_answer_that_is_not_streamed_is_held_against_the_workers_news() -> None:
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
async def test_first_byte_prefix_is_not_there_to_pull_yet() -> None:
    """Publishing takes a moment after the first byte: who would pull waits for it, instead of computing."""
    sim = await make_sim()
    router = sim.routers[0]
    owner = await router.picker.place(router.ask(TEXT))
    owner.sent()
    sim.engines[owner.worker].extra_tokens = 50_000
    await sim.settle(0.4)
    owner.first_byte()
    assert router.picker.place_now(router.ask(TEXT)) is None
    started = sim.now()
    other = await router.picker.place(router.ask(TEXT))
    assert sim.now() - started == pytest.approx(SETTLE_S)
    assert other.worker != owner.worker
    assert other.forecast is not None
    assert other.forecast.pulled_tokens > 3900


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
    rows = {row["worker"]: row for row in await router.picker.explain(router.ask(TEXT))}
    other = next(name for name in rows if name != served.worker)
    assert rows[other]["pulled_tokens"] == 0


@virtual
async def test_index_too_slow_request_goes_on() -> None:
    """A lookup that does not come in time costs a request 5 ms, not more."""
    sim = await make_sim(2, routers=2)
    await sim.routers[0].send(TEXT)
    await sim.settle(3)
    router = sim.routers[1]

    async def never(*_: object) -> None:
        await asyncio.get_running_loop().create_future()

    router.routing.state.locations._lookups._offload = never  # type: ignore[assignment]
    started = sim.now()
    placed = await router.picker.place(router.ask(TEXT + SMALL))
    assert sim.now() - started <= 0.005 + 0.001 + 0.02
    placed.ended(Outcome.CANCELLED, None)
