"""How the router fared in each of the last intervals: differences of its counters, in a ring of fixed length.

A sample costs some ten microseconds, and one more for each worker that reports misses; nothing is done on a request's
path. What workers count since their start is told apart by incarnation, so that a restart is no negative number.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ghostcacher_connector.core.admin_api import Quantiles
from ghostcacher_connector.core.dashboard_api import FirstTokens, History, HistoryPoint
from ghostcacher_router.admin.reports import misses_of
from ghostcacher_router.fleet.worker import Worker
from ghostcacher_router.metrics.catalog import RouterMetrics, quantiles_of
from ghostcacher_router.metrics.instruments import Histogram
from ghostcacher_router.types import WorkerState

INTERVAL_S = 5.0
POINTS_MAX = 720
"""An hour."""
SERVER_ERROR, SERVER_ERRORS_END = 500, 600


class _Blocks(NamedTuple):
    """What a worker had counted when it was looked at last."""

    incarnation: bytes | None
    hits: int
    misses: Mapping[str, int]


class _Sums(NamedTuple):
    """The router's counters at one moment."""

    requests: float
    failed: float
    prompt_tokens: float
    hit_tokens: float
    saved_ttft_ms: float
    spread: tuple[tuple[int, ...], ...]
    """The buckets of each of `HistoryKeeper`'s histograms."""


class HistoryKeeper:
    """The history of one router. On the event loop only; `sample` is called every `INTERVAL_S`."""

    def __init__(
        self,
        router: str,
        metrics: RouterMetrics,
        workers: Mapping[str, Worker],
        in_flight: Callable[[str], int],
        *,
        clock: Callable[[], float],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """router: its name. in_flight: returns how many requests are at a worker. clock: of durations, s."""
        self._router, self._metrics, self._workers, self._in_flight = router, metrics, workers, in_flight
        self._clock, self._wall_clock = clock, wall_clock
        self._histograms = (metrics.ttft_ms, metrics.latency_ms, metrics.forecast_ratio)
        self._points: deque[HistoryPoint] = deque(maxlen=POINTS_MAX)
        self._blocks: dict[str, _Blocks] = {}
        self._sums, self._sampled_at = self._read(), clock()

    def __repr__(self) -> str:
        return f"HistoryKeeper(points={len(self._points)})"

    def sample(self) -> None:
        """Add what happened since the last call."""
        before = self._sums
        self._sums = now = self._read()
        began_at, self._sampled_at = self._sampled_at, self._clock()
        ttft_ms, overhead_ms, ratio = (
            _between(histogram, old, new)
            for histogram, old, new in zip(self._histograms, before.spread, now.spread, strict=True)
        )
        hits, misses = self._count_blocks()
        self._points.append(
            HistoryPoint(
                round(self._wall_clock(), 3),
                round(self._sampled_at - began_at, 3),
                requests=now.requests - before.requests,
                failed=now.failed - before.failed,
                prompt_tokens=now.prompt_tokens - before.prompt_tokens,
                hit_tokens=now.hit_tokens - before.hit_tokens,
                saved_ttft_ms=now.saved_ttft_ms - before.saved_ttft_ms,
                ttft_ms=ttft_ms,
                overhead_ms=overhead_ms,
                forecast_ratio=ratio,
                in_flight=sum(map(self._in_flight, self._workers)),
                ready=sum(worker.state is WorkerState.READY for worker in self._workers.values()),
                hit_blocks=hits,
                missed_blocks=misses,
            )
        )

    def since(self, after: float | None) -> History:
        """Return what is known of the time after one in seconds since 1970; None: all."""
        pairs = list(self._metrics.first_tokens)
        first_tokens = FirstTokens(
            forecast_ms=tuple(round(forecast_ms, 2) for forecast_ms, _ in pairs),
            observed_ms=tuple(round(observed_ms, 2) for _, observed_ms in pairs),
        )
        return History(
            router=self._router,
            now=round(self._wall_clock(), 3),
            interval_s=INTERVAL_S,
            points=tuple(point for point in self._points if after is None or point.at > after),
            first_tokens=first_tokens,
        )

    def _read(self) -> _Sums:
        metrics, by_status = self._metrics, self._metrics.requests_by_status()
        failed = sum(
            count
            for status, count in by_status.items()
            if status.isdecimal() and SERVER_ERROR <= int(status) < SERVER_ERRORS_END
        )
        return _Sums(
            sum(by_status.values()),
            failed,
            metrics.prompt_tokens.total,
            metrics.hit_tokens.total,
            metrics.saved_ttft_ms.total,
            tuple(tuple(histogram.counts) for histogram in self._histograms),
        )

    def _count_blocks(self) -> tuple[int, dict[str, int]]:
        """Return the hits and misses of all workers since the last call. What one had before it was known is none."""
        hits, misses = 0, dict[str, int]()
        known: dict[str, _Blocks] = {}
        for name, worker in self._workers.items():
            if worker.load is None:
                continue
            load = worker.load.load
            now = _Blocks(worker.incarnation, load.hit_blocks, misses_of(load.missed_blocks))
            before = self._blocks.get(name, now)
            if before.incarnation != now.incarnation:
                before = _Blocks(now.incarnation, 0, {})
            hits += max(0, now.hits - before.hits)
            for reason, count in now.misses.items():
                if (gained := count - before.misses.get(reason, 0)) > 0:
                    misses[reason] = misses.get(reason, 0) + gained
            known[name] = now
        self._blocks = known
        return hits, misses


def _between(histogram: Histogram, old: tuple[int, ...], new: tuple[int, ...]) -> Quantiles:
    """Return how the values are spread that came between two moments. old, new: the buckets then."""
    return quantiles_of(histogram, [later - earlier for later, earlier in zip(new, old, strict=True)])
