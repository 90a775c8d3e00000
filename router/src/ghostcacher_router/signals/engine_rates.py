"""How fast a worker's engine is: what stays so until its next load report, and what each request there changes."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, Protocol

from ghostcacher_connector.core.coordination.base import LoadReport, StampedLoad
from ghostcacher_connector.core.types import Role, WorkerRecord
from ghostcacher_router.ports import WorkerPort
from ghostcacher_router.signals.engine_speeds import EngineSpeeds
from ghostcacher_router.signals.reservation import Reservation
from ghostcacher_router.signals.ttft_forecast import Engine
from ghostcacher_router.signals.working_sets import reported_capacity

DECODE_WEIGHT = 0.05
"""What a delay of one token after the first counts for, against the same delay of the first one. A request that joins a
batch delays as many tokens as it decodes beside each of the others, once its own and once theirs. People and programs
wait for the first token; that the others come a little later matters less, but there are hundreds of them."""

PULL_BYTES_PER_S_GUESS = 1e9
"""Used until a worker has measured its own: a 10 Gbit/s link, the slowest on which sharing is usually deployed."""

_new = tuple.__new__
"""A NamedTuple's own constructor, in half the time."""


class Rates(NamedTuple):
    """What a worker's last report says of its engine, or what stands in for it: the same until it reports anew."""

    ms_per_token: float
    """Prefill time of one prompt token."""
    decode_request_ms: float
    """What one more request adds to each decode step."""
    kv_free_tokens: int | None
    """Tokens for which there was free KV memory; None when the worker does not report it."""
    pull_fixed_ms: float
    pull_ms_per_token: float | None
    """None when the worker cannot pull."""
    capacity: int
    """Tokens that the worker's caches hold; 0 of a plain one."""
    record: WorkerRecord | None
    """The worker's record, which says whether it pulls."""


class _Queue(Protocol):
    """The requests at a worker."""

    @property
    def load(self) -> StampedLoad | None: ...
    @property
    def unreported(self) -> Collection[Reservation]: ...
    def batch(self, load: LoadReport | None) -> int: ...


def rates_of(worker: WorkerPort, speeds: EngineSpeeds) -> Rates:
    """Return what is known of a worker's engine until it reports anew, or until the speeds have another version."""
    ms_per_token = speeds.ms_per_token(worker.name)
    decode_request_ms = speeds.decode_request_ms(worker.name, ms_per_token)
    if worker.load is None:
        return Rates(ms_per_token, decode_request_ms, None, 0.0, None, 0, worker.record)
    load = worker.load.load
    free = (load.kv_blocks_total - load.kv_blocks_used) * load.block_tokens if load.kv_blocks_total else None
    pull_ms_per_token = None
    if worker.record is not None and worker.record.role is not Role.PRODUCER and load.block_tokens > 0:
        bytes_per_token = load.block_bytes / load.block_tokens
        pull_ms_per_token = bytes_per_token / (load.pull_bytes_per_s or PULL_BYTES_PER_S_GUESS) * 1e3
    pull_fixed_ms, capacity = load.pull_fixed_s * 1e3, reported_capacity(worker)
    return Rates(ms_per_token, decode_request_ms, free, pull_fixed_ms, pull_ms_per_token, capacity, worker.record)


def engine_of(queue: _Queue, worker: str, rates: Rates, answer_tokens: float, *, fresh: bool) -> Engine:
    """Return how fast a worker is with the requests that it has now. queue: its own.

    answer_tokens: the expected length of an answer. fresh: whether the worker's load report counts.
    """
    ms_per_token, decode_request_ms, free, pull_fixed_ms, pull_ms_per_token, _, _ = rates
    step_ms = queue.batch(queue.load.load if fresh and queue.load is not None else None) * decode_request_ms
    decode_ms = DECODE_WEIGHT * answer_tokens * step_ms
    if not fresh:
        free = None
    elif free is not None:
        free = max(0, free - sum([one.tokens for one in queue.unreported]))
    return _new(Engine, (worker, ms_per_token, step_ms, decode_ms, free, pull_fixed_ms, pull_ms_per_token))
