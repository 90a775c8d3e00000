"""What was placed, and what follows from how it goes: queues, memory, sessions, locks, forecasts against facts."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from ghostcacher_connector.core.index.base import WorkerRef
from ghostcacher_router.ghostlock.single_flight import SETTLE_S
from ghostcacher_router.placement.context import Dependencies, RoutingState
from ghostcacher_router.placement.placed_request import PlacedRequest
from ghostcacher_router.ports import KnownPort, WorkerPort
from ghostcacher_router.signals.prefix_locations import Held
from ghostcacher_router.signals.sessions import session_key
from ghostcacher_router.types import Ask, Forecast, Outcome, Prompt, Reason

BIAS_MS_MIN = 50.0
"""Prompts that take less to compute say nothing about how far off forecasts are: fixed costs prevail."""

LAST_SEEDED = 3
SECTIONS_SEEDED = 8
"""Boundaries at which others are told at once who holds a prompt: the index is asked about any other."""

BIAS_WEIGHT = 0.1
BIAS_MAX = 4.0
NEWS_BIAS_MAX = 2.0
"""As far as only a worker's news tells: it may have waited for the index."""


class InFlightTracker:
    """Keeps the books of placed requests. On the event loop only. None of it blocks or raises.

    bias: time until a prompt was computed over its forecast, a running mean of requests that were worth forecasting.
    """

    def __init__(self, dependencies: Dependencies, state: RoutingState) -> None:
        self._fleet, self._text, self._pending = dependencies.fleet, dependencies.text, dependencies.pending
        self._metrics, self._clock = dependencies.metrics, dependencies.clock
        self._queues, self._sent_history, self._locations, self._sessions, self._locks = state
        self._open: dict[str, PlacedRequest] = {}
        self._shared: dict[str, int] = {}
        self.bias = 1.0

    def __repr__(self) -> str:
        return f"InFlightTracker(open={len(self._open)}, bias={self.bias:.2f})"

    def reserve(self, ask: Ask, worker: WorkerPort, reason: Reason, forecast: Forecast | None) -> PlacedRequest:
        """Enter a placement, so that the very next request sees it."""
        now, prompt = self._clock(), ask.shape.prompt
        tokens = computed = 0
        if forecast is not None:
            computed, tokens = forecast.computed_tokens, forecast.computed_tokens + forecast.cached_tokens
        entry = self._queues.reserve(worker.name, tokens, computed, now)
        placed = PlacedRequest(self, ask, worker, reason, forecast, entry)
        self._enter(placed)
        if prompt is not None:
            placed.remembered = self._sent_history.record(prompt, worker.name, now)
            if placed.ref is not None:
                self._pending.put(ask.request_id, prompt)
        return placed

    def withdraw(self, placed: PlacedRequest) -> None:
        """Take a placement back that was never handed out."""
        placed.is_ended = True
        self._close(placed, computed=False)

    def hand_out(self, placed: PlacedRequest) -> PlacedRequest:
        """Count a placement, and bind its session to the worker."""
        self._metrics.picked(placed.worker, placed.reason)
        if placed.lock_result is not None:
            self._metrics.ghost_locks.inc(placed.lock_result)
        session, forecast = placed.ask.shape.session, placed.forecast
        if session is not None:
            self._sessions.bind(session_key(placed.ask.shape.model, session), placed.worker)
        if forecast is not None and placed.ask.shape.prompt is not None:
            spared_ms = forecast.cached_tokens * forecast.compute_ms / forecast.computed_tokens - forecast.pull_ms
            tokens = forecast.cached_tokens + forecast.computed_tokens
            self._metrics.observed(tokens, forecast.cached_tokens, spared_ms)
        return placed

    def on_computed(self, ref: WorkerRef, request_id: str) -> None:
        """A worker says that a request's prompt can be pulled from it now."""
        placed = self._open.get(request_id)
        if placed is None or placed.ref != ref or request_id in self._shared or self._pending.is_ambiguous(request_id):
            return
        prompt, now = placed.ask.shape.prompt, self._clock()
        if prompt is not None:
            self._computed(placed, now, now)
            known = self._text.known(ref.namespace, prompt)
            for depth in _depths(prompt, known):
                held = Held(ref.incarnation, known[depth - 1].block_count)
                self._locations.seed(ref.namespace, known[:depth], ref.worker, held)
        self._judge(placed, now, NEWS_BIAS_MAX)
        if placed.lock is not None:
            self._locks.release(placed.lock)
        self._queues.first_byte(placed.entry)

    def on_sent(self, placed: PlacedRequest) -> None:
        placed.sent_at = self._clock()
        self._queues.sent(placed.entry, placed.sent_at)

    def on_first_byte(self, placed: PlacedRequest) -> None:
        now, forecast = self._clock(), placed.forecast
        self._queues.first_byte(placed.entry)
        self._fleet.answered(placed.worker)
        if placed.sent_at is not None and placed.ask.shape.stream:
            observed_ms = (now - placed.sent_at) * 1e3
            self._metrics.first_token(observed_ms, None if forecast is None else forecast.total_ms)
            self._judge(placed, now, BIAS_MAX)
        self._computed(placed, now, now + SETTLE_S)
        self._settle(placed)

    def on_ended(self, placed: PlacedRequest, outcome: Outcome, *, computed: bool) -> None:
        self._close(placed, computed=computed)
        if outcome is Outcome.DONE:
            self._fleet.answered(placed.worker)
        elif outcome is Outcome.REFUSED:
            self._fleet.refused(placed.worker)
            self._sent_history.forget_worker(placed.worker, self._clock())

    def _computed(self, placed: PlacedRequest, now: float, done_at: float) -> None:
        if placed.remembered is not None:
            self._sent_history.computed(placed.remembered, now, done_at)

    def _judge(self, placed: PlacedRequest, now: float, ratio_max: float) -> None:
        """Hold the forecast against the fact, once a request: its prompt is computed now, or was a moment ago."""
        forecast = placed.forecast
        if placed.is_judged or placed.sent_at is None or forecast is None or forecast.compute_ms < BIAS_MS_MIN:
            return
        placed.is_judged = True
        ratio = min(ratio_max, (now - placed.sent_at) * 1e3 / forecast.total_ms)
        self.bias += BIAS_WEIGHT * (ratio - self.bias)

    def _settle(self, placed: PlacedRequest) -> None:
        if placed.lock is not None:
            self._locks.settle(placed.lock)

    def _close(self, placed: PlacedRequest, *, computed: bool) -> None:
        self._queues.ended(placed.entry)
        self._queues.keep_only(self._fleet.workers)
        if computed:
            now = self._clock()
            self._computed(placed, now, now + SETTLE_S)
            self._settle(placed)
        else:
            if placed.remembered is not None:
                self._sent_history.withdraw(placed.remembered)
            if placed.lock is not None:
                self._locks.release(placed.lock)
        if placed.remembered is not None:
            self._sent_history.ended(placed.remembered)
        self._remove(placed)

    def _enter(self, placed: PlacedRequest) -> None:
        request_id = placed.ask.request_id
        if request_id in self._open:
            # Clients choose ids. Of two requests with the same one, nobody knows whose news those of a worker are.
            self._shared[request_id] = self._shared.get(request_id, 1) + 1
            self._pending.mark_ambiguous(request_id)
        self._open[request_id] = placed

    def _remove(self, placed: PlacedRequest) -> None:
        request_id = placed.ask.request_id
        left = self._shared.pop(request_id, 1) - 1
        if left:
            self._shared[request_id] = left
            self._pending.mark_ambiguous(request_id)
        else:
            del self._open[request_id]


def _depths(prompt: Prompt, known: Sequence[KnownPort]) -> list[int]:
    """Return at which of a prompt's known boundaries others will likely leave it: near its end, and after its sections.

    As numbers of known boundaries, shallowest first.
    """
    depths = set(range(max(1, len(known) - LAST_SEEDED + 1), len(known) + 1))
    indexes = [boundary.index for boundary in known]
    depths |= {bisect_right(indexes, end) for _, end in prompt.section_ends[:SECTIONS_SEEDED]}
    return sorted(depths - {0})
