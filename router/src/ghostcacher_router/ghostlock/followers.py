"""Decides what a request does that encounters a ghost lock: follow the owner, wait, compute again, or take over. Pure.

A request that follows goes to the owner's worker, where it finds the prefix if that engine shares what it is computing
(vLLM does). With other engines (SGLang) the next batch would compute the prefix again, so requests wait for the end of
the computing, and then go there or pull the prefix elsewhere.

The prefix is computed again elsewhere only when following is of no use: the owner's worker is so loaded that computing
again is sooner, or the owner is overdue and the request's wait budget is spent. The *wait budget* is what computing
again would take, as forecast when the request first encountered a lock, times WAIT_BUDGET_FACTOR. All waits of one
request together never exceed it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from ghostcacher_router.ghostlock.ghost_lock import EncounteredLock, GhostLock
from ghostcacher_router.ghostlock.single_flight import SingleFlight
from ghostcacher_router.ports import WorkerPort
from ghostcacher_router.signals.prefix_match import PrefixMatch
from ghostcacher_router.signals.ranking import Draw, Ranking
from ghostcacher_router.signals.ttft_forecast import WorkerMatch
from ghostcacher_router.types import Forecast

OVERLOAD = 1.5
"""A prompt may take so many times longer at the owner's worker than computed again: computing once spares the fleet."""

WAIT_BUDGET_FACTOR = 1.25
"""Forecasts are off by so much on a good day; an owner that is late by it is no reason to compute twice."""

LATE = 0.25
"""An owner that is late by this share of what computing again takes gets no more followers: it may have stalled."""


class Candidates(Protocol):
    """The workers that may take a request, each with its queue."""

    def find(self, name: str) -> tuple[int, WorkerPort] | None:
        """Return the place of a worker among them, and itself; None when it is not one of them."""

    def forecast_at(self, place: int, then: WorkerMatch) -> Forecast:
        """Return the forecast at the worker at a place, should it have so much of the prompt."""

    def best_pull(self, namespace: str, tokens: int, ready_ms: float, without: str) -> Forecast | None:
        """Return the least forecast at workers of a namespace that can pull so many tokens in a while.

        ready_ms: until these are there. without: the worker that has them then; it is left out. None when all others
        would sooner compute a part of them.
        """


class Action(Enum):
    """What a request does about a ghost lock."""

    FOLLOW = "follow"
    """Go to the owner's worker now."""
    WAIT = "wait"
    """Wait until the lock is over, and decide anew."""
    COMPUTE = "compute"
    """Compute the prefix again elsewhere, as if there were no lock."""
    TAKE_OVER = "take_over"
    """Compute it elsewhere in the owner's place, and replace its lock."""


class Step(NamedTuple):
    """One decision about a lock."""

    action: Action
    forecast: Forecast
    """Of the worker to which the request goes, now or, as far as can be told, after the wait."""
    until: float
    """End of the wait; loop clock, s."""


class Choice(NamedTuple):
    """What a request that encounters ghost locks has to choose from."""

    match: PrefixMatch
    """What is known of where the request's prefix is."""
    candidates: Candidates
    """The workers that may take it."""
    recompute: Forecast
    """The best forecast of computing the prefix again, as if there were no lock."""
    now: float
    """Loop clock, s."""
    budget_ends_at: float
    """End of the request's wait budget; loop clock, s."""


def encountered_locks(
    locks: SingleFlight, match: PrefixMatch, namespaces: Iterable[str | None], tokens_min: int
) -> list[EncounteredLock]:
    """Return the locks to honour, at most one of each namespace.

    tokens_min: a lock that covers less of what its namespace does not have yet is not worth a wait.
    """
    found = []
    for namespace in namespaces:
        if namespace is None:
            continue
        warm = match.warm_in(namespace)
        encountered = locks.find(namespace, match.prompt, warm)
        if encountered is not None:
            covered = match.tokens_at(encountered.boundary) - (match.tokens_at(warm) if warm >= 0 else 0)
            if covered >= tokens_min:
                found.append(encountered)
    return found


def recompute_forecast(
    ranking: Ranking, encountered: Sequence[EncounteredLock], best: Forecast, draw: Draw
) -> Forecast:
    """Return the best forecast of computing a prefix again, away from the owners of its locks.

    Owners are left out since this router's history counts what they compute as local to them already. If all workers
    are owners, only the first one is left out. best: returned when no worker is left.
    """
    owners = [one.lock.worker for one in encountered]
    return ranking.best(draw, owners) or ranking.best(draw, owners[:1]) or best


def wait_budget_s(recompute: Forecast, bias: float) -> float:
    """Return how long a request may wait. bias: observed over forecast TTFT, lately."""
    return recompute.ttft_ms / 1e3 * WAIT_BUDGET_FACTOR * max(1.0, bias)


def follow_any(choice: Choice, encountered: Sequence[EncounteredLock]) -> tuple[GhostLock, Step]:
    """Return what a request does that encounters several locks, and about which of them.

    encountered: at least one, of namespaces that cannot share with each other: where one is not worth following,
    another may be.
    """
    steps = [(one.lock, follow(choice, one)) for one in encountered]
    followed = [found for found in steps if found[1].action in (Action.FOLLOW, Action.WAIT)]
    if followed:
        return min(followed, key=lambda found: found[1].forecast.total_ms)
    return next((found for found in steps if found[1].action is Action.TAKE_OVER), steps[0])


def follow(choice: Choice, encountered: EncounteredLock) -> Step:
    """Return what a request does about one live, confirmed lock."""
    lock, recompute, now = encountered.lock, choice.recompute, choice.now
    ready_ms = max(0.0, lock.ready_at - now) * 1e3
    may_wait = now < choice.budget_ends_at
    if not may_wait and now >= lock.ready_at:
        return Step(Action.TAKE_OVER, recompute, now)
    late = now - lock.ready_at > LATE * recompute.ttft_ms / 1e3
    at_owner = None if late else _at_owner(choice, encountered, ready_ms)
    pulled = _pulled_after_wait(choice, encountered, ready_ms)
    in_time = may_wait and now + ready_ms / 1e3 <= choice.budget_ends_at
    if pulled is not None and in_time and (at_owner is None or pulled.total_ms < at_owner.forecast.total_ms):
        return Step(Action.WAIT, pulled, choice.budget_ends_at)
    if at_owner is not None and is_bearable(at_owner.forecast, recompute):
        if at_owner.shares_prefill:
            return Step(Action.FOLLOW, at_owner.forecast, now)
        if in_time:
            return Step(Action.WAIT, at_owner.forecast, choice.budget_ends_at)
    return Step(Action.COMPUTE, recompute, now)


def is_bearable(at_owner: Forecast, recompute: Forecast) -> bool:
    """Return whether a prompt should go to the owner's worker: not much later there, or others lose less."""
    return at_owner.ttft_ms <= OVERLOAD * recompute.ttft_ms or at_owner.total_ms <= OVERLOAD * recompute.total_ms


class _AtOwner(NamedTuple):
    """The forecast of going to the owner's worker, and whether that engine shares what it is computing."""

    forecast: Forecast
    shares_prefill: bool


def _at_owner(choice: Choice, encountered: EncounteredLock, ready_ms: float) -> _AtOwner | None:
    """Forecast going where the prefix is being computed: it is ahead in the queue there, and local after that."""
    match, candidates = choice.match, choice.candidates
    owner = candidates.find(encountered.lock.worker)
    if owner is None:
        return None
    place, worker = owner
    local, pullable, _ = match.at(worker)
    then = WorkerMatch(max(local, match.tokens_at(encountered.boundary)), pullable, ready_ms)
    return _AtOwner(candidates.forecast_at(place, then), worker.shares_prefill)


def _pulled_after_wait(choice: Choice, encountered: EncounteredLock, ready_ms: float) -> Forecast | None:
    """Forecast the best of waiting for the prefix and pulling it elsewhere; None where computing again is faster."""
    match = choice.match
    if not match.pulls:
        return None
    covered = match.tokens_at(encountered.boundary)
    return choice.candidates.best_pull(encountered.namespace, covered, ready_ms, encountered.lock.worker)
