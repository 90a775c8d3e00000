"""The fleet and its workers as JSON for people and programs."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from ghostcacher_router.fleet.fleet import Fleet
from ghostcacher_router.fleet.worker import Worker
from ghostcacher_router.types import WorkerState

NOT_ROUTABLE = "not_routable"


def pods_view(fleet: Fleet, in_flight: Callable[[str], int], now: float) -> list[dict[str, object]]:
    """Return every worker in order of name; then those with a lease that cannot be sent requests, and why."""
    members = [_pod(fleet, fleet.workers[name], in_flight(name), now) for name in sorted(fleet.workers)]
    others: list[dict[str, object]] = [
        {"id": name, "state": NOT_ROUTABLE, "why": trouble.why, "namespace": trouble.record.namespace}
        for name, trouble in sorted(fleet.unroutable.items())
    ]
    return members + others


def _pod(fleet: Fleet, worker: Worker, in_flight: int, now: float) -> dict[str, object]:
    load = worker.load
    return {
        "id": worker.name,
        "state": worker.state.value,
        "state_s": round(now - worker.since, 3),
        "draining": worker.draining,
        "url": worker.endpoint.url,
        "models": sorted(worker.models),
        "in_flight": in_flight,
        "lease": fleet.lease_of(worker.name),
        "namespace": worker.namespace,
        "incarnation": None if worker.incarnation is None else worker.incarnation.hex(),
        "block_tokens": worker.block_tokens,
        "load": None
        if load is None
        else msgspec.structs.asdict(load.load) | {"age_s": round(now - worker.load_measured_at - load.load.age_s, 3)},
        "failures": worker.failures,
        "refusals": worker.refusals,
        "error": worker.error,
    }


def not_ready(fleet: Fleet) -> str | None:
    """Return why no request can be served now, None when one can."""
    counts = {state.value: count for state, count in fleet.count_by_state().items() if count}
    if WorkerState.READY.value in counts:
        return None
    if counts:
        return f"no worker is ready: {', '.join(f'{count} {state}' for state, count in counts.items())}"
    if fleet.unroutable:
        name, trouble = min(fleet.unroutable.items())
        return f"no worker can be sent requests: worker {name}: {trouble.why}"
    return "no worker is known: none has a lease in Redis, and none is given as URL (workers)"
