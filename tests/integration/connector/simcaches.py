"""The kinds of KV cache that engines are simulated with, as vLLM's own code makes groups of their layers' specs.

Each token has 16 bytes in each layer, whatever the kind, so that the forward pass of a simulated rank is one for all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from vllm.config import VllmConfig
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheSpec,
    KVCacheTensor,
    KVQuantMode,
    MLAAttentionSpec,
    SlidingWindowSpec,
)

from tests.integration.connector.prefix_numbers import BLOCK_TOKENS

try:
    from vllm.v1.core.kv_cache_planning import get_kv_cache_groups  # type: ignore[import-not-found,unused-ignore]
except ImportError:  # before 0.33
    from vllm.v1.core.kv_cache_utils import get_kv_cache_groups

LAYERS = 2
LOCAL_TOKENS = 24
"""Tokens that a layer sees which does not see all: less than two blocks."""

NO_HYBRID = {"disable_hybrid_kv_cache_manager": True}


class SimCache(NamedTuple):
    """A kind of KV cache."""

    specs: Callable[[], list[KVCacheSpec]]
    """Makes the specs of its layers, in order."""
    engine_args: dict[str, Any]
    """More of vLLM's arguments."""
    replicated: bool = False
    """Whether the ranks of one engine hold the same, and not shards."""


def full_spec(**changes: Any) -> FullAttentionSpec:
    """Return the spec of a layer that sees all tokens."""
    options = {"block_size": BLOCK_TOKENS, "num_kv_heads": 1, "head_size": 2, "dtype": torch.float32, **changes}
    return FullAttentionSpec(**options)


def _latent() -> MLAAttentionSpec:
    return MLAAttentionSpec(
        block_size=BLOCK_TOKENS, num_kv_heads=1, head_size=4, dtype=torch.float32, cache_dtype_str="auto"
    )


def _window() -> SlidingWindowSpec:
    return SlidingWindowSpec(
        block_size=BLOCK_TOKENS, num_kv_heads=1, head_size=2, dtype=torch.float32, sliding_window=LOCAL_TOKENS
    )


def _chunks() -> ChunkedLocalAttentionSpec:
    return ChunkedLocalAttentionSpec(
        block_size=BLOCK_TOKENS, num_kv_heads=1, head_size=2, dtype=torch.float32, attention_chunk_size=LOCAL_TOKENS
    )


def _scaled() -> FullAttentionSpec:
    return full_spec(head_size=8, dtype=torch.uint8, kv_quant_mode=KVQuantMode.FP8_PER_TENSOR)


CACHES = {
    "full": SimCache(lambda: [full_spec(), full_spec()], {}),
    "mla": SimCache(lambda: [_latent(), _latent()], {}, replicated=True),
    "window": SimCache(lambda: [full_spec(), _window()], NO_HYBRID),
    "chunks": SimCache(lambda: [full_spec(), _chunks()], NO_HYBRID),
    "fp8": SimCache(lambda: [_scaled(), _scaled()], {"kv_cache_dtype": "fp8"}),
}


def kv_config_of(config: VllmConfig, cache: SimCache, blocks: int) -> KVCacheConfig:
    """Return what vLLM makes of its layers: one group of them all, or the simulation cannot run it.

    With pipeline stages there is one layer more, so that stages differ in how many they have.
    """
    several = config.parallel_config.pipeline_parallel_size > 1
    specs = {f"layer.{number}": spec for number, spec in enumerate(cache.specs() + several * cache.specs()[:1])}
    (group,) = get_kv_cache_groups(config, specs)
    page, layers = group.kv_cache_spec.page_size_bytes, list(specs)
    tensors = [KVCacheTensor(page * blocks * len(layers), layers, layer_stride=page * blocks, block_stride=page)]
    return KVCacheConfig(num_blocks=blocks, kv_cache_tensors=tensors, kv_cache_groups=[group])
