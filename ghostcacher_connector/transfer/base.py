"""Validated pulls between the memories of two ranks, as the rest of the code sees them.

Life of a pull, in the reader:
1. The caller owns the destination slots ``local_slots`` and has bumped their generations.
2. `Transport.pull` reads the rows of ``remote_slots`` into them, by one-sided READ.
3. *After that READ has completed* it posts the READ of the seal: the header and the generations of the same slots.
4. A block whose incarnation and generation equal the request's is valid. Any other is not: its bytes mean nothing.
5. `pull` returns. From now on no byte of this pull can land in the caller's memory any more, unless the result says so
   (`PullResult.over`).

Why the seal READ is posted last: the owner bumps a slot's generation before it overwrites the slot, and is never asked.
So a generation that is unchanged *after* the rows were read proves that no overwrite had begun while they were read. A
generation that was read before them, or in the same transfer, whose order NIXL does not promise, proves nothing.

Where the seal is checked: `slots.valid_mask` compares. It is called by `NixlReader.check_seal` (nixl/reader.py) for
READs, by `_check_seals` (relay/relay_transport.py) for rows that a relay sent, and by `MemoryTransport` (memory.py) in
tests.

Rule 5 is the hard one: a READ that was given up may still land later (it does where UCX emulates it), and one that
failed may have a part that still lands (where several rails carry it). Then `pull` returns with `PullResult.over`: an
event that is set once nothing can land any more. Until then the slots are *quarantined*: their owner must not give them
back. What ends a quarantine is up to the transport, which takes the connection down by force if need be
(nixl/readers.py says how, and what bounds it). A READ into a transport's own bounce buffer (a seal, a probe, a relay's
rows) quarantines that buffer instead.

Which transports need no quarantine: the relay (its rows are written by `recv` in the pulling thread alone) and shared
memory within one host (a READ is copied while it is posted). RDMA does.

What implementors must keep: `pull` never raises for what the world does (it returns FAILED with a reason), it ends a
bounded time after its deadline, and several threads may call it at the same time for different pulls.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from enum import Enum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ghostcacher_connector.core.types import MissReason, RankEndpoint
from ghostcacher_connector.slots import Generations, Slots
from ghostcacher_connector.transfer.shares import WHOLE, RowPart

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
    """Read ``remote_slots[i]`` of the peer into ``local_slots[i]``, for each i."""

    peer: RankEndpoint
    """The rank to read from."""
    remote_slots: Slots
    """Slots of the peer, shape (n,), int64."""
    local_slots: Slots
    """Slots of this rank, shape (n,), int64, distinct."""
    generations: Generations
    """The generations of the remote slots as they were published, shape (n,), uint64."""
    deadline: float
    """On the transport's monotonic clock, in seconds."""
    local_part: RowPart = WHOLE
    """The part of each local row that the peer's row fills. A relay fills whole rows only."""


class PullResult(NamedTuple):
    """How a pull ended."""

    outcome: PullOutcome
    valid: Validity
    """True where the local slot now holds the peer's block, shape (n,)."""
    bytes: int
    """What was moved, valid or not."""
    seconds: float
    """How long the pull took."""
    reason: MissReason | None
    """Why blocks are missing; None when the outcome is DONE."""
    transport: str
    """The name of the transport: "nixl", "relay", or "none" when none was used."""
    detail: str = ""
    """The reason in words, for logs."""
    over: threading.Event | None = None
    """Set once nothing of this pull can land in the local slots any more; None: nothing can already."""


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


def joined_result(first: PullResult, second: PullResult) -> PullResult:
    """Return the result of two pulls into two parts of the same slots: a block is valid when it is in both."""
    moved, seconds = first.bytes + second.bytes, first.seconds + second.seconds
    worse = next((each for each in (second, first) if each.outcome is PullOutcome.FAILED), None)
    if worse is not None:
        return worse._replace(bytes=moved, seconds=seconds, over=second.over)
    return checked_result(first.valid & second.valid, second.transport, moved, seconds)


class Probe(NamedTuple):
    """A measured look at a peer that touches no engine memory."""

    transport: str
    """The name of the transport that was used."""
    rtt_s: float
    """The time to read the seal's header alone."""
    current: bool
    """Whether that header is the one of the endpoint's incarnation."""
    generations: Generations
    """The generations of the slots, read after their rows, shape (slots,)."""
    data: bytes
    """The rows of the slots: segment after segment, each of shape (slots, slot_bytes) in C order."""
    data_s: float
    """The time to read the rows."""


class Transport(ABC):
    """Reads the memory of peers into the memory of one rank."""

    name: str

    @abstractmethod
    def reaches(self, peer: RankEndpoint) -> bool:
        """Say whether this transport leads to the peer; connects if need be, within a bound.

        The answer is kept; after a failure the peer is backed off from.
        """

    @abstractmethod
    def pull(self, request: PullRequest) -> PullResult:
        """Carry out one pull; see the module's docstring for what holds when it returns."""

    @abstractmethod
    def probe(self, peer: RankEndpoint, slots: Slots, *, timeout_s: float) -> Probe:
        """Time the way to a peer: read its seal and a few slots into private memory. Raises TransferError.

        slots: as many of them are read as fit there.
        """

    @abstractmethod
    def forget(self, peer: RankEndpoint) -> None:
        """Drop what is known of a peer that is gone or is a new incarnation."""

    @abstractmethod
    def close(self) -> None:
        """Release connections, memory registrations and threads. Idempotent."""
