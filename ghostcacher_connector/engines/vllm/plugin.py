"""vLLM's general-plugin entry point: makes the connector known by name, without a module path."""

from __future__ import annotations

CONNECTOR = "GhostCacherConnector"
MODULE = "ghostcacher_connector.engines.vllm"


def register() -> None:
    """Register the connector with vLLM's factory. May be called more than once in a process."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory  # noqa: PLC0415 - vLLM is optional

    if CONNECTOR not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector(CONNECTOR, MODULE, CONNECTOR)
