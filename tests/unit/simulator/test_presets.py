"""Presets: figures that follow from what their sources say, and workers that follow from them."""

from __future__ import annotations

import re

import pytest

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_simulator.machines.presets import GPUS, MODELS, gpu_named, model_named, worker_of


@pytest.mark.parametrize("name", MODELS)
def test_kv_bytes_follow_from_the_layers_of_the_source(name: str) -> None:
    """Two tensors a layer, of so many heads of so many numbers of two bytes."""
    model = model_named(name)
    found = re.search(r"(\d+) layers, (\d+) KV heads of (\d+)", model.source)
    assert found is not None
    layers, heads, size = map(int, found.groups())
    assert model.kv_bytes_per_token == 2 * layers * heads * size * 2
    assert model.active_parameters <= model.parameters


def test_worker_follows_from_the_figures() -> None:
    """An H100 with a model of 8 B: 31 thousand tokens/s at half its FLOPS, steps of 11 ms, room for 416 k tokens."""
    worker = worker_of(gpu_named("h100"), model_named("llama-3.1-8b"), block_tokens=16)
    profile, batching = worker.profile, worker.batching
    assert profile.prefill_tokens_per_s == pytest.approx(989e12 / 2 / (2 * 8.03e9))
    assert batching.step_s == pytest.approx(0.004 + 16.06e9 / (3.35e12 * 0.7))
    assert batching.decode_s == pytest.approx(4_096 * 131_072 / (3.35e12 * 0.7))
    assert profile.kv_blocks * 16 == pytest.approx((80e9 * 0.92 - 3e9 - 16.06e9) / 131_072, rel=1e-3)
    assert (profile.block_bytes, profile.pull_bytes_per_s, worker.host) == (16 * 131_072, 50e9, None)


@pytest.mark.parametrize("name", GPUS)
def test_prices_follow_from_what_was_priced(name: str) -> None:
    """An eighth of a machine of eight, or a machine of one: the list's figures are written down here once more."""
    listed = {
        "p5.48xlarge": 55.04, "p5en.48xlarge": 63.296, "p6-b200.48xlarge": 113.9328, "p4de.24xlarge": 27.44705,
        "g6e.xlarge": 1.861, "g6.xlarge": 0.8048,
    }  # fmt: skip
    gpu = gpu_named(name)
    machine, _, parts = gpu.priced.partition(" / ")
    assert gpu.usd_per_hour == pytest.approx(listed[machine] / int(parts or 1), rel=1e-4)
    worker = worker_of(gpu, model_named("llama-3.1-8b"), gpus=2, block_tokens=16)
    assert worker.usd_per_hour == 2 * gpu.usd_per_hour


def test_several_gpus_compute_and_hold_more() -> None:
    one, two = (worker_of(gpu_named("h200"), model_named("qwen3-32b"), gpus=n, block_tokens=64) for n in (1, 2))
    assert two.profile.prefill_tokens_per_s == 2 * one.profile.prefill_tokens_per_s
    assert two.profile.kv_blocks > 2 * one.profile.kv_blocks


def test_host_tier_has_whole_blocks() -> None:
    model = model_named("qwen3-8b")
    block_bytes = model.kv_bytes_per_token * 64
    worker = worker_of(gpu_named("h100"), model, block_tokens=64, host_bytes=10.5 * block_bytes, host_policy="lru")
    assert worker.host is not None
    assert (worker.host.blocks, worker.host.policy) == (10, "lru")


def test_model_that_does_not_fit_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="gpus: expected room for 141 GB of weights and a KV cache, got 80 GB of memory"
    ):
        worker_of(gpu_named("h100"), model_named("llama-3.1-70b"), block_tokens=64)


def test_unknown_names_are_refused_with_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match=f"gpu: expected one of {', '.join(GPUS)}, got 'h1'"):
        gpu_named("h1")
    with pytest.raises(ConfigError, match=r"model: expected one of .*, got 'gpt'"):
        model_named("gpt")
