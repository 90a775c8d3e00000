"""The connector's half in each rank's process: owns the slot table, the registered memory and the pulls.

Order of the calls in one step, as vLLM makes them:
1. `begin_step`: at the very start, before any block is copied, computed or pulled: generations are bumped, and after
   that copies to the host tier are submitted to the copier's thread: their slots may have held something else;
2. the forward pass (the model runner's);
3. `start_pulls`: new pulls are submitted to the puller's threads; they write only slots that step 1 has seen;
4. `take_received`, `take_failed_slots`, `take_report`: what has ended since.

A rank that misses a step's orders has missed bumps, and can no longer guarantee any generation: it becomes a new
incarnation, so that its peers refuse all that was published, and all ranks do before the worker shares again (`move`).
The same happens when the weights have changed. Slow, never wrong.

All methods are called on the rank's main thread.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import torch
from msgspec.structs import replace
from torch.nn import ModuleList

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.types import SlotMemory, Tier
from ghostcacher_connector.engines.common.calibration import measure_flops
from ghostcacher_connector.engines.common.weight_digest import WeightsReader
from ghostcacher_connector.engines.common.weight_watch import UNREAD
from ghostcacher_connector.engines.vllm.adapter_reader import AdapterReader
from ghostcacher_connector.engines.vllm.data_parallel import relay_port_offset
from ghostcacher_connector.engines.vllm.drafters import keeps_kv
from ghostcacher_connector.engines.vllm.identity import divides_heads, fingerprint_of, worker_name
from ghostcacher_connector.engines.vllm.kv_groups import NULL_BLOCK, cache_groups, describe_groups
from ghostcacher_connector.engines.vllm.kv_layout import describe, describe_heads, segments_of
from ghostcacher_connector.engines.vllm.messages import PullOrder, RankHandshake, RankReport, StepMetadata
from ghostcacher_connector.engines.vllm.stages import layout_of_all_stages
from ghostcacher_connector.identity.fingerprint import Fingerprint, private_value, share_count
from ghostcacher_connector.metrics import Delta, Recorder
from ghostcacher_connector.pull.accounting import PullReport, report_of
from ghostcacher_connector.slots import SlotTable
from ghostcacher_connector.transfer.copier import Copier
from ghostcacher_connector.transfer.jobs import PullJob, outdated_result
from ghostcacher_connector.transfer.shares import Share
from ghostcacher_connector.worker.host_memory import open_host_memory
from ghostcacher_connector.worker.host_objects import HostObjects
from ghostcacher_connector.worker.rank import RankRuntime
from ghostcacher_connector.worker.registration import Introduction

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

logger = logging.getLogger(__name__)


class ConnectorWorker:
    """See the module's docstring."""

    def __init__(
        self, vllm_config: VllmConfig, kv_cache_config: KVCacheConfig, settings: Settings, recorder: Recorder
    ) -> None:
        self._vllm_config = vllm_config
        self._kv_cache_config = kv_cache_config
        self._groups = cache_groups(kv_cache_config)
        self._settings = settings
        self._recorder = recorder
        self._step = 0
        self._lost_step = False
        self._begins_late = False
        self._introduced = False
        self._device = torch.device("cpu")
        self._table: SlotTable | None = None
        self._runtime: RankRuntime | None = None
        self._handshake: RankHandshake | None = None
        self._fingerprint: Fingerprint | None = None
        self._weights = WeightsReader()
        self._adapters = AdapterReader()
        self._step_adapters: tuple[int, ...] = ()
        self._orders: dict[str, PullOrder] = {}
        self._outdated: set[str] = set()
        self._failed_slots: set[int] = set()
        self._failed_requests: set[str] = set()
        self._reports: list[PullReport] = []

    def register(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Register the rank's KV memory. Nothing looks for peers yet: see `handshake`."""
        config = self._kv_cache_config
        spec = config.kv_cache_groups[self._groups.first].kv_cache_spec
        layers = [group.layer_names for group in config.kv_cache_groups]
        segments = segments_of(kv_caches, config.num_blocks, spec.page_size_bytes, layers)
        device = self._device = next(iter(kv_caches.values())).device
        kind = "DRAM" if device.type == "cpu" else "VRAM"
        memory = SlotMemory(Tier.DEVICE, config.num_blocks, segments, kind, device.index or 0)
        own_layout = describe(kv_caches, segments, config.num_blocks) + describe_groups(config)
        self._fingerprint = fingerprint = self._identify(kv_caches, own_layout)
        parallel = self._vllm_config.parallel_config
        host = open_host_memory(self._settings.host_tier_gib, memory, ranks=parallel.world_size)
        self._table = SlotTable(config.num_blocks + (host.slots.slot_count if host is not None else 0))
        self._runtime = RankRuntime(
            self._settings,
            memory,
            self._table,
            self._recorder,
            worker=worker_name(self._vllm_config, self._settings),
            share=Share.of(
                parallel.rank,
                parallel.world_size,
                share_count(fingerprint.as_fields()),
                divided=fingerprint.ranks_hold == "heads",
            ),
            namespace=fingerprint.digest(),
            scratch_slot=NULL_BLOCK,
            port_offset=relay_port_offset(self._vllm_config),
            host=host,
        )
        model = self._vllm_config.model_config
        self._handshake = RankHandshake(
            Introduction(
                endpoint=self._runtime.endpoint,
                fingerprint=fingerprint.as_fields(),
                namespace=fingerprint.digest(),
                flops_per_s=measure_flops(model.hf_text_config.hidden_size, model.dtype, device),
            )
        )

    def _identify(self, kv_caches: dict[str, torch.Tensor], layout: str) -> Fingerprint:
        """Return what this rank's blocks are, the same as all ranks of the engine say. layout: the rank's own."""
        config = self._kv_cache_config
        spec = config.kv_cache_groups[self._groups.first].kv_cache_spec
        heads = None
        if divides_heads(self._vllm_config, config, self._settings):
            heads = describe_heads(kv_caches, config.num_blocks, spec.num_kv_heads)
        of_all = layout_of_all_stages(self._vllm_config, heads or layout, list(kv_caches))
        return fingerprint_of(self._vllm_config, spec, of_all, self._settings, by_head=heads is not None)

    def handshake(self) -> RankHandshake:
        """Start what runs beside the engine, and say who this rank is.

        vLLM asks when it has warmed up. Before, it captures CUDA graphs, and what another thread does on the device
        meanwhile, such as opening a peer's memory, makes that fail.
        """
        assert self._handshake is not None, "handshake before register"
        assert self._runtime is not None
        if not self._introduced:  # vLLM 0.33 asks again when it is told to wake up
            self._introduced = True
            self._runtime.start()
            spec = self._kv_cache_config.kv_cache_groups[0].kv_cache_spec
            self._runtime.open_objects(str(spec.dtype).removeprefix("torch."))
        return self._handshake

    def read_weights(self, model: torch.nn.Module, drafter: torch.nn.Module | None = None) -> str:
        """Return a digest of this rank's weights, those of a drafter that keeps KV among them."""
        if not keeps_kv(self._vllm_config):
            return self._weights.digest(model)
        if drafter is None:
            logger.error("get_draft_model: expected the drafter's model, found none: its weights cannot be read")
            return UNREAD + private_value()
        return self._weights.digest(ModuleList([model, drafter]))

    def read_adapters(self, model: torch.nn.Module) -> dict[int, bytes]:
        """Return the digests of the LoRA adapters that this rank has now, by vLLM's numbers."""
        self._adapters.begin(model)
        return self._adapters.digests()

    def move(self, epoch: str) -> Introduction:
        """Become another incarnation, in the namespace of these weights. What is being pulled is not used any more.

        The generations come with the next step: until then, and with it, no slot is published.
        """
        assert self._handshake is not None
        assert self._fingerprint is not None
        assert self._runtime is not None
        self._fingerprint = replace(self._fingerprint, weights_epoch=epoch)
        namespace = self._fingerprint.digest()
        self._runtime.move(namespace)
        self._lost_step = False
        self._outdated.update(self._orders)
        for request_id in self._orders:
            self._runtime.puller.cancel(request_id)
        introduction = replace(
            self._handshake.introduction,
            endpoint=self._runtime.endpoint,
            fingerprint=self._fingerprint.as_fields(),
            namespace=namespace,
        )
        self._handshake = RankHandshake(introduction)
        return introduction

    def begin_step(self, metadata: StepMetadata) -> None:
        """Bump the generations of the slots that this step or its pulls may overwrite."""
        assert self._table is not None
        if metadata.step != self._step + 1:
            self._lose_generations(f"step {metadata.step} after step {self._step}: bumps were lost")
            self._lost_step = True
        self._step, self._step_adapters = metadata.step, metadata.adapters
        self._table.bump(metadata.bumped, metadata.generations)
        for job in metadata.copies:
            self._copier.submit(job)
        for store in metadata.stores:
            self._objects.store(store)
        for fetch in metadata.fetches:
            self._objects.fetch(fetch)

    def check_begun(self, metadata: StepMetadata, call: str) -> None:
        """Give up on this rank's generations if vLLM makes a call of this step that has not begun yet.

        Then it does not call `handle_preemptions`, or calls it too late: blocks are overwritten before they are bumped.
        """
        if metadata.step != self._step and not self._begins_late:
            self._lose_generations(f"{call} of step {metadata.step}: expected after handle_preemptions of that step")
            self._begins_late = True

    @property
    def _copier(self) -> Copier:
        assert self._runtime is not None
        assert self._runtime.copier is not None, "a copy is ordered of a rank without a host tier"
        return self._runtime.copier

    @property
    def _objects(self) -> HostObjects:
        assert self._runtime is not None
        assert self._runtime.objects is not None, "an object is ordered of a rank without an object tier"
        return self._runtime.objects

    def _lose_generations(self, why: str) -> None:
        assert self._table is not None
        logger.error("%s, becoming a new incarnation", why)
        self._table.renew_incarnation()

    def start_pulls(self, metadata: StepMetadata) -> None:
        assert self._runtime is not None
        self.check_begun(metadata, "start_load_kv")
        if metadata.pulls and keeps_kv(self._vllm_config):
            # A drafter may still write for a request that has ended with its step, and whose slots are pulled into now.
            finish_device_work(self._device)
        for order in metadata.pulls:
            self._orders[order.request_id] = order
            deadline = time.monotonic() + order.timeout_s
            self._runtime.puller.submit(PullJob(order.request_id, order.local_slots, order.sources, deadline))
        for request_id in metadata.cancelled:
            self._runtime.puller.cancel(request_id)

    def take_received(self) -> set[str]:
        """Return the requests whose pulls have ended, well or not: nothing lands in their slots any more."""
        if not self._orders:
            return set()
        assert self._runtime is not None
        received = set()
        for result in self._runtime.puller.poll():
            order = self._orders.pop(result.job_id)
            if result.job_id in self._outdated or self._is_anothers(order):
                self._outdated.discard(result.job_id)
                result = outdated_result(result)  # noqa: PLW2901 - the one that counts
            if self._groups.others:
                self._failed_requests.update({order.request_id} if not result.valid.all() else ())
            else:
                self._failed_slots.update(int(slot) for slot in order.local_slots[~result.valid])
            self._reports.append(report_of(order.request_id, order.sources, result))
            received.add(result.job_id)
        return received

    def _is_anothers(self, order: PullOrder) -> bool:
        """Say whether the adapter that a request is computed with has changed since its pull was ordered."""
        if order.adapter is None:
            return False
        number, digest = order.adapter
        return self._adapters.digests([number]).get(number, digest) != digest

    def take_failed_slots(self) -> set[int]:
        """Return the slots whose blocks vLLM must compute itself; none with several KV cache groups."""
        failed, self._failed_slots = self._failed_slots, set()
        return failed

    def take_failed_requests(self) -> set[str]:
        """Return the requests of which vLLM must compute all: their pulls have ended, and not every block has come.

        None with one KV cache group. With several, vLLM takes no single blocks, and a window with a gap is of no use.
        """
        failed, self._failed_requests = self._failed_requests, set()
        return failed

    def take_report(self) -> RankReport:
        reports, self._reports = self._reports, []
        round_trips = self._runtime.round_trips() if reports and self._runtime is not None else {}
        copies = self._copier.poll() if self._runtime is not None and self._runtime.copier is not None else []
        adapters = self._adapters.digests(self._step_adapters) if self._step_adapters else {}
        return RankReport(self._step, reports, round_trips, self._lost_step, self._begins_late, copies, adapters)

    def take_metrics(self) -> Delta:
        """Return what this half has recorded since the last call."""
        if self._runtime is not None:
            self._runtime.record_metrics()
        return self._recorder.drain()

    def shutdown(self) -> None:
        if self._table is not None:
            # vLLM frees the KV memory next, and has the scheduler's half leave the index only later.
            self._table.renew_incarnation()
        if self._runtime is not None:
            self._runtime.stop()


def finish_device_work(device: torch.device) -> None:
    """Return when a device has carried out what was launched on it so far: at most a step's work."""
    if device.type != "cpu":
        torch.accelerator.current_stream(device.index).synchronize()
