"""The class that vLLM loads. It only passes each call on to the half that it concerns.

vLLM makes one instance in the scheduler's process and one in each rank's. What is called when, and in which order, is
written down in scheduling/scheduler.py and worker.py; how the data gets from one engine to another in transfer/base.py.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    SupportsHMA,
)

from ghostcacher_connector.config import load_settings
from ghostcacher_connector.core.errors import UnsupportedEngine
from ghostcacher_connector.engines.common.logs import join_engine_log
from ghostcacher_connector.engines.common.versions import check_capabilities, installed_version
from ghostcacher_connector.engines.vllm.capabilities import missing_hooks
from ghostcacher_connector.engines.vllm.compat import source_of_hits
from ghostcacher_connector.engines.vllm.identity import check_hashes
from ghostcacher_connector.engines.vllm.layout_choice import required_layout
from ghostcacher_connector.engines.vllm.messages import RankHandshake, RankReport, StepMetadata
from ghostcacher_connector.engines.vllm.nesting import check_beside_others, check_outer, enclosing_transfer, pd_role_of
from ghostcacher_connector.engines.vllm.rank_calls import watch_executors
from ghostcacher_connector.engines.vllm.scheduling.scheduler import ConnectorScheduler
from ghostcacher_connector.engines.vllm.stats import GhostCacherPromMetrics, GhostCacherStats
from ghostcacher_connector.engines.vllm.support import (
    DISTRIBUTIONS,
    TRIED_VERSIONS,
    check_config,
    check_settings,
)
from ghostcacher_connector.engines.vllm.worker import ConnectorWorker
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.worker.registration import Introduction

if TYPE_CHECKING:
    import torch
    from vllm.config import KVTransferConfig, VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
        KVConnectorPromMetrics,
        KVConnectorStats,
        PromMetric,
        PromMetricT,
    )
    from vllm.forward_context import ForwardContext
    from vllm.v1.attention.backend import AttentionMetadata
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.executor.abstract import Executor
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request


class GhostCacherConnector(KVConnectorBase_V1, SupportsHMA):
    """Shares this engine's paged KV cache with the fleet.

    Raises ConfigError or UnsupportedEngine at start, by name; afterwards a failure of the cache is a miss.
    """

    _cache_hit_source = source_of_hits()

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        settings = load_settings(self._kv_transfer_config.kv_connector_extra_config, os.environ)
        join_engine_log("vllm", settings.log_format)
        check_capabilities("vllm", installed_version("vllm", DISTRIBUTIONS), TRIED_VERSIONS, missing_hooks())
        check_config(vllm_config, kv_cache_config)
        check_settings(str(self._kv_transfer_config.kv_role), settings, len(kv_cache_config.kv_cache_groups))
        outer = enclosing_transfer()
        self._beside_others = outer is not None
        if outer is not None:
            check_outer(outer)
            check_beside_others(vllm_config, kv_cache_config)
        else:
            # vLLM's default is to fail the request. It reads the policy after it has made the connector.
            self._kv_transfer_config.kv_load_failure_policy = "recompute"
        self._forward_checked = False
        recorder = Recorder()
        self._scheduler_half: ConnectorScheduler | None = None
        self._worker_half: ConnectorWorker | None = None
        if role is KVConnectorRole.SCHEDULER:
            watch_executors()
            self._scheduler_half = ConnectorScheduler(
                vllm_config, settings, recorder, beside_others=self._beside_others, pd_role=pd_role_of(outer)
            )
        else:
            self._worker_half = ConnectorWorker(vllm_config, kv_cache_config, settings, recorder)

    @property
    def _scheduler(self) -> ConnectorScheduler:
        assert self._scheduler_half is not None, "called on a worker's connector"
        return self._scheduler_half

    @property
    def _worker(self) -> ConnectorWorker:
        assert self._worker_half is not None, "called on the scheduler's connector"
        return self._worker_half

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: VllmConfig) -> str | None:
        """Say which layout of the KV cache to use: vLLM asks the class, before there is an instance.

        None beside other connectors: all of them must want the same, and NixlConnector wants one of its own.
        """
        assert vllm_config.kv_transfer_config is not None
        if enclosing_transfer() is not None:
            return None
        settings = load_settings(vllm_config.kv_transfer_config.kv_connector_extra_config, os.environ)
        return required_layout(vllm_config, settings)

    @property
    def requires_kv_delivery(self) -> bool:
        """A cache: what is not delivered is a later miss."""
        return False

    def shutdown(self) -> None:
        if self._scheduler_half is not None:
            self._scheduler_half.shutdown()
        if self._worker_half is not None:
            self._worker_half.shutdown()

    @classmethod
    def supports_sleep_mode(cls, kv_transfer_config: KVTransferConfig) -> bool:  # noqa: ARG003 - vLLM's interface
        """No: peers READ memory that sleep mode unmaps, and registered memory does not follow what is mapped again."""
        return False

    # -- worker ----------------------------------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        self._worker.register(kv_caches)

    def unregister_kv_caches(self) -> None:
        """Refuse, before vLLM unmaps the KV memory: it asks for this in sleep mode only, which is refused at start.

        Raises UnsupportedEngine; vLLM then leaves the memory as it is.
        """
        raise UnsupportedEngine("sleep mode: expected none, the KV memory would be unmapped while peers may read it")

    def restore_kv_caches(self) -> None:
        """Nothing to restore: nothing is ever unregistered."""

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        """Introduce this rank; beside other connectors not here, where one answer goes to all of them: `introduce`."""
        return None if self._beside_others else self._worker.handshake()

    def introduce(self) -> RankHandshake:
        """Introduce this rank (called through rank_calls.py)."""
        return self._worker.handshake()

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        assert isinstance(kv_connector_metadata, StepMetadata)
        self._worker.begin_step(kv_connector_metadata)

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:  # noqa: ARG002 - vLLM's interface
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, StepMetadata)
        self._worker.start_pulls(metadata)

    def wait_for_layer_load(self, layer_name: str) -> None:  # noqa: ARG002 - vLLM's interface
        """Nothing to wait for: all loads are asynchronous. The first layer shows that its step began before it."""
        if not self._forward_checked and self.has_connector_metadata():
            self._forward_checked = True
            metadata = self._get_connector_metadata()
            assert isinstance(metadata, StepMetadata)
            self._worker.check_begun(metadata, "forward pass")

    def save_kv_layer(
        self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: AttentionMetadata, **kwargs: Any
    ) -> None:
        """Nothing to save: peers read the paged cache itself."""

    def wait_for_save(self) -> None:
        """Nothing to wait for."""

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:  # noqa: ARG002
        return None, self._worker.take_received() or None

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        results = super().get_transfer_results(finished_req_ids)
        results.failed_recving = self._worker.take_failed_requests()
        return results

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._worker.take_failed_slots()

    def build_connector_worker_meta(self) -> RankReport:
        return self._worker.take_report()

    def read_weights(self, model: torch.nn.Module, drafter: torch.nn.Module | None) -> str:
        """Return a digest of this rank's weights (called through rank_calls.py)."""
        return self._worker.read_weights(model, drafter)

    def read_adapters(self, model: torch.nn.Module) -> dict[int, bytes]:
        """Return what this rank's LoRA adapters hold (called through rank_calls.py)."""
        return self._worker.read_adapters(model)

    def move(self, epoch: str) -> Introduction:
        """Become another incarnation under another weight epoch (called through rank_calls.py)."""
        return self._worker.move(epoch)

    # -- scheduler -------------------------------------------------------------------------------------------------

    def watch_executor(self, executor: Executor) -> None:
        """Meet the executor, before the ranks introduce themselves (called through rank_calls.py)."""
        self._scheduler.watch_executor(executor)

    def bind_kv_cache_manager(self, kv_cache_manager: KVCacheManager) -> None:
        super().bind_kv_cache_manager(kv_cache_manager)
        self._scheduler.bind(kv_cache_manager)

    def set_xfer_handshake_metadata_pp_aware(
        self, metadata: dict[tuple[int, int], KVConnectorHandshakeMetadata]
    ) -> None:
        """Take every rank's introduction, by its pipeline stage and its rank among those that share the stage.

        Beside other connectors this may be that of one of them: ours are asked for.
        """
        if self._beside_others:
            ranks = self._scheduler.ask_ranks()
        else:
            ranks = [data for data in metadata.values() if isinstance(data, RankHandshake)]
            assert len(ranks) == len(metadata), "handshake of another connector"
        for handshake in ranks:
            check_hashes(self._vllm_config, handshake.introduction.fingerprint)
        self._scheduler.join(ranks)

    def on_new_request(self, request: Request) -> None:
        self._scheduler.on_new_request(request)

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        return self._scheduler.match(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        self._scheduler.allocated(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        return self._scheduler.build_metadata(scheduler_output)

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        self._scheduler.update(connector_output)

    def has_pending_push_work(self) -> bool:
        """Say whether an engine without requests should take another step: copies to the host tier are under way."""
        return self._scheduler.has_unfinished_copies()

    def request_finished_all_groups(
        self,
        request: Request,
        block_ids: tuple[list[int], ...],  # noqa: ARG002 - vLLM's interface
    ) -> tuple[bool, dict[str, Any] | None]:
        self._scheduler.finished(request)
        return False, None

    def reset_cache(self) -> bool | None:
        """Withdraw everything; who resets external caches is about to change the weights, or has done so."""
        self._scheduler.cache_reset("reset of the connector's cache")
        return True

    # -- metrics ---------------------------------------------------------------------------------------------------

    def get_kv_connector_stats(self) -> KVConnectorStats | None:
        half = self._scheduler_half or self._worker_half
        assert half is not None
        delta = half.take_metrics()
        return GhostCacherStats(data=delta) if delta else None

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> KVConnectorStats | None:
        return GhostCacherStats(data=data) if data is not None else GhostCacherStats()

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: VllmConfig,
        metric_types: dict[type[PromMetric], type[PromMetricT]],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> KVConnectorPromMetrics | None:
        return GhostCacherPromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)
