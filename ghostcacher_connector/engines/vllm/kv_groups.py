"""Reads vLLM's KV cache groups: which of them can be shared, and what a hit needs of each.

With the hybrid KV cache manager a model whose layers are of several kinds has a group for each kind, or several. Each
group has a block table of its own, and all take their blocks from one pool: a block of any group has one row for each
layer of the widest group, and the rows of all groups are the same memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ghostcacher_connector.engines.vllm.compat import hash_tokens
from ghostcacher_connector.pull.cache_groups import GROUPS_MAX, CacheGroup, CacheGroups

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec

NULL_BLOCK = 0
"""vLLM's placeholder in a block table, for blocks that no token reads any more: never allocated, never read."""


def cache_groups(kv_cache_config: KVCacheConfig) -> CacheGroups:
    """Return the groups of a cache that support.py has nothing against."""
    specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
    first = next((number for number, spec in enumerate(specs) if _window(spec) is None), 0)
    others = (CacheGroup(number, _window_blocks(spec)) for number, spec in enumerate(specs) if number != first)
    return CacheGroups(first, tuple(others))


def group_faults(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> Iterator[str]:
    """Yield what keeps several groups from being shared."""
    groups, block_tokens = kv_cache_config.kv_cache_groups, vllm_config.cache_config.block_size
    if len(groups) > GROUPS_MAX:
        yield f"KV cache groups: expected at most {GROUPS_MAX}, found {len(groups)}"
    if all(_window(group.kv_cache_spec) is not None for group in groups):
        yield "KV cache groups: expected one with full attention, found sliding windows alone"
    if vllm_config.speculative_config is not None:
        yield "speculative decoding: expected none with several KV cache groups"
    if (stages := vllm_config.parallel_config.pipeline_parallel_size) != 1:
        yield f"pipeline_parallel_size: expected 1 with several KV cache groups, found {stages}"
    if kv_cache_config.needs_kv_cache_zeroing:
        yield "KV cache zeroing: expected off (blocks would be zeroed before their generations are bumped)"
    if (tokens := hash_tokens(kv_cache_config)) not in (None, block_tokens):
        yield f"hash_block_size: expected the block size {block_tokens}, found {tokens}"
    page_bytes = groups[0].kv_cache_spec.page_size_bytes
    for number, group in enumerate(groups):
        for fault in _faults_of(group, block_tokens, page_bytes):
            yield f"KV cache group {number}: {fault}"


def _faults_of(group: KVCacheGroupSpec, block_tokens: int, page_bytes: int) -> Iterator[str]:
    from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec  # noqa: PLC0415 - vLLM is optional

    spec: Any = group.kv_cache_spec
    if type(spec) not in (FullAttentionSpec, SlidingWindowSpec):
        found = type(spec).__name__
        yield f"expected full or sliding-window attention, found {found} (a prefix and its last window are not enough)"
        return
    if type(spec) is FullAttentionSpec and (spec.sliding_window, spec.attention_chunk_size) != (None, None):
        yield "expected full attention, found windows or chunks in layers that keep all blocks"
    if spec.block_size != block_tokens:
        yield f"expected blocks of {block_tokens} tokens, found {spec.block_size}"
    if spec.page_size_bytes != page_bytes:
        yield f"expected {page_bytes} bytes a block and layer as in group 0, found {spec.page_size_bytes}"
    if getattr(spec, "extra_retained_tokens", 0):
        yield f"expected no tokens kept below the window, found {spec.extra_retained_tokens}"
    if getattr(spec, "non_causal", False) or spec.tokens_per_state != 1:
        yield "expected causal attention with a row for each token"
    if getattr(group, "is_eagle_group", False) or getattr(group, "host_resident", False):
        yield "expected the model's own layers in the engine's memory, found a drafter's, or the host's"


def describe_groups(kv_cache_config: KVCacheConfig) -> str:
    """Return which layers are in which group, for the fingerprint; nothing for one group."""
    groups = kv_cache_config.kv_cache_groups
    if len(groups) == 1:
        return ""
    kinds = (f"{_window(group.kv_cache_spec) or 'full'}x{len(group.layer_names)}" for group in groups)
    names = ";".join(",".join(group.layer_names) for group in groups)
    return f";groups[{' '.join(kinds)} {hashlib.sha256(names.encode()).hexdigest()[:16]}]"


def _window(spec: Any) -> int | None:
    """Return how many tokens the layers of a group see of those whose blocks vLLM keeps; None where it keeps all."""
    from vllm.v1.kv_cache_interface import SlidingWindowSpec  # noqa: PLC0415 - vLLM is optional

    return int(spec.sliding_window) if isinstance(spec, SlidingWindowSpec) else None


def _window_blocks(spec: Any) -> int | None:
    """Return how many blocks before a boundary the next token reads: it sees itself and ``window - 1`` before it."""
    window = _window(spec)
    return None if window is None else -(-(window - 1) // spec.block_size)
