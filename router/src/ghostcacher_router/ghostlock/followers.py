"""What to do about a ghost lock: go where the prefix is being computed, wait and pull it elsewhere, or take over.

Whoever goes where it is being computed finds it there if that engine shares what is on its way (vLLM does). With others
(SGLang) the next batch would compute it again, so requests wait for its end, and then go there or pull it.

The locked part is computed elsewhere only when following is of no use: its owner is overdue and the patience of a
request has ended, or its worker is so loaded that computing again is sooner. A request's patience is what computing
itself would take, as forecast when it first met a lock, times WAIT_BUDGET_FACTOR, which is what forecasts are off by;
all its waits together never exceed it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from ghostcacher_router.ghostlock.ghost_lock import Found, GhostLock
from ghostcacher_router.ports import WorkerPort
from ghostcacher_router.signals.prefix_match import PrefixMatch
from ghostcacher_router.signals.queue_estimate import QueueEstimate
from ghostcacher_router.signals.ttft_forecast import WorkerMatch, forecast
from ghostcacher_router.types import Forecast

OVERLOAD = 1.5
"""How many times longer than computing it elsewhere an owner's queue may make a prompt, for the fleet's good."""

WAIT_BUDGET_FACTOR = 1.25
"""Forecasts are off by so much on a good day; an owner that is late by it is no reason to compute twice."""

LATE = 0.25
"""An owner that is late by this share of what computing takes gets no followers any more: it may have stalled."""


class Met(NamedTuple):
    """A lock that a request has met, of blocks in one namespace."""

    namespace: str
    found: Found


class Verb(Enum):
    """GO: to the worker of the forecast, which is the owner's. WAIT: for the lock, and look again.

    COMPUTE: elsewhere, as if there were no lock. TAKE_OVER: the same, in the owner's place.
    """

    GO = "go"
    WAIT = "wait"
    COMPUTE = "compute"
    TAKE_OVER = "take_over"


class Step(NamedTuple):
    """forecast: of where it goes, now or, as far as can be told, after the wait. until: loop clock, s; its end."""

    verb: Verb
    forecast: Forecast
    until: float


def patience_s(own: Forecast, bias: float) -> float:
    """Return how long a request may wait that could be computed at `own`. bias: observed over forecast, lately."""
    return own.total_ms / 1e3 * WAIT_BUDGET_FACTOR * max(1.0, bias)


def follow_any(
    sight: PrefixMatch,
    mets: Sequence[Met],
    candidates: Sequence[tuple[WorkerPort, QueueEstimate]],
    own: Forecast,
    now: float,
    patient_until: float,
) -> tuple[GhostLock, Step]:
    """Return what a request does that meets several locks, and with which of them: as `follow` says of each.

    mets: at least one, of workers that cannot share with each other: where one is not worth following, another may be.
    """
    steps = [(met.found.lock, follow(sight, met, candidates, own, now, patient_until)) for met in mets]
    followed = [found for found in steps if found[1].verb in (Verb.GO, Verb.WAIT)]
    if followed:
        return min(followed, key=lambda found: found[1].forecast.total_ms)
    return next((found for found in steps if found[1].verb is Verb.TAKE_OVER), steps[0])


def follow(
    sight: PrefixMatch,
    met: Met,
    candidates: Sequence[tuple[WorkerPort, QueueEstimate]],
    own: Forecast,
    now: float,
    patient_until: float,
) -> Step:
    """Return what a request does that meets a live, confirmed lock.

    own: the best forecast of computing elsewhere, as if there were no lock. patient_until: loop clock, s.
    """
    lock, covered = met.found.lock, sight.tokens_at(met.found.boundary)
    ready_ms = max(0.0, lock.ready_at - now) * 1e3
    late = now - lock.ready_at > LATE * own.total_ms / 1e3
    patient = now < patient_until
    if not patient and now >= lock.ready_at:
        return Step(Verb.TAKE_OVER, own, now)
    at_owner = None if late else _at_owner(sight, lock, covered, ready_ms, candidates)
    waited = _waited(sight, met, covered, ready_ms, candidates)
    in_time = patient and now + ready_ms / 1e3 <= patient_until
    if waited is not None and in_time and (at_owner is None or waited.total_ms < at_owner.forecast.total_ms):
        return Step(Verb.WAIT, waited, patient_until)
    if at_owner is not None and at_owner.forecast.total_ms <= OVERLOAD * own.total_ms:
        if at_owner.shares_prefill:
            return Step(Verb.GO, at_owner.forecast, now)
        if in_time:
            return Step(Verb.WAIT, at_owner.forecast, patient_until)
    return Step(Verb.COMPUTE, own, now)


class _AtOwner(NamedTuple):
    forecast: Forecast
    shares_prefill: bool


def _at_owner(
    sight: PrefixMatch,
    lock: GhostLock,
    covered: int,
    ready_ms: float,
    candidates: Sequence[tuple[WorkerPort, QueueEstimate]],
) -> _AtOwner | None:
    """Forecast going where the prefix is being computed: it is ahead in the queue there, and local then."""
    for worker, ahead in candidates:
        if worker.name == lock.worker:
            local, pullable, _ = sight.reach(worker)
            reach = WorkerMatch(max(local, covered), pullable, ready_ms)
            found = forecast(ahead.engine, ahead.queue_ms, sight.tokens, reach)
            return _AtOwner(found, worker.shares_prefill)
    return None


def _waited(
    sight: PrefixMatch, met: Met, covered: int, ready_ms: float, candidates: Sequence[tuple[WorkerPort, QueueEstimate]]
) -> Forecast | None:
    """Forecast the best of waiting for the prefix and pulling it: where that is faster than computing it again."""
    best: Forecast | None = None
    if not sight.pulls:
        return None
    for worker, ahead in candidates:
        if worker.name != met.found.lock.worker and worker.namespace == met.namespace:
            local, pullable, _ = sight.reach(worker)
            reach = WorkerMatch(local, max(pullable, covered), ready_ms)
            found = forecast(ahead.engine, ahead.queue_ms, sight.tokens, reach)
            if found.cached_tokens >= min(covered, sight.tokens - 1) and (
                best is None or found.total_ms < best.total_ms
            ):
                best = found
    return best
