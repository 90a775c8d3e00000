"""Turns vLLM's KV tensors into segments. Shapes and strides are read off the tensors, never assumed.

vLLM's layouts change with version and backend: K and V packed or apart, heads before or after tokens, one storage for
all layers or one for each. All that is needed here is which dimension counts blocks. That the bytes of one block within
one plane are dense is checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, product
from typing import TYPE_CHECKING

from ghostcacher_connector.core.errors import UnsupportedEngine
from ghostcacher_connector.core.types import Segment
from ghostcacher_connector.transfer.layout import describe_segments

if TYPE_CHECKING:
    import torch

BLOCKS_MIN = 3
"""With fewer blocks than this, the K/V dimension (size 2) could be taken for the block dimension."""


HEADS_DIMS = 4
"""Dimensions of a layer's tensor: blocks, heads, tokens, content."""


def segments_of(
    kv_caches: Mapping[str, torch.Tensor], block_count: int, page_bytes: int, groups: Sequence[Sequence[str]] = ()
) -> tuple[Segment, ...]:
    """Return one segment for each dense plane of each layer, in layer order; slot ``s`` is engine block ``s``.

    Layers that share a tensor share its segments. So do those of several KV cache groups: a block of any of them has
    the rows of the widest one, and leaves some of them unused where it has fewer layers.
    groups: the layers of each KV cache group.
    block_count: blocks of the pool.
    page_bytes: bytes of one block in one layer, from the KV cache spec; the segments of a layer must add up to it.
    Raises UnsupportedEngine, naming the layer, when the tensor is not laid out in blocks.
    """
    if block_count < BLOCKS_MIN:
        raise UnsupportedEngine(f"KV blocks: expected at least {BLOCKS_MIN}, found {block_count}")
    planes = {layer: _layer_segments(layer, caches, block_count, page_bytes) for layer, caches in kv_caches.items()}
    segments = tuple(dict.fromkeys(chain.from_iterable(planes.values())))
    if len(groups) > 1:
        rows = [set(chain.from_iterable(planes.get(layer, ()) for layer in group)) for group in groups]
        _check_overlaid(set(segments), rows)
    return segments


def _check_overlaid(segments: set[Segment], groups: Sequence[set[Segment]]) -> None:
    """Raise UnsupportedEngine unless all groups lie in the rows of the widest one.

    Else a block would be moved in part only, or into bytes of another one.
    """
    widest = max(groups, key=len)
    if segments != widest:
        raise UnsupportedEngine(
            f"KV cache groups of {[len(group) for group in groups]} rows a block: expected all in the same "
            f"{len(widest)}, found {len(segments)}"
        )


def _layer_segments(layer: str, tensor: torch.Tensor, block_count: int, page_bytes: int) -> list[Segment]:
    shape, strides, item = tuple(tensor.shape), tuple(tensor.stride()), tensor.element_size()
    order = sorted(range(len(shape)), key=lambda dim: -strides[dim])
    position = next((i for i, dim in enumerate(order) if shape[dim] % block_count == 0), None)
    described = f"{layer}: shape {list(shape)}, strides {list(strides)}"
    if position is None:
        raise UnsupportedEngine(f"{described}: expected a dimension that counts {block_count} blocks, found none")

    block_dim, outer, inner = order[position], order[:position], order[position + 1 :]
    per_block = shape[block_dim] // block_count  # kernel blocks in one block of the pool
    elements = 1
    for dim in reversed(inner):
        if strides[dim] != elements and shape[dim] != 1:
            raise UnsupportedEngine(f"{described}: expected the bytes of a block to be dense")
        elements *= shape[dim]
    if per_block > 1 and strides[block_dim] != elements:
        raise UnsupportedEngine(f"{described}: expected {per_block} adjacent kernel blocks a block")

    slot_bytes = per_block * elements * item
    stride_bytes = per_block * strides[block_dim] * item
    offsets = [
        sum(index * strides[dim] for index, dim in zip(indices, outer, strict=True))
        for indices in product(*(range(shape[dim]) for dim in outer))
    ]
    if slot_bytes * len(offsets) != page_bytes:
        raise UnsupportedEngine(
            f"{described}: expected {page_bytes} bytes a block, found {len(offsets)} planes of {slot_bytes}"
        )
    return [Segment(tensor.data_ptr() + offset * item, stride_bytes, slot_bytes) for offset in offsets]


def describe_heads(kv_caches: Mapping[str, torch.Tensor], block_count: int, heads: int) -> str | None:
    """Return the layout of one head of a block, or None where the heads of a block do not lie one after the other.

    Such layouts are equal, however many heads ranks have: one's row is part of another's. heads: what each layer has.
    vLLM's order of dimensions is blocks, heads, tokens, content; a layout says in which order they lie in memory.
    """
    kinds: dict[str, None] = {}
    for tensor in kv_caches.values():
        shape, strides = tuple(tensor.shape), tuple(tensor.stride())
        if len(shape) != HEADS_DIMS or shape[:2] != (block_count, heads):
            return None
        tokens, content = shape[2:]
        if strides[1:] != (tokens * content, content, 1) or strides[0] < heads * tokens * content:
            return None
        kinds[f"{tensor.dtype}[blocks heads {tokens} {content}]"] = None
    return f"{len(kv_caches)}x{'+'.join(kinds)}"


def describe(kv_caches: Mapping[str, torch.Tensor], segments: tuple[Segment, ...], block_count: int) -> str:
    """Return the layout without its addresses, for the fingerprint: equal layouts give equal words.

    Segments say how the bytes of a block lie in memory; shapes and strides say what they mean: heads before tokens or
    tokens before heads are the same bytes to a pull, and different ones to attention.
    """
    return f"{describe_segments(segments)};{_describe_tensors(kv_caches, block_count)}"


def _describe_tensors(kv_caches: Mapping[str, torch.Tensor], block_count: int) -> str:
    """Name each distinct layout, dimension by dimension as ``size:stride``, without what grows with the blocks."""
    kinds: dict[str, None] = {}
    for tensor in kv_caches.values():
        dims = list(zip(tensor.shape, tensor.stride(), strict=True))
        blocks = max(stride for size, stride in dims if size % block_count == 0)
        words = [
            "blocks" if stride == blocks else f"{size}:outer" if stride > blocks else f"{size}:{stride}"
            for size, stride in dims
        ]
        kinds[f"{tensor.dtype}[{' '.join(words)}]"] = None
    return "+".join(kinds)
