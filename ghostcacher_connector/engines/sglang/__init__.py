"""The SGLang adapter: translates the calls of SGLang's UnifiedCacheLinker, and nothing else.

--enable-unified-cache-external-linker --unified-cache-external-linker-backend dynamic
--unified-cache-external-linker-config '{"linker": "GhostCacherLinker",
                                         "linker_module_path": "ghostcacher_connector.engines.sglang"}'
"""

from typing import Any

__all__ = ["GhostCacherLinker"]


def __getattr__(name: str) -> Any:
    """Import the linker, and SGLang with it, only when it is asked for: plugin.py is loaded in every process."""
    if name in __all__:
        from ghostcacher_connector.engines.sglang.linker import GhostCacherLinker  # noqa: PLC0415

        return GhostCacherLinker
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
