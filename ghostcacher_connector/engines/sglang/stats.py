"""Passes on what is recorded, twice a second, to SGLang's metrics page and to a page of our own.

SGLang's scheduler has no place for another's metrics, but its page (``--enable-metrics``) gathers those of all its
processes, through prometheus_client's shared files. Each rank adds its own.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import Counter, Gauge, Histogram

from ghostcacher_connector.core.periodic import Periodic
from ghostcacher_connector.metrics import Delta, Exporter, Kind, class_factory

INTERVAL_S = 0.5
LABELS = ("model_name",)


def engine_exporter(model_name: str) -> Exporter:
    """Return an exporter to SGLang's page. To be called in a process whose prometheus_client shares its metrics."""
    classes = {Kind.COUNTER: Counter, Kind.GAUGE: Gauge, Kind.HISTOGRAM: Histogram}
    return Exporter(class_factory(classes), LABELS, [[model_name]])


class StatsPump:
    """Owner of one daemon thread that passes on what was recorded."""

    def __init__(self, take: Callable[[], Delta], sinks: list[Callable[[Delta], None]]) -> None:
        """take: returns what was recorded since it was last called. sinks: each is given all of it."""
        self._take = take
        self._sinks = sinks
        self._thread = Periodic("gc-stats", self._step)
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End the thread, within `timeout_s`. Idempotent."""
        self._thread.stop(timeout_s)

    def _step(self) -> float:
        delta = self._take()
        if delta:
            for sink in self._sinks:
                sink(delta)
        return INTERVAL_S
