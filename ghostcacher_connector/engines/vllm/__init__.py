"""The vLLM adapter: translates vLLM's KV connector calls, and nothing else."""

from typing import Any

__all__ = ["GhostCacherConnector"]


def __getattr__(name: str) -> Any:
    """Import the connector, and vLLM with it, only when it is asked for: plugin.py is loaded in every process."""
    if name in __all__:
        from ghostcacher_connector.engines.vllm.connector import GhostCacherConnector  # noqa: PLC0415

        return GhostCacherConnector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
