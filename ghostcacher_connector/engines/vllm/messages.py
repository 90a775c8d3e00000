"""The messages between the connector's two halves, which travel inside one engine only, by vLLM's own means.

scheduler -> every rank, each step      `StepMetadata`
ranks -> scheduler, each step           `RankReport`, merged over the ranks by vLLM
rank -> scheduler, once at start        `RankHandshake`
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)

from ghostcacher_connector.engines.vllm.scheduling.adapters import agreed
from ghostcacher_connector.pull.accounting import PullReport
from ghostcacher_connector.slots import Generations, Slots
from ghostcacher_connector.transfer.jobs import CopyJob, CopyResult, FetchJob, PullSource, StoreJob
from ghostcacher_connector.worker.registration import Introduction


@dataclass(frozen=True, slots=True)
class PullOrder:
    """An order to a rank: fill the local slots of one request."""

    request_id: str
    """vLLM's id of the request."""
    local_slots: Slots
    """Slots to fill, shape (n,), in block order."""
    sources: tuple[PullSource, ...]
    """Where to pull from, tried in this order; each covers the first ``len(source.remote_slots)`` slots."""
    timeout_s: float
    """Time after which what has not arrived is given up."""
    adapter: tuple[int, bytes] | None = None
    """vLLM's number of the LoRA adapter that computed it, and its digest; None for the model alone."""


@dataclass(slots=True)
class StepMetadata(KVConnectorMetadata):
    """All orders for one step. A rank that missed one can no longer guarantee its generations."""

    step: int
    """Number of the step, from 1 on without gaps."""
    bumped: Slots
    """Slots that were allocated anew since the last step, shape (n,)."""
    generations: Generations
    """The new generation of each of these, shape (n,)."""
    pulls: list[PullOrder]
    """Pulls to start."""
    cancelled: list[str]
    """Requests whose pulls are no longer wanted."""
    copies: list[CopyJob] = field(default_factory=list)
    """Copies to the host tier to start, behind the bumps of this step."""
    fetches: list[FetchJob] = field(default_factory=list)
    """Objects to read into host slots, likewise."""
    stores: list[StoreJob] = field(default_factory=list)
    """Host slots to write to the object tier."""
    adapters: tuple[int, ...] = ()
    """vLLM's numbers of the LoRA adapters that the step computes with."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle arrays as bytes: most are empty, and numpy's own pickling costs four times as much."""
        orders = self.pulls, self.cancelled, self.copies, self.fetches, self.stores, self.adapters
        return _unpickled, (self.step, self.bumped.tobytes(), self.generations.tobytes(), *orders)


def _unpickled(step: int, bumped: bytes, generations: bytes, *orders: Any) -> StepMetadata:
    slots, words = np.frombuffer(bumped, dtype=np.int64), np.frombuffer(generations, dtype=np.uint64)
    return StepMetadata(step, slots, words, *orders)


@dataclass(slots=True)
class RankReport(KVConnectorWorkerMetadata):
    """What a rank did since its last report."""

    step: int
    """The last step whose forward pass this rank has carried out."""
    pulls: list[PullReport] = field(default_factory=list)
    """How the pulls that have ended since went."""
    round_trips: dict[str, float] = field(default_factory=dict)
    """Measured round trip to each peer, in s."""
    lost_step: bool = False
    """The rank missed a step's orders since it last became another incarnation: no generation of it is right."""
    begins_late: bool = False
    """vLLM overwrites blocks on this rank before it passes on the orders of the step: no generation ever is."""
    copies: list[CopyResult] = field(default_factory=list)
    """How the copies and fetches that have ended since went. Ranks end one in different steps: each reports it."""
    adapters: dict[int, bytes] = field(default_factory=dict)
    """What the LoRA adapters of the step hold: digests by vLLM's numbers. Of several ranks: those told alike."""

    def aggregate(self, other: KVConnectorWorkerMetadata) -> RankReport:
        """Merge two ranks' reports: a step is done when the last rank has done it."""
        assert isinstance(other, RankReport)
        slowest = dict(self.round_trips)
        for worker, round_trip_s in other.round_trips.items():
            slowest[worker] = max(round_trip_s, slowest.get(worker, round_trip_s))
        lost, late = self.lost_step or other.lost_step, self.begins_late or other.begins_late
        step, copies = min(self.step, other.step), self.copies + other.copies
        adapters = agreed([self.adapters, other.adapters])
        return RankReport(step, self.pulls + other.pulls, slowest, lost, late, copies, adapters)


@dataclass(frozen=True, slots=True)
class RankHandshake(KVConnectorHandshakeMetadata):
    """A rank's introduction, in the form in which vLLM passes it on to the scheduler."""

    introduction: Introduction
