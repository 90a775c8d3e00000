"""What the connector's two halves tell each other through vLLM, once a step.

scheduler -> every rank: `StepMetadata`; ranks -> scheduler: `RankReport`, merged over the ranks by vLLM; rank ->
scheduler once at start: `RankHandshake`. They travel inside one engine only, by vLLM's own means.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)

from ghostcacher_connector.pull.accounting import PullReport
from ghostcacher_connector.slots import Generations, Slots
from ghostcacher_connector.transfer.jobs import PullSource
from ghostcacher_connector.worker.registration import Introduction


@dataclass(frozen=True, slots=True)
class PullOrder:
    """Fill the local slots of one request from the sources, tried in this order.

    local_slots: shape (n,), in block order; each source covers the first ``len(source.remote_slots)`` of them.
    """

    request_id: str
    local_slots: Slots
    sources: tuple[PullSource, ...]
    timeout_s: float


@dataclass(slots=True)
class StepMetadata(KVConnectorMetadata):
    """Orders for one step, complete: a rank that missed a step can no longer vouch for its generations.

    step: counts from 1 without gaps. bumped, generations: shape (n,), slots handed out since the last step.
    """

    step: int
    bumped: Slots
    generations: Generations
    pulls: list[PullOrder]
    cancelled: list[str]


@dataclass(slots=True)
class RankReport(KVConnectorWorkerMetadata):
    """What a rank did since its last report.

    step: the last step whose forward pass this rank has carried out. round_trips: to each peer, in s.
    lost_step: the rank missed a step's orders; nothing that this worker has published can be used any more.
    """

    step: int
    pulls: list[PullReport] = field(default_factory=list)
    round_trips: dict[str, float] = field(default_factory=dict)
    lost_step: bool = False

    def aggregate(self, other: KVConnectorWorkerMetadata) -> RankReport:
        """Merge two ranks' reports: a step is done when the last rank has done it."""
        assert isinstance(other, RankReport)
        slowest = dict(self.round_trips)
        for worker, round_trip_s in other.round_trips.items():
            slowest[worker] = max(round_trip_s, slowest.get(worker, round_trip_s))
        lost = self.lost_step or other.lost_step
        return RankReport(min(self.step, other.step), self.pulls + other.pulls, slowest, lost)


@dataclass(frozen=True, slots=True)
class RankHandshake(KVConnectorHandshakeMetadata):
    """A rank's introduction, in the form that vLLM hands on."""

    introduction: Introduction
