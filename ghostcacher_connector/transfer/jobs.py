"""What goes into a puller and what comes out of it; and the same of a copier."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ghostcacher_connector.core.types import MissReason
from ghostcacher_connector.slots import Generations, Slots
from ghostcacher_connector.transfer.base import PullOutcome, PullResult, Validity


class PullSource(NamedTuple):
    """A worker that holds the first ``len(remote_slots)`` blocks of a job."""

    worker: str
    """The name of the worker to read from."""
    incarnation: bytes
    """The incarnation of which the index gave the entries: in another one the same slot and generation may hold other
    content. OWN_INCARNATION for host slots of the worker itself."""
    remote_slots: Slots
    """Where its blocks are: entry i belongs to block i of the job. Shape (m,), m at most the job's number of blocks."""
    generations: Generations
    """Their generations as published, shape (m,)."""


class PullJob(NamedTuple):
    """Fill ``local_slots`` from the sources, in order; what one does not deliver validly is asked of the next."""

    job_id: str
    """Names the job in its result; no two jobs at a time have the same."""
    local_slots: Slots
    """The slots to fill, shape (n,): distinct, owned by the caller, and already bumped."""
    sources: tuple[PullSource, ...]
    """Whom to ask, the best one first."""
    deadline: float
    """On the puller's clock, in seconds."""


class SourceResult(NamedTuple):
    """How one source served a job."""

    worker: str
    """The source's name."""
    asked: int
    """How many blocks were asked of it."""
    valid: int
    """How many of them it delivered validly."""
    result: PullResult
    """How the pull went."""


class BlockFailure(NamedTuple):
    """Blocks of a job that no source delivered."""

    reason: MissReason
    """Why the last source that was asked did not deliver them."""
    blocks: npt.NDArray[np.int64]
    """Their indexes into the job's ``local_slots``."""


class JobResult(NamedTuple):
    """How a job ended. From now on nothing lands in its local slots any more."""

    job_id: str
    outcome: PullOutcome
    valid: Validity
    """True where the local slot holds its block, shape (n,). Any other local slot holds garbage."""
    failures: tuple[BlockFailure, ...]
    """The blocks that are missing, by reason."""
    bytes: int
    """What was moved, valid or not."""
    seconds: float
    """From the job's start to its end."""
    tries: tuple[SourceResult, ...]
    """The sources that were asked, in order."""

    @property
    def reason(self) -> MissReason | None:
        """Why the first missing block is missing; None when nothing is."""
        return self.failures[0].reason if self.failures else None


class LinkStats(NamedTuple):
    """What is known of the way to a peer. How fast pulls are is the forecaster's to know (pull/forecast.py)."""

    transport: str | None
    """The transport that was used last; None when none reaches the peer."""
    ready: bool
    """Whether pulls may be tried: the peer is not backed off from after failures."""
    rtt_s: float | None
    """The round trip, measured when the peer was connected to; None until then."""
    bytes: int
    """What has been pulled from it."""
    failures: int
    """How many pulls from it have failed."""

    @property
    def connected(self) -> bool:
        """Whether a transport reaches the peer now."""
        return self.transport is not None


class CopyJob(NamedTuple):
    """Copy blocks of the engine into host slots of the same rank, as far as their slots are not reused meanwhile."""

    copy_id: int
    """Names the copy in its result; a later one has a higher number."""
    engine_slots: Slots
    """Where the blocks are, shape (n,)."""
    generations: Generations
    """Their generations when the copy was ordered, shape (n,)."""
    host_slots: Slots
    """Where they are copied to, shape (n,): distinct, owned by the caller, and bumped if they were ever published."""


class CopyResult(NamedTuple):
    """How a copy ended. Jobs end in the order in which they were submitted."""

    copy_id: int
    valid: Validity
    """True where the host slot holds what the engine slot held at its generation, shape (n,)."""
    bytes: int
    """What was copied, valid or not."""
    seconds: float
    """From the copy's start to its end."""


class StoreJob(NamedTuple):
    """Write blocks in host slots to the object tier, unless their slots are reused meanwhile. Nobody waits for it."""

    hashes: tuple[bytes, ...]
    """The blocks, consecutive ones of one prefix; n of them."""
    host_slots: Slots
    """Where they are, shape (n,)."""
    generations: Generations
    """The generations of these slots when the store was ordered, shape (n,)."""
    position: int
    """Of the first one in its prefix."""
    section: int
    """Their `SectionType`."""
    parent: bytes
    """The block before the first one; empty for the first of a chain."""
    session: bytes
    """The tag of the session that they belong to; empty for what sessions share, and when not known."""
    after_tools: bool
    """Whether they are tools, or come after some."""
    ordered_at: float
    """When this was decided, in seconds since 1970: what was flushed since then is not written."""
    since: float
    """Objects that were written until then do not stand for these blocks, in seconds since 1970."""


class FetchJob(NamedTuple):
    """Read blocks from the object tier into host slots. It ends with a `CopyResult`."""

    copy_id: int
    """Names the fetch in its result, among copies."""
    hashes: tuple[bytes, ...]
    """The blocks, in prefix order; n of them."""
    host_slots: Slots
    """Where they are read to, shape (n,): as those of a copy."""
    timeout_s: float
    """Time after which what has not arrived is given up."""
    written_at: tuple[float, ...]
    """Of each block, the time before which its object must not have been written: an earlier one was flushed."""


def outdated_result(result: JobResult) -> JobResult:
    """Return the result of a job whose blocks were right and are not wanted any more: every one of them is stale."""
    count = len(result.valid)
    missing = (BlockFailure(MissReason.STALE_GENERATION, np.arange(count, dtype=np.int64)),) if count else ()
    return result._replace(outcome=PullOutcome.STALE, valid=np.zeros(count, dtype=np.bool_), failures=missing)


def unread_result(job: PullJob, outcome: PullOutcome, reason: MissReason) -> JobResult:
    """Return the result of a job that never read anything."""
    count = len(job.local_slots)
    missing = (BlockFailure(reason, np.arange(count, dtype=np.int64)),) if count else ()
    return JobResult(job.job_id, outcome, np.zeros(count, dtype=np.bool_), missing, 0, 0.0, ())
