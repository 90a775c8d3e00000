"""The index's answer to a request's question, as an engine's scheduler takes it: there, not yet, or not in time."""

from __future__ import annotations

from ghostcacher_connector.core.types import MissReason, PrefixHit
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.pull.lookups import PENDING, LookupService


def take_answer(
    lookups: LookupService, recorder: Recorder, request_id: str, *, left_s: float, wait_s: float
) -> list[PrefixHit] | MissReason | None:
    """Return the hits, why there are none, or None while the answer may still come in time.

    left_s: time until the request's deadline. wait_s: how long the caller can wait here; never beyond the deadline.
    """
    answer = lookups.poll(request_id, wait_s=max(0.0, min(wait_s, left_s)))
    if answer is PENDING:
        if left_s > wait_s:
            return None
        lookups.forget(request_id)
        return MissReason.LOOKUP_DEADLINE
    recorder.observe("gc_lookup_seconds", answer.seconds)
    return answer.hits if answer.reason is None else answer.reason
