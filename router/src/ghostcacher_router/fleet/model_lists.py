"""Makes lists of models and of the workers that serve them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from ghostcacher_router.fleet.outliers import usable
from ghostcacher_router.fleet.worker import Worker
from ghostcacher_router.types import WorkerState

KEEP_BILLING_LINE = frozenset({"sglang"})
"""The engines known to leave the line in that Claude Code begins its system text with, another one each time."""


def serving_by_model(
    workers: Iterable[Worker], ejected: Collection[str] = frozenset()
) -> dict[str | None, list[Worker]]:
    """Return the READY workers of each model, and under None all of them, in the order given.

    ejected: names of workers that are left out, as long as enough are left of each model.
    """
    found: dict[str | None, list[Worker]] = {None: []}
    for worker in workers:
        if worker.state is WorkerState.READY:
            found[None].append(worker)
            for model in worker.models:
                found.setdefault(model, []).append(worker)
    return {model: usable(ready, ejected) for model, ready in found.items()} if ejected else found


def merged_models(workers: Iterable[Worker]) -> dict[str, Mapping[str, object]]:
    """Return each model that any worker is known to serve, in order of id, as an engine describes it.

    Workers that are DOWN or draining count: a model that nobody serves right now exists all the same. Of several
    descriptions the one of a READY worker wins, then the first one.
    """
    ranked = sorted(workers, key=lambda worker: worker.state is not WorkerState.READY)
    found: dict[str, Mapping[str, object]] = {}
    for worker in ranked:
        for model in worker.model_objects:
            found.setdefault(str(model["id"]), model)
    return dict(sorted(found.items()))


def base_models(workers: Iterable[Worker]) -> frozenset[str]:
    """Return the models that any worker lists, and not as a LoRA adapter."""
    return frozenset().union(*(worker.models - worker.adapters for worker in workers))


def split_models(workers: Iterable[Worker]) -> frozenset[str]:
    """Return the models whose READY workers are in several namespaces: they cannot pull from each other.

    Workers without a connector are in none.
    """
    namespaces: dict[str, set[str]] = {}
    for worker in workers:
        if worker.state is WorkerState.READY and worker.namespace is not None:
            for model in worker.models:
                namespaces.setdefault(model, set()).add(worker.namespace)
    return frozenset(model for model, found in namespaces.items() if len(found) > 1)


def models_with_billing_line(workers: Iterable[Worker]) -> frozenset[str | None]:
    """Return the models of which a prompt may keep a client's billing line; None among them: so may any model.

    vLLM takes the line out, and SGLang leaves it in. Where workers of both serve a model it is taken for kept: the
    texts that are learned then differ more often than the prompts do, and never less.
    """
    keepers = [worker for worker in workers if worker.engine in KEEP_BILLING_LINE]
    return frozenset([model for worker in keepers for model in (None, *worker.models)])
