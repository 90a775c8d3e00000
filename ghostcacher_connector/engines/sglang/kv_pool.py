"""Turns SGLang's KV pool into segments: slot ``p`` is page ``p``, ``page_size`` rows in each plane.

A plane is one layer's K or V; with MLA one layer's latent vectors, which are both.

Shapes and strides are read off the tensors and checked, never assumed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool

from ghostcacher_connector.core.errors import UnsupportedEngine
from ghostcacher_connector.core.types import Segment, SlotMemory, Tier
from ghostcacher_connector.transfer.layout import describe_segments

if TYPE_CHECKING:
    import torch

PADDING_PAGE = 0
"""Takes the writes of padding tokens: never allocated, never read by a request."""

KvPool: TypeAlias = MHATokenToKVPool | MLATokenToKVPool
"""Those that are known how to be read; no subclass of them (support.py)."""


def planes_of(pool: KvPool) -> dict[str, list[torch.Tensor]]:
    """Return the planes of a pool by SGLang's name of their kind: one for each layer, shape (rows, heads, size)."""
    if isinstance(pool, MLATokenToKVPool):
        return {"kv": pool.kv_buffer}
    return {"k": pool.k_buffer, "v": pool.v_buffer}


def device_of(pool: KvPool) -> torch.device:
    """Return where the pool lies."""
    return next(iter(planes_of(pool).values()))[0].device


def page_count(pool: KvPool, page_tokens: int) -> int:
    """Return how many pages the pool has, the one for padding included. Raises UnsupportedEngine."""
    rows = int(pool.size) + page_tokens
    if rows % page_tokens:
        raise UnsupportedEngine(f"KV pool: expected whole pages of {page_tokens} tokens, found {rows} rows")
    return rows // page_tokens


def memory_of(pool: KvPool, page_tokens: int) -> SlotMemory:
    """Return the memory of the pool. Raises UnsupportedEngine, naming the layer, for rows that are not dense."""
    pages = page_count(pool, page_tokens)
    segments = tuple(
        _segment(f"{name}_buffer[{layer}]", tensor, pages, page_tokens)
        for name, tensors in planes_of(pool).items()
        for layer, tensor in enumerate(tensors)
    )
    device = device_of(pool)
    return SlotMemory(Tier.DEVICE, pages, segments, "DRAM" if device.type == "cpu" else "VRAM", device.index or 0)


def describe(pool: KvPool, memory: SlotMemory) -> str:
    """Return the layout without its addresses, for the fingerprint: equal layouts give equal words."""
    planes = planes_of(pool)
    rows = "/".join(f"{name}{tuple(tensors[0].shape[1:])}" for name, tensors in planes.items())
    layout = "latent" if isinstance(pool, MLATokenToKVPool) else pool.kv_cache_layout
    return f"{layout}:{describe_segments(memory.segments)}:{next(iter(planes.values()))[0].dtype}{rows}"


def _segment(name: str, tensor: torch.Tensor, pages: int, page_tokens: int) -> Segment:
    if not tensor.is_contiguous() or tensor.shape[0] < pages * page_tokens:
        raise UnsupportedEngine(
            f"{name}: expected {pages * page_tokens} dense rows, found shape {list(tensor.shape)}, "
            f"strides {list(tensor.stride())}"
        )
    page_bytes = page_tokens * tensor.stride(0) * tensor.element_size()
    return Segment(tensor.data_ptr(), page_bytes, page_bytes)
