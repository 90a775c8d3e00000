"""Requests with LoRA adapters: they go where the adapter is at hand, and never by what the model alone has computed."""

from __future__ import annotations

import pytest

from ghostcacher_router.fleet.worker import Worker
from ghostcacher_router.signals.adapter_costs import LOAD_MS
from ghostcacher_router.types import Ask, Outcome, RequestShape
from ghostcacher_simulator.text import text_of
from ghostcacher_simulator.virtual_time import virtual
from tests.support.prompts import COMPLETIONS, LONG, shape
from tests.support.routing_sim import Router, Sim, make_sim

TEXT = text_of("text", 4000)


async def with_adapters(engines: int, *, plain: bool = False) -> Sim:
    """A fleet in which every worker lists the adapters a and b."""
    sim = await make_sim(engines, plain=plain)
    for engine in sim.engines.values():
        list_adapters(engine.worker)
    serving = sim.routers[0].fleet.serving
    sim.routers[0].fleet.serving = lambda model: serving("m" if model in ("a", "b") else model)  # type: ignore[method-assign]
    return sim


def list_adapters(worker: Worker) -> None:
    worker.serves(({"id": "m"}, {"id": "a", "parent": "m"}, {"id": "b", "parent": "m"}), 0.0)


def asks(router: Router, model: str, number: int) -> Ask:
    """A short request of its own for a model."""
    ask = router.ask(text_of(f"short {number}", 40))
    return ask._replace(shape=ask.shape._replace(model=model))


@pytest.mark.parametrize("plain", [False, True])
@virtual
async def test_adapter_stays_at_its_worker_until_another_one_costs_less(plain: bool) -> None:
    """One worker gets all that it can take; others load the adapter only when its queue is longer than that takes."""
    sim = await with_adapters(3, plain=plain)
    router = sim.routers[0]
    placed = [router.picker.place_now(asks(router, "a", number)) for number in range(4)]
    assert len({one.worker for one in placed if one is not None}) == 1
    first = placed[0]
    assert first is not None
    for one in placed:
        assert one is not None
        one.ended(Outcome.DONE, 200)
    again = router.picker.place_now(asks(router, "a", 4))
    assert again is not None
    assert again.worker == first.worker, "it was the last that was used there"
    if not plain:
        sim.engines[first.worker].extra_tokens = 5000
        await sim.settle()
        elsewhere = router.picker.place_now(asks(router, "a", 5))
        assert elsewhere is not None
        assert elsewhere.worker != first.worker


@virtual
async def test_explain_shows_what_an_adapter_costs_and_where() -> None:
    """It is part of the queue there; the model alone costs nothing."""
    sim = await with_adapters(2)
    router = sim.routers[0]
    placed = router.picker.place_now(asks(router, "a", 0))
    assert placed is not None
    for model, costs in (("a", LOAD_MS), ("m", 0.0)):
        rows = {row["worker"]: row for row in await router.picker.explain(asks(router, model, 1))}
        (other,) = rows.keys() - {placed.worker}
        assert (rows[placed.worker]["adapter_ms"], rows[other]["adapter_ms"]) == (0.0, costs)
        assert float(str(rows[other]["queue_ms"])) >= costs


@virtual
async def test_what_the_model_has_computed_is_no_hit_of_an_adapter() -> None:
    """Nor the other way round, nor that of another adapter: one text under three names is computed three times."""
    sim = await with_adapters(2)
    router = sim.routers[0]

    async def cached_tokens(model: str) -> int:
        asked: RequestShape = shape(COMPLETIONS, {"model": model, "prompt": LONG * 8, "stream": True})
        name = f"{model}-{router._count}"
        router._count += 1
        placed = await router.picker.place(Ask(name, "POST", COMPLETIONS, asked, {}))
        assert placed.forecast is not None
        placed.sent()
        engine = sim.engines[placed.worker]
        prefilled = await engine.prefill(name, f"{model}:{LONG * 8}".encode())
        placed.first_byte()
        engine.release(prefilled)
        placed.ended(Outcome.DONE, 200)
        await sim.settle(1)
        return placed.forecast.cached_tokens

    assert [await cached_tokens(model) for model in "mab"] == [0, 0, 0]
    assert all([await cached_tokens(model) for model in "mab"])
