"""KV tensors of every layout that vLLM has used, turned into segments."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from ghostcacher_connector.core.errors import UnsupportedEngine  # noqa: E402
from ghostcacher_connector.core.types import Segment  # noqa: E402
from ghostcacher_connector.engines.vllm.kv_layout import describe, describe_heads, segments_of  # noqa: E402

BLOCKS, HEADS, TOKENS, HEAD = 7, 2, 16, 8


def bytes_of(tensor: torch.Tensor, segments: tuple[Segment, ...], slot: int) -> bytes:
    """Read one slot through its segments, as a peer would."""
    storage = tensor.untyped_storage()
    flat = bytes(storage)
    parts = []
    for segment in segments:
        start = segment.base - storage.data_ptr() + slot * segment.stride_bytes
        parts.append(flat[start : start + segment.slot_bytes])
    return b"".join(parts)


def described(tensor: torch.Tensor, blocks: int) -> str:
    caches = {"l": tensor}
    segments = segments_of(caches, blocks, tensor.nelement() // blocks * tensor.element_size())
    return describe(caches, segments, blocks)


def page_bytes(tensor: torch.Tensor) -> int:
    return int(tensor.nelement() // BLOCKS * tensor.element_size())


@pytest.mark.parametrize(
    ("shape", "block_dim", "planes"),
    [
        ((BLOCKS, HEADS, TOKENS, 2 * HEAD), 0, 1),
        ((2, BLOCKS, TOKENS, HEADS, HEAD), 1, 2),
        ((BLOCKS, 2, TOKENS, HEADS, HEAD), 0, 1),
        ((BLOCKS * 4, TOKENS // 4, HEADS, HEAD), 0, 1),
    ],
)
def test_dense_layouts_cover_each_block_exactly(shape: tuple[int, ...], block_dim: int, planes: int) -> None:
    """The segments of a slot hold the bytes of that block and of no other."""
    tensor = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)
    segments = segments_of({"layer.0": tensor}, BLOCKS, page_bytes(tensor))
    assert len(segments) == planes
    per_block = shape[block_dim] // BLOCKS
    for slot in range(BLOCKS):
        block = tensor.narrow(block_dim, slot * per_block, per_block).contiguous()
        assert bytes_of(tensor, segments, slot) == block.numpy().tobytes()


def test_permuted_view_is_read_by_its_strides() -> None:
    """A logical order that differs from the physical one changes nothing: strides count, not shapes."""
    physical = torch.arange(BLOCKS * HEADS * TOKENS * HEAD, dtype=torch.float32).reshape(BLOCKS, HEADS, TOKENS, HEAD)
    logical = physical.permute(0, 2, 1, 3)
    assert segments_of({"l": logical}, BLOCKS, page_bytes(logical)) == segments_of(
        {"l": physical}, BLOCKS, page_bytes(physical)
    )


def test_interleaved_layers_keep_their_stride() -> None:
    """Layers that alternate inside one storage give slots that are not adjacent."""
    storage = torch.zeros(BLOCKS, 3, TOKENS, HEADS, HEAD)
    layers = {f"layer.{i}": storage[:, i] for i in range(3)}
    segments = segments_of(layers, BLOCKS, page_bytes(storage[:, 0]))
    assert len(segments) == 3
    assert all(segment.stride_bytes == 3 * segment.slot_bytes for segment in segments)


def test_shared_tensor_is_listed_once() -> None:
    """Layers that share their KV are moved once."""
    tensor = torch.zeros(BLOCKS, HEADS, TOKENS, HEAD)
    assert len(segments_of({"a": tensor, "b": tensor}, BLOCKS, page_bytes(tensor))) == 1


def test_holes_inside_a_block_are_refused() -> None:
    """Bytes that are not the block's would be moved along: refused by name."""
    tensor = torch.zeros(BLOCKS, TOKENS, HEADS, 2 * HEAD)[..., :HEAD]
    with pytest.raises(UnsupportedEngine, match=r"layer\.7.*dense"):
        segments_of({"layer.7": tensor}, BLOCKS, page_bytes(tensor))


def test_wrong_block_count_is_refused() -> None:
    """A tensor in which no dimension counts blocks names its shape."""
    with pytest.raises(UnsupportedEngine, match=r"shape \[5, 3\]"):
        segments_of({"layer.0": torch.zeros(5, 3)}, BLOCKS, 12)


def test_page_size_that_does_not_add_up_is_refused() -> None:
    """The cache spec and the tensor must agree on the bytes of a block."""
    tensor = torch.zeros(BLOCKS, HEADS, TOKENS, HEAD)
    with pytest.raises(UnsupportedEngine, match="bytes a block"):
        segments_of({"layer.0": tensor}, BLOCKS, page_bytes(tensor) * 2)


def test_description_has_no_addresses() -> None:
    """Two workers with equal layouts describe them in equal words."""
    first, second = (torch.zeros(2, BLOCKS, TOKENS, HEADS, HEAD) for _ in range(2))
    assert described(first, BLOCKS) == described(second, BLOCKS)


def test_description_does_not_depend_on_the_number_of_blocks() -> None:
    """A worker with more memory shares with one that has less."""
    shapes = [(2, blocks, TOKENS, HEADS, HEAD) for blocks in (BLOCKS, 3 * BLOCKS)]
    assert len({described(torch.zeros(shape), shape[1]) for shape in shapes}) == 1


def test_order_inside_a_block_is_described() -> None:
    """Heads before tokens, or tokens before heads: the same bytes to a pull, and different ones to attention."""
    tokens_first = torch.zeros(BLOCKS, TOKENS, HEADS, HEAD)
    heads_first = torch.zeros(BLOCKS, HEADS, TOKENS, HEAD).permute(0, 2, 1, 3)
    assert tokens_first.shape == heads_first.shape
    assert described(tokens_first, BLOCKS) != described(heads_first, BLOCKS)


def test_groups_that_lie_in_the_same_rows_share_them() -> None:
    """A block of the group with fewer layers has rows that it leaves unused."""
    rows = [torch.zeros(BLOCKS, HEADS, TOKENS, HEAD) for _ in range(2)]
    caches = {"full.0": rows[0], "full.1": rows[1], "window.0": rows[0]}
    segments = segments_of(caches, BLOCKS, page_bytes(rows[0]), [["window.0"], ["full.0", "full.1"]])
    assert [segment.base for segment in segments] == [row.data_ptr() for row in rows]


def test_groups_that_lie_apart_are_refused() -> None:
    """A block would have rows that belong to a block of another group."""
    caches = {name: torch.zeros(BLOCKS, HEADS, TOKENS, HEAD) for name in ("full.0", "window.0")}
    with pytest.raises(UnsupportedEngine, match=r"\[1, 1\] rows a block: expected all in the same 1, found 2"):
        segments_of(caches, BLOCKS, page_bytes(caches["full.0"]), [["full.0"], ["window.0"]])


def test_groups_that_cut_the_same_bytes_otherwise_are_refused() -> None:
    """K and V apart in one group, and packed in the other: slots would not be the same bytes."""
    memory = torch.zeros(2 * BLOCKS * HEADS * TOKENS * HEAD)
    caches = {
        "packed": memory.view(BLOCKS, HEADS, TOKENS, 2 * HEAD),
        "apart": memory.view(2, BLOCKS, HEADS, TOKENS, HEAD),
    }
    with pytest.raises(UnsupportedEngine, match="rows a block"):
        segments_of(caches, BLOCKS, page_bytes(caches["packed"]), [["packed"], ["apart"]])


def test_heads_side_by_side_have_one_layout_however_many_they_are() -> None:
    """In blocks of one layer as well as of all; a block's other layers may lie between."""

    def layout(heads: int, layers: int = 1) -> str | None:
        blocks = torch.zeros(BLOCKS, layers, heads, TOKENS, 2 * HEAD)
        return describe_heads({"l": blocks[:, 0]}, BLOCKS, heads)

    assert layout(1) == layout(2) == layout(8) == layout(4, layers=3)
    assert layout(1) is not None
    assert describe_heads({"l": torch.zeros(BLOCKS, 2, TOKENS, HEAD)}, BLOCKS, 2) != layout(2)


@pytest.mark.parametrize(
    "tensor",
    [
        pytest.param(torch.zeros(BLOCKS, TOKENS, HEADS, 2 * HEAD).transpose(1, 2), id="tokens before heads"),
        pytest.param(torch.zeros(HEADS, BLOCKS, TOKENS, 2 * HEAD).transpose(0, 1), id="heads before blocks"),
        pytest.param(torch.zeros(2, BLOCKS, HEADS, TOKENS, HEAD), id="keys apart from values"),
        pytest.param(torch.zeros(BLOCKS, HEADS + 1, TOKENS, HEAD), id="another number of heads"),
    ],
)
def test_heads_that_are_not_side_by_side_have_none(tensor: torch.Tensor) -> None:
    assert describe_heads({"l": tensor}, BLOCKS, HEADS) is None
