"""The queues of all workers as columns of numbers, so that one decision looks at hundreds of them at once.

Each queue has a *slot*, its place in all columns. `QueueEstimator` writes a slot when its estimate is made anew, so a
decision costs as many estimates as queues have changed since the one before it, whatever the size of the fleet.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from math import inf
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ghostcacher_router.ports import WorkerPort
from ghostcacher_router.signals.fair_shares import SPARE, price_column, prices
from ghostcacher_router.signals.ttft_forecast import EngineColumns
from ghostcacher_router.signals.worker_queue import RECENT_HALF_LIFE_S, QueueEstimate, WorkerQueue, faded

Column = npt.NDArray[np.float64]

LISTS_MAX = 16
"""Lists of workers whose slots are remembered. A model has one or two; others are made for single requests."""

RECENT_AT_MAX_S = 100 * RECENT_HALF_LIFE_S
"""Counts of recent requests are as of a time no longer ago than this: as numbers they double with each half-life."""

FEW = 8
"""So many slots are sooner written one by one than at once."""

NO_PULL = 1e300
"""Time to pull a token where nothing can be pulled: beyond all others, and no infinity, of which 0 would be NaN."""

_BUSY_UNTIL, _TRUSTED_UNTIL, _RECEIVED_AT, _FAILED_MS, _PULLING_UNTIL, _PULLS_MS = range(6)
_PREFILLING, _CAPACITY, _RECENT, _SPEED, _ENGINE = range(6, 11)
_COLUMNS = _ENGINE + len(EngineColumns._fields)


class _Rows(NamedTuple):
    """Columns of some queues; shape (queues,)."""

    all: Sequence[Column]
    engines: EngineColumns


class ListedQueues:
    """The queues of a list of workers, which stays as it is."""

    __slots__ = (
        "_rows",
        "_rows_of",
        "_slots",
        "capacity_min",
        "lacking",
        "places",
        "queues",
        "received_from",
        "reports",
        "speed",
        "speeds_version",
        "workers",
    )

    def __init__(self, workers: Sequence[WorkerPort], queues: Sequence[WorkerQueue]) -> None:
        """queues: of each of the workers."""
        self.workers, self.queues = workers, queues
        self.places: Mapping[str, int] = {worker.name: place for place, worker in enumerate(workers)}
        """Worker -> its place in the list."""
        self._slots: slice | npt.NDArray[np.intp] | None = None
        self._rows: _Rows | None = None
        self._rows_of: Column | None = None
        """The columns of all queues that they are parts of."""
        self.reports = -1
        """How many reports of any workers had been taken in when what follows was found."""
        self.speeds_version = -1
        """The version of the speeds then."""
        self.speed: float | None = None
        """Tokens of prompts that all compute in a ms, together; None before anybody has asked."""
        self.capacity_min: float | None = None
        """The least tokens that one of the workers' caches holds; None before anybody has asked."""
        self.received_from: float | None = None
        """When the oldest came of the reports that counted; loop clock, s. None before anybody has asked."""
        self.lacking: Sequence[int] = ()
        """The places of the workers whose reports did not count."""

    @property
    def slots(self) -> slice | npt.NDArray[np.intp]:
        """Return the queues' places in the columns."""
        if self._slots is None:
            slots = [queue.slot for queue in self.queues]
            self._slots = np.array(slots, dtype=np.intp)
            if slots == list(range(slots[0], slots[0] + len(slots))):
                # A part of the columns, which needs no copy.
                self._slots = slice(slots[0], slots[0] + len(slots))
        return self._slots

    def rows(self, values: Column) -> _Rows:
        """Return the columns of these queues, as they are now. values: those of all queues."""
        if self._rows is None or self._rows_of is not values:
            found = list(values[:, self.slots])
            rows = _Rows(found, EngineColumns(*found[_ENGINE:]))
            if not isinstance(self.slots, slice):
                # A copy, which is soon old.
                return rows
            self._rows, self._rows_of = rows, values
        return self._rows

    @property
    def reported(self) -> bool:
        """Return whether the report of any of the workers counts."""
        return len(self.lacking) < len(self.queues)

    def renew(self, reports: int, speeds_version: int) -> None:
        """Forget what a report may have changed, of these workers or of others.

        reports: how many have been taken in. speeds_version: of the speeds that follow from them.
        """
        if self.reports != reports or self.speeds_version != speeds_version:
            self.reports, self.speeds_version = reports, speeds_version
            self.speed = self.capacity_min = self.received_from = None


class QueueList:
    """The same as `QueueView` of a few workers."""

    __slots__ = ("estimates", "listed", "reported")

    def __init__(self, listed: ListedQueues, estimates: Sequence[QueueEstimate], reported: bool) -> None:
        """reported: whether a fresh load report stands behind any of them."""
        self.listed, self.estimates, self.reported = listed, estimates, reported

    def estimate_at(self, place: int) -> QueueEstimate:
        """Return the queue of the worker at a place of the list."""
        return self.estimates[place]

    def capacities(self) -> Sequence[float]:
        """Return how many tokens each worker's caches hold; 0 of a plain one."""
        return [found.capacity for found in self.estimates]

    def share_prices(self, now: float, place: int | None = None) -> Sequence[float] | None:
        """Return the price of sending each worker one more request, by its share of those of late: fair_shares.py.

        place: None is returned when the worker at this place of the list has no price.
        """
        queues = self.listed.queues
        if place is not None and queues[place].recent <= SPARE:
            return None
        recent = [queue.recent * faded(queue.recent_at, now) for queue in queues]
        found = prices(recent, [1.0 / one.engine.ms_per_token for one in self.estimates])
        return found if place is None or found[place] else None

    @property
    def capacity_min(self) -> float:
        """Return the least of these."""
        known = self.listed.capacity_min
        if known is None:
            known = self.listed.capacity_min = float(min(self.capacities()))
        return known

    @property
    def delayed(self) -> float:
        """Return how many requests wait for their first token at a worker, in the mean."""
        return sum([found.prefilling for found in self.estimates]) / len(self.estimates)


class QueueView(NamedTuple):
    """What a request would find at each worker of a list, at one moment. To be used before anything else happens."""

    listed: ListedQueues
    now: float
    """Loop clock, s."""
    estimate: Callable[[WorkerQueue, float], QueueEstimate]
    queue_ms: Column
    """Prefill time of everything that is ahead."""
    link_ms: Column | float
    """Time until the pulls that are ahead are done; 0.0 where there is none."""
    prefilling: Column
    """Requests that wait for their first token there."""
    capacity: Column
    recent: Column
    recent_at: float
    """Requests that were placed there of late, as many as there were at a time; loop clock, s."""
    speeds: Column
    """Tokens of prompts that it computes in a ms."""
    engines: EngineColumns
    reported: bool

    def estimate_at(self, place: int) -> QueueEstimate:
        """Return the queue of the worker at a place of the list."""
        return self.estimate(self.listed.queues[place], self.now)

    def capacities(self) -> Sequence[float]:
        """Return how many tokens each worker's caches hold; 0 of a plain one."""
        return [float(tokens) for tokens in self.capacity]

    def share_prices(self, now: float, place: int | None = None) -> Column | None:
        """Return the price of sending each worker one more request, by its share of those of late: fair_shares.py.

        place: None is returned when the worker at this place of the list has no price.
        """
        speed = self.listed.speed
        if speed is None:
            speed = self.listed.speed = float(np.add.reduce(self.speeds))
        return price_column(self.recent * faded(self.recent_at, now), self.speeds, speed, place)

    @property
    def capacity_min(self) -> float:
        """Return the least of these."""
        known = self.listed.capacity_min
        if known is None:
            known = self.listed.capacity_min = float(self.capacity.min())
        return known

    @property
    def delayed(self) -> float:
        """Return how many requests wait for their first token at a worker, in the mean."""
        return float(self.prefilling.sum()) / len(self.prefilling)


Queues = QueueList | QueueView


class QueueColumns:
    """The columns. On the event loop only."""

    def __init__(self) -> None:
        self._values = np.zeros((_COLUMNS, 16))
        self._free: list[int] = []
        self._used = 0
        self._lists: OrderedDict[int, ListedQueues] = OrderedDict()
        self._last: ListedQueues | None = None
        """The list that was asked for last."""
        self._recent_at = -inf
        """Recent requests are written as so many as there were at that time, or would have been; loop clock, s. All of
        them fade alike, so they need not be written anew as time passes."""

    def add(self) -> int:
        """Return a slot for a new queue."""
        if self._free:
            return self._free.pop()
        if self._used == self._values.shape[1]:
            self._values = np.concatenate([self._values, np.zeros_like(self._values)], axis=1)
        self._used += 1
        return self._used - 1

    def drop(self, slots: Sequence[int]) -> None:
        """Let go of the slots of queues that are gone."""
        self._free.extend(slots)
        self._lists.clear()
        self._last = None

    def listed(self, workers: Sequence[WorkerPort], queue_of: Callable[[WorkerPort], WorkerQueue]) -> ListedQueues:
        """Return the queues of a list of workers, which is not changed after this.

        queue_of: called with each worker of a list that is new here.
        """
        known = self._last
        if known is not None and known.workers is workers:
            return known
        known = self._lists.get(id(workers))
        if known is not None and known.workers is workers:
            self._lists.move_to_end(id(workers))
            self._last = known
            return known
        queues = [queue_of(worker) for worker in workers]
        found = self._last = self._lists[id(workers)] = ListedQueues(workers, queues)
        while len(self._lists) > LISTS_MAX:
            self._lists.popitem(last=False)
        return found

    def begin(self, now: float) -> None:
        """Note the time, before anything is written or viewed."""
        if now - self._recent_at > RECENT_AT_MAX_S:
            self._values[_RECENT] *= faded(self._recent_at, now)
            self._recent_at = now

    def write(self, queues: Sequence[WorkerQueue]) -> None:
        """Write the slots of queues whose estimates were made anew."""
        if len(queues) <= FEW:
            for queue in queues:
                self._values[:, queue.slot] = self._row(queue)
        else:
            # All workers may have reported: by itself a slot takes twice as long.
            slots = [queue.slot for queue in queues]
            numbers = chain.from_iterable(map(self._row, queues))
            rows = np.fromiter(numbers, np.float64, _COLUMNS * len(queues)).reshape(-1, _COLUMNS)
            self._values[:, slots] = rows.T

    def _row(self, queue: WorkerQueue) -> tuple[float, ...]:
        """Return what is in the columns of a queue, whose estimate this is from now on."""
        found = queue.written = queue.estimate
        assert found is not None, queue
        _, ms_per_token, step_ms, decode_ms, kv_free, pull_fixed_ms, pull_ms_per_token = found.engine
        return (
            queue.busy_until,
            queue.trusted_until,
            -inf if queue.load is None else queue.received_at,
            queue.failed_tokens * ms_per_token,
            queue.pulling_until,
            queue.pulls_ms,
            found.prefilling,
            found.capacity,
            queue.recent * faded(queue.recent_at, self._recent_at),
            1.0 / ms_per_token,
            ms_per_token,
            step_ms,
            decode_ms,
            inf if kv_free is None else kv_free,
            pull_fixed_ms,
            NO_PULL if pull_ms_per_token is None else pull_ms_per_token,
        )

    def view(
        self, listed: ListedQueues, now: float, stale_s: float, estimate: Callable[[WorkerQueue, float], QueueEstimate]
    ) -> QueueView:
        """Return what a request would find at the workers of a list now.

        stale_s: a load report that was received longer ago says nothing.
        estimate: returns the estimate of one queue; asked where no fresh report is there.
        """
        values, engines = listed.rows(self._values)
        if listed.received_from is None or now - listed.received_from > stale_s:
            received_at = values[_RECEIVED_AT]
            fresh = now - received_at <= stale_s
            listed.received_from = float(received_at[fresh].min(initial=inf))
            listed.lacking = (~fresh).nonzero()[0].tolist()
        queue_ms = np.minimum(values[_TRUSTED_UNTIL], now)
        np.subtract(values[_BUSY_UNTIL], queue_ms, out=queue_ms)
        queue_ms *= 1e3
        np.maximum(queue_ms, 0.0, out=queue_ms)
        queue_ms += values[_FAILED_MS]
        if listed.lacking:
            for place in listed.lacking:
                queue = listed.queues[place]
                found = estimate(queue, now)
                queue_ms[place] = found.queue_ms
                if queue.written is not found:
                    self.write([queue])
            values, engines = listed.rows(self._values)
        link_ms: Column | float = 0.0
        if np.count_nonzero(values[_PULLS_MS]):
            link_ms = np.maximum(np.minimum((values[_PULLING_UNTIL] - now) * 1e3, values[_PULLS_MS]), 0.0)
        return QueueView(
            listed,
            now,
            estimate,
            queue_ms,
            link_ms,
            values[_PREFILLING],
            values[_CAPACITY],
            values[_RECENT],
            self._recent_at,
            values[_SPEED],
            engines,
            listed.reported,
        )
