"""How full one worker is, as far as one router can tell: for deciding whether it should get another request at all.

A queue estimate (queue_estimate.py) is a time, for choosing among workers. This is what an engine is short of: places
in its batch, KV memory, or time to compute prompts.
"""

from __future__ import annotations

from typing import NamedTuple

from ghostcacher_router.ports import WorkerPort
from ghostcacher_router.signals.worker_queue import QueueEstimate, WorkerQueue


class Standing(NamedTuple):
    """One worker as the next request would find it."""

    own: int
    """Requests of this router that are there, or on their way."""
    requests: int
    """All that are there, as far as is known: as reported, with what has come and gone since. At least `own`."""
    waiting: int
    """Those that wait in the engine's scheduler, as reported, less what has ended there since."""
    on_the_way: int
    """Requests of this router that the last report cannot have counted, and whose prompts are not computed."""
    work_ms: float
    """Prompts that are still to be computed, in time."""
    kv_share: float
    """The share of the KV memory that requests need, those on their way included; 0 where it is not known."""
    reported: bool
    """Whether a fresh report stands behind it. Without one only `own` is sure."""


def standing_of(worker: WorkerPort, queue: WorkerQueue, found: QueueEstimate) -> Standing:
    """Return how full a worker is. queue, found: what is known of its queue, just estimated."""
    own = len(queue.reservations)
    if not found.reported or worker.load is None:
        return Standing(own, own, 0, 0, found.queue_ms, 0.0, False)
    load, free = worker.load.load, found.engine.kv_free_tokens
    requests = max(own, load.running + load.waiting + len(queue.unreported) - queue.ended)
    on_the_way = sum([one.prefilling for one in queue.unreported if one in queue.reservations])
    total = load.kv_blocks_total * load.block_tokens
    kv_share = 0.0 if free is None or not total else 1.0 - free / total
    waiting = max(0, load.waiting - queue.ended)
    return Standing(own, requests, waiting, on_the_way, found.queue_ms, kv_share, True)
