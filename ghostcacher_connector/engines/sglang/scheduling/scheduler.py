"""Follows one rank's requests from arrival to end, and its pages from offer to release.

The same happens on every rank and in the same order; rank 0 alone publishes it to the fleet. All methods are called on
the scheduler's thread, and none of those that SGLang calls raises: an error here would end the engine.

After a call that may have changed the weights every rank reads its own, before it computes or publishes anything more
(`_settle`). Changed weights are another namespace: the worker moves there. What is in the tree by then is of the
weights before, and so is whatever is computed on top of it: nothing is shared until SGLang has flushed its cache, as it
does by default with every update.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.index.base import BlockSink
from ghostcacher_connector.core.tracing import open_tracer
from ghostcacher_connector.core.types import BlockHash
from ghostcacher_connector.engines.common.pull_state import Phase
from ghostcacher_connector.engines.common.weight_watch import WeightWatch
from ghostcacher_connector.engines.sglang.engine_rank import EngineRank
from ghostcacher_connector.engines.sglang.scheduling.copying import PageCopying, make_copying
from ghostcacher_connector.engines.sglang.scheduling.flushing import TreeFlusher
from ghostcacher_connector.engines.sglang.scheduling.load_meter import LoadMeter
from ghostcacher_connector.engines.sglang.scheduling.load_records import LoadRecords
from ghostcacher_connector.engines.sglang.scheduling.loading import Loader
from ghostcacher_connector.engines.sglang.scheduling.matching import Matcher
from ghostcacher_connector.engines.sglang.scheduling.page_guard import PageGuard
from ghostcacher_connector.engines.sglang.scheduling.prompts import PromptReporter
from ghostcacher_connector.engines.sglang.scheduling.publishing import PageBook, PagePublisher
from ghostcacher_connector.engines.sglang.scheduling.requests import Tracked, track
from ghostcacher_connector.engines.sglang.scheduling.tree_entry import enter_pages
from ghostcacher_connector.publish.flush_desk import Engine
from ghostcacher_connector.pull.step_times import StepClock, StepTime

if TYPE_CHECKING:
    import torch
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
    from sglang.srt.managers.scheduler import Scheduler

logger = logging.getLogger(__name__)

TRACKED_MAX = 65_536
"""Far above what an engine queues; a request beyond is served without the fleet."""

POOL_SHARE = 2
"""Pulls take at most one part in so many of the pool: nobody can use their pages while READs into them hang."""


class ConnectorScheduler:
    """One rank's share of the connector on the scheduler's thread; see the module's docstring.

    guard: keeps the generations of this rank's pages.
    """

    def __init__(self, engine: EngineRank, allocator: Any, settings: Settings) -> None:
        self._engine = engine
        self._fleet = fleet = engine.fleet
        self._left = False
        self._weights: WeightWatch | None = None
        self._model: torch.nn.Module | None = None
        self._computed_since_reset = False
        self._old_tree = False
        self._scheduler: Scheduler | None = None
        self._tracked: dict[str, Tracked] = {}
        self._asking: set[str] = set()
        self._batches_begun = self._batches_done = 0
        self._steps = StepClock(time.monotonic)
        sink = fleet.publisher if fleet is not None else None
        self._copying = copying = make_copying(engine, allocator, settings)
        self._book = book = PageBook(_withdraw_from(sink, copying))
        self.guard = PageGuard(allocator, engine.table, engine.generations, book.drop)
        tokens, page_bytes = engine.page_tokens, engine.page_bytes
        self._prompts = PromptReporter(fleet.reporter, book.holds, tokens) if fleet is not None else None
        tier = copying.tier if copying is not None else None
        self._publisher = PagePublisher(self.guard, book, sink, tokens, self._published, tier)
        # Ranks do the same: the spans of one of them tell it all.
        traces = settings.tracing and engine.ranks.rank == 0
        tracer = open_tracer("ghostcacher-connector") if traces else None
        self._meter = LoadMeter(
            engine.forecaster,
            engine.request_recorder,
            book.holds,
            page_tokens=tokens,
            page_bytes=page_bytes,
            tier=tier,
        )
        self._matcher = Matcher(
            settings,
            engine.lookups,
            engine.forecaster,
            engine.request_recorder,
            page_tokens=tokens,
            page_bytes=page_bytes,
            pages_max=engine.page_count // POOL_SHARE,
            holds=book.holds,
            tier=tier,
            tracer=tracer,
        )
        self._loader = Loader(
            engine.runtime.puller,
            self.guard,
            engine.ranks,
            settings,
            engine.forecaster,
            records=LoadRecords(engine.ranks, engine.forecaster, engine.recorder, page_tokens=tokens, tracer=tracer),
            enter=self._enter,
            page_tokens=tokens,
            pages_max=engine.page_count // POOL_SHARE,
        )
        self._flusher: TreeFlusher | None = None
        if fleet is not None and engine.takes_flushes:
            self._flusher = TreeFlusher(
                allocator,
                self._withdraw_all,
                fleet.flushes.amend,
                page_count=engine.page_count,
                page_bytes=page_bytes,
                has_host_tier=copying is not None,
            )

    def take_flushes(self) -> None:
        """Take orders to flush from now on, where the engine takes any."""
        if self._fleet is not None and self._flusher is not None:
            # SGLang's thread comes by when it idles, too: nobody is to stand in for it.
            self._fleet.flushes.start(Engine(self._flusher.drop, lambda: True))

    def close(self) -> None:
        """Send the last spans, if any are recorded, for a bounded time."""
        self._matcher.close()

    # -- requests --------------------------------------------------------------------------------------------------

    def queued(self, scheduler: Scheduler, req: Req, adapter: bytes | None = None) -> None:
        """A request has entered the queue: for the first time, or again after it was retracted.

        adapter: digest of its LoRA adapter, see `track`.
        """
        self._scheduler = scheduler
        if not self._sharing or req.rid in self._tracked or len(self._tracked) >= TRACKED_MAX:
            return
        tracked = self._tracked[req.rid] = track(req, self._engine.page_tokens, adapter)
        self._matcher.ask(tracked)
        if self._copying is not None:
            self._copying.arrived(len(tracked.chain))
        if self._prompts is not None:
            self._prompts.arrived(tracked)

    def match(self, rid: str, keys: Sequence[str]) -> int:
        """Return how many of these pages can be had from peers; 0 while the index has not answered on every rank."""
        self._settle()
        self._asking.discard(rid)
        count = self._count(rid, keys)
        # Each rank has an answer, and a deadline, of its own: a request waits on all of them or on none.
        if self._engine.ranks.least(count is not None):
            return count or 0
        self._asking.add(rid)
        return 0

    def _count(self, rid: str, keys: Sequence[str]) -> int | None:
        """Return how many pages this rank can have from peers, or None while it does not know yet."""
        tracked = self._tracked.get(rid)
        if tracked is None or not self._sharing:
            return 0
        try:
            return self._matcher.match(tracked, keys)
        except Exception:
            logger.exception("request %s: unexpected error while matching its prefix, computing it", rid)
            return 0

    def load(self, rid: str, keys: Sequence[str], token_indexes: torch.Tensor, events: Sequence[Any]) -> None:
        """Begin to fill pages, while the request waits; or have it computed. The same happens on every rank."""
        self._loader.begin(self._tracked.get(rid) if self._sharing else None, keys, token_indexes, events)

    def waits(self, rid: str) -> bool:
        """Say whether a request is to be in no batch yet: the index has not answered, or its pages are on their way."""
        return rid in self._asking or self._loader.waits(rid)

    def memory_is_short(self) -> None:
        """SGLang is about to retract requests, or to abort the last one: have the pages that pulls hold."""
        self._loader.drain()

    def _enter(self, tracked: Tracked, first_token: int, token_indexes: torch.Tensor) -> bool:
        assert self._scheduler is not None, "a pull was begun for a request that never entered the queue"
        return enter_pages(self._scheduler.tree_cache, tracked, first_token, token_indexes)

    def ended(self, rid: str) -> None:
        """A request is over, one way or another."""
        self._drop(rid)
        if not self._tracked:
            self._report_load()  # an idle engine builds no batches

    def _drop(self, rid: str) -> None:
        tracked = self._tracked.pop(rid, None)
        if tracked is None:
            return
        self._matcher.forget(tracked)
        self._loader.forget(rid)
        if self._prompts is not None:
            self._prompts.ended(tracked)

    # -- batches ---------------------------------------------------------------------------------------------------

    def begin_pass(self) -> int:
        """A pass of the scheduler begins: return how many offers this rank has computed."""
        self._settle()
        self._settle_flushes()
        self._asking.clear()
        self._matcher.begin_pass()
        self._loader.settle()
        if self._copying is not None:
            self._copying.begin_pass(sharing=self._sharing)
        if self._fleet is not None and self._fleet.reporter.load_wanted:
            self._report_load()
        return self._publisher.computed_count()

    def idle(self, scheduler: Scheduler) -> None:
        """SGLang has nothing to compute at the moment."""
        self._loader.rest()
        self._settle_flushes()
        if self._flusher is not None and not self._left:
            self._flusher.idle(scheduler)

    def _settle_flushes(self) -> None:
        """Drop what is ordered."""
        if self._fleet is not None and self._flusher is not None and not self._left:
            self._fleet.flushes.settle()

    def batch_begins(self, batch: ScheduleBatch) -> None:
        self._settle()
        self._computed_since_reset = True
        self._batches_begun += 1
        extends = batch.forward_mode.is_extend()
        tokens, decoding = (int(batch.extend_num_tokens or 0), 0) if extends else (0, len(batch.reqs))
        self._steps.scheduled(self._batches_begun, tokens, decoding)

    def batch_done(self, batch: ScheduleBatch) -> None:
        self._batches_done += 1
        if (observed := self._steps.done(self._batches_done)) is not None:
            self._observe(observed)
        self._engine.forecaster.observe_round_trips(self._engine.runtime.round_trips())
        for req in batch.reqs:
            tracked = self._tracked.get(req.rid)
            if tracked is None:
                continue
            if self._prompts is not None and req.output_ids:
                self._prompts.computed(tracked)
            if req.finished():
                self.ended(req.rid)

    def _observe(self, step: StepTime) -> None:
        if not step.prompt_tokens:
            self._engine.forecaster.decode_times.observe(step.decoding, step.seconds)
            return
        ratio = self._engine.forecaster.observe_step(step.prompt_tokens, step.seconds)
        if ratio is not None and self._fleet is not None:
            self._engine.recorder.observe("gc_prefill_forecast_ratio", ratio)

    # -- pages -----------------------------------------------------------------------------------------------------

    def offer(self, keys: Sequence[str], root: str | None, token_indexes: torch.Tensor, events: Sequence[Any]) -> bool:
        """Take the pages of a tree node, to be published when they are computed; False when nothing is shared."""
        if not self._sharing or not keys:
            return False
        try:
            self._publisher.offer(keys, bytes.fromhex(root or keys[0]), token_indexes, events)
        except Exception:
            # SGLang counts offers, and every rank must have as many: this one stands for none of its pages.
            logger.exception("unexpected error in an offer of pages, not publishing them")
            self._publisher.offer_nothing()
        return True

    def publish_oldest(self) -> bool:
        try:
            self._publisher.publish_oldest()
        except Exception:
            logger.exception("unexpected error while publishing pages")
            return False
        return True

    def reset(self) -> None:
        """The tree is about to be emptied. What was published is withdrawn when the pool is cleared (page_guard.py)."""
        self._publisher.forget()
        self._loader.void()
        if self._copying is not None:
            self._copying.clear()
        self._computed_since_reset = self._old_tree = False

    def _withdraw_all(self) -> int:
        """Have nothing of before read by peers, and nothing shared until the tree was emptied.

        Returns how many blocks the host tier held.
        """
        self._publisher.void()
        self._loader.void()
        self.guard.withdraw_all()
        held = self._copying.clear() if self._copying is not None else 0
        for tracked in self._tracked.values():
            self._matcher.forget(tracked)
            tracked.phase = Phase.SETTLED
        self._old_tree = True
        return held

    # -- weights ---------------------------------------------------------------------------------------------------

    @property
    def _sharing(self) -> bool:
        return not self._left and not self._old_tree

    def weights_may_change(self, model: torch.nn.Module, why: str) -> None:
        """Something is about to be called on every rank that may change the weights. Reads them, the first time."""
        self._model = model
        if self._weights is None:
            # Every change comes through here, so these are still the weights that the engine was started with.
            self._weights = WeightWatch(self._read_weights, self._engine.request_recorder)
        self._weights.may_have_changed(why)

    def _read_weights(self) -> list[str]:
        assert self._model is not None
        return self._engine.read_weights(self._model)

    def _settle(self) -> None:
        """Know the weights, and be in their namespace, before anything is computed with them. Comes on every rank."""
        if self._weights is None or self._left:
            return
        doubt = self._weights.doubt
        if doubt is None and not (self._weights.unread and self._engine.ranks.least(self._weights.due)):
            return  # each rank has a clock of its own, and reading is for all together
        if not self._weights.settle():
            return
        if doubt is not None:  # else what is in the tree is of these weights
            self._old_tree = self._computed_since_reset
        self._publisher.void()
        self._loader.void()
        self.guard.withdraw_all()
        if self._copying is not None:
            self._copying.clear()
        for tracked in self._tracked.values():
            self._matcher.forget(tracked)
            tracked.phase = Phase.SETTLED
        if doubt is not None and self._old_tree:
            logger.warning("the cache was not flushed after the weights had changed: nothing is shared until it is")
        try:
            self._engine.move(self._weights.epoch)
        except Exception as exc:
            logger.exception("the ranks did not become another incarnation")
            self.leave(f"the ranks did not become another incarnation: {exc}")

    def leave(self, why: str) -> None:
        """Stop sharing for good, and keep serving."""
        if self._left:
            return
        self._left = True
        if self._copying is not None:
            self._copying.clear()
        logger.error("leaving the fleet, restart this engine to share again: %s", why)
        self._engine.leave()

    def _published(self, block: BlockHash) -> None:
        if self._prompts is not None:
            self._prompts.published(block)

    def _report_load(self) -> None:
        """Give the reporter the present load, to be published from its own thread."""
        if self._fleet is None or self._scheduler is None:
            return
        try:
            self._fleet.reporter.submit_load(self._meter.measure(self._scheduler, self._tracked.values()))
        except Exception:
            logger.exception("unexpected error while measuring the load")


def _withdraw_from(sink: BlockSink | None, copying: PageCopying | None) -> Callable[[int], None] | None:
    """Return what is to be called with each published page that is released; None where nobody has to know."""
    if sink is None or copying is None:
        return sink.withdraw if sink is not None else None

    def withdraw(page: int) -> None:
        copying.tier.engine_gives(page)
        sink.withdraw(page)

    return withdraw
