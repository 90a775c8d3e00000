"""How much later an adapter's request is answered where the adapter is not at hand."""

from __future__ import annotations

import pytest

from ghostcacher_router.fleet.worker import Worker
from ghostcacher_router.signals.adapter_costs import FIND_MS, LOAD_MS, RECENT_MAX, SLOT_MS, AdapterCosts
from ghostcacher_router.types import Endpoint


def worker(*adapters: str, slots: int | None = None, running: str = "") -> Worker:
    made = Worker("w", Endpoint("w", 80, False, ""), None, 0.0)
    made.serves(({"id": "m"}, *({"id": name, "parent": "m"} for name in adapters)), 0.0)
    made.adapter_slots, made.running_adapters = slots, frozenset(running)
    return made


def after(*stories: str) -> AdapterCosts:
    """Requests in order: "a" has ended, "a..." still runs, "a!" was told that there is no such adapter."""
    costs = AdapterCosts()
    for story in stories:
        costs.began("w", story[0])
        if not story.endswith("..."):
            costs.ended("w", story[0], loaded=not story.endswith("!"))
    return costs


@pytest.mark.parametrize(
    ("found", "stories", "expected"),
    [
        (worker("a"), (), LOAD_MS),
        (worker(), (), FIND_MS),
        (worker("a", running="a"), (), 0),
        (worker("a", slots=1, running="b"), (), LOAD_MS + SLOT_MS),
        (worker("a", slots=2, running="b"), (), LOAD_MS),
        (worker(slots=1, running="b"), (), FIND_MS + SLOT_MS),
        (worker("a"), ("a",), 0),
        (worker("a"), ("a...",), 0),
        (worker(), ("a",), 0),
        (worker(), ("a!",), FIND_MS),
        (worker("a", slots=1), ("b...",), LOAD_MS + SLOT_MS),
        (worker("a", slots=1), ("a", "b"), LOAD_MS),
        (worker("a", slots=2), ("a", "b"), 0),
        (worker("a", slots=2), ("a", "b", "c"), LOAD_MS),
        (worker("a", slots=2, running="c"), ("a", "b"), LOAD_MS),
        (worker("a", slots=3, running="c"), ("a", "b"), 0),
        (worker("a", slots=1, running="b"), ("a",), LOAD_MS + SLOT_MS),
        (worker("a", slots=1, running="b"), ("a...",), 0),
    ],
)
def test_adapter_costs_what_it_waits_for(found: Worker, stories: tuple[str, ...], expected: float) -> None:
    """By what the worker says and what was sent there: slots keep the last used ones."""
    assert after(*stories).cost_ms(found, "a") == expected


def test_base_model_costs_nothing() -> None:
    """However full the slots are; and neither does a request that names no model."""
    costs = after("b...")
    full = worker("a", slots=1, running="b")
    assert (costs.cost_ms(full, "m"), costs.cost_ms(full, None)) == (0, 0)


def test_what_a_worker_had_is_gone_with_it() -> None:
    """Nothing is kept of one that is down, but for its requests until they end, or of one that has left."""
    costs = after("a", "b...")
    costs.forget_worker("w")
    assert (costs.cost_ms(worker("a", "b"), "a"), costs.cost_ms(worker("a", "b"), "b")) == (LOAD_MS, 0)
    costs.keep_only([])
    costs.ended("w", "b", loaded=True)
    assert repr(costs) == "AdapterCosts(workers=0)"
    costs = after("a")
    costs.keep_only(["w"])
    assert costs.cost_ms(worker("a"), "a") == 0
    costs.keep_only([])
    assert costs.cost_ms(worker("a"), "a") == LOAD_MS


def test_names_that_clients_think_of_are_bounded() -> None:
    """Only the last ones are remembered."""
    costs = AdapterCosts()
    for number in range(RECENT_MAX + 1):
        costs.began("w", str(number))
        costs.ended("w", str(number), loaded=True)
    assert [costs.cost_ms(worker(), str(number)) for number in (0, 1, RECENT_MAX)] == [FIND_MS, 0, 0]
