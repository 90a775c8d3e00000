"""Which workers serve which model."""

from __future__ import annotations

import msgspec
import pytest

from ghostcacher_router.fleet.model_lists import (
    merged_models,
    models_with_billing_line,
    serving_by_model,
    split_models,
)
from ghostcacher_router.fleet.worker import Move, Worker
from ghostcacher_router.types import Endpoint
from tests.support.index_parts import make_record


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


@pytest.mark.parametrize("by", ["list of models", "record"])
def test_billing_line_is_kept_for_models_that_sglang_serves(by: str) -> None:
    """As its connector says, or for a plain engine its list of models; a model of both engines counts as kept."""

    def engine(family: str, *models: str, ready: bool = True) -> Worker:
        made = worker("x" if by == "record" else family, *models, ready=ready)
        if by == "record":
            made.renew(msgspec.structs.replace(make_record(family), fingerprint={"engine": family}))
        return made

    vllm, both, other = engine("vllm", "a", "b"), engine("sglang", "b", "c"), engine("tgi", "d")
    assert models_with_billing_line([vllm, other, worker("sglang")]) == frozenset()
    assert models_with_billing_line([vllm, both, other]) == {None, "b", "c"}
    assert models_with_billing_line([engine("sglang", "c", ready=False)]) == {None, "c"}


def test_model_in_two_namespaces_is_split() -> None:
    """Ready workers whose fingerprints differ; plain engines, and those that are not ready, split nothing."""

    def engine(name: str, namespace: str | None, *models: str, ready: bool = True) -> Worker:
        made = worker(name, *models, ready=ready)
        made.renew(None if namespace is None else msgspec.structs.replace(make_record(name), namespace=namespace))
        return made

    first, same, plain = engine("a", "1", "x", "y"), engine("b", "1", "x"), engine("c", None, "x")
    assert split_models([first, same, plain, engine("d", "2", "x", ready=False)]) == frozenset()
    assert split_models([first, same, plain, engine("d", "2", "x")]) == {"x"}
