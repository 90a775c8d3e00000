"""Collects what happened since it was last asked, as a plain value that can cross any process boundary.

A delta is ``{metric: {label values: number, or list of numbers}}``: a counter's increase, a gauge's last value, a
histogram's observations. Which of them a metric has is in the catalog; label values are joined as `Metric.key_of` does.

Bounds: a histogram keeps at most `OBSERVATIONS_MAX` observations for each set of label values; what is left out is
counted in ``gc_observations_dropped_total``. Counters and gauges are one number each.
"""

from __future__ import annotations

import math
import threading
from typing import TypeAlias

from ghostcacher_connector.metrics.catalog import (
    HITS,
    METRICS,
    MISSES,
    OBSERVATIONS_DROPPED,
    Kind,
    metric_of,
)

OBSERVATIONS_MAX = 1024
"""Engines ask every step; this many pulls or lookups in one step do not happen."""

TOTALLED = frozenset({HITS, MISSES})
"""Counters whose sums since the start are kept, too: the load report has them."""

Delta: TypeAlias = dict[str, dict[str, float | list[float]]]


class Recorder:
    """Records from any thread, in a few microseconds. An unknown metric or a wrong label is an assertion."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._delta: Delta = {}
        self._totals: dict[str, dict[str, float]] = {name: {} for name in TOTALLED}

    def inc(self, name: str, value: float = 1, **labels: str) -> None:
        """Add to a counter."""
        key = metric_of(name, Kind.COUNTER).key_of(labels)
        assert 0 <= value < math.inf, f"{name}: a counter cannot grow by {value}"
        with self._lock:
            _add(self._delta, name, key, value)
            if name in TOTALLED:
                sums = self._totals[name]
                sums[key] = sums.get(key, 0.0) + value

    def total(self, name: str, **labels: str) -> float:
        """Return what was added to a counter of `TOTALLED` since the start."""
        return self._totals[name].get(metric_of(name, Kind.COUNTER).key_of(labels), 0.0)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        key = metric_of(name, Kind.GAUGE).key_of(labels)
        assert math.isfinite(value), f"{name}: got {value}"
        with self._lock:
            self._delta.setdefault(name, {})[key] = float(value)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add an observation to a histogram."""
        key = metric_of(name, Kind.HISTOGRAM).key_of(labels)
        assert math.isfinite(value), f"{name}: got {value}"
        with self._lock:
            _extend(self._delta, name, key, [float(value)])

    def drain(self) -> Delta:
        """Return what was recorded since the last call; empty when nothing was."""
        with self._lock:
            delta, self._delta = self._delta, {}
        return delta


def merge(earlier: Delta, later: Delta) -> Delta:
    """Return the delta of both; neither argument is changed. Gauges take the later value."""
    merged: Delta = {
        name: {key: list(value) if isinstance(value, list) else value for key, value in series.items()}
        for name, series in earlier.items()
    }
    for name, series in later.items():
        kind = METRICS[name].kind
        for key, value in series.items():
            if isinstance(value, list):
                _extend(merged, name, key, value)
            elif kind is Kind.COUNTER:
                _add(merged, name, key, value)
            else:
                merged.setdefault(name, {})[key] = value
    return merged


def summary(delta: Delta) -> dict[str, float]:
    """Return one number a series, for a log line: increases, last values, and for histograms count and mean."""
    numbers: dict[str, float] = {}
    for name, series in sorted(delta.items()):
        for key, value in sorted(series.items()):
            labels = dict(zip(METRICS[name].labels, METRICS[name].values_of(key), strict=True))
            shown = name + ("{" + ",".join(f"{k}={v}" for k, v in labels.items()) + "}" if labels else "")
            if isinstance(value, list):
                numbers[f"{shown}_count"] = len(value)
                numbers[f"{shown}_mean"] = sum(value) / len(value)
            else:
                numbers[shown] = value
    return numbers


def _add(delta: Delta, name: str, key: str, value: float) -> None:
    series = delta.setdefault(name, {})
    before = series.get(key, 0.0)
    assert not isinstance(before, list)
    series[key] = before + float(value)


def _extend(delta: Delta, name: str, key: str, values: list[float]) -> None:
    kept = delta.setdefault(name, {}).setdefault(key, [])
    assert isinstance(kept, list)
    room = OBSERVATIONS_MAX - len(kept)
    kept.extend(values[:room])
    if len(values) > room:
        _add(delta, OBSERVATIONS_DROPPED, "", len(values) - room)
