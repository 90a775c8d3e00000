"""Keeps a worker from getting far more requests than the others: a price for what exceeds its *fair share*. Pure.

A worker that holds what everybody asks for gets all of that. What it computes is little, so its queue stays short, and
its answers are decoded a little slower; but it is the first one that a burst is too much for. Forecasts never lead to
the copy that would help: one request would have to pay for the pull alone, and those after it gain by it.

So requests of late are counted. A worker's fair share of them is as its speed is to that of all. Up to `BOUND` times
that nothing changes. Each request beyond makes the next one dearer there, until the pull elsewhere is worth it. From
then on the text is at two workers, whose forecasts are about the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Column = npt.NDArray[np.float64]

BOUND = 1.25
"""A worker is sent so many times its fair share at no price: as bounded-load hashing has it."""

SPARE = 4.0
"""Requests beyond that which have no price, either: few are never even, and a share near zero bounds nothing."""

MS_EACH = 15.0
"""What each request beyond adds to the price of the next one, in ms: some ten of them are worth a usual pull. It hardly
matters: what 8,192 tokens take to pull is paid after 3 requests or after 20, and then there are two workers."""

MS_MAX = 250.0
"""The most that a request may lose by it, in ms. What takes longer to pull is not copied for the sake of balance; and a
worker that is new, and so has had no requests of late, gets most of them only until its queue is as much longer."""


def free_of(recent: float, speeds: float) -> float:
    """Return how many requests per speed are sent at no price, but for `SPARE`. recent, speeds: of all workers."""
    return BOUND * recent / speeds


def prices(recent: Sequence[float], speeds: Sequence[float]) -> list[float]:
    """Return the price of sending each worker one more request, in ms.

    recent: how many each was sent of late. speeds: of each, in any unit.
    """
    free = free_of(sum(recent), sum(speeds))
    beyond = [count - (free * speed + SPARE) for count, speed in zip(recent, speeds, strict=True)]
    return [min(MS_EACH * count, MS_MAX) if count > 0.0 else 0.0 for count in beyond]


def price_column(recent: Column, speeds: Column, speed: float, place: int | None = None) -> Column | None:
    """Return the same of many workers, but for rounding.

    speed: of all, together. place: None is returned when the worker there has no price.
    """
    free = free_of(float(np.add.reduce(recent)), speed)
    if place is not None and recent.item(place) <= free * speeds.item(place) + SPARE:
        return None
    return np.minimum(np.maximum(recent - (free * speeds + SPARE), 0.0) * MS_EACH, MS_MAX)
