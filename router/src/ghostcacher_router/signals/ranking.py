"""Chooses among the forecasts of one request, of which only those are made in full that somebody looks at."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from random import Random
from typing import Protocol

import numpy as np

from ghostcacher_router.signals.ttft_forecast import Column, best_of, tie_limit
from ghostcacher_router.types import Forecast


class Ranking(Protocol):
    """What a request would cost at each worker of a list, at one moment."""

    def at(self, worker: str) -> Forecast | None:
        """Return the forecast at a worker; None when it is not among them."""

    def best(self, rng: Random, without: Collection[str] = ()) -> Forecast | None:
        """Return the least forecast; one of those that count as equal at random. None when no worker is left.

        without: workers that are left out.
        """


class ListRanking:
    """A ranking of forecasts that are all made."""

    def __init__(self, forecasts: Sequence[Forecast]) -> None:
        self._forecasts = forecasts

    def at(self, worker: str) -> Forecast | None:
        return next((found for found in self._forecasts if found.worker == worker), None)

    def best(self, rng: Random, without: Collection[str] = ()) -> Forecast | None:
        left = [found for found in self._forecasts if found.worker not in without] if without else self._forecasts
        if not left:
            return None
        equal = best_of(left)
        return equal[0] if len(equal) == 1 else equal[int(rng.random() * len(equal))]


class ColumnRanking:
    """A ranking by totals alone."""

    def __init__(self, total_ms: Column, places: Mapping[str, int], forecast_at: Callable[[int], Forecast]) -> None:
        """total_ms: of each worker's forecast. places: worker -> its place. forecast_at: makes the one at a place."""
        self._total_ms, self._places, self._forecast_at = total_ms, places, forecast_at

    def at(self, worker: str) -> Forecast | None:
        place = self._places.get(worker)
        return None if place is None else self._forecast_at(place)

    def best(self, rng: Random, without: Collection[str] = ()) -> Forecast | None:
        total_ms = self._total_ms
        left_out = [place for worker in without if (place := self._places.get(worker)) is not None]
        if left_out:
            total_ms = total_ms.copy()
            total_ms[left_out] = np.inf
        least = float(total_ms.min())
        if least == np.inf:
            return None
        equal = (total_ms <= tie_limit(least)).nonzero()[0]
        return self._forecast_at(int(equal[0 if len(equal) == 1 else int(rng.random() * len(equal))]))
