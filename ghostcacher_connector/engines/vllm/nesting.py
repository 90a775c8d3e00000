"""Beside other connectors, as a child of vLLM's MultiConnector: what that does not pass on to its children.

MultiConnector gives each child a configuration of its own, and keeps its own to itself, though vLLM goes by that one.
It passes the ranks' addresses of its first child on to all, and none of the others'. Why it is safe beside the
connectors of `BESIDE`: docs/DESIGN.md, section 11.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.types import PdRole, Role
from ghostcacher_connector.engines.common.versions import refuse_unproven

if TYPE_CHECKING:
    from vllm.config import KVTransferConfig, VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorStats
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

CONNECTOR = "GhostCacherConnector"
OUTER = "MultiConnector"

BESIDE = ("NixlConnector", "NixlPullConnector")
"""Connectors that may be children beside ours: they write only what vLLM has them load, in the step that gave the
blocks or later, and behind `handle_preemptions` of all children."""

CONSUMERS = ("kv_both", "kv_consumer")
"""Values of ``kv_role`` with which vLLM gives no block away that a step in flight still writes."""


def enclosing_transfer() -> KVTransferConfig | None:
    """Return the configuration of the MultiConnector that calls us, None when it is not one.

    Nothing but the call stack leads a child to it.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__", "").endswith(".multi_connector") and "vllm_config" in frame.f_locals:
            found: KVTransferConfig = frame.f_locals["vllm_config"].kv_transfer_config
            return found
        frame = frame.f_back  # type: ignore[assignment]  # None at the end
    return None


def children_of(transfer: KVTransferConfig | None) -> list[dict[str, Any]]:
    """Return what a MultiConnector is told of its children; nothing for any other connector."""
    if transfer is None or transfer.kv_connector != OUTER:
        return []
    children = transfer.kv_connector_extra_config.get("connectors", [])
    return [child for child in children if isinstance(child, dict)] if isinstance(children, list) else []


def uses_us(transfer: KVTransferConfig | None) -> bool:
    """Say whether a configuration asks for our connector, alone or beside others."""
    if transfer is None:
        return False
    return transfer.kv_connector == CONNECTOR or any(_is_ours(child) for child in children_of(transfer))


def settings_of(transfer: KVTransferConfig) -> list[dict[str, object]]:
    """Return our settings in a configuration: one for each time that it asks for our connector."""
    if transfer.kv_connector == CONNECTOR:
        return [transfer.kv_connector_extra_config]
    return [child.get("kv_connector_extra_config", {}) for child in children_of(transfer) if _is_ours(child)]


def check_outer(transfer: KVTransferConfig) -> None:
    """Raise ConfigError for a MultiConnector with our connector in it under which requests could fail, or lie.

    transfer: of the MultiConnector itself.
    """
    children = children_of(transfer)
    ours = [child for child in children if _is_ours(child)]
    if len(ours) != 1:
        raise ConfigError(f"{OUTER}: connectors: expected {CONNECTOR} once, found it {len(ours)} times")
    others = [str(child.get("kv_connector")) for child in children if not _is_ours(child)]
    if unproven := [name for name in others if name not in BESIDE]:
        raise ConfigError(
            f"{OUTER}: connectors: expected only {' or '.join(BESIDE)} beside {CONNECTOR}, found {', '.join(unproven)} "
            "(when it writes into which blocks is not proven)"
        )
    if transfer.kv_load_failure_policy != "recompute":
        raise ConfigError(
            f"{OUTER}: kv_load_failure_policy: expected recompute, got {transfer.kv_load_failure_policy}: vLLM would "
            "fail each request of which a block could not be loaded; write it beside kv_connector, not into a child"
        )
    if Role(str(ours[0].get("kv_role"))).pulls and transfer.kv_role not in CONSUMERS:
        raise ConfigError(
            f"{OUTER}: kv_role: expected {' or '.join(CONSUMERS)}, since its child {CONNECTOR} pulls, got "
            f"{transfer.kv_role}: vLLM would give blocks away that a step in flight still writes"
        )


def pd_role_of(transfer: KVTransferConfig | None) -> PdRole | None:
    """Return what an engine does where prefill and decode are apart, as the connector beside ours is told it."""
    roles = {str(child.get("kv_role")) for child in children_of(transfer) if not _is_ours(child)}
    return {"kv_producer": PdRole.PREFILL, "kv_consumer": PdRole.DECODE}.get(roles.pop()) if len(roles) == 1 else None


def check_beside_others(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> None:
    """Raise UnsupportedEngine for what is proven where our connector is alone, and not beside others."""
    found = []
    if (stages := vllm_config.parallel_config.pipeline_parallel_size) != 1:
        found.append(f"pipeline_parallel_size: expected 1 in a {OUTER}, found {stages}")
    if (groups := len(kv_cache_config.kv_cache_groups)) != 1:
        found.append(f"KV cache groups: expected 1 in a {OUTER}, found {groups} (--disable-hybrid-kv-cache-manager)")
    refuse_unproven(found)


def _is_ours(child: dict[str, Any]) -> bool:
    return child.get("kv_connector") == CONNECTOR


def own_connector(connector: Any) -> Any:
    """Return our connector in what vLLM calls: the connector itself, or a child of it; None when there is none."""
    if hasattr(connector, "watch_executor"):
        return connector
    children = getattr(connector, "sub_connectors", ())
    return next((child for child in children if hasattr(child, "watch_executor")), None)


def own_stats(stats: KVConnectorStats | None) -> KVConnectorStats | None:
    """Return our statistics in what vLLM has merged: a MultiConnector keeps its children's by their names."""
    own: KVConnectorStats | None = stats
    if stats is not None and type(stats).__name__ == "MultiKVConnectorStats":
        own = stats.data.get(CONNECTOR)
    return own


def handed_off(request: Request) -> bool:
    """Say whether another worker has computed the prompt of a request, and a connector beside ours is to fetch it."""
    params = request.kv_transfer_params
    return isinstance(params, dict) and bool(params.get("do_remote_prefill"))
