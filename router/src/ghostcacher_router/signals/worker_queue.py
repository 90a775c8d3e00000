"""What is known of one worker's queue: the requests of this router there, those of others, and those that failed.

Times are the loop's clock, in seconds. On the event loop only.
"""

from __future__ import annotations

from collections import deque

from ghostcacher_connector.core.coordination.base import LoadReport, StampedLoad
from ghostcacher_router.ports import WorkerPort
from ghostcacher_router.signals.engine_rates import Rates
from ghostcacher_router.signals.reservation import Reservation
from ghostcacher_router.signals.ttft_forecast import Engine

RECENT_HALF_LIFE_S = 60.0
"""A request that was placed so long ago counts half among the recent ones: caches turn over in minutes."""


def faded(at: float, now: float) -> float:
    """Return what a request that was placed at a time counts for now, when it counted for 1 then; loop clock, s."""
    return float(2.0 ** ((at - now) / RECENT_HALF_LIFE_S))


class QueueEstimate:
    """A worker as the next request finds it. There is one object for each worker, good until it is asked for again."""

    __slots__ = ("capacity", "engine", "link_ms", "prefilling", "queue_ms", "reported")

    def __init__(self, engine: Engine, queue_ms: float, reported: bool, capacity: int = 0) -> None:
        self.engine = engine
        self.capacity = capacity
        """Tokens that the worker's caches hold; 0 of a plain one, whose homes are not known by the hashes of blocks."""
        self.queue_ms = queue_ms
        """Prefill time of everything that is ahead."""
        self.link_ms = 0.0
        """Time until the pulls that are ahead are done: they share a link."""
        self.prefilling = 0
        """Requests that wait for their first token there. As many will wait behind the next one, if all goes on so."""
        self.reported = reported
        """Whether a fresh load report stands behind it, and not this router's own count alone."""

    def later(self, ms: float) -> QueueEstimate:
        """Return one of its own for a request that has to wait so much longer."""
        later = QueueEstimate(self.engine, self.queue_ms + ms, self.reported, self.capacity)
        later.prefilling, later.link_ms = self.prefilling, self.link_ms
        return later

    def __repr__(self) -> str:
        return f"QueueEstimate({self.engine.name}, queue={self.queue_ms:.1f} ms, reported={self.reported})"


class WorkerQueue:
    """One worker's queue; `QueueEstimator` keeps it."""

    __slots__ = (
        "answered_at",
        "busy_until",
        "dirty",
        "ended",
        "estimate",
        "failed",
        "failed_tokens",
        "foreign",
        "load",
        "measured_at",
        "prefilling",
        "prefilling_tokens",
        "pulling_until",
        "pulls_ms",
        "rates",
        "received_at",
        "recent",
        "recent_at",
        "reservations",
        "slot",
        "speeds_version",
        "trusted_until",
        "unreported",
        "worker",
        "written",
    )

    def __init__(self, slot: int) -> None:
        self.slot = slot
        """Its place in the columns: queue_columns.py."""
        self.worker: WorkerPort | None = None
        """The worker; None before anybody has asked for an estimate."""
        self.reservations: dict[Reservation, None] = {}
        self.unreported: dict[Reservation, None] = {}
        """The reservations that the last load report cannot have counted, prefilling or not."""
        self.foreign: dict[Reservation, None] = {}
        """Requests of other routers that are still prefilling, as the worker itself tells."""
        self.recent = self.recent_at = 0.0
        """Requests that were placed there, older ones counting less, and when the last one was; loop clock, s."""
        self.ended = 0
        """Requests that the last load report may have counted, and that have ended since it came."""
        self.failed: deque[tuple[float, int]] = deque()
        """Of each request that failed of late: until when it counts as there, and its tokens to be computed."""
        self.failed_tokens = 0
        """Tokens to be computed of all of these."""
        self.prefilling: dict[Reservation, None] = {}
        """Reservations that are still prefilling, in the order of their placement."""
        self.answered_at = 0.0
        """When an answer of the worker began last; loop clock, s."""
        self.prefilling_tokens = 0
        """Tokens to be computed of all reservations that are still prefilling."""
        self.pulls_ms = 0.0
        """How long the pulls take of all reservations that are still prefilling."""
        self.pulling_until = 0.0
        """When these are done, one after the other; loop clock, s."""
        self.load: StampedLoad | None = None
        """The last load report that was taken in."""
        self.measured_at = self.received_at = 0.0
        """When the last load report was measured, and when it came; loop clock, s."""
        self.rates: Rates | None = None
        """Those of the last load report; None before anybody has asked for an estimate since then."""
        self.speeds_version = -1
        """Of the speeds that the rates were found with."""
        self.busy_until = 0.0
        """When everything in the queue is computed, should the worker go on."""
        self.trusted_until = 0.0
        """Until when the worker is believed to go on without another report."""
        self.estimate: QueueEstimate | None = None
        self.written: QueueEstimate | None = None
        """The estimate that is in the columns."""
        self.dirty = True
        """Whether the estimate has to be made anew."""

    def drop_failed(self, now: float) -> bool:
        """Forget the failed requests whose time is over; return whether there were any."""
        count = len(self.failed)
        while self.failed and self.failed[0][0] <= now:
            self.failed_tokens -= self.failed.popleft()[1]
        return len(self.failed) < count

    def count_recent(self, now: float) -> None:
        """Count a request that was placed there, by whatever router."""
        self.recent, self.recent_at = self.recent_requests(now) + 1.0, now

    def recent_requests(self, now: float) -> float:
        """Return how many requests were placed there of late."""
        return self.recent * faded(self.recent_at, now)

    def link_ms(self, now: float) -> float:
        """Return the time until the pulls that are ahead are done."""
        left_ms = (self.pulling_until - now) * 1e3
        return max(0.0, min(left_ms, self.pulls_ms))

    def progress_ms(self, now: float) -> float:
        """Return how much of its first prompt a worker has likely computed that reports nothing; prompts take turns."""
        first = next(iter(self.prefilling), None)
        if first is None or self.estimate is None:
            return 0.0
        passed_ms = (now - max(first.since, self.answered_at)) * 1e3
        return min(passed_ms, first.computed * self.estimate.engine.ms_per_token)

    def pass_time(self, found: QueueEstimate, now: float) -> None:
        """Note in an estimate what passing time has changed. found: what `estimate` is, or has just become."""
        if found.reported:
            until = self.trusted_until
            queue_ms = (self.busy_until - (now if now < until else until)) * 1e3
            if queue_ms < 0.0:  # noqa: PLR1730 -- max() takes five times as long
                queue_ms = 0.0
        else:
            queue_ms = self.prefilling_tokens * found.engine.ms_per_token
            if self.load is None:
                queue_ms -= self.progress_ms(now)
        if self.failed_tokens:
            queue_ms += self.failed_tokens * found.engine.ms_per_token
        found.queue_ms = queue_ms
        found.link_ms = self.link_ms(now) if self.pulls_ms else 0.0

    def batch(self, load: LoadReport | None) -> int:
        """Return how many requests a worker has, or seems to have. load: its report, if that is fresh."""
        batch = len(self.reservations)
        if load is not None:
            batch = max(batch, load.running + load.waiting + len(self.unreported) - self.ended)
        return batch + len(self.failed)
