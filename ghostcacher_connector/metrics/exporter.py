"""Adds recorded deltas to Prometheus metrics, in the process that serves the metrics page.

An engine brings its own metric classes and labels (vLLM: model and engine number, and other classes under Ray), so the
exporter takes a factory. `serve` is a page of our own, for processes whose engine has none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from ghostcacher_connector.metrics.catalog import HIT_RATIO, HITS, METRICS, MISSES, Kind, Metric
from ghostcacher_connector.metrics.recorder import Delta

MetricFactory: TypeAlias = Callable[[Metric, list[str]], Any]
"""Makes the Prometheus object of a metric with the given label names."""

_made: dict[tuple[Any, str], tuple[list[str], Any]] = {}


def registry_factory(registry: CollectorRegistry) -> MetricFactory:
    """Return a factory of plain prometheus_client metrics in a registry."""
    classes = {Kind.COUNTER: Counter, Kind.GAUGE: Gauge, Kind.HISTOGRAM: Histogram}
    return lambda metric, labelnames: _make(classes[metric.kind], metric, labelnames, registry=registry)


def class_factory(classes: Mapping[Kind, Any]) -> MetricFactory:
    """Return a factory of an engine's own metric classes, which know their registry themselves.

    A metric that this process has made before is used again: a registry refuses a name twice, and an engine that is
    started again in one process clears only its own names.
    """

    def factory(metric: Metric, labelnames: list[str]) -> Any:
        cls = classes[metric.kind]
        known = _made.get((cls, metric.name))
        if known is None:
            known = _made[cls, metric.name] = labelnames, _make(cls, metric, labelnames)
        assert known[0] == labelnames, f"{metric.name}: made before with labels {known[0]}, now wanted: {labelnames}"
        return known[1]

    return factory


class Exporter:
    """Every metric of the catalog, for one or several engines of one process.

    labelnames: the engine's labels, put before ours. labelvalues: of each engine, so that its series exist from the
    start. Thread-safe.
    """

    def __init__(
        self, factory: MetricFactory, labelnames: Sequence[str] = (), labelvalues: Sequence[Sequence[str]] = ((),)
    ) -> None:
        self._metrics = {name: factory(metric, [*labelnames, *metric.labels]) for name, metric in METRICS.items()}
        self._labelnames = tuple(labelnames)
        self._counted: dict[tuple[str, ...], list[float]] = {}
        self._lock = threading.Lock()
        for values in labelvalues:
            self._begin(tuple(str(value) for value in values))

    def apply(self, delta: Delta, labelvalues: Sequence[object] = ()) -> None:
        """Add one delta to the series of the engine with these label values."""
        engine = tuple(str(value) for value in labelvalues)
        assert len(engine) == len(self._labelnames), f"expected values of {self._labelnames}, got {engine}"
        with self._lock:
            for name, series in delta.items():
                assert name in METRICS, f"unknown metric {name}"
                for key, value in series.items():
                    self._add(METRICS[name], engine, key, value)
            self._set_ratio(engine, delta)

    def _begin(self, engine: tuple[str, ...]) -> None:
        for metric in METRICS.values():
            for key in metric.known_keys():
                self._child(metric, engine, key)
        self._child(METRICS[HIT_RATIO], engine, "").set(0)

    def _add(self, metric: Metric, engine: tuple[str, ...], key: str, value: float | list[float]) -> None:
        child = self._child(metric, engine, key)
        if metric.kind is Kind.HISTOGRAM:
            assert isinstance(value, list)
            for observation in value:
                child.observe(observation)
            return
        assert not isinstance(value, list)
        if metric.kind is Kind.COUNTER:
            child.inc(value)
        else:
            child.set(value)

    def _child(self, metric: Metric, engine: tuple[str, ...], key: str) -> Any:
        values = (*engine, *metric.values_of(key))
        return self._metrics[metric.name].labels(*values) if values else self._metrics[metric.name]

    def _set_ratio(self, engine: tuple[str, ...], delta: Delta) -> None:
        counted = self._counted.setdefault(engine, [0.0, 0.0])
        for position, name in enumerate((HITS, MISSES)):
            counted[position] += sum(value for value in delta.get(name, {}).values() if not isinstance(value, list))
        if sum(counted) > 0 and not delta.keys().isdisjoint((HITS, MISSES)):
            self._child(METRICS[HIT_RATIO], engine, "").set(counted[0] / sum(counted))


class MetricsPage:
    """A metrics page of our own, at ``http://host:port/metrics``, and the exporter behind it."""

    def __init__(self, port: int, host: str) -> None:
        self.registry = CollectorRegistry()
        self._exporter = Exporter(registry_factory(self.registry))
        self._server, self._thread = start_http_server(port, host, self.registry)
        self.port = int(self._server.server_port)

    def apply(self, delta: Delta) -> None:
        """Add one delta to what the page shows."""
        self._exporter.apply(delta)

    def close(self) -> None:
        """Stop serving and free the port. Idempotent."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve(port: int, host: str = "127.0.0.1") -> MetricsPage:
    """Start a metrics page; port 0 means any free one. Raises OSError when the port is taken, or the host is none."""
    return MetricsPage(port, host)


def _make(cls: Any, metric: Metric, labelnames: list[str], **more: Any) -> Any:
    documentation = f"{metric.help} [{metric.unit}]"
    if metric.kind is Kind.HISTOGRAM:
        more["buckets"] = list(metric.buckets)
    if metric.kind is Kind.GAUGE:
        # Several front-end processes may each see a part of an engine's statistics: the newest value counts.
        more["multiprocess_mode"] = "mostrecent"
    return cls(name=metric.name, documentation=documentation, labelnames=labelnames, **more)
