"""Carries metric deltas through vLLM's own statistics to the engine's ``/metrics`` page.

rank: recorder -> `GhostCacherStats` -> merged over ranks by vLLM -> scheduler adds its own -> API server:
`GhostCacherPromMetrics` adds them to the counters there.

Statistics come with the step after: an idle engine takes none. Its gauges are asked for beside them, once a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client import Counter, Gauge, Histogram
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
    PromMetric,
    PromMetricT,
)

from ghostcacher_connector.core.periodic import Periodic
from ghostcacher_connector.metrics import (
    ASK_INTERVAL_S,
    Exporter,
    Kind,
    class_factory,
    merge,
    read_gauges,
    summary,
)

if TYPE_CHECKING:
    from vllm.config import VllmConfig


@dataclass
class GhostCacherStats(KVConnectorStats):
    """One metric delta (metrics/recorder.py)."""

    def reset(self) -> None:
        self.data: dict[str, Any] = {}

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        return GhostCacherStats(data=merge(self.data, other.data))

    def reduce(self) -> dict[str, int | float]:
        return {name: round(value, 4) for name, value in summary(self.data).items()}

    def is_empty(self) -> bool:
        return not self.data


class GhostCacherPromMetrics(KVConnectorPromMetrics):
    """Every metric of the catalog on vLLM's page, under vLLM's own labels."""

    def __init__(
        self,
        vllm_config: VllmConfig,
        metric_types: dict[type[PromMetric], type[PromMetricT]],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        classes = {
            Kind.COUNTER: metric_types[Counter],
            Kind.GAUGE: metric_types[Gauge],
            Kind.HISTOGRAM: metric_types[Histogram],
        }
        engines = [[str(value) for value in values] for values in per_engine_labelvalues.values()]
        self._exporter = Exporter(class_factory(classes), labelnames, engines)
        transfer = vllm_config.kv_transfer_config
        assert transfer is not None
        replicas = vllm_config.parallel_config.data_parallel_size
        # As vLLM names the engines of data-parallel replicas.
        self._engine_ids = {
            index: f"{transfer.engine_id}_dp{index}" if replicas > 1 else str(transfer.engine_id)
            for index in per_engine_labelvalues
        }
        self._asking = Periodic("gc-gauges", self.refresh_gauges)
        self._asking.start()

    def refresh_gauges(self) -> float:
        """Show the present gauges of every engine that answers; return when to ask again, in seconds."""
        for index, engine_id in self._engine_ids.items():
            self._exporter.apply(read_gauges(engine_id), self.per_engine_labelvalues[index])
        return ASK_INTERVAL_S

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        self._exporter.apply(transfer_stats_data, self.per_engine_labelvalues[engine_idx])
