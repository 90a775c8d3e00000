"""The linker of this process, for the hooks (hooks.py); SGLang's scheduler makes one, other processes have none.

Imports nothing: every process of SGLang loads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ghostcacher_connector.engines.sglang.linker import GhostCacherLinker

_linker: GhostCacherLinker | None = None


def linker() -> GhostCacherLinker | None:
    return _linker


def set_linker(made: GhostCacherLinker | None) -> None:
    global _linker  # noqa: PLW0603 - one a process, as SGLang has it
    _linker = made
