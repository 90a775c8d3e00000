"""Bounded-load consistent hashing: a prompt goes to the worker that its prefix names, unless that one is full.

It is rendezvous hashing: for each prefix every worker has a rank. All routers rank alike without exchanging anything,
and when a worker joins or leaves, only the prefixes that it ranks first for move.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil

from xxhash import xxh3_64_intdigest

LOAD_BOUND = 1.25
"""A worker takes at most so many times the mean load; beyond that the next one in rank is taken."""

LOAD_MIN = 4
"""Requests that every worker may have: an engine batches so few without loss, and a mean near zero bounds nothing."""


def bound_of(loads: Sequence[int]) -> int:
    """Return how many requests a worker may have, including the one that is being placed. loads: of each worker."""
    return max(LOAD_MIN, ceil(LOAD_BOUND * (sum(loads) + 1) / len(loads)))


def pick(key: bytes, workers: Sequence[str], load_of: Callable[[str], int]) -> str:
    """Return the worker of the highest rank for `key` that is not full.

    workers: at least one. load_of: returns a worker's requests in flight.
    """
    loads = [load_of(worker) for worker in workers]
    bound = bound_of(loads)
    free = [worker for worker, load in zip(workers, loads, strict=True) if load < bound]
    assert free, "the least loaded worker is below the mean"
    return first_in_rank(key, free)


def first_in_rank(key: bytes, workers: Sequence[str]) -> str:
    """Return the worker of the highest rank for `key`, however full it is. workers: at least one."""
    return max(workers, key=lambda worker: (xxh3_64_intdigest(key + worker.encode()), worker))
