"""Records what pulls did, in the metrics and in the forecaster. Knows no engine.

Each rank reports its share of a pull as a `PullReport`, which `record_transfer` records. What the pull did for its
request, over all ranks, is recorded once, by `record_outcome`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ghostcacher_connector.core.types import MissReason, Tier
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.pull.forecast import Forecaster
from ghostcacher_connector.pull.planner import PullPlan
from ghostcacher_connector.transfer.base import PullOutcome, Validity
from ghostcacher_connector.transfer.jobs import JobResult, PullSource


@dataclass(frozen=True, slots=True)
class PullReport:
    """How one rank's share of one pull ended."""

    request_id: str
    """The engine's request that the blocks are for."""
    outcome: PullOutcome
    blocks_valid: int
    """Blocks whose seal was right."""
    blocks_usable: int
    """Valid blocks before the first one that is not."""
    blocks_asked: int
    """Blocks that were to be pulled."""
    bytes: int
    """What was moved, valid or not."""
    seconds: float
    """From the start of the rank's job to its end."""
    transport: str
    """The transport of the last source that was asked; "none" when none was."""
    worker: str
    """The last source that was asked, or the first one of those that were to be."""
    reason: MissReason | None
    """Why the first missing block is missing; None when none is."""


def report_of(request_id: str, sources: Sequence[PullSource], result: JobResult) -> PullReport:
    """Return the report of a job that has ended. sources: the ones that it was given, at least one."""
    source = result.tries[-1] if result.tries else None
    return PullReport(
        request_id=request_id,
        outcome=result.outcome,
        blocks_valid=int(result.valid.sum()),
        blocks_usable=_leading(result.valid),
        blocks_asked=len(result.valid),
        bytes=result.bytes,
        seconds=result.seconds,
        transport=source.result.transport if source else "none",
        worker=source.worker if source else sources[0].worker,
        reason=result.reason,
    )


def record_transfer(
    recorder: Recorder,
    forecaster: Forecaster,
    report: PullReport,
    *,
    tier: Tier = Tier.DEVICE,
    cancelled: bool = False,
) -> None:
    """Record one rank's share of a pull.

    tier: where most of the blocks lay. cancelled: the request that it was for has ended meanwhile.
    """
    why = report.reason.value if report.reason is not None else "none"
    outcome = report.outcome.value
    recorder.inc("gc_rdma_transfers_total", 1, transport=report.transport, outcome=outcome)
    if cancelled:
        outcome, why = PullOutcome.CANCELLED.value, MissReason.CANCELLED.value
    recorder.inc("gc_pulls_total", 1, outcome=outcome, reason=why)
    recorder.inc("gc_seal_checks_total", report.blocks_valid, result="valid")
    if report.reason is MissReason.STALE_GENERATION:
        recorder.inc("gc_seal_checks_total", report.blocks_asked - report.blocks_valid, result="stale")
    recorder.inc("gc_pulled_bytes_total", report.bytes, transport=report.transport)
    recorder.observe("gc_pull_seconds", report.seconds, transport=report.transport)
    if report.reason is None:
        forecaster.observe_pull(report.worker, report.bytes, report.seconds, tier)


def record_outcome(
    recorder: Recorder,
    forecaster: Forecaster,
    plan: PullPlan,
    *,
    block_tokens: int,
    usable: int,
    seconds: float,
    reason: MissReason | None,
) -> None:
    """Record what a plan did for its request.

    usable: how many leading blocks need not be computed. reason: why the others must be; None is a failed transfer.
    """
    recorder.inc("gc_pulled_tokens_total", plan.block_count * block_tokens)
    if usable:
        tokens = usable * block_tokens
        saved_s = forecaster.compute_s(tokens) - seconds
        recorder.inc("gc_cache_hits_total", usable)
        recorder.inc("gc_tokens_cached_total", tokens)
        recorder.inc("gc_saved_ttft_ms_total", max(0.0, saved_s * 1e3))
    if usable < plan.block_count:
        why = reason or MissReason.TRANSFER_FAILED
        recorder.inc("gc_cache_misses_total", plan.block_count - usable, reason=why.value)
    recorder.observe("gc_pull_forecast_ratio", seconds / plan.pull_s)


def _leading(valid: Validity) -> int:
    """Count the valid blocks before the first one that is not: the engine computes from there on."""
    return len(valid) if bool(valid.all()) else int(np.argmin(valid))
