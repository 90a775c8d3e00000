"""What the linker and its hooks need of SGLang, whatever its version: that it is there, and takes what is given.

SGLang's sources are read instead of imported: every process of SGLang asks before its configuration is known, and
modules that are imported that early change what it does later (hooks.py).
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ghostcacher_connector.engines.sglang import hooks

LINKER = "sglang.srt.mem_cache.unified_cache.unified_cache_linker.UnifiedCacheLinker"
ALLOCATORS = "sglang.srt.mem_cache.allocator"
CACHE = "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache"
TREE = "sglang.srt.mem_cache.unified_cache.unified_tree_core_interface.UnifiedTreeCoreInterface"
DYNAMIC_BACKEND = "sglang.srt.mem_cache.unified_cache.linker_factory"


class Need(NamedTuple):
    """A method of SGLang that is overridden, hooked, replaced or called."""

    place: str
    """Where it is: module, class and method."""
    takes: str
    """The names of its first parameters behind ``self``, with spaces between."""


OVERRIDDEN = (
    Need(f"{LINKER}.lookup", "rid transfers"),
    Need(f"{LINKER}.load", "rid transfers"),
    Need(f"{LINKER}.start_layer_wise_loading", ""),
    Need(f"{LINKER}.finish_layer_wise_loading", "counter_index"),
    Need(f"{LINKER}.cancel_queued_load", "rid"),
    Need(f"{LINKER}.record_offload_ready", ""),
    Need(f"{LINKER}.offload", "transfers session_id"),
    Need(f"{LINKER}.num_completed_offloads", ""),
    Need(f"{LINKER}.pop_completed_offload", ""),
    Need(f"{LINKER}.reset", ""),
    Need(f"{LINKER}.close", ""),
)
"""The interface of linkers: all their parameters, since SGLang would pass one more in vain."""

HOOKED = {
    f"{hooks.SCHEDULER}._add_request_to_queue": "req",
    f"{hooks.SCHEDULER}._release_aborted_request": "req",
    f"{hooks.SCHEDULER}.send_abort_output": "abort_req req",
    f"{hooks.ADDER}.add_one_req": "req",
    f"{hooks.WRAPPER}.load_back": "req",
    f"{hooks.SCHEDULER}.run_batch": "batch",
    f"{hooks.SCHEDULER}.process_batch_result": "batch",
    f"{hooks.WRAPPER}._offload_node": "node_id",
    f"{hooks.CHECKER}._check_full_pool": "ps uncached",
    f"{hooks.SERVING}.handle_request": "request raw_request",
}
"""Parameters that hooks read by their places. The other hooks read none."""

REPLACED = (
    Need(f"{ALLOCATORS}.paged.PagedTokenToKVPoolAllocator._release_page_ids", ""),
    Need(f"{ALLOCATORS}.token.TokenToKVPoolAllocator.free", "free_index"),
)
"""By which pages enter the free lists: where generations are bumped (scheduling/page_guard.py)."""


CALLED = (
    Need(f"{CACHE}.insert", "params"),
    Need(f"{CACHE}.match_prefix", "params"),
    Need(f"{CACHE}.path_device_indices", "node"),
    Need(f"{CACHE}.get_prefix_hash_values", ""),
    Need(f"{TREE}.snapshot_buffer_backup", "node_id pass_prefix_keys"),
)
"""By which pages enter the tree (scheduling/tree_entry.py), and are named (scheduling/page_names.py)."""


def missing(sources: Path | None = None) -> list[str]:
    """Return what SGLang lacks, each by name with what was expected and found.

    sources: the folder that holds the package ``sglang``; None for the installed one's.
    """
    return list(_faults(sources or _installed()))


def _faults(sources: Path) -> Iterator[str]:
    if not _file_of(sources, DYNAMIC_BACKEND).exists():
        yield "linker backend dynamic: expected, found none"
    for target, _, _ in hooks.hooks():
        yield from _fault_of(sources, Need(target, HOOKED.get(target, "")), exact=False)
    for need in OVERRIDDEN:
        yield from _fault_of(sources, need, exact=True)
    for need in (*REPLACED, *CALLED):
        yield from _fault_of(sources, need, exact=False)


def _fault_of(sources: Path, need: Need, *, exact: bool) -> Iterator[str]:
    module, owner, name = need.place.rsplit(".", 2)
    wanted = need.takes.split()
    found = _methods(_file_of(sources, module), owner).get(name)
    if found is None:
        yield f"{owner}.{name}: expected ({', '.join(wanted)}), found none"
    elif (found if exact else found[: len(wanted)]) != wanted:
        yield f"{owner}.{name}: expected ({', '.join(wanted)}), found ({', '.join(found)})"


@cache
def _methods(path: Path, owner: str) -> dict[str, list[str]]:
    """Return the methods that a class defines itself, with their parameters behind the first."""
    if not path.exists():
        return {}
    return {
        each.name: [argument.arg for argument in (*each.args.args[1:], *each.args.kwonlyargs)]
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == owner
        for each in node.body
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def _file_of(sources: Path, module: str) -> Path:
    return sources.joinpath(*module.split(".")).with_suffix(".py")


def _installed() -> Path:
    found = importlib.util.find_spec("sglang")
    assert found is not None
    assert found.submodule_search_locations is not None
    return Path(next(iter(found.submodule_search_locations))).parent
