"""A text that everybody asks for comes to be at several workers, before it is too much for one."""

from __future__ import annotations

from collections import Counter
from unittest import mock

import pytest

from ghostcacher_router.signals import queue_estimate
from ghostcacher_simulator.text import text_of
from ghostcacher_simulator.virtual_time import virtual
from tests.support.routing_sim import Sim, make_sim

TOKENS, REQUESTS = 2_000, 90
HOT = text_of("hot", TOKENS)


async def ask(sim: Sim, requests: int, name: str = "question") -> Counter[str]:
    """Send requests for the text, each when the one before is answered: nothing ever waits anywhere."""
    placed: Counter[str] = Counter()
    for number in range(requests):
        placed[(await sim.routers[0].send(HOT + text_of(f"{name} {number}", 50))).worker] += 1
    return placed


@pytest.mark.parametrize("few", [0, queue_estimate.FEW])
@virtual
async def test_hot_text_is_copied_and_not_computed_again(few: int) -> None:
    """No worker gets far more than the others, and all but the first one pull the text; by columns and one by one."""
    with mock.patch.object(queue_estimate, "FEW", few):
        sim = await make_sim(3)
        placed = await ask(sim, REQUESTS)
    assert max(placed.values()) <= 1.25 * REQUESTS / 3 + 10
    computed = sum(engine.computed_tokens for engine in sim.engines.values())
    assert computed < 2 * TOKENS + REQUESTS * 100
    assert sum(engine.pulled_blocks > 0 for engine in sim.engines.values()) == 2


@virtual
async def test_explain_shows_the_price() -> None:
    """The worker that was sent far more is dearer for others' sake, so that what is explained is what is chosen."""
    sim = await make_sim(3)
    ((first, _),) = (await ask(sim, 3)).most_common(1)
    router = sim.routers[0]
    for _ in range(40):
        queues = router.routing.state.queues
        queues.ended(queues.reserve(first, 1, 1, sim.now()))
    rows = {row["worker"]: row for row in await router.picker.explain(router.ask(HOT))}
    others_ms = {name: row["others_ms"] for name, row in rows.items()}
    assert others_ms.pop(first) == pytest.approx(250.0)
    assert set(others_ms.values()) == {0.0}
    for row in rows.values():
        terms = ("queue_ms", "wait_ms", "pull_ms", "compute_ms", "penalty_ms", "decode_ms", "others_ms")
        assert row["total_ms"] == pytest.approx(sum(row[term] for term in terms))  # type: ignore[misc]
    assert (await router.picker.place(router.ask(HOT))).worker == next(iter(rows)) != first
