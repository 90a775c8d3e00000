"""Validated pulls between the memories of two ranks, as the rest of the code sees them.

Life of a pull, in the reader:
1. the caller owns the destination slots ``local_slots`` and has bumped their generations;
2. `Transport.pull` reads the data of ``remote_slots`` into them, by one-sided READ;
3. *after that READ has completed* it reads the seal: header and generations of the same slots;
4. a block whose generation and incarnation equal the request's is valid, any other is not: its bytes mean nothing;
5. `pull` returns. From now on no byte of this pull can land in the caller's memory any more.

Rule 5 is the hard one: a READ that was given up may still land later (it does where UCX emulates it). So a READ into
the caller's slots is waited for until it is over, past the deadline if need be. Only one into a transport's own bounce
buffer (a seal, a probe, a relay's rows) is given up at its deadline; that buffer stays quarantined until it is over.

What implementors must keep: `pull` never raises for what the world does (it returns FAILED with a reason), ends
by its deadline where rule 5 lets it, and may be called from several threads for different pulls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ghostcacher_connector.core.types import MissReason, RankEndpoint
from ghostcacher_connector.slots import Generations, Slots

Validity = npt.NDArray[np.bool_]


class PullOutcome(str, Enum):
    """How a pull ended; every pull ends in exactly one of these."""

    DONE = "done"
    """Every block is valid."""
    STALE = "stale"
    """The READ completed; at least one block was reused since it was published."""
    FAILED = "failed"
    """The READ did not complete; no block is valid."""
    CANCELLED = "cancelled"
    """Given up before anything was read; no block is valid."""


class PullRequest(NamedTuple):
    """Read ``remote_slots[i]`` of the peer into ``local_slots[i]``, for each i.

    remote_slots, local_slots: shape (n,), int64. generations: shape (n,), uint64, as published.
    deadline: on the transport's monotonic clock, in seconds.
    """

    peer: RankEndpoint
    remote_slots: Slots
    local_slots: Slots
    generations: Generations
    deadline: float


class PullResult(NamedTuple):
    """valid: shape (n,), true where the local slot now holds the peer's block.

    bytes and seconds count what was moved, valid or not. reason: None when DONE. transport: "nixl" or "relay".
    """

    outcome: PullOutcome
    valid: Validity
    bytes: int
    seconds: float
    reason: MissReason | None
    transport: str
    detail: str = ""


def failed_result(
    count: int, transport: str, reason: MissReason, detail: str, *, moved_bytes: int = 0, seconds: float = 0.0
) -> PullResult:
    """Return the result of a pull of `count` blocks whose READ did not complete: none of them is valid."""
    none = np.zeros(count, dtype=np.bool_)
    return PullResult(PullOutcome.FAILED, none, moved_bytes, seconds, reason, transport, detail)


def checked_result(valid: Validity, transport: str, moved_bytes: int, seconds: float) -> PullResult:
    """Return the result of a pull whose seal was checked: DONE when every block is valid, otherwise STALE."""
    if valid.all():
        return PullResult(PullOutcome.DONE, valid, moved_bytes, seconds, None, transport)
    stale = int(len(valid) - valid.sum())
    return PullResult(
        PullOutcome.STALE,
        valid,
        moved_bytes,
        seconds,
        MissReason.STALE_GENERATION,
        transport,
        f"{stale} of {len(valid)} blocks were reused since they were published",
    )


class Probe(NamedTuple):
    """A measured look at a peer which touches no engine memory.

    rtt_s: of reading the seal's header alone. data: the bytes of the slots read, segment after segment, each shape
    (slots, slot_bytes) in C order; data_s: the time to read them. generations: read after the data, shape (slots,).
    current: the header is that of the endpoint's incarnation.
    """

    transport: str
    rtt_s: float
    current: bool
    generations: Generations
    data: bytes
    data_s: float


class Transport(ABC):
    """Reads the memory of peers into the memory of one rank."""

    name: str

    @abstractmethod
    def reaches(self, peer: RankEndpoint) -> bool:
        """Say whether this transport leads to the peer; connects if need be, within a bound. Cached, with backoff."""

    @abstractmethod
    def pull(self, request: PullRequest) -> PullResult:
        """Carry out one pull; see the module's docstring for what holds when it returns."""

    @abstractmethod
    def probe(self, peer: RankEndpoint, slots: Slots, *, timeout_s: float) -> Probe:
        """Time the way to a peer: read its seal and a few slots into private memory. Raises TransferError.

        slots: read as far as they fit there.
        """

    @abstractmethod
    def forget(self, peer: RankEndpoint) -> None:
        """Drop what is known of a peer that is gone or has a new incarnation."""

    @abstractmethod
    def close(self) -> None:
        """Release connections, memory registrations and threads. Idempotent."""
