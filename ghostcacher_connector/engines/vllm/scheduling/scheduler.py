"""The connector's half in vLLM's scheduler process: knows requests, slots and the fleet, holds no KV memory.

Life of a request here:
1. it arrives: the index is asked, on another thread (matching.py);
2. vLLM wants to schedule it: we name the tokens to pull, say "ask again", or none;
3. vLLM allocates slots: the step's metadata carries the pull, and each reused slot's new generation (slot_watch.py);
4. the ranks pull while other requests compute; they report; vLLM schedules the request, or recomputes what failed;
5. steps complete: full blocks are published (publishing.py), and copied to the host tier before vLLM hands out their
   slots (copying.py);
6. it ends: its slots stay readable until vLLM reuses them.

A call that may change the weights, or a reset of the cache, stops 2 and 5 until the ranks have read their weights,
before the next step (weight_epochs.py). Changed weights are another namespace: the worker moves there and begins anew.

All methods are called on the scheduler's thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.coordination.flushes import FlushOrder, FlushReport
from ghostcacher_connector.core.errors import UnsupportedEngine
from ghostcacher_connector.core.types import PdRole, WorkerRecord
from ghostcacher_connector.engines.common.pull_state import Phase
from ghostcacher_connector.engines.common.versions import refuse_unproven
from ghostcacher_connector.engines.vllm.capabilities import pool_faults
from ghostcacher_connector.engines.vllm.early_leave import leave_on_sigterm
from ghostcacher_connector.engines.vllm.messages import RankHandshake, RankReport, StepMetadata
from ghostcacher_connector.engines.vllm.nesting import handed_off, own_stats
from ghostcacher_connector.engines.vllm.scheduling.adapters import AdapterBook
from ghostcacher_connector.engines.vllm.scheduling.copying import CopyDown, take_bumps
from ghostcacher_connector.engines.vllm.scheduling.flushing import Flusher
from ghostcacher_connector.engines.vllm.scheduling.items import ItemBook
from ghostcacher_connector.engines.vllm.scheduling.load_meter import LoadMeter
from ghostcacher_connector.engines.vllm.scheduling.loaded_elsewhere import loaded_elsewhere
from ghostcacher_connector.engines.vllm.scheduling.matching import Matcher
from ghostcacher_connector.engines.vllm.scheduling.parts import PartsMaker
from ghostcacher_connector.engines.vllm.scheduling.prefill_meter import PrefillMeter
from ghostcacher_connector.engines.vllm.scheduling.prompts import PromptReporter
from ghostcacher_connector.engines.vllm.scheduling.publishing import BlockPublisher
from ghostcacher_connector.engines.vllm.scheduling.requests import Evidence, SectionReader, Tracked, tenant_of
from ghostcacher_connector.engines.vllm.scheduling.slot_watch import SlotWatch
from ghostcacher_connector.engines.vllm.scheduling.weight_epochs import WeightEpochs
from ghostcacher_connector.metrics import Delta, GaugeServer, Recorder
from ghostcacher_connector.publish.flush_desk import Engine
from ghostcacher_connector.pull.forecast import Forecaster
from ghostcacher_connector.worker.membership import Membership

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.executor.abstract import Executor
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

logger = logging.getLogger(__name__)


class ConnectorScheduler:
    """See the module's docstring. Until `join`, nothing is shared."""

    def __init__(
        self,
        vllm_config: VllmConfig,
        settings: Settings,
        recorder: Recorder,
        clock: Callable[[], float] = time.monotonic,
        *,
        beside_others: bool = False,
        pd_role: PdRole | None = None,
    ) -> None:
        """beside_others: other connectors are called with the same requests, and may load them in our place."""
        assert vllm_config.kv_transfer_config is not None
        self._engine_id = str(vllm_config.kv_transfer_config.engine_id)
        self._block_tokens = vllm_config.cache_config.block_size
        self._maker = PartsMaker(vllm_config, settings, recorder, clock, pd_role)
        self._recorder = recorder
        self._clock = clock
        self._beside_others = beside_others
        # The data-parallel ranks of a mixture of experts step together: who waits, makes all of them wait.
        self._lockstep = vllm_config.parallel_config.data_parallel_size > 1
        self._step = 0
        self._left = False
        self._epochs: WeightEpochs | None = None
        self._adapters, self._items = AdapterBook(), ItemBook(vllm_config.model_config.dtype, self._block_tokens)
        self._sections = SectionReader(recorder, self._block_tokens)
        self._tracked: dict[str, Tracked] = {}
        self._cancelled: list[str] = []
        self._manager: KVCacheManager | None = None
        self._fleet: Membership | None = None
        self._gauges: GaugeServer | None = None
        self._watch: SlotWatch | None = None
        self._publisher: BlockPublisher | None = None
        self._copying: CopyDown | None = None
        self._flusher: Flusher | None = None
        self._prompts: PromptReporter | None = None
        self._load: LoadMeter | None = None
        self._matcher: Matcher | None = None
        self._forecaster: Forecaster | None = None
        self._prefill: PrefillMeter | None = None

    # -- start and end -------------------------------------------------------------------------------------------

    def bind(self, manager: KVCacheManager) -> None:
        """Take vLLM's manager of blocks. Raises UnsupportedEngine when its pool does not do what generations need."""
        if manager.block_pool is not None:
            refuse_unproven(pool_faults(manager.block_pool, self._block_tokens))
        self._manager = manager
        reset = manager.reset_prefix_cache

        def reset_prefix_cache() -> bool:
            self._settle_flushes()
            done: bool = reset()
            if done:
                self._adapters.forget()
            self.cache_reset("reset of the prefix cache")
            return done

        manager.reset_prefix_cache = reset_prefix_cache

    def watch_executor(self, executor: Executor) -> None:
        """Watch the calls to the ranks; to be called before `join`."""
        self._epochs = WeightEpochs(executor, has_all_experts=not self._lockstep, adapters=self._adapters)

    def ask_ranks(self) -> list[RankHandshake]:
        """Have every rank introduce itself, where vLLM does not pass on what ranks say of themselves."""
        return self._epochs.introduce() if self._epochs is not None else []

    def join(self, ranks: Sequence[RankHandshake]) -> None:
        """Enter the fleet, now that every rank has registered its memory. Done once, however often vLLM asks."""
        if self._fleet is not None:
            return
        if self._manager is None:
            raise UnsupportedEngine("bind_kv_cache_manager: expected before set_xfer_handshake_metadata, found no call")
        if self._epochs is None:
            raise UnsupportedEngine(
                "Executor.init_kv_output_aggregator: expected before set_xfer_handshake_metadata, found no call; "
                "needed to see weights that change"
            )
        parts = self._maker.make([handshake.introduction for handshake in ranks], self._manager)
        self._epochs.begin(self._recorder, self._clock)
        self._fleet, self._load, self._prompts = parts.fleet, parts.load, parts.prompts
        self._forecaster, self._prefill = parts.forecaster, parts.prefill
        self._watch, self._publisher, self._matcher = parts.watch, parts.publisher, parts.matcher
        self._copying = parts.copying
        self._report_load()
        self._flusher = parts.flusher
        parts.fleet.start()
        parts.fleet.flushes.start(Engine(self._drop, self._has_requests))
        leave_on_sigterm(parts.fleet.leave)
        self._gauges = GaugeServer(self._engine_id, parts.fleet.gauges)

    def shutdown(self) -> None:
        if self._gauges is not None:
            self._gauges.close()
        if self._copying is not None and self._copying.objects is not None:
            self._copying.objects.close()
        if self._fleet is not None:
            self._fleet.stop()
        if self._matcher is not None:
            self._matcher.close()

    def leave(self, why: str) -> None:
        """Stop sharing for good, and keep serving: what this worker holds and what its peers hold may differ."""
        if self._fleet is None or self._left:
            return
        self._left = True
        if self._copying is not None:
            self._copying.tier.clear()
        logger.error("leaving the fleet, restart this engine to share again: %s", why)
        self._give_up_pulls()
        self._fleet.leave()

    # -- weights that change -------------------------------------------------------------------------------------

    def cache_reset(self, why: str) -> None:
        """Withdraw everything, and look at the weights before the next step: caches are reset when these change."""
        self._forget_all()
        if self._copying is not None and self._copying.objects is not None:
            self._copying.objects.directory.hide()
        if self._epochs is not None:
            self._epochs.doubt(why)

    def _forget_all(self) -> None:
        """Have nothing that was computed so far used again, in any tier."""
        if self._publisher is not None:
            self._publisher.forget_all(self._tracked.values())
        if self._copying is not None:
            self._copying.tier.clear()

    @property
    def _sharing(self) -> bool:
        """Whether what is computed may be published: this worker is in the fleet, with the weights of its namespace."""
        return not self._left and self._epochs is not None and self._epochs.certain

    def _settle(self) -> None:
        """Know the weights, and be in their namespace, before the next step computes with them."""
        if self._epochs is not None and not self._left and self._epochs.settle():
            self._move()

    def _move(self) -> None:
        """Begin anew under these weights: the ranks first, so that peers refuse what is there before any of it is new.

        The steps that are still in flight have computed with the weights of before, as did all that is in the cache.
        """
        assert self._fleet is not None
        self._forget_all()
        if self._watch is not None:
            self._watch.send_all()
        if self._copying is not None:
            self._copying.tier.ledger.send_all()
        self._give_up_pulls()
        if (record := self._renew_ranks()) is not None:
            if self._copying is not None and self._copying.objects is not None:
                self._copying.objects.move(record.namespace)
            self._fleet.move(record)

    def _renew_ranks(self) -> WorkerRecord | None:
        """Have every rank become another incarnation, behind the steps that are in flight; leave if that fails."""
        assert self._epochs is not None
        try:
            return self._maker.record_of(self._epochs.move(self._step))
        except Exception as exc:
            logger.exception("the ranks did not become another incarnation")
            self.leave(f"the ranks did not become another incarnation: {exc}")
            return None

    def _give_up_pulls(self) -> None:
        """Have all requests compute what they have not begun to pull."""
        for tracked in self._tracked.values():
            if self._matcher is not None:
                self._matcher.forget(tracked)
            if tracked.phase is not Phase.LOADING:
                tracked.phase = Phase.SETTLED

    # -- orders to flush -----------------------------------------------------------------------------------------

    def _settle_flushes(self) -> None:
        """Drop what is ordered, before any block is looked for or given away."""
        if self._fleet is not None:
            self._fleet.flushes.settle()

    def _drop(self, order: FlushOrder) -> FlushReport:
        assert self._flusher is not None
        return self._flusher.drop(order, self._tracked.values())

    def _has_requests(self) -> bool:
        # Copies that no step will tell the end of are in nobody's way: an order gives them up.
        return bool(self._tracked) or self.has_unfinished_copies()

    # -- requests ------------------------------------------------------------------------------------------------

    def on_new_request(self, request: Request) -> None:
        self._settle_flushes()
        tracked = self._tracked[request.request_id] = Tracked(
            request,
            self._adapters.of(request),
            self._items.shared_end(request, self._tracked.values()),
            sections=self._sections.read(request),
            tenant=tenant_of(request),
        )
        if self._matcher is not None and not self._left:
            assert self._manager is not None
            self._matcher.ask(tracked, self._manager.block_pool)
        if self._copying is not None:
            self._copying.arrived(tracked)
        if self._prompts is not None and not self._left:
            self._prompts.arrived(tracked)

    def match(self, request: Request, local_tokens: int) -> tuple[int | None, bool]:
        """Answer vLLM's question for tokens beyond the local ones: (count, loaded asynchronously)."""
        self._settle()
        tracked = self._tracked.get(request.request_id)
        if tracked is not None:
            tracked.evidence = Evidence()
        if tracked is None or self._matcher is None or (self._beside_others and handed_off(request)):
            return 0, False
        count = self._matcher.match(tracked, local_tokens, alone=len(self._tracked) == 1 and not self._lockstep)
        return count, bool(count)

    def allocated(self, request: Request, blocks: KVCacheBlocks, token_count: int) -> None:
        tracked = self._tracked.get(request.request_id)
        if self._matcher is not None and tracked is not None and token_count > 0:
            self._matcher.allocated(tracked, blocks.get_block_ids(), token_count)

    def finished(self, request: Request) -> None:
        """A request has ended: give up a pull that is in flight. What steps have filled for it is still published."""
        if self._fleet is not None:
            self._fleet.flushes.touch()
        tracked = self._tracked.pop(request.request_id, None)
        if tracked is None:
            return
        if tracked.phase is Phase.LOADING:
            self._cancelled.append(request.request_id)
        if self._matcher is not None:
            self._matcher.forget(tracked)
        if not self._tracked:
            self._report_load()  # an idle engine takes no steps

    # -- steps ---------------------------------------------------------------------------------------------------

    def build_metadata(self, output: SchedulerOutput) -> StepMetadata:
        self._settle()
        self._settle_flushes()
        self._step += 1
        if (output.kv_cache_block_copies or output.new_block_ids_to_zero) and self._sharing:
            # With what support.py accepts vLLM never asks for it: see docs/ARCHITECTURE.md, the model runners.
            self._renew_ranks()  # before this step reaches them: peers may have looked up what it overwrites
            self.leave("vLLM zeroes or copies blocks, which its V2 runner does before their generations are bumped")
        if self._fleet is None and self._step == 1:
            logger.error("set_xfer_handshake_metadata: expected before the first step; this engine shares nothing")
        if self._fleet is not None and self._fleet.reporter.load_wanted:
            self._report_load()
        if self._publisher is not None and not self._left:
            self._publisher.note_step(self._step, output, self._tracked)
        if self._prefill is not None:
            self._prefill.scheduled(self._step, output)
        # What is copied down is chosen first: what has to go for it is bumped with this step.
        copies = self._copying.orders(output) if self._copying is not None and self._sharing else []
        bumped, generations = take_bumps(self._watch, self._copying)
        cancelled, self._cancelled = self._cancelled, []
        pulls = self._matcher.take_orders() if self._matcher is not None else []
        objects = self._copying.objects if self._copying is not None and self._sharing else None
        fetches, stores = (objects.take_fetches(), objects.take_stores()) if objects is not None else ([], [])
        computing = (self._tracked[name].request for name in output.num_scheduled_tokens if name in self._tracked)
        adapters = self._adapters.scheduled(self._step, computing)
        return StepMetadata(self._step, bumped, generations, pulls, cancelled, copies, fetches, stores, adapters)

    def has_unfinished_copies(self) -> bool:
        """Say whether an engine without requests should take another step all the same, for copies to the host tier."""
        # In lockstep with other engines, each step of an idle one is a step of all.
        return self._copying is not None and self._sharing and not self._lockstep and self._copying.unfinished()

    def update(self, output: KVConnectorOutput) -> None:
        """A step's output of all ranks has been processed."""
        if self._fleet is not None and (own := own_stats(output.kv_connector_stats)) is not None:
            self._fleet.export(own.data)
        report = output.kv_connector_worker_meta
        if isinstance(report, RankReport):
            self._confirm(report)
        for request_id in output.finished_recving or ():
            tracked = self._tracked.get(request_id)
            ours = self._matcher is not None and self._matcher.has_reports(request_id)
            if self._beside_others and not ours:
                loaded_elsewhere(request_id, tracked, output, self._watch, self._manager)
            if tracked is None or tracked.phase is Phase.LOADING:
                self._received(request_id, tracked)

    def _received(self, request_id: str, tracked: Tracked | None) -> None:
        """The pull of a request, or of one that was aborted meanwhile, has ended on every rank."""
        if self._matcher is None:
            return
        usable = self._matcher.received(request_id, tracked)
        if usable and tracked is not None and tracked.plan is not None and self._publisher is not None:
            self._publisher.pulled(tracked, tracked.plan.first_block, usable)
            if self._copying is not None:
                self._copying.pulled(tracked, tracked.plan, usable)

    def _confirm(self, report: RankReport) -> None:
        if report.begins_late:
            self.leave("vLLM overwrites blocks before their generations are bumped")
        if report.lost_step and self._epochs is not None:
            self._epochs.lost_step(report.step)
        if self._copying is not None:
            self._copying.reported(report.copies)
        self._adapters.computed(report.step, report.adapters)
        if self._publisher is not None and self._sharing:
            self._publisher.confirm(report.step)
        if self._flusher is not None:
            self._flusher.tidy()
        if self._matcher is not None:
            self._matcher.reported(report.pulls)
        if self._forecaster is not None:
            self._forecaster.observe_round_trips(report.round_trips)
        if self._prefill is not None:
            self._prefill.done(report.step)

    def _report_load(self) -> None:
        """Give the reporter the present load, to be published from its own thread."""
        if self._fleet is not None and self._load is not None:
            self._fleet.reporter.submit_load(self._load.measure(self._tracked.values()))

    # -- the rest ------------------------------------------------------------------------------------------------

    def take_metrics(self) -> Delta:
        """Return what this half has recorded since the last call."""
        if self._fleet is not None:
            self._fleet.record_metrics()
        if self._copying is not None:
            self._copying.tier.record_metrics()
        delta = self._recorder.drain()
        if self._fleet is not None:
            self._fleet.export(delta)
        return delta
