"""How the ranks of one engine become one worker of the fleet: each introduces itself, and one record says it all."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from ghostcacher_connector.core.errors import FingerprintMismatch, ProtocolError
from ghostcacher_connector.core.schema import SCHEMA_VERSION
from ghostcacher_connector.core.types import PdRole, RankEndpoint, Role, WorkerRecord
from ghostcacher_connector.worker.owner import this_process


class Introduction(msgspec.Struct, frozen=True, kw_only=True):
    """What a rank hands to the process that registers its worker."""

    endpoint: RankEndpoint
    fingerprint: dict[str, str]
    namespace: str
    flops_per_s: float
    """Measured by a matrix product at start; the first guess of the prefill rate comes from it."""


def worker_record(
    ranks: Sequence[Introduction],
    *,
    worker: str,
    role: Role,
    http: str | None,
    block_tokens: int,
    shares_prefill: bool = True,
    takes_flushes: bool = True,
    data_parallel_rank: int | None = None,
    pd_role: PdRole | None = None,
) -> WorkerRecord:
    """Return the record of a worker for which this process speaks.

    ranks: of all of its ranks, in any order. The rest is as in `WorkerRecord`.
    Raises ProtocolError when one is missing or there twice, FingerprintMismatch when they differ.
    """
    ranks = sorted(ranks, key=lambda rank: rank.endpoint.rank)
    numbers = [rank.endpoint.rank for rank in ranks]
    if not ranks or numbers != list(range(len(ranks))):
        raise ProtocolError(f"ranks: expected 0 to {max(0, len(ranks) - 1)}, found {numbers}")
    first = ranks[0]
    for other in ranks:
        if other.namespace != first.namespace:
            raise FingerprintMismatch(
                f"rank {other.endpoint.rank}: expected namespace {first.namespace}, found {other.namespace}"
            )
    return WorkerRecord(
        schema=SCHEMA_VERSION,
        worker=worker,
        incarnation=first.endpoint.incarnation,
        namespace=first.namespace,
        fingerprint=first.fingerprint,
        role=role,
        http=http,
        block_tokens=block_tokens,
        started_at=time.time(),
        ranks=tuple(rank.endpoint for rank in ranks),
        shares_prefill=shares_prefill,
        takes_flushes=takes_flushes,
        data_parallel_rank=data_parallel_rank,
        pd_role=pd_role,
        owner=this_process(),
        stamped=True,
    )


def first_prefill_rate(ranks: Sequence[Introduction], *, layers: int, hidden: int) -> float:
    """Guess tokens/s from measured FLOP/s: 2 FLOP a weight and token, 12 * layers * hidden^2 weights."""
    weights = 12 * layers * hidden**2
    return max(1.0, sum(rank.flops_per_s for rank in ranks) / (2 * weights))
