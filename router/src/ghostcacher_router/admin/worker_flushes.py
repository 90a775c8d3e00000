"""Has workers drop blocks, and gathers what each of them has dropped.

The order goes through the store, where every worker looks for it; so does each answer. A worker that does not answer in
time is named: it may be of an older version, hang, or have lost Redis, and then it keeps its blocks, though others
do not find them once its lease has ended. A worker whose record says that it takes no orders is not waited for.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence

from ghostcacher_connector.core.admin_api import Flushed, TierFlushed, WorkerFlushed
from ghostcacher_connector.core.coordination.base import CoordinationStore
from ghostcacher_connector.core.coordination.flushes import ORDER_BYTES, FlushOrder, FlushReport, TierDropped
from ghostcacher_connector.core.errors import IndexUnavailable
from ghostcacher_connector.core.types import FlushScope
from ghostcacher_router.fleet.fleet import Fleet
from ghostcacher_router.ports import Offload

WAIT_S = 6.0
"""An idle engine takes up to two seconds, a busy one as long as a step of it; less than the admin API has in all."""
POLL_S = 0.1


class WorkerFlushes:
    """Orders of one router. On the event loop only. router: its name, which orders carry."""

    def __init__(
        self,
        store: CoordinationStore | None,
        offload: Offload,
        fleet: Fleet,
        *,
        router: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """store: None without Redis, where no worker can be told anything."""
        self._store, self._offload, self._fleet = store, offload, fleet
        self._router, self._clock = router, clock

    async def flush(self, scope: FlushScope, blocks: Sequence[bytes] = (), session: bytes = b"") -> Flushed:
        """Have every worker with a connector drop what is named; return what they have dropped. Bounded in time."""
        found = {name: worker for name, worker in self._fleet.workers.items() if worker.incarnation is not None}
        others = [
            WorkerFlushed(name, answered=False, supported=False)
            for name, worker in found.items()
            if not worker.takes_flushes
        ]
        workers = sorted(name for name, worker in found.items() if worker.takes_flushes)
        if not workers:
            return Flushed(scope, workers=tuple(sorted(others, key=_name_of)))
        order = FlushOrder(secrets.token_bytes(ORDER_BYTES), scope.value, tuple(blocks), session, self._router)
        reports: list[FlushReport | None] = [None] * len(workers)
        error = None
        try:
            if self._store is None:
                error = "without Redis no worker can be told"
            else:
                await self._wait(self._store, order, workers, reports)
        except IndexUnavailable as exc:
            error = str(exc)
        answers = sorted([*map(_answer_of, workers, reports), *others], key=_name_of)
        return Flushed(
            scope,
            blocks=sum(tier.blocks for answer in answers for tier in answer.tiers),
            bytes=sum(tier.bytes for answer in answers for tier in answer.tiers),
            workers=tuple(answers),
            error=error,
        )

    async def _wait(
        self, store: CoordinationStore, order: FlushOrder, workers: list[str], reports: list[FlushReport | None]
    ) -> None:
        """Give the order, and fill in the answers as they come, for a while."""
        deadline = self._clock() + WAIT_S
        await self._offload(lambda: store.append_flush(order))
        while not all(map(_is_complete, reports)) and self._clock() < deadline:
            await asyncio.sleep(POLL_S)
            reports[:] = await self._offload(lambda: store.flush_reports(order.order, workers))


def _name_of(answer: WorkerFlushed) -> str:
    return answer.worker


def _answer_of(worker: str, report: FlushReport | None) -> WorkerFlushed:
    if report is None:
        return WorkerFlushed(worker, answered=False)
    return WorkerFlushed(worker, answered=True, tiers=tuple(map(_tier_of, report.dropped)))


def _is_complete(report: FlushReport | None) -> bool:
    return report is not None and all(each.complete for each in report.dropped)


def _tier_of(dropped: TierDropped) -> TierFlushed:
    late = None if dropped.complete else "not over yet: nothing of it is used any more, and the worker goes on deleting"
    return TierFlushed(dropped.tier.name.lower(), dropped.blocks, dropped.bytes, dropped.error or late)
