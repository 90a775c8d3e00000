"""Puts one rank's parts together at start: identity, registered memory, transports, the fleet. Raises by name.

Every rank has memory, transports, lookups and a forecaster of its own. Rank 0 speaks for the worker: it alone holds the
lease, publishes, and reports to routers.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from msgspec.structs import replace
from sglang.srt.configs.model_config import ModelConfig

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.types import Role, WorkerRecord
from ghostcacher_connector.engines.common.calibration import measure_flops
from ghostcacher_connector.engines.common.weight_digest import WeightsReader
from ghostcacher_connector.engines.common.worker_name import chosen_name
from ghostcacher_connector.engines.sglang.identity import fingerprint_of
from ghostcacher_connector.engines.sglang.kv_pool import PADDING_PAGE, describe, device_of, memory_of
from ghostcacher_connector.engines.sglang.scheduling.rank_group import RankGroup
from ghostcacher_connector.engines.sglang.support import check_config
from ghostcacher_connector.metrics import Delta, Recorder
from ghostcacher_connector.pull.forecast import STEP_TOKENS_MIN, Forecaster
from ghostcacher_connector.pull.lookups import LookupService
from ghostcacher_connector.slots import Generations, SlotTable, first_generations
from ghostcacher_connector.transfer.shares import Share
from ghostcacher_connector.worker.host_memory import open_host_memory
from ghostcacher_connector.worker.membership import Membership, open_lookups
from ghostcacher_connector.worker.rank import RankRuntime
from ghostcacher_connector.worker.registration import Introduction, first_prefill_rate, worker_record

if TYPE_CHECKING:
    import torch
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams
    from sglang.srt.server_args import ServerArgs

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 2.0


class _Shared(msgspec.Struct, frozen=True):
    """What rank 0 chooses for all ranks."""

    owner: str
    """The engine's own random name."""
    generations: bytes
    """The generations to begin with, as bytes."""


class EngineRank:
    """One rank of one engine, in the fleet from `start` on.

    page_tokens, page_bytes: size of one page on this rank.
    page_count: how many the engine has on this rank, the one for padding included.
    layer_count: layers of the KV pool.
    on_cpu: whether the KV pool is host memory.
    recorder: metrics of this rank.
    request_recorder: metrics that are counted by request; equal on all ranks, and shown for rank 0 alone.
    ranks: the group of all ranks of the engine.
    table: generations of this rank's pages, as peers read them.
    generations: those to begin with, the same on all ranks.
    runtime: transports, and the threads that pull.
    forecaster: estimates what pulling and computing cost.
    fleet: this worker's membership; None on every rank but 0.
    lookups: asks the index beside the scheduler.
    """

    def __init__(
        self, server_args: ServerArgs, params: CacheInitParams, components: set[Any], settings: Settings
    ) -> None:
        """Register memory and find the other ranks. Raises ConfigError, UnsupportedEngine, TransferError."""
        model = ModelConfig.from_server_args(server_args)
        check_config(params, components, model)
        pool = params.token_to_kv_pool_allocator.get_kvcache()
        self.page_tokens: int = params.page_size
        self.layer_count: int = pool.layer_num
        device = device_of(pool)
        self.on_cpu = device.type == "cpu"
        self.recorder = Recorder()
        self._settings = settings
        self.ranks = RankGroup(params.tp_cache_group)
        self.request_recorder = self.recorder if self.ranks.rank == 0 else Recorder()
        self._weights = WeightsReader()
        memory = memory_of(pool, self.page_tokens)
        self.page_bytes = memory.bytes_per_slot
        self.page_count = memory.slot_count
        if settings.host_tier_gib and self.ranks.size > 1:
            raise ConfigError(
                f"host_tier_gib: expected 0 with several ranks on SGLang, got {settings.host_tier_gib:g}: each rank "
                "decides for itself, and all of them the same, which a tier that goes by time cannot promise"
            )
        if settings.object_url is not None:
            logger.warning("object_url: has no effect on SGLang: its engines do not use the object tier")
        host = open_host_memory(settings.host_tier_gib, memory, ranks=self.ranks.size)
        self.table = SlotTable(memory.slot_count + (host.slots.slot_count if host is not None else 0))
        shared = self._shared(memory.slot_count)
        self.generations: Generations = np.frombuffer(shared.generations, dtype=np.uint64)
        self._fingerprint = fingerprint = fingerprint_of(
            model, pool, describe(pool, memory), settings, page_tokens=self.page_tokens, owner=shared.owner
        )
        self._worker = worker = chosen_name(settings, f"sglang-{shared.owner[:12]}")
        self.runtime = RankRuntime(
            settings,
            memory,
            self.table,
            self.recorder,
            worker=worker,
            share=Share.of(self.ranks.rank, self.ranks.size, self.ranks.size),
            namespace=fingerprint.digest(),
            scratch_slot=PADDING_PAGE,
            port_offset=self.ranks.rank,
            host=host,
        )
        self._own = Introduction(
            endpoint=self.runtime.endpoint,
            fingerprint=fingerprint.as_fields(),
            namespace=fingerprint.digest(),
            flops_per_s=measure_flops(model.hidden_size, model.dtype, device),
        )
        everyone = self._everyone()
        record = self._record_of(everyone)
        rate = first_prefill_rate(everyone, layers=model.num_hidden_layers, hidden=model.hidden_size)
        self.forecaster = forecaster = Forecaster(
            rate, step_tokens_max=_step_tokens_max(server_args), own_worker=worker
        )
        self.fleet = (
            Membership(settings, record, self.recorder, prefill_rate=lambda: forecaster.prefill_rate)
            if self.ranks.rank == 0
            else None
        )
        self.lookups: LookupService = (
            self.fleet.lookups
            if self.fleet is not None
            else open_lookups(settings, self.runtime.index, self.runtime.candidates)
        )

    @property
    def takes_flushes(self) -> bool:
        """Whether orders to flush are taken: several ranks would have to do so in one pass, and one hears of them."""
        return self.ranks.size == 1

    @property
    def worker(self) -> str:
        """This worker's name."""
        return self._worker

    def start(self) -> None:
        """Prove that a pull works, then join. Raises TransferError."""
        self.runtime.start()
        if self.fleet is not None:
            self.fleet.start()

    def read_weights(self, model: torch.nn.Module) -> list[str]:
        """Return the digest of each rank's weights, in order of rank. To be called by all ranks."""
        digest = self._weights.digest(model)
        return [part.decode() for part in self.ranks.gather(digest.encode())]

    def move(self, epoch: str) -> None:
        """Become another incarnation, in the namespace of these weights. To be called by all ranks.

        When this returns, peers refuse what any rank has published before.
        """
        self._fingerprint = replace(self._fingerprint, weights_epoch=epoch)
        namespace = self._fingerprint.digest()
        self.runtime.move(namespace)
        self._own = replace(
            self._own,
            endpoint=self.runtime.endpoint,
            fingerprint=self._fingerprint.as_fields(),
            namespace=namespace,
        )
        record = self._record_of(self._everyone())
        if self.fleet is not None:
            self.fleet.move(record)

    def leave(self) -> None:
        """Make peers refuse all that was published, and leave the index. Bounded in time."""
        self.table.renew_incarnation()
        if self.fleet is not None:
            self.fleet.leave()

    def stop(self) -> None:
        """End threads and transports. Idempotent; bounded in time."""
        self.table.renew_incarnation()
        if self.fleet is not None:
            self.fleet.stop()
        else:
            self.lookups.stop(STOP_TIMEOUT_S)
        self.runtime.stop()

    def take_metrics(self) -> Delta:
        """Return what this rank has recorded since the last call."""
        self.runtime.record_metrics()
        if self.fleet is not None:
            self.fleet.record_metrics()
        return self.recorder.drain()

    def _everyone(self) -> list[Introduction]:
        """Return the introductions of all ranks, in order of rank."""
        gathered = self.ranks.gather(msgspec.msgpack.encode(self._own))
        return [msgspec.msgpack.decode(part, type=Introduction) for part in gathered]

    def _record_of(self, everyone: Sequence[Introduction]) -> WorkerRecord:
        return worker_record(
            everyone,
            worker=self._worker,
            role=Role.BOTH,
            http=self._settings.http_url,
            block_tokens=self.page_tokens,
            # A prompt enters the radix cache when its batch's results are handled; the next batch may be made before.
            shares_prefill=False,
            takes_flushes=self.takes_flushes,
        )

    def _shared(self, slot_count: int) -> _Shared:
        chosen = _Shared(secrets.token_hex(16), first_generations(slot_count).tobytes())
        payload = msgspec.msgpack.encode(chosen) if self.ranks.rank == 0 else b""
        return msgspec.msgpack.decode(self.ranks.gather(payload)[0], type=_Shared)


def _step_tokens_max(server_args: ServerArgs) -> int:
    """Return how many prompt tokens a batch may compute. Without chunks (-1) as many as there are."""
    size = server_args.chunked_prefill_size
    return size if size is not None and size > 0 else 2 * STEP_TOKENS_MIN
