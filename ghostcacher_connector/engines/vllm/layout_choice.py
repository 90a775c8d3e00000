"""Which layout of the KV cache is asked of vLLM.

A pull between GPUs costs one copy a row, and a row is what lies side by side in memory. vLLM's own layouts keep each
layer apart: a block is one row for each layer. Block-major, it is a single row, as many times longer as there are
layers. What that costs attention is not measured; the setting ``kv_layout`` turns it off.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ghostcacher_connector.config import Settings

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = logging.getLogger(__name__)

BLOCK_MAJOR = "BLHNC"
"""vLLM's name: blocks outermost, then layers, heads, tokens, content. Of its block-major layouts the one that most
backends take (FlashInfer's kernels for Blackwell take no other)."""

LEAST_BLOCK_TOKENS = 16
"""No backend for CUDA has smaller blocks, so it takes a block of this size whole."""


def required_layout(vllm_config: VllmConfig, settings: Settings) -> str | None:
    """Return the layout to ask of vLLM, or None to leave the choice to it.

    Only on CUDA: the CPU backend takes one layout, and rows cost little there. vLLM keeps its own choice where a
    backend does not take ours (it says so in its log), and what ``VLLM_KV_CACHE_LAYOUT`` says goes before either.
    """
    from vllm.platforms import current_platform  # noqa: PLC0415 - vLLM is optional

    if settings.kv_layout == "engine" or not current_platform.is_cuda():
        return None
    if not _blocks_stay_whole(vllm_config):
        logger.warning(
            "kv_layout: blocks of %d tokens may be split by the attention backend, which a block-major KV cache does "
            "not allow: vLLM's own layout is used, and pulls between GPUs are slower. Leave out --block-size, or name "
            "an --attention-backend that takes such blocks whole",
            vllm_config.cache_config.block_size,
        )
        return None
    return BLOCK_MAJOR


def backends_of(vllm_config: VllmConfig) -> list[type[Any]]:
    """Return the attention backends of the layers that this process has loaded; none where ranks are processes."""
    layers = vllm_config.compilation_config.static_forward_context.values()
    return list(dict.fromkeys(layer.get_attn_backend() for layer in layers if hasattr(layer, "get_attn_backend")))


def _blocks_stay_whole(vllm_config: VllmConfig) -> bool:
    """Say whether attention takes the manager's blocks whole; vLLM does not start block-major where it splits them.

    vLLM asks the scheduler's process, which knows the backends only when it runs the rank itself. Otherwise: a size
    that vLLM chooses is one that the backend takes whole; one that a user chose must be known to be.
    """
    from vllm.config import set_current_vllm_config  # noqa: PLC0415 - vLLM is optional
    from vllm.v1.worker.utils import select_common_block_size  # noqa: PLC0415

    cache = vllm_config.cache_config
    if vllm_config.model_config.is_hybrid or cache.kv_cache_dtype_skip_layers:
        return False  # vLLM then makes blocks larger than any backend's
    attention = vllm_config.attention_config
    backends = backends_of(vllm_config)
    if not backends and attention.backend is not None and not attention.backend_per_kind:
        backends = [attention.backend.get_class()]
    if not backends:
        return not cache.user_specified_block_size or cache.block_size == LEAST_BLOCK_TOKENS
    with set_current_vllm_config(vllm_config):  # backends look at it to say which sizes they take
        try:
            return bool(select_common_block_size(cache.block_size, backends) == cache.block_size)
        except ValueError:
            return False  # vLLM says so itself, for whatever layout
