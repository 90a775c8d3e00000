"""One placed request, from its placement to its end: what has to be noted when it is sent, answers and ends."""

from __future__ import annotations

from typing import Protocol

from ghostcacher_router.ghostlock.ghost_lock import GhostLock
from ghostcacher_router.ports import WorkerPort
from ghostcacher_router.signals.queue_estimate import Entry
from ghostcacher_router.signals.sent_history import Sent
from ghostcacher_router.types import Ask, Endpoint, Forecast, Outcome, Reason

HTTP_ERROR = 400


class Desk(Protocol):
    """Who hears of what happens to a placed request. Never raises."""

    def on_sent(self, placed: PlacedRequest) -> None: ...

    def on_first_byte(self, placed: PlacedRequest) -> None: ...

    def on_ended(self, placed: PlacedRequest, outcome: Outcome, *, computed: bool) -> None: ...


class PlacedRequest:
    """A Placement. ref: the life of the worker that it was picked for. sent_at: loop clock, s.

    lock: the ghost lock under which it computes, None when it computes nothing that others could want.
    took_over: the overdue lock that it replaces. lock_result: what became of the lock that it met, for the metrics.
    remembered: what the router's memory keeps of it, None without a prompt. is_judged: its forecast has been held
    against the fact.
    """

    __slots__ = (
        "ask",
        "desk",
        "endpoint",
        "entry",
        "forecast",
        "is_ended",
        "is_judged",
        "lock",
        "lock_result",
        "reason",
        "ref",
        "remembered",
        "sent_at",
        "took_over",
        "worker",
    )

    def __init__(
        self,
        desk: Desk,
        ask: Ask,
        worker: WorkerPort,
        reason: Reason,
        forecast: Forecast | None,
        entry: Entry,
    ) -> None:
        self.desk, self.ask, self.reason, self.forecast, self.entry = desk, ask, reason, forecast, entry
        self.worker: str = worker.name
        self.endpoint: Endpoint = worker.endpoint
        self.ref = worker.ref
        self.remembered: Sent | None = None
        self.lock: GhostLock | None = None
        self.took_over: GhostLock | None = None
        self.lock_result: str | None = None
        self.sent_at: float | None = None
        self.is_ended = self.is_judged = False

    def __repr__(self) -> str:
        return f"PlacedRequest({self.ask.request_id} at {self.worker}: {self.reason.value})"

    def sent(self) -> None:
        self.desk.on_sent(self)

    def first_byte(self) -> None:
        self.desk.on_first_byte(self)

    def ended(self, outcome: Outcome, status: int | None) -> None:
        if not self.is_ended:
            self.is_ended = True
            answered = status is not None and status < HTTP_ERROR
            begun = outcome is Outcome.DONE or not self.entry.prefilling
            self.desk.on_ended(self, outcome, computed=answered and begun)
