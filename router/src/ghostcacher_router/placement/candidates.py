"""Finds the workers that may take a request, or the error for the client when none can."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ghostcacher_connector.core.types import PdRole
from ghostcacher_router.ports import FleetPort, WorkerPort
from ghostcacher_router.signals.adapter_costs import is_adapter
from ghostcacher_router.signals.stored_objects import StoredObjects
from ghostcacher_router.types import Ask, NoWorker, WorkerState

RETRY_AFTER_S = 2
"""When the client may come back. A worker that was down is probed again sooner than that."""

RANK_HEADER = b"x-data-parallel-rank"
RANK_DIGITS_MAX = 9

NAMES_SHOWN_MAX = 64
NAME_CHARS_MAX = 256

ANSWERS = (WorkerState.READY, WorkerState.DRAINING)

FULL_MAX = 8
"""Sets of workers that may have no more requests for which a model's candidates are remembered."""


class Candidates(NamedTuple):
    """The workers that may take a request."""

    workers: Sequence[WorkerPort]
    """At least one; they serve the request's model."""
    namespaces: tuple[str | None, ...]
    """Of these workers, each once. Plain engines have none, and report nothing."""
    shares: bool
    """Whether any of these workers has a namespace, and so shares its blocks."""
    adapter: str | None
    """The LoRA adapter that the request names, where it is one at any of these workers."""


class _Roles(NamedTuple):
    """The workers of one model by what they do where prefill and decode are apart."""

    workers: Sequence[WorkerPort]
    """All of them: the fleet's own list."""
    computing: Sequence[WorkerPort]
    """Those that compute prompts, and hand them over."""
    answering: Sequence[WorkerPort]
    """Those that answer; all, where there are no others."""
    apart: bool
    """Whether there are both."""


class _Seen(NamedTuple):
    """The candidates of requests that name no worker."""

    listed: Sequence[WorkerPort]
    """The fleet's list that they were found in."""
    found: dict[tuple[str, ...], Candidates]
    """By the workers that could have no more requests."""


class CandidateFinder:
    """Finds candidates. Results are kept: the fleet's lists stay the same objects until the fleet changes.

    So do those that are made here, also while workers that have just returned may have few requests: whatever is known
    of a list of hundreds of workers would be found anew for each request.
    """

    def __init__(self, fleet: FleetPort, stored: StoredObjects, in_flight: Callable[[str], int]) -> None:
        """in_flight: returns how many requests of this router are at a worker."""
        self._fleet, self._stored, self._in_flight = fleet, stored, in_flight
        self._seen: dict[tuple[str | None, bool], _Seen] = {}
        """By model; of requests that are to have the prompt computed alone apart."""
        self._roles: dict[str | None, _Roles] = {}

    def find(self, ask: Ask) -> Candidates:
        """Return the candidates of a request. Raises NoWorker.

        A client that names a data-parallel rank gets a worker of that rank, or one whose ranks are not known here. A
        request that needs a stored object goes to the worker that holds it, also while that one is being drained. Once
        that worker has left the fleet, any other says in the API's own words that there is no such object.
        """
        if ask.shape.needs_id is not None and (holder := self._holder(ask, ask.shape.needs_id)) is not None:
            return _candidates([holder], ask.shape.model)
        model = ask.shape.model
        base = self._fleet.base_of(model)
        workers = self._fleet.serving(model)
        if not workers:
            for computes in (False, True):
                self._seen.pop((model, computes), None)
            self._roles.pop(model, None)
            raise _nobody(base or model, self._fleet.models())
        wanted, limits = _wanted_rank(ask), self._fleet.limits()
        # Those that a base model's workers find by themselves have whatever name clients think of.
        usual = not ask.exclude and wanted is None and base is None
        key, full = (model, ask.step is PdRole.PREFILL), self._full(limits) if limits else ()
        seen = self._seen.get(key) if usual else None
        if seen is not None and seen.listed is workers and (known := seen.found.get(full)) is not None:
            return known
        listed, workers = workers, self._in_role(base or model, workers, ask.step)
        if wanted is not None:
            workers = [worker for worker in workers if worker.data_parallel_rank in (None, wanted)]
            if not workers:
                raise NoWorker(400, f"No worker has the data-parallel rank {wanted}.", kind="no_such_rank")
        if ask.exclude:
            workers = [worker for worker in workers if worker.name not in ask.exclude]
            if not workers:
                message = "Every worker that could take the request has refused it. Please try again."
                raise NoWorker(503, message, kind="no_worker", retry_after_s=RETRY_AFTER_S)
        if full:
            among = frozenset(full)
            free = [worker for worker in workers if worker.name not in among]
            # When none may have one more, all may.
            workers = free if 0 < len(free) < len(workers) else workers
        found = _candidates(workers, model)
        if usual:
            if seen is None or seen.listed is not listed:
                seen = self._seen[key] = _Seen(listed, {})
            if len(seen.found) >= FULL_MAX:
                seen.found.clear()
            seen.found[full] = found
        return found

    def hands_over(self, model: str | None) -> bool:
        """Say whether some workers only compute prompts for a model, and others answer."""
        workers, known = self._fleet.serving(model), self._roles.get(model)
        if known is None or known.workers is not workers:
            known = self._roles_of(self._fleet.base_of(model) or model, workers)
        return known.apart

    def _in_role(self, model: str | None, workers: Sequence[WorkerPort], step: PdRole | None) -> Sequence[WorkerPort]:
        """Return the workers for a step, or for a whole request. workers: the fleet's, of this model."""
        roles = self._roles_of(model, workers)
        if step is not PdRole.PREFILL:
            return roles.answering
        if not roles.apart:
            raise NoWorker(503, "No worker computes prompts alone.", kind="no_worker", retry_after_s=RETRY_AFTER_S)
        return roles.computing

    def _roles_of(self, model: str | None, workers: Sequence[WorkerPort]) -> _Roles:
        known = self._roles.get(model)
        if known is None or known.workers is not workers:
            computing = [worker for worker in workers if worker.pd_role is PdRole.PREFILL]
            answering = [worker for worker in workers if worker.pd_role is not PdRole.PREFILL]
            apart = bool(computing and answering)
            known = _Roles(workers, computing, answering if apart else workers, apart)
            if workers:
                self._roles[model] = known
        return known

    def _full(self, limits: Mapping[str, int]) -> tuple[str, ...]:
        """Return the workers that may have no more requests in flight."""
        return tuple([name for name, limit in limits.items() if self._in_flight(name) >= limit])

    def _holder(self, ask: Ask, needs_id: str) -> WorkerPort | None:
        """Return the worker that holds an object; None when nobody knows, or when it is gone. Raises NoWorker."""
        name = self._stored.holder(needs_id)
        worker = None if name is None else self._worker_of(name)
        if worker is None:
            return None
        if worker.name != name:
            self._stored.put(needs_id, worker.name)
        if worker.name in ask.exclude or worker.state not in ANSWERS:
            message = f"The worker that holds `{needs_id[:NAME_CHARS_MAX]}` does not answer. Please try again."
            raise NoWorker(503, message, kind="no_worker", retry_after_s=RETRY_AFTER_S)
        return worker

    def _worker_of(self, name: str) -> WorkerPort | None:
        """Return a worker by its name, or by the one that it had while it was known by its URL only."""
        workers = self._fleet.workers
        by_url = (worker for worker in workers.values() if worker.endpoint.name == name)
        return workers.get(name) or next(by_url, None)


def _wanted_rank(ask: Ask) -> int | None:
    """Return the data-parallel rank that a client names; None when it names none, or nothing that is a number."""
    named = ask.headers.get(RANK_HEADER)
    if named is None or not named.isdigit() or len(named) > RANK_DIGITS_MAX:
        return None
    return int(named)


def _candidates(workers: Sequence[WorkerPort], model: str | None) -> Candidates:
    namespaces = tuple(dict.fromkeys(worker.namespace for worker in workers))
    is_one = model is not None and any(is_adapter(worker, model) for worker in workers)
    return Candidates(
        workers, namespaces, any(namespace is not None for namespace in namespaces), model if is_one else None
    )


def _nobody(model: str | None, models: Sequence[str]) -> NoWorker:
    if model is not None and models and model not in models:
        known = ", ".join(models[:NAMES_SHOWN_MAX]) + (", ..." if len(models) > NAMES_SHOWN_MAX else "")
        message = f"The model `{model[:NAME_CHARS_MAX]}` does not exist. Known models: {known}"
        return NoWorker(404, message, kind="model_not_found")
    what = "No worker is ready" if model is None else f"No worker of the model `{model[:NAME_CHARS_MAX]}` is ready"
    return NoWorker(503, f"{what}. Please try again.", kind="no_worker", retry_after_s=RETRY_AFTER_S)
