"""What differs between the minor versions of vLLM that the connector runs on: all of it, in one place.

A version counts here by what it has, never by its number: a name that a version lacks is missed where it is looked for.
Delete an entry when the oldest version that has it is the oldest one supported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.v1.kv_cache_interface import KVCacheConfig


def source_of_hits() -> Any:
    """Return vLLM's label for tokens that came from peers; None where hits have no labels yet (before 0.32)."""
    try:
        from vllm.v1.metrics.cache_hit_source import CacheHitSource  # noqa: PLC0415 - not there in older versions
    except ImportError:
        return None
    return CacheHitSource.P2P


def hash_tokens(kv_cache_config: KVCacheConfig) -> int | None:
    """Return how many tokens one hash covers, None for those of a block.

    Before 0.32 the configuration does not say it: with one KV cache group, as support.py demands, it is a block.
    """
    return getattr(kv_cache_config, "hash_block_size", None)
