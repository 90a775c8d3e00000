"""What is refused at start, by name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType

from ghostcacher_connector.core.errors import UnsupportedEngine
from ghostcacher_connector.engines.sglang import support
from ghostcacher_connector.engines.sglang.kv_pool import describe, memory_of

PAGE = 4


def make_pool(**changes: Any) -> Any:
    pool = MHATokenToKVPool(
        8 * PAGE, PAGE, torch.float32, head_num=2, head_dim=8, layer_num=3, device="cpu", enable_memory_saver=False
    )
    for name, value in changes.items():
        setattr(pool, name, value)
    return pool


def make_latent_pool(**changes: Any) -> Any:
    """Return a pool of MLA: one vector of 12 + 4 numbers for each token and layer."""
    pool = MLATokenToKVPool(
        8 * PAGE,
        PAGE,
        torch.float32,
        kv_lora_rank=12,
        qk_rope_head_dim=4,
        layer_num=3,
        device="cpu",
        enable_memory_saver=False,
    )
    for name, value in changes.items():
        setattr(pool, name, value)
    return pool


def config(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> tuple[Any, Any, Any]:
    """Return a configuration that is supported, but for the changes."""
    found: dict[str, Any] = {
        "dp_size": 1,
        "tp_size": 2,
        "attn_tp_size": 2,
        "attn_dcp_size": 1,
        "pp_size": 1,
        "attn_cp_size": 1,
        "speculative_algorithm": None,
        "is_eagle": False,
        "disaggregation_mode": "null",
        "enable_pdmux": False,
        "enable_mixed_chunk": False,
        "enable_memory_saver": False,
        "dllm_algorithm": None,
        "enable_eplb": False,
        "enable_streaming_session": False,
        "enable_session_radix_cache": False,
        "is_multimodal": False,
        "vocab_size": 4096,
        "quantization_param_path": None,
        "components": {ComponentType.FULL},
        "allocator": None,
        **changes,
    }
    bag = SimpleNamespace(**found)
    bag.features = bag.dllm = bag.moe = bag
    for name in ("parallel", "spec", "disagg", "exec", "serving", "memory", "model", "schedule"):
        monkeypatch.setattr(support, f"get_{name}", lambda: bag)
    allocator = found["allocator"] or PagedTokenToKVPoolAllocator(
        8 * PAGE, PAGE, torch.float32, "cpu", make_pool(), False
    )
    bag.token_to_kv_pool_allocator = allocator
    return bag, found["components"], bag


def test_plain_configuration_is_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full attention over a plain pool, with tensor parallelism."""
    support.check_config(*config(monkeypatch))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"pp_size": 2}, "pp_size"),
        ({"dp_size": 2}, "dp_size"),
        ({"attn_cp_size": 2}, "attn_cp_size"),
        ({"attn_dcp_size": 2}, "dcp_size"),
        ({"attn_tp_size": 1}, "attention ranks"),
        ({"speculative_algorithm": "EAGLE"}, "speculative decoding"),
        ({"disaggregation_mode": "prefill"}, "disaggregation_mode"),
        ({"enable_pdmux": True}, "enable_pdmux"),
        ({"enable_memory_saver": True}, "enable_memory_saver"),
        ({"dllm_algorithm": "x"}, "dllm_algorithm"),
        ({"enable_eplb": True}, "enable_eplb"),
        ({"enable_streaming_session": True}, "sessions"),
        ({"is_multimodal": True, "vocab_size": 2_000_000}, "ids of items"),
        ({"components": {ComponentType.FULL, ComponentType.SWA}}, "SWA .disable_hybrid_swa_memory true"),
        ({"allocator": SimpleNamespace(get_kvcache=lambda: None)}, "page allocator"),
    ],
)
def test_what_is_not_proven_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], named: str
) -> None:
    """The message names the feature."""
    with pytest.raises(UnsupportedEngine, match=named):
        support.check_config(*config(monkeypatch, **change))


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("apart", [False, True])
def test_pass_that_fills_an_offered_page_is_launched_before(
    monkeypatch: pytest.MonkeyPatch, mixed: bool, apart: bool
) -> None:
    """Not where both flags are set: SGLang then processes a result after it has prepared the pass behind it."""
    monkeypatch.setenv("SGLANG_DISABLE_CONSECUTIVE_PREFILL_OVERLAP", str(int(apart)))
    parts = config(monkeypatch, enable_mixed_chunk=mixed)
    if mixed and apart:
        with pytest.raises(UnsupportedEngine, match="enable_mixed_chunk"):
            support.check_config(*parts)
    else:
        support.check_config(*parts)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"kv_cache_layout": "hnd"}, "KV layout"),
        ({"dtype": torch.int8}, "kv_cache_dtype"),
        ({"quant_method": SimpleNamespace()}, "scales beside the rows"),
    ],
)
def test_other_pools_are_refused_by_name(monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], named: str) -> None:
    """A layout or a data type that nobody has compared log-probabilities with."""
    with pytest.raises(UnsupportedEngine, match=named):
        support.check_config(*config(monkeypatch, allocator=over(make_pool(**change))))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"use_dsa": True}, "indexer"),
        ({"layer_shard_enabled": True}, "dealt out"),
        ({"dtype": torch.uint8}, "kv_cache_dtype"),
    ],
)
def test_other_latent_pools_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedEngine, match=named):
        support.check_config(*config(monkeypatch, allocator=over(make_latent_pool(**change))))


@pytest.mark.parametrize("make", [make_pool, make_latent_pool])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_scales_in_fp8_come_from_the_checkpoint(monkeypatch: pytest.MonkeyPatch, make: Any, dtype: torch.dtype) -> None:
    """Those of another file are in no digest."""
    allocator = over(make(dtype=dtype))
    support.check_config(*config(monkeypatch, allocator=allocator))
    given = config(monkeypatch, allocator=allocator, quantization_param_path="scales.json")
    if dtype is torch.bfloat16:
        support.check_config(*given)
    else:
        with pytest.raises(UnsupportedEngine, match="quantization_param_path"):
            support.check_config(*given)


def over(pool: Any) -> Any:
    """Return SGLang's allocator of this pool."""
    return PagedTokenToKVPoolAllocator(8 * PAGE, PAGE, torch.float32, "cpu", pool, False)


def test_other_pool_class_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hybrid and sharded pools, and those of NVFP4, are classes of their own."""
    with pytest.raises(UnsupportedEngine, match="KV pool"):
        support.check_config(*config(monkeypatch, allocator=over(SimpleNamespace())))


def test_page_is_a_run_of_rows_in_every_plane() -> None:
    """Slot p of a segment is page p of that layer's K or V."""
    pool = make_pool()
    memory = memory_of(pool, PAGE)
    assert (memory.slot_count, len(memory.segments)) == (9, 6)
    row_bytes = 2 * 8 * 4
    assert {segment.slot_bytes for segment in memory.segments} == {PAGE * row_bytes}
    assert memory.segments[1].base == pool.k_buffer[1].data_ptr()
    assert describe(pool, memory) == describe(make_pool(), memory_of(make_pool(), PAGE))


def test_page_of_mla_is_a_run_of_latent_vectors_in_every_layer() -> None:
    """All that attention reads of a token is in its row, once."""
    pool = make_latent_pool()
    memory = memory_of(pool, PAGE)
    assert (memory.slot_count, len(memory.segments)) == (9, 3)
    assert {segment.slot_bytes for segment in memory.segments} == {PAGE * 16 * 4}
    pool.kv_buffer[1][2 * PAGE : 3 * PAGE] = 7.0
    segment = memory.segments[1]
    assert segment.base + 2 * segment.stride_bytes == pool.get_key_buffer(1)[2 * PAGE].data_ptr()
    assert describe(pool, memory) == describe(make_latent_pool(), memory_of(make_latent_pool(), PAGE))
    assert describe(pool, memory) != describe(make_pool(), memory_of(make_pool(), PAGE))


def test_pool_that_is_not_dense_is_refused() -> None:
    """A view with gaps between its rows would be read wrongly."""
    pool = make_pool()
    pool.k_buffer[2] = pool.k_buffer[2].transpose(1, 2)
    with pytest.raises(UnsupportedEngine, match=r"k_buffer\[2\]"):
        memory_of(pool, PAGE)
