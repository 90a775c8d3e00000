"""One placed request, from its placement to its end: it tells its tracker when it is sent, answered and over."""

from __future__ import annotations

from typing import Protocol

from ghostcacher_router.ghostlock.ghost_lock import GhostLock
from ghostcacher_router.ports import WorkerPort
from ghostcacher_router.signals.reservation import Reservation
from ghostcacher_router.signals.sent_caches import CacheUse, SentAside
from ghostcacher_router.signals.sent_history import SentPrompt
from ghostcacher_router.types import Ask, Endpoint, Forecast, Outcome, Prompt, Reason

HTTP_ERROR = 400
HTTP_TOO_MANY = 429
HTTP_SERVER_ERROR = 500

_WHY = {
    Outcome.REFUSED: "a connection could not be made",
    Outcome.BROKE: "it closed the connection without an answer",
    Outcome.FAILED: "its answer broke off, or was none",
}


class Tracker(Protocol):
    """Learns what happens to placed requests. It never raises."""

    def on_sent(self, placed: PlacedRequest) -> None:
        """Note that the request has been written to its worker."""

    def on_first_byte(self, placed: PlacedRequest) -> None:
        """Note that the answer has begun: the prompt is computed."""

    def on_answer_id(self, placed: PlacedRequest, answer_id: str) -> None:
        """Note the id with which the answer begins: of an object that the worker may keep."""

    def on_ended(self, placed: PlacedRequest, outcome: Outcome, *, computed: bool) -> None:
        """Note that the request is over. computed: whether the worker has computed its prompt."""

    def on_failed(self, placed: PlacedRequest, kind: str, why: str, *, sure: bool) -> None:
        """Note that it had failed, likely for its worker's sake. kind, why, sure: as in `FleetPort.failed`."""

    def doubts(self, worker: str) -> bool:
        """Say whether requests have failed at a worker lately."""


class PlacedRequest:
    """A request and the worker that was chosen for it: the Placement of types.py."""

    __slots__ = (
        "adapter",
        "ask",
        "cache_use",
        "data_parallel_rank",
        "decoding_since",
        "endpoint",
        "engine_id",
        "forecast",
        "is_answered",
        "is_compared",
        "is_ended",
        "lock",
        "lock_result",
        "outcome",
        "reason",
        "ref",
        "replaces",
        "reservation",
        "sent_at",
        "sent_prompt",
        "status",
        "tracker",
        "ttft_ms",
        "worker",
    )

    def __init__(
        self,
        tracker: Tracker,
        ask: Ask,
        worker: WorkerPort,
        reason: Reason,
        forecast: Forecast | None,
        reservation: Reservation,
    ) -> None:
        self.tracker, self.ask, self.reason, self.forecast = tracker, ask, reason, forecast
        self.reservation = reservation
        """Its place in the worker's queue."""
        self.worker: str = worker.name
        self.endpoint: Endpoint = worker.endpoint
        self.data_parallel_rank = worker.data_parallel_rank
        self.ref = worker.ref
        """The worker incarnation for which it was placed; None of a plain engine."""
        self.sent_prompt: SentPrompt | None = None
        """What the history keeps of it; None without a prompt."""
        self.cache_use: CacheUse | SentAside | None = None
        """What its prompt found in its worker's cache, as far as this router can tell; None without a prompt."""
        self.adapter: str | None = None
        """The LoRA adapter that it needs at its worker."""
        self.lock: GhostLock | None = None
        """The ghost lock under which its prompt is computed; None when nothing is computed that others could want."""
        self.replaces: GhostLock | None = None
        """The overdue lock that `lock` takes over."""
        self.lock_result: str | None = None
        """What became of the ghost lock that it encountered, for the metrics."""
        self.ttft_ms: float | None = None
        self.sent_at: float | None = None
        """When it was written to the worker; loop clock, s."""
        self.is_answered = False
        """Whether the first byte of an answer that is no error has come."""
        self.decoding_since: float | None = None
        """When the first token of a stream came; loop clock, s."""
        self.is_compared = False
        """Whether its forecast has been compared with what was observed."""
        self.engine_id: str | None = None
        """The id by which the engine names it, where that is the id of the answer."""
        self.is_ended = False
        self.outcome: Outcome | None = None
        """How it ended; None until then."""
        self.status: int | None = None
        """The status of the answer; None when none came."""

    def __repr__(self) -> str:
        return f"PlacedRequest({self.ask.request_id} at {self.worker}: {self.reason.value})"

    # The Placement of types.py, for the HTTP proxy.

    def sent(self) -> None:
        self.tracker.on_sent(self)

    def first_byte(self) -> None:
        self.is_answered = True
        self.tracker.on_first_byte(self)

    def answer_id(self, answer_id: str) -> None:
        self.tracker.on_answer_id(self, answer_id)

    def ended(self, outcome: Outcome, status: int | None) -> None:
        if not self.is_ended:
            self.is_ended = True
            self.outcome, self.status = outcome, status
            answered = status is not None and status < HTTP_ERROR
            begun = outcome is Outcome.DONE or not self.reservation.prefilling
            self.tracker.on_ended(self, outcome, computed=answered and begun)

    @property
    def prompt(self) -> Prompt | None:
        return self.ask.shape.prompt

    @property
    def doubtful(self) -> bool:
        return self.tracker.doubts(self.worker)

    def failed(self, *, sure: bool) -> None:
        assert self.outcome is not None, self
        status = self.status
        kind = str(status) if self.outcome is Outcome.DONE else self.outcome.value
        self.tracker.on_failed(self, kind, _WHY.get(self.outcome) or f"status {status}", sure=sure)

    @property
    def has_failed(self) -> bool:
        """Whether it ended with something that says nothing of how fast the worker computes."""
        if self.outcome is Outcome.DONE:
            return self.status is not None and (self.status >= HTTP_SERVER_ERROR or self.status == HTTP_TOO_MANY)
        return self.outcome in _WHY
