"""The messages between the connector's two halves, which travel inside one engine only, by vLLM's own means.

scheduler -> every rank, each step      `StepMetadata`
ranks -> scheduler, each step           `RankReport`, merged over the ranks by vLLM
rank -> scheduler, once at start        `RankHandshake`
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
    """An order to a rank: fill the local slots of one request.

    request_id: vLLM's id of the request.
    local_slots: slots to fill, shape (n,), in block order.
    sources: where to pull from, tried in this order; each covers the first ``len(source.remote_slots)`` slots.
    timeout_s: time after which what has not arrived is given up.
    """

    request_id: str
    local_slots: Slots
    sources: tuple[PullSource, ...]
    timeout_s: float


@dataclass(slots=True)
class StepMetadata(KVConnectorMetadata):
    """All orders for one step. A rank that missed one can no longer guarantee its generations.

    step: number of the step, from 1 on without gaps.
    bumped: slots that were allocated anew since the last step, shape (n,).
    generations: the new generation of each of these, shape (n,).
    pulls: pulls to start.
    cancelled: requests whose pulls are no longer wanted.
    """

    step: int
    bumped: Slots
    generations: Generations
    pulls: list[PullOrder]
    cancelled: list[str]


@dataclass(slots=True)
class RankReport(KVConnectorWorkerMetadata):
    """What a rank did since its last report.

    step: the last step whose forward pass this rank has carried out.
        pulls: how the pulls that have ended since went.
        round_trips: measured round trip to each peer, in s.
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
    """A rank's introduction, in the form in which vLLM passes it on to the scheduler."""

    introduction: Introduction
