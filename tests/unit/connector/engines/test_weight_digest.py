"""The digest of a rank's weights: sees every change, the same wherever the same weights lie."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from ghostcacher_connector.engines.common import weight_digest
from ghostcacher_connector.engines.common.weight_digest import (
    PIECE_BYTES,
    WeightsReader,
    content_digest,
    model_tensors,
)
from ghostcacher_connector.engines.common.weight_watch import UNREAD

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.bool, torch.float8_e4m3fn]
ELEMENTS = PIECE_BYTES + 12_345
"""More than one piece of any type, and no whole number of words."""


def digest_of(tensor: Any) -> str:
    return content_digest([("weight", tensor)])


def weights(dtype: Any = torch.float32, count: int = ELEMENTS) -> Any:
    raw = torch.randint(0, 255, (count * torch.empty(0, dtype=dtype).element_size(),), dtype=torch.uint8)
    return raw.view(dtype) if dtype is not torch.bool else (raw > 127)


def model() -> Any:
    """A model with each kind of member: parameters, saved and unsaved buffers."""
    made = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    made.register_buffer("scale", torch.ones(3))
    made[1].register_buffer("rotary", torch.ones(5), persistent=False)
    return made


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("at", [0, 1, 2, 3, 7, PIECE_BYTES - 1, PIECE_BYTES, ELEMENTS - 1])
def test_one_changed_element_changes_the_digest(dtype: Any, at: int) -> None:
    """Wherever in a piece, a word or the odd end of a tensor it is."""
    tensor = weights(dtype)
    before = digest_of(tensor)
    raw = tensor.view(torch.uint8)
    raw[at * tensor.element_size()] ^= 1
    assert digest_of(tensor) != before
    raw[at * tensor.element_size()] ^= 1
    assert digest_of(tensor) == before


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_signs_flipped_in_columns_change_the_digest(dtype: Any, stride: int) -> None:
    """The highest bit of many words at once: in one sum alone, an even number of them would cancel out."""
    tensor = torch.ones(64, 64, dtype=dtype)
    before = digest_of(tensor)
    for first in range(stride):
        changed = tensor.clone()
        changed[:, first::stride] *= -1
        assert digest_of(changed) != before


def test_swapped_parts_change_the_digest() -> None:
    """Order counts: of words, of pieces and of tensors."""
    tensor = weights(torch.int8, 4 * PIECE_BYTES)
    words, pieces = tensor.clone(), tensor.clone()
    words[:8], words[8:16] = tensor[8:16], tensor[:8]
    pieces[:PIECE_BYTES], pieces[PIECE_BYTES : 2 * PIECE_BYTES] = (
        tensor[PIECE_BYTES : 2 * PIECE_BYTES],
        tensor[:PIECE_BYTES],
    )
    assert len({digest_of(tensor), digest_of(words), digest_of(pieces)}) == 3
    assert content_digest([("a", words), ("b", pieces)]) != content_digest([("a", pieces), ("b", words)])


def test_name_type_and_shape_are_part_of_the_digest() -> None:
    tensor = torch.zeros(4, 6)
    others = [tensor.view(6, 4), tensor.to(torch.int32), tensor.t()]
    assert len({digest_of(other) for other in [tensor, *others]} | {content_digest([("other", tensor)])}) == 5


def test_views_that_lie_otherwise_in_memory_are_read_rightly() -> None:
    """Transposed, cut out, and single elements: the digest follows their content, not what lies beside them."""
    whole = weights(torch.float32, 1 << 20).view(1024, 1024)
    for view in (whole.t(), whole[:, 3:700], whole[5:900:7], whole[0, 0], whole[:, 1], whole[:, :0]):
        before = digest_of(view)
        assert digest_of(view) == before
        outside = whole.clone()
        same = outside.as_strided(view.shape, view.stride(), view.storage_offset())
        assert digest_of(same) == before
        if view.numel():
            last = tuple(size - 1 for size in same.shape)
            same[last] = 0.5 if same[last] != 0.5 else 0.25
            assert digest_of(same) != before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("count", [1, 5, PIECE_BYTES, 40 * PIECE_BYTES + 333])
def test_sums_on_a_device_are_those_on_the_host(dtype: Any, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many pieces at once, by torch, give the same digest as one after the other."""
    tensor = weights(dtype, count)
    on_host = digest_of(tensor)
    monkeypatch.setattr(weight_digest, "_HostSums", lambda: weight_digest._DeviceSums(torch.device("cpu")))
    assert digest_of(tensor) == on_host


def test_known_content_has_a_known_digest() -> None:
    """Another version of this code, or of numpy, must not give the same weights another name unnoticed."""
    tensor = torch.arange(100_000, dtype=torch.int64)
    assert digest_of(tensor) == "8f997e7cc88fd331896f0ceca5531259"


def test_parameters_and_saved_buffers_count_and_no_others() -> None:
    made = model()
    reader = WeightsReader()
    before = reader.digest(made)
    made[1].rotary.zero_()
    assert reader.digest(made) == before
    for tensor in (made[0].weight, made[1].bias, made.scale):
        with torch.no_grad():
            tensor.view(-1)[0] += 1
        after = reader.digest(made)
        assert after != before
        before = after
    assert {name for name, _ in model_tensors(made)} == {"0.weight", "0.bias", "1.weight", "1.bias", "scale"}


def test_equal_models_have_equal_digests() -> None:
    """Two workers that were given the same weights."""
    first, second = model(), model()
    assert WeightsReader().digest(first) != WeightsReader().digest(second)
    second.load_state_dict(first.state_dict())
    assert WeightsReader().digest(first) == WeightsReader().digest(second)


def test_weights_without_memory_have_a_value_of_their_own() -> None:
    """What cannot be read equals nothing, not even itself."""
    unread = torch.nn.Linear(4, 4, device="meta")
    reader = WeightsReader()
    digests = {reader.digest(unread), reader.digest(unread)}
    assert len(digests) == 2
    assert all(digest.startswith(UNREAD) for digest in digests)


def test_replaced_kernel_with_hidden_weights_is_a_change() -> None:
    """Weights packed where nobody can read them: the same kernel is the same weights, another one is not."""
    packed = torch.nn.Linear(4, 4)
    packed.weight = torch.nn.Parameter(torch.empty(0), requires_grad=False)
    packed.cpu_linear = lambda x: x
    reader = WeightsReader()
    before = reader.digest(packed)
    assert reader.digest(packed) == before
    packed.cpu_linear = lambda x: x
    after = reader.digest(packed)
    assert after != before
    assert reader.digest(packed) == after
