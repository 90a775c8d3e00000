"""Hands over what is recorded, twice a second, to SGLang's metrics page and to a page of our own.

SGLang's scheduler has no place for another's metrics, but its page (``--enable-metrics``) gathers those of all its
processes, through prometheus_client's shared files. Each rank adds its own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from prometheus_client import Counter, Gauge, Histogram

from ghostcacher_connector.metrics import Delta, Exporter, Kind, class_factory

logger = logging.getLogger(__name__)

INTERVAL_S = 0.5
LABELS = ("model_name",)


def engine_exporter(model_name: str) -> Exporter:
    """Return an exporter to SGLang's page. To be called in a process whose prometheus_client shares its metrics."""
    classes = {Kind.COUNTER: Counter, Kind.GAUGE: Gauge, Kind.HISTOGRAM: Histogram}
    return Exporter(class_factory(classes), LABELS, [[model_name]])


class StatsPump:
    """Owner of one daemon thread. take: returns what was recorded since it was last called."""

    def __init__(self, take: Callable[[], Delta], sinks: list[Callable[[Delta], None]]) -> None:
        self._take = take
        self._sinks = sinks
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gc-stats", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End the thread, within `timeout_s`. Idempotent."""
        self._stopping.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stopping.wait(INTERVAL_S):
            try:
                self._hand_over()
            except Exception:
                # A bug, ours or the client's, must not end the metrics for the rest of this worker's life.
                logger.exception("handing over metrics failed in an unforeseen way")

    def _hand_over(self) -> None:
        delta = self._take()
        if delta:
            for sink in self._sinks:
                sink(delta)
