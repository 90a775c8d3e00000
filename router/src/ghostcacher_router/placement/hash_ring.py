"""Bounded-load consistent hashing: the same text to the same worker, without knowing anything, unless that one is full.

Rendezvous hashing: each worker has a rank for each text. Every replica ranks alike, and when a worker comes or goes,
only its own texts move.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil

from xxhash import xxh3_64_intdigest

LOAD_BOUND = 1.25
"""A worker takes at most so many times the mean load; the text overflows to its next one."""

LOAD_MIN = 4
"""Requests that every worker may have: an engine batches so few at no loss, and a mean near zero bounds nothing."""


def bound_of(loads: Sequence[int]) -> int:
    """Return how many requests a worker may have, one that is being placed included."""
    return max(LOAD_MIN, ceil(LOAD_BOUND * (sum(loads) + 1) / len(loads)))


def pick(key: bytes, workers: Sequence[str], load_of: Callable[[str], int]) -> str:
    """Return the best ranked worker that is not full. workers: at least one; load_of: requests in flight."""
    loads = [load_of(worker) for worker in workers]
    bound = bound_of(loads)
    free = [worker for worker, load in zip(workers, loads, strict=True) if load < bound]
    assert free, "the least loaded worker is below the mean"
    return max(free, key=lambda worker: (xxh3_64_intdigest(key + worker.encode()), worker))
