"""Takes routers' orders to drop blocks, and has them carried out where the engine's blocks are decided on.

    store --orders--> desk's thread --waiting--> engine's thread: `settle`, before it uses any block --dropped-->
    store <--answers-- desk's thread <-----------------------------------------------------------------'

An engine that has nothing to do calls nothing, so that its thread never comes by. After a second of that, the desk's
own thread carries the order out in its stead; `settle` waits for it meanwhile. So whatever an engine does, no request
that arrives after a router has got the answer finds what the order named.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from msgspec.structs import replace

from ghostcacher_connector.core.backoff import Backoff
from ghostcacher_connector.core.coordination.base import CoordinationStore
from ghostcacher_connector.core.coordination.flushes import (
    ERROR_CHARS_MAX,
    FLUSHES_MAX,
    FlushOrder,
    FlushReport,
    TierDropped,
)
from ghostcacher_connector.core.errors import IndexUnavailable
from ghostcacher_connector.core.periodic import Periodic

logger = logging.getLogger(__name__)

POLL_S = 0.5
"""How often the store is asked for orders: one small call. People wait for the answer."""
BUSY_S = 0.05
"""The same pause while an order waits for the engine, or its answer for the store."""
IDLE_S = 1.0
"""An engine without requests that has called nothing for so long has nothing in flight either."""
BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 2.0


class Engine(NamedTuple):
    """What the desk needs of an engine."""

    drop: Callable[[FlushOrder], FlushReport]
    """Carries an order out, in every tier of the worker."""
    has_requests: Callable[[], bool]
    """Says whether the engine has requests, or anything else in flight. Any thread may ask."""


class FlushDesk:
    """See the module's docstring. `settle` and `touch` are the engine's thread's, all else is the desk's own."""

    def __init__(self, store: CoordinationStore, worker: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Prepare the desk; `start` begins. worker: the name under which it answers."""
        self._store = store
        self._worker = worker
        self._clock = clock
        self._engine: Engine | None = None
        self._lock = threading.Lock()
        self._used_at = clock()
        self._cursor: str | None = None
        self._orders: deque[FlushOrder] = deque(maxlen=FLUSHES_MAX)
        self._answers: deque[tuple[FlushOrder, FlushReport]] = deque(maxlen=FLUSHES_MAX)
        self._given: deque[tuple[FlushOrder, FlushReport]] = deque(maxlen=FLUSHES_MAX)
        self._backoff = Backoff(BACKOFF_MIN_S, BACKOFF_MAX_S)
        self._thread = Periodic("gc-flushes", self.step)

    def __repr__(self) -> str:
        return f"FlushDesk({self._worker}, orders={len(self._orders)}, answers={len(self._answers)})"

    def start(self, engine: Engine) -> None:
        """Take orders from now on, for this engine."""
        self._engine = engine
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End the thread, within `timeout_s`. Idempotent."""
        self._thread.stop(timeout_s)

    def settle(self) -> None:
        """Carry out what is ordered, on the engine's thread, before it looks for a block or gives one away.

        Costs some 0.2 us while nothing is ordered.
        """
        with self._lock:
            self._used_at = self._clock()
            if self._orders:
                self._carry_out()

    def touch(self) -> None:
        """Note that the engine does something with blocks. To be called before `has_requests` turns false."""
        self._used_at = self._clock()

    def amend(self, order: FlushOrder, dropped: TierDropped) -> None:
        """Answer an order once more, when it is known what has become of one tier. For any thread."""
        if dropped.error is not None:
            dropped = replace(dropped, error=dropped.error[:ERROR_CHARS_MAX])
        with self._lock:
            for given, report in tuple(self._given):
                if given.order == order.order:
                    tiers = (dropped if each.tier is dropped.tier else each for each in report.dropped)
                    self._give(order, FlushReport(tuple(tiers)))
                    break
        self._thread.wake()

    def step(self) -> float:
        """Do what is due; return for how many seconds nothing else is."""
        try:
            self._cursor, orders = self._store.flush_orders(self._cursor)
            self._orders.extend(orders)
            self._stand_in()
            while self._answers:
                order, report = self._answers[0]
                self._store.put_flush_report(order.order, self._worker, report)
                self._answers.popleft()
        except IndexUnavailable as exc:
            if self._backoff.failures == 0:
                logger.debug("worker %s: hears of no orders to flush: %s", self._worker, exc)
            self._thread.forget_wakes()
            return self._backoff.failed(self._clock())
        self._backoff.succeeded()
        return BUSY_S if self._orders else POLL_S

    def _give(self, order: FlushOrder, report: FlushReport) -> None:
        """Have an order answered; a later answer takes the place of an earlier one."""
        self._given = deque((one for one in self._given if one[0].order != order.order), maxlen=FLUSHES_MAX)
        self._given.append((order, report))
        self._answers.append((order, report))

    def _stand_in(self) -> None:
        """Carry out what waits, for an engine whose thread does not come by."""
        if not self._orders or self._engine is None:
            return
        with self._lock:
            if self._clock() - self._used_at >= IDLE_S and not self._engine.has_requests():
                self._carry_out()

    def _carry_out(self) -> None:
        assert self._engine is not None, "orders are taken for an engine alone"
        while self._orders:
            order = self._orders.popleft()
            try:
                report = self._engine.drop(order)
            except Exception:
                logger.exception("worker %s: unexpected error while flushing %s", self._worker, order.scope)
                continue
            self._give(order, report)
            blocks = ", ".join(f"{tier.blocks} of {tier.tier.name}" for tier in report.dropped)
            logger.info(
                "worker %s: flushed %s for router %s: blocks: %s", self._worker, order.scope, order.router, blocks
            )
        self._thread.wake()
