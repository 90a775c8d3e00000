"""The class that SGLang loads, one in each rank's scheduler process. It only passes each call on to the part concerned.

What SGLang calls, in the order of a request's life (s: SGLang's linker interface, h: a hook of ours, hooks.py):
1. h `queued`: the index is asked, on another thread (matching.py);
2. s `lookup`: while a batch is built: how many pages can be had (every pass until it is scheduled);
3. s `load`: SGLang has allocated the pages: a pull into them begins, and the request `waits` in SGLang's queue, in no
   batch, until they are in the tree, or given up (loading.py);
4. h `batch_begins`, the forward pass, h `batch_done`: the prefill rate is measured;
5. s `offload`: new pages are in the tree; in a later pass s `num_completed_offloads` says how many are computed, and
   s `pop_completed_offload` publishes them (publishing.py);
6. h `batch_done` or `ended`: the request is over; its pages stay readable until they are released (page_guard.py).

Every method is called on the scheduler's thread. None raises after the start: a failed cache is a slow request.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from sglang.srt.mem_cache.hicache_storage import PoolName
from sglang.srt.mem_cache.unified_cache.unified_cache_linker import LayerWiseLoadCounter, UnifiedCacheLinker
from sglang.srt.runtime_context import get_device

from ghostcacher_connector.core.errors import UnsupportedEngine
from ghostcacher_connector.engines.common.logs import join_engine_log
from ghostcacher_connector.engines.common.versions import check_capabilities, installed_version
from ghostcacher_connector.engines.sglang import hooks
from ghostcacher_connector.engines.sglang.capabilities import missing
from ghostcacher_connector.engines.sglang.engine_rank import STOP_TIMEOUT_S, EngineRank
from ghostcacher_connector.engines.sglang.flags import linker_settings
from ghostcacher_connector.engines.sglang.plugin import DISTRIBUTIONS, TRIED_VERSIONS
from ghostcacher_connector.engines.sglang.scheduling.adapters import Adapters
from ghostcacher_connector.engines.sglang.scheduling.page_names import offered_names
from ghostcacher_connector.engines.sglang.scheduling.scheduler import ConnectorScheduler
from ghostcacher_connector.engines.sglang.stats import StatsPump, engine_exporter
from ghostcacher_connector.metrics import Delta

if TYPE_CHECKING:
    import torch
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams
    from sglang.srt.mem_cache.hicache_storage import PoolTransfer
    from sglang.srt.mem_cache.unified_cache.unified_tree_core_interface import NodeId
    from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
    from sglang.srt.server_args import ServerArgs

logger = logging.getLogger(__name__)


class _Offered(NamedTuple):
    """The node of SGLang's tree that is about to be offered."""

    root: str | None
    """Hash of the first page of its chain; None where that is its own first page."""
    names: list[str] | None
    """The fleet's names of its pages and of those before it; empty where SGLang's own are these; None: not shared."""


class GhostCacherLinker(UnifiedCacheLinker):
    """Shares this engine's KV pool with the fleet.

    Raises ConfigError or UnsupportedEngine at start, by name; afterwards a failure of the cache is a miss.
    """

    def __init__(
        self,
        server_args: ServerArgs,
        params: CacheInitParams,
        *,
        components: set[Any],
        extra_config: dict[str, Any] | None = None,
        forward_stream: torch.cuda.Stream | None = None,
    ) -> None:
        settings = linker_settings(extra_config or {}, os.environ, get_device().watchdog_timeout)
        join_engine_log("", settings.log_format)
        check_capabilities("sglang", installed_version("sglang", DISTRIBUTIONS), TRIED_VERSIONS, missing())
        if unhooked := hooks.missing():
            raise UnsupportedEngine(
                "sglang plugins: expected the plugin ghostcacher to be loaded (SGLANG_PLUGINS, if set, must name it); "
                f"not hooked: {', '.join(unhooked)}"
            )
        self.forward_stream = forward_stream
        self._offered: _Offered | None = None
        self._engine = engine = EngineRank(server_args, params, components, settings)
        self._adapters = Adapters(engine.ranks)
        self._scheduling = ConnectorScheduler(engine, params.token_to_kv_pool_allocator, settings)
        self.pools = {PoolName.KV: params.token_to_kv_pool_allocator.get_kvcache()}
        # No load is left to a forward pass: SGLang's counter never has anything to wait for.
        self.layer_done_counter = LayerWiseLoadCounter(engine.layer_count)
        self._stats = self._open_stats(server_args)
        self._engine.start()
        self._scheduling.take_flushes()
        hooks.set_linker(self)

    @property
    def kept_tokens(self) -> int:
        """Tokens of pages that are neither SGLang's to give nor in use: a READ may still write to them."""
        return self._scheduling.guard.kept_tokens

    # -- SGLang's interface ----------------------------------------------------------------------------------------

    def lookup(self, rid: str, transfers: list[PoolTransfer]) -> list[int]:
        count = self._scheduling.match(rid, _keys(transfers))
        # With several ranks SGLang takes the longest that all of them name, so each names all that it can have.
        return list(range(1, count + 1)) if self._engine.ranks.size > 1 else [count] if count else []

    def load(self, rid: str, transfers: list[PoolTransfer]) -> bool:
        self._scheduling.load(rid, _keys(transfers), transfers[0].device_indices, self._events())
        return False  # nothing is there yet: the request is computed, unless it waits

    def start_layer_wise_loading(self) -> int:
        return -1

    def finish_layer_wise_loading(self, counter_index: int) -> bool:  # noqa: ARG002 - SGLang's interface
        return True

    def cancel_queued_load(self, rid: str) -> bool:  # noqa: ARG002 - SGLang's interface
        return False

    def offload(self, transfers: list[PoolTransfer], session_id: str | None = None) -> bool:  # noqa: ARG002
        offered, self._offered = self._offered, None
        if offered is None or offered.names is None:
            return False
        keys, root = _keys(transfers), offered.root
        if offered.names:
            keys, root = offered.names[-len(keys) :], offered.names[0]
        return self._scheduling.offer(keys, root, transfers[0].device_indices, self._events())

    def num_completed_offloads(self) -> int:
        return self._scheduling.begin_pass()

    def pop_completed_offload(self) -> bool:
        return self._scheduling.publish_oldest()

    def reset(self) -> None:
        self._scheduling.reset()

    def close(self) -> None:
        hooks.set_linker(None)
        self._stats.stop(STOP_TIMEOUT_S)
        self._scheduling.close()
        self._engine.stop()

    # -- hooks -----------------------------------------------------------------------------------------------------

    def queued(self, scheduler: Scheduler, req: Req) -> None:
        self._adapters.arrived(scheduler, req)
        self._scheduling.queued(scheduler, req, self._adapters.digest(req.lora_id))

    def waits(self, rid: str) -> bool:
        return self._scheduling.waits(rid)

    def memory_is_short(self) -> None:
        self._scheduling.memory_is_short()

    def ended(self, rid: str) -> None:
        self._scheduling.ended(rid)

    def node_offered(self, cache: UnifiedRadixCache, node_id: NodeId) -> None:
        self._offered = None
        prefix = cache.get_prefix_hash_values(node_id)
        names = offered_names(cache.tree_core, node_id, self._adapters, self._engine.page_tokens)
        said = None if names is None else [name.hex() for name in names]
        self._offered = _Offered(prefix[0] if prefix else None, said)

    def batch_begins(self, batch: ScheduleBatch) -> None:
        self._scheduling.batch_begins(batch)

    def batch_done(self, batch: ScheduleBatch) -> None:
        self._scheduling.batch_done(batch)

    def idle(self, scheduler: Scheduler) -> None:
        self._scheduling.idle(scheduler)

    def weights_may_change(self, model: torch.nn.Module, why: str) -> None:
        self._scheduling.weights_may_change(model, why)

    def _events(self) -> list[Any]:
        """Return what must be over before pages may be read or written past SGLang; nothing is pending on a CPU."""
        return [] if self._engine.on_cpu else self.record_offload_ready()

    def _open_stats(self, server_args: ServerArgs) -> StatsPump:
        sinks: list[Callable[[Delta], None]] = []
        if self._engine.fleet is not None:
            sinks.append(self._engine.fleet.export)
        if server_args.enable_metrics:
            model_name = server_args.served_model_name or server_args.model_path
            exporter = engine_exporter(model_name)
            sinks.append(lambda delta: exporter.apply(delta, [model_name]))
        return StatsPump(self._engine.take_metrics, sinks)


def _keys(transfers: list[PoolTransfer]) -> list[str]:
    """Return the page hashes of a transfer. There is one pool (support.py refuses others)."""
    assert len(transfers) == 1, f"expected one pool, found {len(transfers)}"
    return list(transfers[0].keys)
