"""The fleet and its workers as the admin API shows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from ghostcacher_connector.core import admin_api
from ghostcacher_connector.core.admin_api import GONE, NOT_ROUTABLE, AbsentWorker, Load
from ghostcacher_connector.core.admin_api import Worker as WorkerReport
from ghostcacher_connector.core.coordination.tier_load import TierLoad
from ghostcacher_connector.core.types import MissReason, SectionType
from ghostcacher_router.fleet.fleet import Fleet
from ghostcacher_router.fleet.membership.gone import GoneWorker
from ghostcacher_router.fleet.worker import Worker
from ghostcacher_router.types import WorkerState

UNKNOWN = "unknown"
_REASONS = tuple(reason.value for reason in MissReason)


def worker_reports(fleet: Fleet, in_flight: Callable[[str], int], now: float) -> tuple[WorkerReport, ...]:
    """Return every worker in order of name; then those that cannot be sent requests, and those that are gone."""
    members = [_member(fleet, fleet.workers[name], in_flight(name), now) for name in sorted(fleet.workers)]
    not_routable = [
        AbsentWorker(id=name, state=NOT_ROUTABLE, why=found.why, namespace=found.record.namespace)
        for name, found in sorted(fleet.unroutable.items())
    ]
    return (*members, *not_routable, *gone_reports(fleet, now))


def gone_reports(fleet: Fleet, now: float) -> tuple[WorkerReport, ...]:
    """Return the workers that have left without being drained before, the latest first."""
    return tuple(
        AbsentWorker(
            id=gone.name,
            state=GONE,
            state_s=round(now - gone.left_at, 3),
            url=gone.endpoint.url,
            data_parallel_rank=gone.data_parallel_rank,
            namespace=gone.namespace,
            incarnation=None if gone.incarnation is None else gone.incarnation.hex(),
            error=gone.error,
            why=_left(gone),
        )
        for gone in fleet.gone
    )


def _member(fleet: Fleet, worker: Worker, in_flight: int, now: float) -> WorkerReport:
    return WorkerReport(
        id=worker.name,
        state=worker.state.value,
        state_s=round(now - worker.since, 3),
        draining=worker.draining,
        url=worker.endpoint.url,
        data_parallel_rank=worker.data_parallel_rank,
        models=tuple(sorted(worker.models)),
        in_flight=in_flight,
        lease=fleet.lease_of(worker.name),
        namespace=worker.namespace,
        incarnation=None if worker.incarnation is None else worker.incarnation.hex(),
        block_tokens=worker.block_tokens,
        load=_load(worker, now),
        failures=worker.failures,
        refusals=worker.refusals,
        error=worker.error,
        ejected=fleet.why_ejected(worker.name),
    )


def _load(worker: Worker, now: float) -> Load | None:
    if worker.load is None:
        return None
    load = worker.load.load
    fields = msgspec.structs.asdict(load) | {
        "age_s": round(now - worker.load_measured_at - load.age_s, 3),
        "tiers": tuple(map(_tier, load.tiers)),
        "missed_blocks": misses_of(load.missed_blocks),
    }
    return msgspec.convert(fields, Load)


def misses_of(counts: Sequence[int]) -> dict[str, int]:
    """Return misses by reason, without the reasons that there were none for. counts: as in a load report."""
    found = {reason: count for reason, count in zip(_REASONS, counts, strict=False) if count}
    if later := sum(counts[len(_REASONS) :]):
        # Of a newer version, which knows more of them.
        found[UNKNOWN] = later
    return found


def _tier(load: TierLoad) -> admin_api.TierLoad:
    types = (section.name.lower() for section in SectionType)
    return admin_api.TierLoad(
        load.tier.name.lower(),
        load.blocks,
        load.blocks_max,
        dict(zip(types, load.blocks_by_section, strict=False)),
        load.loaded_blocks,
        load.evicted_blocks,
        load.refused_blocks,
        load.copies_under_way,
    )


def _left(gone: GoneWorker) -> str:
    last = "no probe had failed until then" if gone.error is None else gone.error
    return f"its lease in Redis ended and it had not been drained; {last}"


def not_ready(fleet: Fleet) -> str | None:
    """Return why no request can be served now, None when one can."""
    counts = {state.value: count for state, count in fleet.count_by_state().items() if count}
    if WorkerState.READY.value in counts:
        return None
    if counts:
        return f"no worker is ready: {', '.join(f'{count} {state}' for state, count in counts.items())}"
    if fleet.unroutable:
        name, found = min(fleet.unroutable.items())
        return f"no worker can be sent requests: worker {name}: {found.why}"
    if fleet.gone:
        return f"no worker is left: {', '.join(sorted(gone.name for gone in fleet.gone))} gone"
    if fleet.redis_error is not None:
        return f"no worker is known, and none can be looked for: {fleet.redis_error}"
    return "no worker is known: none has a lease in Redis, and none is given as URL (workers)"
