"""Says which features of SGLang this adapter is proven with, and refuses the others at start, by name.

Each refusal here stands for a proof that is still missing. What SGLang itself must have is in capabilities.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.environ import envs
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.runtime_context import (
    get_disagg,
    get_exec,
    get_memory,
    get_model,
    get_parallel,
    get_schedule,
    get_serving,
    get_spec,
)

from ghostcacher_connector.engines.common.versions import refuse_unproven
from ghostcacher_connector.engines.sglang.scheduling.page_names import FIRST_ITEM

if TYPE_CHECKING:
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz)
"""A row in one of these is bytes times a scale for each layer, which comes from the checkpoint or is 1."""


def check_config(params: CacheInitParams, components: set[ComponentType], model: ModelConfig) -> None:
    """Raise UnsupportedEngine, naming every feature in use that sharing is not proven with."""
    refuse_unproven([*_parallelism(params), *_features(params, model), *_pool(params, components)])


def _parallelism(params: CacheInitParams) -> Iterator[str]:
    parallel = get_parallel()
    for name, size in (
        ("pp_size", params.pp_size),
        ("attn_cp_size", params.attn_cp_size),
        ("dp_size", parallel.dp_size),
        ("dcp_size", parallel.attn_dcp_size),
    ):
        if size != 1:
            yield f"{name}: expected 1, found {size}"
    if parallel.attn_tp_size != parallel.tp_size:
        yield f"attention ranks: expected all {parallel.tp_size} of tp_size, found {parallel.attn_tp_size}"


def _features(params: CacheInitParams, model: ModelConfig) -> Iterator[str]:
    if get_spec().speculative_algorithm is not None or params.is_eagle:
        yield "speculative decoding: expected none (it moves pages, and its drafts share the pool)"
    if get_disagg().disaggregation_mode != "null":
        yield f"disaggregation_mode: expected null, found {get_disagg().disaggregation_mode}"
    if get_disagg().enable_pdmux:
        yield "enable_pdmux: expected false (its loop never asks which pages are computed)"
    if get_schedule().enable_mixed_chunk and envs.SGLANG_DISABLE_CONSECUTIVE_PREFILL_OVERLAP.get():
        yield (
            "SGLANG_DISABLE_CONSECUTIVE_PREFILL_OVERLAP with enable_mixed_chunk: expected one of the two at most "
            "(a request that ends would offer its last token's page before the pass that fills it is launched)"
        )
    if get_exec().features.enable_memory_saver:
        yield "enable_memory_saver: expected false (the KV memory is unmapped while peers may read it)"
    if get_exec().moe.enable_eplb:
        yield "enable_eplb: expected false (experts move between ranks in any pass, and pass for weights that changed)"
    if get_exec().dllm.dllm_algorithm is not None:
        yield "dllm_algorithm: expected none"
    if get_serving().enable_streaming_session or get_memory().enable_session_radix_cache:
        yield "sessions: expected none (enable_streaming_session, enable_session_radix_cache)"
    if model.is_multimodal and model.vocab_size > FIRST_ITEM:
        yield f"vocab_size: expected at most {FIRST_ITEM} (SGLang's ids of items begin there), found {model.vocab_size}"


def _pool(params: CacheInitParams, components: set[ComponentType]) -> Iterator[str]:
    if components != {ComponentType.FULL}:
        found = ", ".join(sorted(component.name for component in components))
        yield (
            f"cache components: expected full attention alone, found {found} (disable_hybrid_swa_memory true has "
            "windows and chunks keep every page, and lets them be shared)"
        )
    allocator: Any = params.token_to_kv_pool_allocator
    if type(allocator) not in (PagedTokenToKVPoolAllocator, TokenToKVPoolAllocator):
        yield f"page allocator: expected one of SGLang's plain ones, found {type(allocator).__name__}"
        return
    pool = allocator.get_kvcache()
    if type(pool) not in (MHATokenToKVPool, MLATokenToKVPool):
        yield f"KV pool: expected that of plain multi-head attention, or of MLA, found {type(pool).__name__}"
        return
    yield from _rows(pool)
    if pool.post_capture_active:
        yield "KV memory: expected it to be there at start, found one that is mapped later"


def _rows(pool: MHATokenToKVPool | MLATokenToKVPool) -> Iterator[str]:
    if isinstance(pool, MLATokenToKVPool):
        if pool.use_dsa:
            yield "MLA: expected latent vectors alone, found an indexer's keys beside them"
        if pool.layer_shard_enabled:
            yield "MLA: expected every layer on each rank, found layers that are dealt out to ranks"
    else:
        if pool.kv_cache_layout != "nhd":
            yield f"KV layout: expected nhd, found {pool.kv_cache_layout}"
        if pool.is_quantized_kv_cache:
            yield f"kv_cache_dtype: expected values without scales beside the rows, found {pool.dtype} with such"
    if pool.dtype not in (*DTYPES, *FP8_DTYPES):
        yield f"kv_cache_dtype: expected floats of 32, 16 or 8 bits, found {pool.dtype}"
    if pool.dtype in FP8_DTYPES and get_model().quantization_param_path is not None:
        yield "quantization_param_path: expected none (no digest covers the scales in it)"
