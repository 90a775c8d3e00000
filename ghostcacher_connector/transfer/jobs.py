"""What goes into a puller and what comes out of it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ghostcacher_connector.core.types import MissReason
from ghostcacher_connector.slots import Generations, Slots
from ghostcacher_connector.transfer.base import PullOutcome, PullResult, Validity


class PullSource(NamedTuple):
    """A worker that holds the first ``len(remote_slots)`` blocks of a job.

    incarnation: of the worker's record, as the index gave it with the entries: in another life of the worker the same
    slot and generation may hold other content.
    remote_slots, generations: shape (m,), m at most the job's number of blocks; entry i belongs to block i.
    """

    worker: str
    incarnation: bytes
    remote_slots: Slots
    generations: Generations


class PullJob(NamedTuple):
    """Fill ``local_slots`` from the sources, in order; what one does not deliver validly is asked of the next.

    local_slots: shape (n,), distinct, owned by the caller and already bumped. deadline: on the puller's clock, in
    seconds.
    """

    job_id: str
    local_slots: Slots
    sources: tuple[PullSource, ...]
    deadline: float


class SourceResult(NamedTuple):
    """How one source served a job: blocks asked of it, blocks valid, and the way the pull went."""

    worker: str
    asked: int
    valid: int
    result: PullResult


class BlockFailure(NamedTuple):
    """Blocks of a job (indexes into ``local_slots``) that no source delivered, and why the last one asked did not."""

    reason: MissReason
    blocks: npt.NDArray[np.int64]


class JobResult(NamedTuple):
    """How a job ended.

    valid: shape (n,), true where the local slot holds its block; any other local slot holds garbage. From now on
    nothing lands in the local slots any more. seconds: from the job's start to its end. tries: in order.
    """

    job_id: str
    outcome: PullOutcome
    valid: Validity
    failures: tuple[BlockFailure, ...]
    bytes: int
    seconds: float
    tries: tuple[SourceResult, ...]

    @property
    def reason(self) -> MissReason | None:
        """Why the first missing block is missing; None when nothing is."""
        return self.failures[0].reason if self.failures else None


class LinkStats(NamedTuple):
    """What is known of the way to a peer. How fast pulls are is the forecaster's to know (pull/forecast.py).

    connected: a transport reaches it now. ready: it is not put aside after failures. rtt_s: None until measured.
    """

    transport: str | None
    connected: bool
    ready: bool
    rtt_s: float | None
    pulls: int
    bytes: int
    failures: int
    last_error: str


def ended(job: PullJob, outcome: PullOutcome, reason: MissReason) -> JobResult:
    """Return the result of a job that never read anything."""
    count = len(job.local_slots)
    missing = (BlockFailure(reason, np.arange(count, dtype=np.int64)),) if count else ()
    return JobResult(job.job_id, outcome, np.zeros(count, dtype=np.bool_), missing, 0, 0.0, ())
