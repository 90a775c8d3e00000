"""Metrics: their catalog, the recorder beside the work, and the exporter beside the metrics page."""

from ghostcacher_connector.metrics.catalog import METRICS, Kind, Metric
from ghostcacher_connector.metrics.exporter import (
    Exporter,
    MetricFactory,
    MetricsPage,
    class_factory,
    registry_factory,
    serve,
)
from ghostcacher_connector.metrics.live_gauges import ASK_INTERVAL_S, GaugeServer, read_gauges
from ghostcacher_connector.metrics.recorder import Delta, Recorder, merge, summary

__all__ = [
    "ASK_INTERVAL_S",
    "METRICS",
    "Delta",
    "Exporter",
    "GaugeServer",
    "Kind",
    "Metric",
    "MetricFactory",
    "MetricsPage",
    "Recorder",
    "class_factory",
    "merge",
    "read_gauges",
    "registry_factory",
    "serve",
    "summary",
]
