"""Which workers serve which model."""

from __future__ import annotations

from ghostcacher_router.fleet.model_lists import merged_models, serving_by_model
from ghostcacher_router.fleet.worker import Move, Worker
from ghostcacher_router.types import Endpoint


def worker(name: str, *models: str, ready: bool = True) -> Worker:
    made = Worker(name, Endpoint(name, 80, False, ""), None, 0.0)
    made.model_objects = tuple({"id": model, "owned_by": name} for model in models)
    made.models, made.models_asked_at = frozenset(models), 0.0
    if ready:
        made.move(Move.ANSWERED, 0.0)
    return made


def test_models_are_merged_once_each() -> None:
    """Each model once, as a READY worker describes it; a model nobody serves right now still exists."""
    a, b, c = worker("a", "x", ready=False), worker("b", "y", "x"), worker("c", "z", "x")
    found = merged_models([a, b, c])
    assert {name: model["owned_by"] for name, model in found.items()} == {"x": "b", "y": "b", "z": "c"}
    assert merged_models([a])["x"]["owned_by"] == "a"


def test_only_ready_workers_serve() -> None:
    """JOINING and DRAINING workers serve nothing."""
    a, b, c = worker("a", "x", ready=False), worker("b", "x"), worker("c", "x")
    c.move(Move.DRAIN, 0.0)
    assert serving_by_model([a, b, c]) == {None: [b], "x": [b]}
