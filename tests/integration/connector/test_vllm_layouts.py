"""Block-major KV caches: asked of vLLM where it takes them, and one row a block in vLLM's own layouts."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")

import torch
import vllm.platforms
import vllm.v1.worker.utils  # imported before the platform is another one: its imports ask it for kernels
from vllm.platforms.interface import Platform, PlatformEnum
from vllm.v1.attention.backends.flex_attention import FlexAttentionBackend
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.attention.backends.turboquant_attn import TurboQuantAttentionBackend
from vllm.v1.attention.backends.utils import get_supported_kv_cache_layouts, resolve_kv_cache_layout
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheTensor,
    MLAAttentionSpec,
    compute_layout_strides,
    create_kv_cache_views,
)
from vllm.v1.kv_cache_layout import KVCacheLayout

from ghostcacher_connector.core.errors import ConfigError, UnsupportedEngine
from ghostcacher_connector.core.types import SlotMemory, Tier
from ghostcacher_connector.engines.vllm.connector import GhostCacherConnector
from ghostcacher_connector.engines.vllm.kv_layout import describe, segments_of
from ghostcacher_connector.transfer.layout import Side, descriptors, regions
from tests.integration.connector.enginesim import SimEngine

pytestmark = pytest.mark.engine

ANY = [layout.name for layout in get_supported_kv_cache_layouts([])]
"""What vLLM takes when no backend cares, the one it prefers first."""

BLOCKS = 11

MODELS = {
    "Llama-70B TP8, blocks of 16": (
        80,
        FullAttentionSpec(block_size=16, num_kv_heads=1, head_size=128, dtype=torch.bfloat16),
    ),
    "Llama-70B TP8, blocks of 128": (
        80,
        FullAttentionSpec(block_size=128, num_kv_heads=1, head_size=128, dtype=torch.bfloat16),
    ),
    "Llama-8B, blocks of 16": (
        32,
        FullAttentionSpec(block_size=16, num_kv_heads=8, head_size=128, dtype=torch.bfloat16),
    ),
    "DeepSeek MLA, blocks of 64": (
        61,
        MLAAttentionSpec(block_size=64, num_kv_heads=1, head_size=576, dtype=torch.bfloat16),
    ),
}
"""Layers and cache of one rank."""


class CudaPlatform(Platform):
    """vLLM's platform as far as a layout asks: vLLM's own class for CUDA wants its compiled parts."""

    _enum = PlatformEnum.CUDA
    device_type = "cuda"


class Layer:
    """A loaded attention layer, as far as it says what runs it."""

    def __init__(self, backend: type[Any]) -> None:
        self._backend = backend

    def get_attn_backend(self) -> type[Any]:
        return self._backend


@pytest.fixture
def config(model: Path) -> Any:
    config = SimEngine.make_config("a", model, {}, in_flight=1, role="kv_both", step_tokens=64)
    config.cache_config.user_specified_block_size = False
    return config


@pytest.fixture
def on_cuda(config: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The configuration, in a process that vLLM takes to have CUDA from here on."""
    monkeypatch.setattr(vllm.platforms, "_current_platform", CudaPlatform())
    return config


def test_cuda_resolves_to_block_major(on_cuda: Any) -> None:
    """vLLM's own resolution, asked by this connector, lays blocks out as one row."""
    assert resolve_kv_cache_layout(on_cuda, [ANY]) is KVCacheLayout.BLHNC


def test_cpu_is_left_alone(config: Any) -> None:
    """The CPU backend takes one layout: asking for another would warn at each start, for nothing."""
    assert GhostCacherConnector.get_required_kvcache_layout(config) is None


@pytest.mark.parametrize("by_environment", [False, True])
def test_setting_leaves_the_choice_to_the_engine(
    on_cuda: Any, monkeypatch: pytest.MonkeyPatch, by_environment: bool
) -> None:
    """With `kv_layout: engine` vLLM's default stays, whichever way it is set."""
    if by_environment:
        monkeypatch.setenv("GC_KV_LAYOUT", "engine")
    else:
        on_cuda.kv_transfer_config.kv_connector_extra_config["kv_layout"] = "engine"
    assert resolve_kv_cache_layout(on_cuda, [ANY]) is KVCacheLayout.LBNHC


def test_unknown_layout_setting_stops_the_engine(on_cuda: Any) -> None:
    """What would be ignored silently is refused, although vLLM asks the class before it makes a connector."""
    on_cuda.kv_transfer_config.kv_connector_extra_config["kv_layout"] = "blocks"
    with pytest.raises(ConfigError, match="kv_layout"):
        resolve_kv_cache_layout(on_cuda, [ANY])


def test_environment_of_vllm_goes_before(on_cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sets vLLM's own variable gets what it says."""
    monkeypatch.setenv("VLLM_KV_CACHE_LAYOUT", "LBHNC")
    assert resolve_kv_cache_layout(on_cuda, [ANY]) is KVCacheLayout.LBHNC


def test_backend_of_one_layout_keeps_it(on_cuda: Any) -> None:
    """Where a backend takes no block-major cache vLLM starts all the same."""
    assert resolve_kv_cache_layout(on_cuda, [["LBHNC"]]) is KVCacheLayout.LBHNC


@pytest.mark.parametrize(
    ("block_tokens", "loaded", "named", "asked"),
    [
        (16, None, None, True),  # no backend for CUDA has smaller blocks
        (64, None, None, False),  # ranks are processes, and the backend is not known here
        (64, None, AttentionBackendEnum.FLEX_ATTENTION, True),
        (256, None, AttentionBackendEnum.TURBOQUANT, False),  # at most 128: split in two
        (128, TurboQuantAttentionBackend, None, True),
        (256, TurboQuantAttentionBackend, None, False),
        (256, FlexAttentionBackend, None, True),  # any multiple of 16
        (24, FlexAttentionBackend, None, False),  # none takes it: vLLM says so
    ],
)
def test_user_s_block_size_is_asked_for_only_where_it_stays_whole(
    on_cuda: Any,
    caplog: pytest.LogCaptureFixture,
    block_tokens: int,
    loaded: type[Any] | None,
    named: AttentionBackendEnum | None,
    asked: bool,
) -> None:
    """vLLM refuses to start block-major when attention splits the manager's blocks; then its own layout stays."""
    config = on_cuda
    config.cache_config.user_specified_block_size = True
    config.cache_config.block_size = block_tokens
    config.attention_config.backend = named
    if loaded is not None:
        config.compilation_config.static_forward_context["layer.0"] = Layer(loaded)
    with caplog.at_level(logging.WARNING, logger="ghostcacher_connector"):
        required = GhostCacherConnector.get_required_kvcache_layout(config)
    assert required == ("BLHNC" if asked else None)
    assert ("--block-size" in caplog.text) is not asked


def test_hybrid_models_keep_their_layout(on_cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM makes their blocks as large as a Mamba state, which attention splits."""
    monkeypatch.setattr(type(on_cuda.model_config), "is_hybrid", property(lambda _: True))
    assert GhostCacherConnector.get_required_kvcache_layout(on_cuda) is None


def test_split_blocks_are_refused_by_vllm() -> None:
    """What the check above is for: vLLM's own code does not lay split blocks out block-major."""
    _, spec = MODELS["Llama-70B TP8, blocks of 128"]
    with pytest.raises(ValueError, match="cannot be split into 2 kernel blocks"):
        views_of(spec, 4, KVCacheLayout.BLHNC, kernel_block_tokens=64)


def views_of(
    spec: Any, layers: int, layout: KVCacheLayout, *, kernel_block_tokens: int | None = None
) -> dict[str, torch.Tensor]:
    """Lay a cache of BLOCKS blocks out by vLLM's own code."""
    layer_stride, block_stride, *_ = compute_layout_strides(spec, BLOCKS, layers, layout)
    size = spec.page_size_bytes * BLOCKS * layers
    names = [f"layer.{i}" for i in range(layers)]
    tensor = KVCacheTensor(size, names, layer_stride=layer_stride, block_stride=block_stride)
    raw = torch.zeros(size, dtype=torch.int8)
    return dict(zip(names, create_kv_cache_views(raw, spec, BLOCKS, layout, tensor, kernel_block_tokens), strict=True))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("layout", "block_major"), [("LBHNC", False), ("LBNHC", False), ("BLHNC", True), ("BLNHC", True)]
)
def test_rows_of_a_block(name: str, layout: str, block_major: bool) -> None:
    """Block-major a block is one row of all layers, and neighbours are one row together; else it is one row a layer."""
    layers, spec = MODELS[name]
    views = views_of(spec, layers, KVCacheLayout[layout])
    segments = segments_of(views, BLOCKS, spec.page_size_bytes)
    side = Side(segments, 0)
    one, _ = descriptors(side, side, np.array([3]), np.array([5]))
    assert set(one[:, 1]) == {layers * spec.page_size_bytes if block_major else spec.page_size_bytes}
    assert len(one) == (1 if block_major else layers)
    neighbours, _ = descriptors(side, side, np.array([1, 2, 3]), np.array([4, 5, 6]))
    assert len(neighbours) == len(one)
    assert int(neighbours[:, 1].sum()) == 3 * layers * spec.page_size_bytes


@pytest.mark.parametrize("layout", ["BLHNC", "BLNHC"])
def test_block_major_memory_is_one_region(layout: str) -> None:
    """One registration covers all layers of a block-major cache."""
    layers, spec = MODELS["Llama-8B, blocks of 16"]
    segments = segments_of(views_of(spec, layers, KVCacheLayout[layout]), BLOCKS, spec.page_size_bytes)
    memory = SlotMemory(Tier.DEVICE, BLOCKS, segments)
    assert [size for _, size in regions(memory)] == [BLOCKS * layers * spec.page_size_bytes]


def test_heads_outside_of_layers_are_refused_by_name() -> None:
    """Nothing asks for this layout; where someone sets it, it is refused, not read wrongly."""
    layers, spec = MODELS["Llama-8B, blocks of 16"]
    with pytest.raises(UnsupportedEngine, match="expected the bytes of a block to be dense"):
        segments_of(views_of(spec, layers, KVCacheLayout.BHLNC), BLOCKS, spec.page_size_bytes)


def test_layouts_have_descriptions_of_their_own() -> None:
    """Workers with different layouts must not share: their fingerprints differ in this text."""
    layers, spec = MODELS["Llama-8B, blocks of 16"]
    described = set()
    for layout in (KVCacheLayout.LBHNC, KVCacheLayout.LBNHC, KVCacheLayout.BLHNC, KVCacheLayout.BLNHC):
        views = views_of(spec, layers, layout)
        described.add(describe(views, segments_of(views, BLOCKS, spec.page_size_bytes), BLOCKS))
    assert len(described) == 4
