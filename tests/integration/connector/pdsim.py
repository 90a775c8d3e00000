"""Simulated engines that hand requests on: vLLM's own MultiConnector with its own NixlConnector and ours as children.

All parts are real: the scheduler that delays the freeing of blocks while another engine reads them, NIXL's agents and
side channels, the transfers. An engine here has no attention kernel, whose size of block NixlConnector would ask for.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vllm.config import KVTransferConfig, VllmConfig, set_current_vllm_config
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.multi_connector import MultiConnector
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.base_worker import NixlBaseConnectorWorker
from vllm.distributed.parallel_state import (
    ensure_model_parallel_initialized,
    init_distributed_environment,
    model_parallel_is_initialized,
)
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.request import Request

from ghostcacher_cli.up.machine import free_port
from ghostcacher_connector.engines.vllm import plugin
from tests.integration.connector.enginesim import SimEngine  # sets vLLM's environment before it is imported
from tests.integration.connector.simranks import SimRank

LAYOUT = "LBHNC"
"""What NixlConnector asks of vLLM, and what the memory of a simulated rank is: each layer by itself."""

OURS, NIXL = "GhostCacherConnector", "NixlConnector"


def outer_transfer(
    children: list[dict[str, Any]], policy: str | None = "recompute", role: str = "kv_both"
) -> KVTransferConfig:
    """Return what a user writes for a MultiConnector. policy: None leaves it out."""
    chosen = {} if policy is None else {"kv_load_failure_policy": policy}
    return KVTransferConfig(
        kv_connector="MultiConnector", kv_role=role, kv_connector_extra_config={"connectors": children}, **chosen
    )


def child(name: str, role: str = "kv_both", **extra: Any) -> dict[str, Any]:
    return {"kv_connector": name, "kv_role": role, "kv_connector_extra_config": extra}


class PdRank(SimRank):
    """A rank whose connector is a MultiConnector."""

    def _make_connector(self, config: VllmConfig, kv_config: KVCacheConfig) -> KVConnectorBase_V1:
        with set_current_vllm_config(config):
            if not model_parallel_is_initialized():
                init_distributed_environment(1, 0, f"tcp://127.0.0.1:{free_port()}", 0, "gloo")
                ensure_model_parallel_initialized(1, 1)
            NixlBaseConnectorWorker._sync_block_size_with_kernel = lambda _: None
            return MultiConnector(config, KVConnectorRole.WORKER, kv_config)


class PdEngine(SimEngine):
    """An engine that takes and hands on requests, and shares its cache."""

    rank_class = PdRank

    def __init__(self, name: str, model: Path, settings: dict[str, Any], *, last: str = OURS, **options: Any) -> None:
        """last: the child that comes last; it is asked last for what can be loaded."""
        self._last = last
        os.environ["VLLM_NIXL_SIDE_CHANNEL_PORT"] = str(free_port())
        plugin.register()
        super().__init__(name, model, settings, adapt=self._adapt, **options)

    def _adapt(self, config: VllmConfig) -> None:
        alone = config.kv_transfer_config
        assert alone is not None
        ours = child(OURS, str(alone.kv_role), **alone.kv_connector_extra_config)
        children = [child(NIXL), ours] if self._last == OURS else [ours, child(NIXL)]
        config.kv_transfer_config = outer_transfer(children)
        config.cache_config.kv_cache_layout = LAYOUT

    def prefill(self, request_id: str, tokens: list[int], **options: Any) -> dict[str, Any]:
        """Compute a prompt for another engine, as vLLM's own proxy asks for it; return what that one needs."""
        self.add(request_id, tokens, max_tokens=1, transfer={"do_remote_decode": True}, **options)
        while request_id not in self.transfers:
            self.step()
        handed: dict[str, Any] = self.transfers[request_id]
        return handed

    def decode(self, request_id: str, tokens: list[int], handed: dict[str, Any], **options: Any) -> Request:
        """Go on with a request whose prompt another engine has computed."""
        return self.add(request_id, tokens, transfer=dict(handed), **options)
