"""Work that one worker of the fleet does in each stretch of time, agreed upon in the store itself.

A claim is an object that only one worker can create. It is about cost alone: what is done under it does no harm when it
is done twice, and when its worker dies the next stretch has a claim of its own.
"""

from __future__ import annotations

from ghostcacher_connector.objects.layout import SWEEPS
from ghostcacher_connector.objects.stores.base import ObjectStore


def claimed(store: ObjectStore, what: str, period_s: float, now: float) -> bool:
    """Return whether this worker is the one that does `what` in this stretch of `period_s` seconds. Raises StoreError.

    now: seconds since 1970; clocks that differ cost a repetition.
    """
    return store.create(f"{SWEEPS}{what}-{int(now / period_s)}", memoryview(b"claimed"))
