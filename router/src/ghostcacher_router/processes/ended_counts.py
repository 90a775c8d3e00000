"""What processes that have ended had counted: without it the router's sums would fall whenever one is replaced."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from ghostcacher_router.metrics.catalog import RouterMetrics
from ghostcacher_router.metrics.instruments import OTHER, Counter
from ghostcacher_router.metrics.merging import counts_of, merged_metrics

Counts = Mapping[str, Any]
"""Counters and histograms, as `counts_of` returns them."""

NAMES_MAX: Final = 64
"""Of the last processes that have ended: one that is asked for what it has counted answers within seconds."""

_counts = msgspec.json.Decoder(dict[str, Any])


class Ended(msgspec.Struct, frozen=True):
    """What the supervisor tells of the processes that have ended, and of those that have counted their last."""

    names: tuple[str, ...] = ()
    """The last ones. One of them that answers still is counted twice if its answer is added."""
    counts: dict[str, Any] = {}
    """Of all of them, together."""


_ended = msgspec.json.Decoder(Ended)


class EndedCounts:
    """The sums of all of them, as the supervisor keeps them. As bounded as one router's own."""

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}
        self._names = deque[str](maxlen=NAMES_MAX)

    def __repr__(self) -> str:
        return f"EndedCounts({len(self._sums)} metrics)"

    def __bool__(self) -> bool:
        return bool(self._sums)

    def add(self, name: str, encoded: bytes) -> None:
        """Add what the process of a name had counted, as `encoded` returns it."""
        self._sums = counts_of(merged_metrics([self._sums, decoded(encoded)]))
        self._names.append(name)

    def encoded(self) -> bytes:
        """Return them for the processes that go on, in one line."""
        return msgspec.json.encode(Ended(tuple(self._names), self._sums))


def encoded(counts: Counts) -> bytes:
    """Return counts in one line."""
    return msgspec.json.encode(counts)


def decoded(line: bytes | str) -> Counts:
    """Return the counts of a line that `encoded` has made."""
    return _counts.decode(line)


def decoded_ended(line: bytes | str) -> Ended:
    """Return what `EndedCounts.encoded` has made a line of."""
    return _ended.decode(line)


def metrics_of_all(living: Iterable[Counts], ended: Counts, workers: Iterable[str]) -> RouterMetrics:
    """Return metrics that have counted what all processes have, those that have ended among them.

    workers: those that are there now. Others of which no living process has a series have left for good, as a process
    drops the series of those that do. One that is there may have none yet, where all processes have just started.
    """
    living = list(living)
    merged = merged_metrics([*living, ended])
    places = {
        name: instrument.labels.index("worker")
        for name, instrument in merged.instruments.items()
        if isinstance(instrument, Counter) and "worker" in instrument.labels
    }

    def counted(counts: Counts) -> set[str]:
        return {key[place] for name, place in places.items() for key, _ in counts.get(name, ())}

    for worker in counted(ended).difference(workers, (OTHER,), *map(counted, living)):
        merged.forget_worker(worker)
    return merged
