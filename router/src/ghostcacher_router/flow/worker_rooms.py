"""Which workers have room for another request. A worker that has none is saturated: what it gets only waits there.

A turn is given while any worker has room. Which one gets the request is another question: one without room may still be
the best, since its prefix is there, and how long a request waits there the forecasts know. What they do not know is how
many an engine runs at a time: a worker is full that has all the requests it may have, and gets no more.

    it reports its load     its requests, those that wait in its scheduler, the prompts that it has to compute, and its
                            KV memory, each against a limit of its own; what others have sent is in its report
    it does not             this router's requests there, against its share of the limit: one part for each router

Where other routers see the same report and send at the same time, each may send no more than its share of what may wait
there until the next report comes: together they overshoot by that at most. A worker that has nothing to do has room,
whatever the limits say.

Nobody asks again and again: who is saturated is kept, and looked at anew where something changes (`placed`, `freed`,
and `look_again` when reports have come, or the fleet has changed).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ghostcacher_connector.core.types import PdRole
from ghostcacher_router.ports import Clock, FleetPort, WorkerPort
from ghostcacher_router.signals.queue_estimate import QueueEstimator
from ghostcacher_router.signals.standing import Standing

LISTS_MAX = 256
"""Lists of workers of which something is remembered. The fleet's lists stay the same objects until it changes."""


class RoomLimits(NamedTuple):
    """From where on a worker is saturated. See the settings of the same names."""

    requests: int = 256
    waiting: int = 8
    work_ms: float = 2000.0
    kv_share: float = 0.95


def places_in(standing: Standing, limits: RoomLimits, routers: int) -> int:
    """Return how many more requests a worker may have from one of so many routers, whatever it has to do. Pure."""
    if not standing.reported:
        left = max(1, limits.requests // routers) - standing.own
    else:
        left = limits.requests - standing.requests
    return max(0 if standing.requests else 1, left)


def room_in(standing: Standing, limits: RoomLimits, routers: int) -> int:
    """Return how many more requests a worker may get now from this one of so many routers. Pure."""
    least, places = 0 if standing.requests else 1, places_in(standing, limits, routers)
    if not standing.reported:
        return places
    if standing.work_ms >= limits.work_ms or standing.kv_share >= limits.kv_share:
        return least
    ahead = min(limits.waiting - standing.waiting, -(-limits.waiting // routers))
    return max(least, min(places, ahead - standing.on_the_way))


class _Listed(NamedTuple):
    """What is remembered of a list of workers."""

    workers: Sequence[WorkerPort]
    groups: Sequence[Sequence[WorkerPort]]
    """Those that do the same step of a request, for each step."""
    names: frozenset[str]


class WorkerRooms:
    """Who has room, in the fleet of one router. On the event loop only."""

    def __init__(
        self, fleet: FleetPort, queues: QueueEstimator, limits: RoomLimits, routers: Callable[[], int], clock: Clock
    ) -> None:
        """routers: returns how many routers place requests at these workers, this one included."""
        self._fleet, self._queues, self._limits = fleet, queues, limits
        self._routers, self._clock = routers, clock
        self._lists: dict[int, _Listed] = {}
        self.saturated: set[str] = set()
        """The workers that have no room, by name."""
        self.full: set[str] = set()
        """Those of them that have all the requests that they may have."""

    def __repr__(self) -> str:
        return f"WorkerRooms(saturated={sorted(self.saturated)})"

    def room(self, worker: WorkerPort) -> int:
        """Return how many more requests a worker may get now."""
        return self._look_at(worker)[0]

    def has_room(self, model: str | None, count: int = 1, exclude: frozenset[str] = frozenset()) -> bool:
        """Say whether the workers of a model, but for those that are excluded, have room for so many more requests.

        Where prompts are computed apart, both those that compute and those that answer must have it. A model that
        nobody serves, or nobody who is not excluded, has room: whoever places the request says what is wrong.
        """
        workers = self._fleet.serving(model)
        return not workers or all(self._have_room(group, count, exclude) for group in self._listed(workers).groups)

    def shares(self, one: str | None, other: str | None) -> bool:
        """Say whether two models have a worker in common, as adapters and their base have."""
        first, second = self._fleet.serving(one), self._fleet.serving(other)
        if first is second or not (first and second):
            return bool(first)
        return not self._listed(first).names.isdisjoint(self._listed(second).names)

    def placed(self, worker: str) -> None:
        """Note that a worker has got a request."""
        found = self._fleet.workers.get(worker)
        if found is not None:
            self._note(found)

    def freed(self, worker: str) -> None:
        """Note that a request has left a worker."""
        if worker in self.saturated:
            self.saturated.discard(worker)
            self.full.discard(worker)
            if (found := self._fleet.workers.get(worker)) is not None:
                self._note(found)

    def look_again(self) -> None:
        """Look at every worker: load reports have come, or the fleet has changed."""
        self.saturated, self.full = set(), set()
        for worker in self._fleet.workers.values():
            self._note(worker)

    def _note(self, worker: WorkerPort) -> None:
        """Keep a worker among those without room, or without a place, where it has none."""
        room, places = self._look_at(worker)
        if not room:
            self.saturated.add(worker.name)
        if not places:
            self.full.add(worker.name)

    def _look_at(self, worker: WorkerPort) -> tuple[int, int]:
        """Return how many more requests a worker has room for now, and how many more it may have at all."""
        standing, routers = self._queues.standing(worker, self._clock()), max(1, self._routers())
        room, places = room_in(standing, self._limits, routers), places_in(standing, self._limits, routers)
        limit = self._fleet.limits().get(worker.name)
        if limit is not None:
            places = min(places, max(0, limit - self._queues.in_flight(worker.name)))
        return min(room, places), places

    def _have_room(self, workers: Sequence[WorkerPort], count: int, exclude: frozenset[str]) -> bool:
        saturated, left, nobody = self.saturated, count, True
        for worker in workers:
            if worker.name in exclude:
                continue
            nobody = False
            if worker.name not in saturated:
                if left == 1:
                    return True
                left -= self.room(worker)
                if left <= 0:
                    return True
        return nobody

    def _listed(self, workers: Sequence[WorkerPort]) -> _Listed:
        known = self._lists.get(id(workers))
        if known is None or known.workers is not workers:
            computing = [worker for worker in workers if worker.pd_role is PdRole.PREFILL]
            answering = [worker for worker in workers if worker.pd_role is not PdRole.PREFILL]
            apart = computing and answering
            if len(self._lists) >= LISTS_MAX:
                self._lists.clear()
            names = frozenset(worker.name for worker in workers)
            known = self._lists[id(workers)] = _Listed(workers, [computing, answering] if apart else [workers], names)
        return known
