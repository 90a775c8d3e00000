"""Tracks placed requests until they end, and draws the conclusions.

    reserved       the worker's queue and the history of sent prompts have it, so that the next request sees it
    committed      it will be sent: it is counted, and its session is bound to the worker
    sent           it counts as not yet in the worker's load report
    computed       by a worker event or the answer's first byte: others can find its prompt there; its ghost lock ends
    ended          it leaves the queue; what was noted of a failed one is taken back

On the way the forecast is compared with what was observed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from math import inf
from typing import NamedTuple

from ghostcacher_connector.core.coordination.base import WorkerEvents
from ghostcacher_connector.core.index.base import WorkerRef
from ghostcacher_router.feed.messages import FoldedEvents
from ghostcacher_router.ghostlock.ghost_lock import GhostLock
from ghostcacher_router.ghostlock.single_flight import SETTLE_S
from ghostcacher_router.placement.context import Dependencies, RoutingState
from ghostcacher_router.placement.heard_prompts import HeardPrompts
from ghostcacher_router.placement.placed_request import PlacedRequest
from ghostcacher_router.ports import KnownPort, WorkerPort
from ghostcacher_router.signals.adapter_costs import is_adapter
from ghostcacher_router.signals.prefix_locations import HeldPrefix
from ghostcacher_router.signals.sent_caches import CacheUse
from ghostcacher_router.signals.sent_history import SentPrompt
from ghostcacher_router.signals.sessions import session_key
from ghostcacher_router.signals.working_sets import capacity_tokens
from ghostcacher_router.types import Ask, Forecast, Outcome, Prompt, Reason

LAST_SEEDED = 3
SECTIONS_SEEDED = 8
"""Known boundaries at which others learn at once who holds a prompt: the last ones, and the ends of its first sections.
At any other boundary the index is asked."""

CHANGE_MODELS = ("/load_lora_adapter", "/unload_lora_adapter", "/load_lora_adapter_from_tensors")
"""The ends of paths that change which models a worker serves."""

HTTP_NOT_FOUND = 404

BIAS_MS_MIN = 50.0
"""Prompts that take less to compute say nothing about how far off forecasts are: fixed costs prevail."""
BIAS_WEIGHT = 0.1
BIAS_MAX = 4.0
EVENT_BIAS_MAX = 2.0
"""The most that a worker event can say: the event may have been late."""

UNREPORTED_MAX = 4096
"""Ended requests whose workers have not reported them yet. Workers report several times a second."""


class _Answered(NamedTuple):
    """A request that has ended well, and that its worker has not reported yet. See PlacedRequest."""

    ref: WorkerRef
    sent_prompt: SentPrompt
    lock: GhostLock | None


class InFlightTracker:
    """The placed requests of one router. On the event loop only. Nothing in it blocks or raises."""

    def __init__(self, dependencies: Dependencies, state: RoutingState) -> None:
        self._fleet, self._prefix_map, self._pending = dependencies.fleet, dependencies.prefix_map, dependencies.pending
        self._metrics, self._clock = dependencies.metrics, dependencies.clock
        self._queues, self._history, self._locations, self._sessions, self._locks, self._stored = state[:6]
        self._sent_caches, self._hot = state.sent_caches, state.hot
        self._adapters, self._regret = state.adapters, state.regret
        self._heard = HeardPrompts(dependencies.fleet, state.queues, state.locations, state.regret, state.sent_caches)
        self._open: dict[str, PlacedRequest] = {}
        """The last placed request of each request id; under the engine's own id as well, where it has one."""
        self._unreported: OrderedDict[str, _Answered] = OrderedDict()
        """Placed requests that ended well before their worker reported them as computed, oldest first."""
        self._shared: dict[str, int] = {}
        """How many open requests have an id, where that is more than one."""
        self.on_named: Callable[[str], None] = lambda _: None
        """Takes the id by which an engine names a request, once `pending` has the prompt under it."""
        self.on_freed: Callable[[str], None] = lambda _: None
        """Takes the name of each worker that a request has left, in whatever way."""
        self._fleet.when_down(self._forget_worker)
        self.bias = 1.0
        """Observed over forecast TTFT: a running mean over prompts that take long enough to say something."""

    def __repr__(self) -> str:
        return f"InFlightTracker(open={len(self._open)}, bias={self.bias:.2f})"

    def reserve(
        self,
        ask: Ask,
        worker: WorkerPort,
        reason: Reason,
        forecast: Forecast | None,
        work: Forecast | None = None,
    ) -> PlacedRequest:
        """Place a request at a worker, so that the very next request sees it. Commit or withdraw it afterwards.

        work: where there is no forecast that anybody should see, what the worker has to do, at a guess.
        """
        now, prompt, work = self._clock(), ask.shape.prompt, forecast or work
        tokens, computed, pull_ms = 0, 0, 0.0
        if work is not None:
            computed, tokens = work.computed_tokens, work.computed_tokens + work.cached_tokens
            pull_ms = work.pull_ms
        reservation = self._queues.reserve(worker.name, tokens, computed, now, pull_ms=pull_ms)
        placed = PlacedRequest(self, ask, worker, reason, forecast, reservation)
        self._open_id(placed, ask.request_id)
        if ask.shape.model is not None and is_adapter(worker, ask.shape.model):
            placed.adapter = ask.shape.model
            self._adapters.began(worker.name, placed.adapter)
        if prompt is not None:
            held_share, due_at = 1.0, inf
            if work is not None:
                held_share = work.local_tokens / tokens
                due_at = now + work.ttft_ms / 1e3 * max(1.0, self.bias)
            placed.sent_prompt = self._history.record(
                prompt, worker.name, now, placed.ref, held_share=held_share, due_at=due_at, used=self._regret.sunk
            )
            caches, capacity = self._sent_caches, capacity_tokens(worker)
            note = caches.record if worker.load is None else caches.set_aside
            placed.cache_use = note(prompt, worker.name, capacity)
            if placed.ref is not None:
                self._pending.put(ask.request_id, prompt)
        return placed

    def withdraw(self, placed: PlacedRequest) -> None:
        """Take back a placement that was not committed."""
        placed.is_ended = True
        self._close(placed, computed=False)

    def commit(self, placed: PlacedRequest) -> PlacedRequest:
        """Count a placement that will be sent, and bind its session to the worker. Returns it."""
        self._metrics.picked(placed.worker, placed.reason)
        if placed.lock_result is not None:
            self._metrics.ghost_locks.inc(placed.lock_result)
        if (needs_id := placed.ask.shape.needs_id) is not None:
            self._use_stored(needs_id, placed.worker)
        session, prompt = placed.ask.shape.session, placed.ask.shape.prompt
        if session is not None:
            self._sessions.bind(session_key(placed.ask.shape.model, session), placed.worker)
        if prompt is not None:
            self._hot.note(prompt)
            if placed.ref is None:
                # Of others their workers tell.
                self._heard.note_sent(prompt, placed.reservation.tokens, placed.worker)
        return placed

    def on_worker_events(self, events: WorkerEvents) -> None:
        """Note which prompts a worker has received and computed, of this router and of others."""
        self._heard.heard(events, self._clock(), self._is_own)
        self._note_computed_ids(events)

    def on_folded_events(self, events: FoldedEvents) -> None:
        """Note the same as the router's feed tells it."""
        self._heard.heard_folded(events, self._clock(), self._is_own)
        self._note_computed_ids(events)

    def _is_own(self, request_id: str) -> bool:
        return request_id in self._open or request_id in self._unreported

    def _note_computed_ids(self, events: WorkerEvents | FoldedEvents) -> None:
        ref = WorkerRef(events.namespace, events.worker, events.incarnation)
        for request_id in events.computed:
            if self._is_own(request_id):
                self.on_computed(ref, request_id)

    def on_computed(self, ref: WorkerRef, request_id: str) -> None:
        """Note that a request's prompt can be pulled now from the worker incarnation that says so."""
        placed, now = self._open.get(request_id), self._clock()
        if placed is None:
            self._note_late(ref, request_id, now)
            return
        if placed.ref != ref or request_id in self._shared or self._pending.is_ambiguous(request_id):
            return
        prompt = placed.ask.shape.prompt
        if prompt is not None and placed.sent_prompt is not None:
            self._note_reported(ref, prompt, placed.sent_prompt, now)
        self._compare_forecast(placed, now, EVENT_BIAS_MAX)
        if placed.lock is not None:
            self._locks.release(placed.lock)
        self._queues.first_byte(placed.reservation)

    def _use_stored(self, needs_id: str, worker: str) -> None:
        """Count a request that needs a stored object, and keep the object's worker in mind while it is used."""
        holder = self._stored.holder(needs_id)
        if holder == worker:
            self._stored.put(needs_id, worker)
        self._metrics.stored.inc("held" if holder == worker else "unknown" if holder is None else "gone")

    # What a PlacedRequest tells: see its Tracker.

    def on_sent(self, placed: PlacedRequest) -> None:
        placed.sent_at = self._clock()
        self._queues.sent(placed.reservation, placed.sent_at)

    def on_first_byte(self, placed: PlacedRequest) -> None:
        now, forecast = self._clock(), placed.forecast
        if forecast is not None and placed.ask.shape.prompt is not None:
            self._count_tokens(forecast)
        use = placed.cache_use
        is_new = True
        if isinstance(use, CacheUse):
            self._learn_room(placed, use, now)
            is_new = use.sent_bytes == use.held_bytes
        self._queues.answer_began(placed.reservation, now, is_new=is_new)
        self._fleet.answered(placed.worker)
        if placed.sent_at is not None and placed.ask.shape.stream:
            placed.decoding_since = now
            placed.ttft_ms = observed_ms = (now - placed.sent_at) * 1e3
            self._metrics.first_token(observed_ms, None if forecast is None else forecast.ttft_ms)
            self._compare_forecast(placed, now, BIAS_MAX)
        self._note_answered(placed, now)

    def on_answer_id(self, placed: PlacedRequest, answer_id: str) -> None:
        if placed.ask.shape.keeps:
            self._stored.put(answer_id, placed.worker)
        prompt = placed.ask.shape.prompt
        if placed.ref is None or prompt is None or placed.engine_id is not None:
            return
        placed.engine_id = answer_id
        self._open_id(placed, answer_id)
        self._pending.put(answer_id, prompt)
        self.on_named(answer_id)

    def on_ended(self, placed: PlacedRequest, outcome: Outcome, *, computed: bool) -> None:
        self._close(placed, computed=computed)
        if outcome is Outcome.DONE and placed.decoding_since is not None:
            self._queues.decoded(placed.worker, self._clock() - placed.decoding_since)
        if outcome is Outcome.DONE and self._models_may_have_changed(placed):
            self._fleet.models_changed()
        if outcome in (Outcome.REFUSED, Outcome.BROKE, Outcome.FAILED):
            self._fleet.lost(placed.worker, outcome)
        elif outcome is Outcome.DONE and not placed.has_failed and not placed.is_answered:
            self._fleet.answered(placed.worker)

    def _models_may_have_changed(self, placed: PlacedRequest) -> bool:
        """Whether a request loaded or unloaded an adapter, was told that there is no such model, or had one found."""
        missing = placed.status == HTTP_NOT_FOUND and placed.ask.shape.model is not None
        return placed.ask.path.endswith(CHANGE_MODELS) or (
            (missing or self._has_found(placed)) and self._fleet.models_may_be_old
        )

    def _has_found(self, placed: PlacedRequest) -> bool:
        """Whether a worker has answered with an adapter that it is not known to have."""
        if placed.adapter is None or not placed.is_answered:
            return False
        worker = self._fleet.workers.get(placed.worker)
        return worker is not None and placed.adapter not in worker.models

    def on_failed(self, placed: PlacedRequest, kind: str, why: str, *, sure: bool) -> None:
        self._fleet.failed(placed.worker, kind, why, sure=sure)

    def doubts(self, worker: str) -> bool:
        return self._fleet.doubts(worker)

    # Conclusions

    def _forget_worker(self, worker: str) -> None:
        """Note that a worker is DOWN: its cache is likely gone."""
        self._history.forget_worker(worker, self._clock())
        self._sent_caches.forget_worker(worker)
        self._adapters.forget_worker(worker)

    def _learn_room(self, placed: PlacedRequest, use: CacheUse, now: float) -> None:
        """Learn how much a plain worker's cache holds from how soon its answer begins."""
        prompt = placed.ask.shape.prompt
        computed_max = self._queues.computed_max(placed.reservation, now)
        if computed_max is None or prompt is None or not placed.ask.shape.stream:
            # What is no stream begins with its end.
            return
        size_max = computed_max * prompt.size // max(1, placed.reservation.tokens)
        self._sent_caches.answered(placed.worker, prompt, use, size_max, alone=placed.reservation.alone)

    def _count_tokens(self, forecast: Forecast) -> None:
        """Count the tokens of a prompt that is answered: one that an engine refuses says nothing of the caches."""
        tokens = forecast.cached_tokens + forecast.computed_tokens
        self._metrics.observed(tokens, forecast.cached_tokens, forecast.saved_ms)

    def _note_answered(self, placed: PlacedRequest, now: float) -> None:
        """Note that a prompt is computed, and its blocks are about to be published."""
        self._note_computed(placed, now, now + SETTLE_S)
        if placed.lock is not None:
            self._locks.settle(placed.lock)

    def _note_late(self, ref: WorkerRef, request_id: str, now: float) -> None:
        """Note what a worker reports of an ended request: short answers end before their blocks are published."""
        answered = self._unreported.get(request_id)
        prompt = self._pending.get(request_id)
        if answered is not None and answered.ref == ref and prompt is not None:
            del self._unreported[request_id]
            self._note_reported(ref, prompt, answered.sent_prompt, now)
            if answered.lock is not None:
                self._locks.release(answered.lock)

    def _note_reported(self, ref: WorkerRef, prompt: Prompt, sent: SentPrompt, now: float) -> None:
        """Note that a worker reports a prompt as computed: its blocks are in the index from now on."""
        self._history.computed(sent, now, now, reported=True)
        known = self._prefix_map.known(ref.namespace, prompt)
        for depth in _seeded_depths(prompt, known):
            held = HeldPrefix(ref.incarnation, known[depth - 1].block_count)
            self._locations.seed(ref.namespace, known[:depth], ref.worker, held)

    def _expect_report(self, placed: PlacedRequest, now: float) -> None:
        """Remember an ended request until its worker reports it as computed, or for ANSWERED_S."""
        sent, ref, unreported = placed.sent_prompt, placed.ref, self._unreported
        if sent is not None and ref is not None and sent.reported_at == inf:
            unreported[placed.ask.request_id] = _Answered(ref, sent, placed.lock)
            while unreported and (
                len(unreported) > UNREPORTED_MAX or next(iter(unreported.values())).sent_prompt.settled_at < now
            ):
                unreported.popitem(last=False)

    def _note_computed(self, placed: PlacedRequest, now: float, done_at: float) -> None:
        if placed.sent_prompt is not None:
            self._history.computed(placed.sent_prompt, now, done_at)

    def _compare_forecast(self, placed: PlacedRequest, now: float, ratio_max: float) -> None:
        """Compare the forecast with the time that passed, once for each request: its prompt has just been computed."""
        forecast = placed.forecast
        if placed.is_compared or placed.sent_at is None or forecast is None or forecast.compute_ms < BIAS_MS_MIN:
            return
        placed.is_compared = True
        ratio = min(ratio_max, (now - placed.sent_at) * 1e3 / forecast.ttft_ms)
        self.bias += BIAS_WEIGHT * (ratio - self.bias)

    def _close(self, placed: PlacedRequest, *, computed: bool) -> None:
        if placed.has_failed:
            self._queues.failed(placed.reservation, self._clock())
        else:
            self._queues.ended(placed.reservation)
        self._queues.keep_only(self._fleet.workers)
        if placed.adapter is not None:
            self._adapters.ended(placed.worker, placed.adapter, loaded=placed.status != HTTP_NOT_FOUND)
            self._adapters.keep_only(self._fleet.workers)
        if computed:
            now = self._clock()
            self._queues.answered(placed.reservation, now)
            if not placed.is_answered:
                self._note_answered(placed, now)
            self._expect_report(placed, now)
        else:
            if placed.sent_prompt is not None:
                self._history.withdraw(placed.sent_prompt)
                if placed.cache_use is not None:
                    self._sent_caches.withdraw(placed.worker, placed.cache_use)
            if placed.lock is not None:
                self._locks.release(placed.lock)
        if placed.sent_prompt is not None:
            self._history.ended(placed.sent_prompt)
            placed.cache_use = None
        self._close_id(placed.ask.request_id)
        if placed.engine_id is not None:
            self._close_id(placed.engine_id)
        self.on_freed(placed.worker)

    def _open_id(self, placed: PlacedRequest, request_id: str) -> None:
        if request_id in self._open:
            # Clients choose ids. Of two requests with the same one, nobody knows which one a worker event means.
            self._shared[request_id] = self._shared.get(request_id, 1) + 1
            self._pending.mark_ambiguous(request_id)
        self._open[request_id] = placed

    def _close_id(self, request_id: str) -> None:
        left = self._shared.pop(request_id, 1) - 1
        if left:
            self._shared[request_id] = left
            self._pending.mark_ambiguous(request_id)
        else:
            del self._open[request_id]


def _seeded_depths(prompt: Prompt, known: Sequence[KnownPort]) -> Sequence[int]:
    """Return at which of a prompt's known boundaries other prompts will likely part from it, shallowest first.

    These are the last ones, and those at the ends of its sections, as numbers of known boundaries.
    """
    last = range(max(1, len(known) - LAST_SEEDED + 1), len(known) + 1)
    if len(last) == len(known):
        return last
    depths = set(last)
    indexes = [boundary.index for boundary in known]
    depths |= {bisect_right(indexes, end) for _, end in prompt.section_ends[:SECTIONS_SEEDED]}
    return sorted(depths - {0})
