"""Turns SGLang's KV pool into segments: slot ``p`` is page ``p``, ``page_size`` rows in each layer's K and V.

Shapes and strides are read off the tensors and checked, never assumed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ghostcacher_connector.core.errors import UnsupportedEngine
from ghostcacher_connector.core.types import Segment, SlotMemory, Tier
from ghostcacher_connector.transfer.layout import describe_segments

if TYPE_CHECKING:
    import torch
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

PADDING_PAGE = 0
"""Takes the writes of padding tokens: never allocated, never read by a request."""


def page_count(pool: MHATokenToKVPool, page_tokens: int) -> int:
    """Return how many pages the pool has, the one for padding included. Raises UnsupportedEngine."""
    rows = int(pool.size) + page_tokens
    if rows % page_tokens:
        raise UnsupportedEngine(f"KV pool: expected whole pages of {page_tokens} tokens, found {rows} rows")
    return rows // page_tokens


def memory_of(pool: MHATokenToKVPool, page_tokens: int) -> SlotMemory:
    """Return the memory of the pool. Raises UnsupportedEngine, naming the layer, for rows that are not dense."""
    pages = page_count(pool, page_tokens)
    segments = tuple(
        _segment(f"{name}_buffer[{layer}]", tensor, pages, page_tokens)
        for name, tensors in (("k", pool.k_buffer), ("v", pool.v_buffer))
        for layer, tensor in enumerate(tensors)
    )
    device = pool.k_buffer[0].device
    return SlotMemory(Tier.DEVICE, pages, segments, "DRAM" if device.type == "cpu" else "VRAM", device.index or 0)


def describe(pool: MHATokenToKVPool, memory: SlotMemory) -> str:
    """Return the layout without its addresses, for the fingerprint: equal layouts give equal words."""
    rows = f"{tuple(pool.k_buffer[0].shape[1:])}/{tuple(pool.v_buffer[0].shape[1:])}"
    return f"{pool.kv_cache_layout}:{describe_segments(memory.segments)}:{pool.k_buffer[0].dtype}{rows}"


def _segment(name: str, tensor: torch.Tensor, pages: int, page_tokens: int) -> Segment:
    if not tensor.is_contiguous() or tensor.shape[0] < pages * page_tokens:
        raise UnsupportedEngine(
            f"{name}: expected {pages * page_tokens} dense rows, found shape {list(tensor.shape)}, "
            f"strides {list(tensor.stride())}"
        )
    page_bytes = page_tokens * tensor.stride(0) * tensor.element_size()
    return Segment(tensor.data_ptr(), page_bytes, page_bytes)
