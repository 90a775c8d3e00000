"""Makes what the scheduler's half has from the moment at which its worker enters the fleet."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.errors import ProtocolError
from ghostcacher_connector.core.index.base import BlockSink
from ghostcacher_connector.core.tracing import open_tracer
from ghostcacher_connector.core.types import PdRole, Role, WorkerRecord
from ghostcacher_connector.engines.common.versions import refuse_unproven
from ghostcacher_connector.engines.vllm.capabilities import free_list_faults
from ghostcacher_connector.engines.vllm.data_parallel import data_parallel_rank, front_rank
from ghostcacher_connector.engines.vllm.drafters import blocks_held_back, keeps_kv
from ghostcacher_connector.engines.vllm.identity import worker_name
from ghostcacher_connector.engines.vllm.kv_groups import cache_groups
from ghostcacher_connector.engines.vllm.scheduling.copying import CopyDown
from ghostcacher_connector.engines.vllm.scheduling.fetching import ObjectFetcher
from ghostcacher_connector.engines.vllm.scheduling.flushing import Flusher
from ghostcacher_connector.engines.vllm.scheduling.load_meter import LoadMeter
from ghostcacher_connector.engines.vllm.scheduling.load_room import LoadRoom
from ghostcacher_connector.engines.vllm.scheduling.matching import Matcher
from ghostcacher_connector.engines.vllm.scheduling.prefill_meter import PrefillMeter
from ghostcacher_connector.engines.vllm.scheduling.prompts import PromptReporter
from ghostcacher_connector.engines.vllm.scheduling.publishing import BlockPublisher
from ghostcacher_connector.engines.vllm.scheduling.slot_watch import SlotWatch
from ghostcacher_connector.engines.vllm.support import mixes_adapters_wrong
from ghostcacher_connector.identity.fingerprint import share_count
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.objects.directory import ObjectDirectory
from ghostcacher_connector.objects.tier_options import TierOptions
from ghostcacher_connector.publish.block_notes import BlockNotes
from ghostcacher_connector.pull.forecast import Forecaster
from ghostcacher_connector.tiers.host_tier import HostTier
from ghostcacher_connector.tiers.object_orders import ObjectOrders
from ghostcacher_connector.worker.membership import Membership
from ghostcacher_connector.worker.registration import Introduction, first_prefill_rate, worker_record

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheManager


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one worker, wired to each other. None of them has begun to run."""

    fleet: Membership
    """The worker among the others."""
    forecaster: Forecaster
    """Knows how long pulls and steps take."""
    prefill: PrefillMeter
    """Tells the forecaster how long steps took."""
    load: LoadMeter
    """Measures what routers see of this worker."""
    prompts: PromptReporter
    """Tells routers of prompts."""
    watch: SlotWatch | None
    """Counts generations; None for a worker that does not publish."""
    publisher: BlockPublisher | None
    """Offers blocks; None as above."""
    matcher: Matcher | None
    """Finds blocks; None for a worker that does not pull."""
    flusher: Flusher
    """Drops blocks on order."""
    copying: CopyDown | None
    """Has blocks copied to the host tier; None for a worker that does not publish, or without such a tier."""


class PartsMaker:
    """Makes the parts of one engine's scheduler half."""

    def __init__(
        self,
        vllm_config: VllmConfig,
        settings: Settings,
        recorder: Recorder,
        clock: Callable[[], float] = time.monotonic,
        pd_role: PdRole | None = None,
    ) -> None:
        """pd_role: what the engine does where prefill and decode are apart."""
        transfer = vllm_config.kv_transfer_config
        assert transfer is not None
        assert transfer.kv_role is not None
        self._role, self._pd_role = Role(transfer.kv_role), pd_role
        self._worker = worker_name(vllm_config, settings)
        self._config = vllm_config
        self._block_tokens = vllm_config.cache_config.block_size
        self._settings = settings
        self._recorder = recorder
        self._clock = clock

    def record_of(self, ranks: list[Introduction]) -> WorkerRecord:
        """Return the worker's record, as its ranks are now. Raises ProtocolError if there are more or fewer of them."""
        expected = self._config.parallel_config.world_size  # of one data-parallel engine: all stages, all shards
        if len(ranks) != expected:
            raise ProtocolError(f"ranks: expected {expected}, found {len(ranks)}")
        return worker_record(
            ranks,
            worker=self._worker,
            role=self._role,
            http=self._settings.http_url,
            block_tokens=self._block_tokens,
            data_parallel_rank=front_rank(self._config),
            pd_role=self._pd_role,
        )

    def make(self, ranks: list[Introduction], manager: KVCacheManager) -> Parts:
        """Return all parts. manager: vLLM's, with a pool of blocks."""
        pool, record, tokens = manager.block_pool, self.record_of(ranks), self._block_tokens
        assert pool is not None
        rank_bytes = [endpoint.bytes_per_slot for endpoint in record.ranks]  # pipeline stages may differ in layers
        block_bytes = max(rank_bytes)
        forecaster = self._forecaster(ranks)
        fleet = Membership(
            self._settings,
            record,
            self._recorder,
            port_offset=data_parallel_rank(self._config) or 0,
            prefill_rate=lambda: forecaster.prefill_rate,
            # Who publishes nothing is nobody's holder after it: others would wait for it in vain.
            takes_turns=self._role is Role.BOTH,
            groups=cache_groups(manager.kv_cache_config),
        )
        prompts = PromptReporter(fleet.reporter, tokens)
        notes = BlockNotes()
        tier = self._tier(record, fleet, pool) if self._role.publishes else None
        objects = self._objects(record, tier) if tier is not None else None
        fetcher = self._fetcher(objects, tier, forecaster, notes) if objects is not None and tier is not None else None
        watch = SlotWatch(pool, _withdraw_from(fleet.publisher, tier)) if self._role.publishes else None
        publisher = self._publisher(manager, watch, fleet, prompts, notes, tier) if watch is not None else None
        return Parts(
            fleet,
            forecaster,
            PrefillMeter(forecaster, self._recorder, self._clock),
            LoadMeter(
                pool,
                forecaster,
                self._recorder,
                block_tokens=tokens,
                block_bytes=block_bytes,
                groups=fleet.lookups.groups,
                tier=tier,
            ),
            prompts,
            watch,
            publisher,
            self._matcher(pool, fleet, forecaster, block_bytes, tier, fetcher) if self._role.pulls else None,
            Flusher(
                manager,
                fleet.publisher,
                notes,
                watch,
                publisher,
                tier,
                objects=objects,
                amend=fleet.flushes.amend,
                block_bytes=sum(rank_bytes),
            ),
            self._copying(tier, pool, objects, fetcher) if tier is not None else None,
        )

    def _forecaster(self, ranks: list[Introduction]) -> Forecaster:
        text = self._config.model_config.hf_text_config
        return Forecaster(
            first_prefill_rate(ranks, layers=text.num_hidden_layers, hidden=text.hidden_size),
            self._clock,
            step_tokens_max=self._config.scheduler_config.max_num_batched_tokens,
            pull_threads=self._settings.pull_threads,
            own_worker=self._worker,
        )

    def _tier(self, record: WorkerRecord, fleet: Membership, pool: BlockPool) -> HostTier | None:
        """Return the tier for the host slots that every rank has; None when there are none.

        Raises UnsupportedEngine when the pool's free list cannot be walked.
        """
        engine = record.ranks[0].memories[0].slot_count
        slots = min(endpoint.slot_count for endpoint in record.ranks)
        if slots == engine:
            return None
        refuse_unproven(free_list_faults(pool))
        return HostTier(
            fleet.publisher,
            self._recorder,
            worker=self._worker,
            first_slot=engine,
            slot_count=slots - engine,
            ranks=len(record.ranks),
            block_bytes=max(endpoint.bytes_per_slot for endpoint in record.ranks),
            retention=self._settings,
            clock=self._clock,
        )

    def _objects(self, record: WorkerRecord, tier: HostTier) -> ObjectOrders | None:
        """Return what orders stores and fetches of objects; None where the settings name no object tier."""
        url = self._settings.object_url
        if url is None:
            return None

        copies = len(record.ranks) // share_count(record.fingerprint)  # of which one object is enough

        def open_directory(namespace: str) -> ObjectDirectory:
            return ObjectDirectory.open(
                url,
                namespace=namespace.encode(),
                block_bytes=[endpoint.bytes_per_slot for endpoint in record.ranks[::copies]],
                options=TierOptions.of(self._settings),
                recorder=self._recorder,
            )

        return ObjectOrders(
            tier, open_directory, namespace=record.namespace, ranks=len(record.ranks), clock=self._clock
        )

    def _fetcher(
        self, objects: ObjectOrders, tier: HostTier, forecaster: Forecaster, notes: BlockNotes
    ) -> ObjectFetcher:
        return ObjectFetcher(
            objects, tier, forecaster, self._settings, notes, block_tokens=self._block_tokens, clock=self._clock
        )

    def _copying(
        self, tier: HostTier, pool: BlockPool, objects: ObjectOrders | None, fetcher: ObjectFetcher | None
    ) -> CopyDown:
        return CopyDown(
            tier,
            pool,
            threshold=self._settings.hbm_swap_threshold,
            block_tokens=self._block_tokens,
            objects=objects,
            on_fetched=fetcher.fetched if fetcher is not None else lambda _: None,
            clock=self._clock,
        )

    def _publisher(
        self,
        manager: KVCacheManager,
        watch: SlotWatch,
        fleet: Membership,
        prompts: PromptReporter,
        notes: BlockNotes,
        tier: HostTier | None,
    ) -> BlockPublisher:
        return BlockPublisher(
            manager,
            watch,
            fleet.publisher,
            self._block_tokens,
            prompts.published,
            notes=notes,
            groups=fleet.lookups.groups,
            tier=tier,
            mixes_adapters_wrong=mixes_adapters_wrong(self._config),
            trails=keeps_kv(self._config),
        )

    def _matcher(
        self,
        pool: BlockPool,
        fleet: Membership,
        forecaster: Forecaster,
        block_bytes: int,
        tier: HostTier | None,
        fetcher: ObjectFetcher | None,
    ) -> Matcher:
        matcher = Matcher(
            self._settings,
            fleet.lookups,
            forecaster,
            self._recorder,
            block_tokens=self._block_tokens,
            block_bytes=block_bytes,
            tier=tier,
            fetcher=fetcher,
            tracer=open_tracer("ghostcacher-connector", self._clock) if self._settings.tracing else None,
            clock=self._clock,
        )
        matcher.held_back = blocks_held_back(self._config)
        if (groups := fleet.lookups.groups).others:
            step_tokens = self._config.scheduler_config.max_num_batched_tokens
            matcher.room = LoadRoom(pool, groups, block_tokens=self._block_tokens, step_tokens=step_tokens)
        return matcher


def _withdraw_from(sink: BlockSink, tier: HostTier | None) -> Callable[[int], None]:
    """Return what is to be called with each published slot of the engine that is about to be reused."""
    if tier is None:
        return sink.withdraw

    def withdraw(slot: int) -> None:
        tier.engine_gives(slot)
        sink.withdraw(slot)

    return withdraw
