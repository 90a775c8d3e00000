"""Picking a worker: errors, reasons, what is noted when a request goes well or badly, explaining."""

from __future__ import annotations

import asyncio

import pytest

from ghostcacher_router.ghostlock.single_flight import SETTLE_S
from ghostcacher_router.types import Ask, NoWorker, Outcome, Reason, RequestShape
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
        router.fleet.lost(name, Outcome.REFUSED)
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
    await sim.settle()
    served = await router.send(TEXT)
    await sim.settle(0.3)
    placed = router.picker.place_now(router.ask(TEXT + SMALL))
    assert placed is not None
    assert placed.forecast is not None
    assert placed.worker == served.worker
    assert placed.forecast.cached_tokens >= 3700
    placed.ended(Outcome.CANCELLED, None)


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


@virtual
async def test_index_too_slow_request_goes_on() -> None:
    """A lookup that does not come in time costs a twentieth of computing the prompt, from 5 ms to 100, and no more."""
    sim = await make_sim(2, routers=2)
    await sim.routers[0].send(TEXT)
    await sim.routers[0].send(middle := text_of("middle", 500))
    await sim.settle(3)
    router = sim.routers[1]

    async def never(*_: object) -> None:
        await asyncio.get_running_loop().create_future()

    router.routing.state.locations._lookups._offload = never  # type: ignore[assignment]
    rate = sim.engines["w0"].profile.prefill_tokens_per_s
    long = TEXT * 12
    for text, wait_s in ((middle, 0.005), (TEXT + SMALL, 0.05 * 4200 / rate), (long, 0.1)):
        started = sim.now()
        placed = await router.picker.place(router.ask(text))
        assert -1e-6 < sim.now() - started - wait_s < 0.001 + 0.02
        placed.ended(Outcome.CANCELLED, None)


@virtual
async def test_lone_router_locks_without_the_store() -> None:
    """The only router need not tell anybody of a lock: a cold text is placed at once, and the next one sees it."""
    sim = await make_sim(3)
    await sim.settle()
    router = sim.routers[0]
    placed = router.picker.place_now(router.ask(TEXT))
    assert placed is not None
    assert placed.lock is not None
    assert placed.lock.token is None
    follower = router.picker.place_now(router.ask(TEXT))
    assert follower is not None
    assert (follower.worker, follower.reason) == (placed.worker, Reason.FOLLOW)
