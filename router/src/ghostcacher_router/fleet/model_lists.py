"""Makes lists of models and of the workers that serve them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from ghostcacher_router.fleet.outliers import usable
from ghostcacher_router.fleet.worker import Worker
from ghostcacher_router.types import WorkerState


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
