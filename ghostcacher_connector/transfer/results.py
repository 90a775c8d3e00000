"""How the implementations of a transport say how a pull ended."""

from __future__ import annotations

import numpy as np

from ghostcacher_connector.core.types import MissReason
from ghostcacher_connector.transfer.base import PullOutcome, PullResult, Validity


class Moved:
    """Counts a pull's bytes, so that a failed one can still say how far it came."""

    def __init__(self) -> None:
        self.bytes = 0


def failed(
    count: int, transport: str, reason: MissReason, detail: str, *, moved_bytes: int = 0, seconds: float = 0.0
) -> PullResult:
    """The READ of `count` blocks did not complete: none is valid."""
    none = np.zeros(count, dtype=np.bool_)
    return PullResult(PullOutcome.FAILED, none, moved_bytes, seconds, reason, transport, detail)


def finished(valid: Validity, transport: str, moved_bytes: int, seconds: float) -> PullResult:
    """The READ completed and the seal was compared: DONE when every block is valid, else STALE."""
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
