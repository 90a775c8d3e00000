"""Chooses among the forecasts of one request, of which only those are made in full that somebody looks at.

Of workers that are about as good, two are drawn at random, and the one with fewer requests of late is taken. A new text
comes to stay where it is sent first, and so do the requests for it. By chance alone some workers would get twice as
many texts as others (ten each, in a fleet of 64); with two to choose from hardly any gets a third more, and still
routers that know nothing of each other do not all take the same one. Where nothing is new, chance alone decides.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from math import inf
from random import Random
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from ghostcacher_router.ports import WorkerPort
from ghostcacher_router.signals.ttft_forecast import Column, best_of, tie_limit
from ghostcacher_router.types import Forecast


class Draw(NamedTuple):
    """How one of several workers is chosen that are about as good."""

    rng: Random
    recent: Callable[[str], float]
    """Returns how many requests a worker was sent of late."""

    def of(self, count: int, name_of: Callable[[int], str]) -> int:
        """Return the number of one of so many workers. name_of: returns a worker's name."""
        if count == 1:
            return 0
        one, two = int(self.rng.random() * count), int(self.rng.random() * count)
        return two if self.recent(name_of(two)) < self.recent(name_of(one)) else one


class Ranking(Protocol):
    """What a request would cost at each worker of a list, at one moment."""

    def at(self, worker: str) -> Forecast | None:
        """Return the forecast at a worker; None when it is not among them."""

    def forecast_at(self, place: int) -> Forecast:
        """Return the forecast at a worker, given by its place in the list."""

    def totals(self) -> Sequence[float]:
        """Return the `total_ms` of each forecast."""

    def best(self, draw: Draw, without: Collection[str] = ()) -> Forecast | None:
        """Return the least forecast, or one that counts as equal. None when no worker is left.

        without: workers that are left out.
        """

    def best_place(self, draw: Draw, prices: Sequence[float] | Column | None = None) -> int:
        """Return the place of the worker with the least forecast, or one that counts as equal.

        prices: what each forecast counts for beside its own total, in the order of the workers.
        """


Totals = TypeVar("Totals", Sequence[float], Column)


class _Totals(Generic[Totals]):
    """What both rankings are made of: totals, and how the forecast at a place is made."""

    __slots__ = ("_places", "_total_ms", "_workers", "forecast_at")

    def __init__(
        self,
        total_ms: Totals,
        workers: Sequence[WorkerPort],
        places: Mapping[str, int],
        forecast_at: Callable[[int], Forecast],
    ) -> None:
        """total_ms: of each worker's forecast. places: worker -> its place. forecast_at: makes the one at a place."""
        self._total_ms: Totals = total_ms
        self._workers, self._places, self.forecast_at = workers, places, forecast_at

    def at(self, worker: str) -> Forecast | None:
        place = self._places.get(worker)
        return None if place is None else self.forecast_at(place)

    def _places_of(self, workers: Collection[str]) -> list[int]:
        """Return the places of those workers that are in the list."""
        return [place for worker in workers if (place := self._places.get(worker)) is not None]

    def _one_of(self, draw: Draw, equal: Sequence[int]) -> int:
        """Return one of the places that count as equal."""
        if len(equal) == 1:
            return equal[0]
        return equal[draw.of(len(equal), lambda number: self._workers[equal[number]].name)]


class ListRanking(_Totals[Sequence[float]]):
    """A ranking of a few workers."""

    __slots__ = ()

    def totals(self) -> Sequence[float]:
        return self._total_ms

    def best(self, draw: Draw, without: Collection[str] = ()) -> Forecast | None:
        total_ms = self._total_ms
        left_out = self._places_of(without)
        if left_out:
            if len(set(left_out)) == len(total_ms):
                return None
            total_ms = [inf if place in left_out else total for place, total in enumerate(total_ms)]
        return self.forecast_at(self._one_of(draw, best_of(total_ms)))

    def best_place(self, draw: Draw, prices: Sequence[float] | Column | None = None) -> int:
        total_ms = self._total_ms
        if prices is not None:
            total_ms = [total + price for total, price in zip(total_ms, prices, strict=True)]
        return self._one_of(draw, best_of(total_ms))


class ColumnRanking(_Totals[Column]):
    """A ranking of many workers."""

    __slots__ = ()

    def totals(self) -> Sequence[float]:
        found: list[float] = self._total_ms.tolist()
        return found

    def best(self, draw: Draw, without: Collection[str] = ()) -> Forecast | None:
        total_ms = self._total_ms
        left_out = self._places_of(without)
        if left_out:
            total_ms = total_ms.copy()
            total_ms[left_out] = np.inf
            if float(total_ms.min()) == np.inf:
                return None
        return self.forecast_at(self._drawn(draw, total_ms))

    def best_place(self, draw: Draw, prices: Sequence[float] | Column | None = None) -> int:
        return self._drawn(draw, self._total_ms if prices is None else self._total_ms + prices)

    def _drawn(self, draw: Draw, total_ms: Column) -> int:
        # Not `min()`, which is a function of Python in front of the same.
        least_ms = total_ms.item(total_ms.argmin())
        return self._one_of(draw, (total_ms <= tie_limit(least_ms)).nonzero()[0].tolist())
