"""GPUs and models by name, and what a worker of both can do.

Figures are those of the makers, and prices those of one cloud; each preset says where they stand. What follows from
them is derived here, and each assumption has a name below: a preset says what hardware could do, a measurement of yours
says what it does. Which figures were checked stands in docs/operating/simulate.md.

    prefill, tokens/s   = FLOPS of all GPUs x PREFILL_EFFICIENCY / (2 x active parameters)
    a step, s           = STEP_FIXED_S + bytes of active weights / (bandwidth of all GPUs x DECODE_EFFICIENCY)
    an answer in it, s  = CONTEXT_TOKENS x KV bytes a token / (bandwidth of all GPUs x DECODE_EFFICIENCY)
    KV cache, bytes     = memory of all GPUs x MEMORY_SHARE - bytes of all weights - OVERHEAD_BYTES of each GPU
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_simulator.engine import Profile
from ghostcacher_simulator.machines.workers import HostTier, WorkerSpec
from ghostcacher_simulator.steps import Batching

_Preset = TypeVar("_Preset")

PREFILL_EFFICIENCY = 0.5
"""Of the FLOPS that a maker names, what computing long prompts reaches."""
DECODE_EFFICIENCY = 0.7
"""Of the memory's bandwidth, what a step reaches that reads weights and KV."""
STEP_FIXED_S = 0.004
"""Of each step: scheduling, launching, sampling."""
CONTEXT_TOKENS = 4_096
"""Whose KV a step reads for one answer, in the mean."""
MEMORY_SHARE = 0.92
"""Of a GPU's memory, what an engine takes: vLLM's default."""
OVERHEAD_BYTES = 3e9
"""Of each GPU: activations, graphs, the driver."""
BYTES_PER_PARAMETER = 2.0
"""Of weights in 16 bits."""
PULL_FIXED_S = 0.004
HOST_BYTES_PER_S = 20e9
"""Loading from host memory over PCIe, as one reader gets it."""


PRICED = "AWS on demand, us-east-1, January 2026"
"""Seen in a public copy of the list (instances.vantage.sh), not at AWS. Others, and contracts, often ask for half."""


class Gpu(NamedTuple):
    """One GPU. GB are 10^9 bytes."""

    memory_gb: float
    """Its memory."""
    bandwidth_gb_per_s: float
    """Of its memory."""
    tflops: float
    """In BF16, without sparsity."""
    link_gb_per_s: float
    """To other machines, of one GPU's share of the network; for a GPU without a usual network, 25 Gbit/s Ethernet."""
    usd_per_hour: float
    """Of one, on demand, with its part of the machine around it: PRICED."""
    priced: str
    """What was priced."""
    source: str
    """Where the figures stand."""


class Model(NamedTuple):
    """One model, in 16 bits."""

    parameters: float
    """All of them."""
    active_parameters: float
    """Those that compute one token."""
    kv_bytes_per_token: int
    """KV of one token in all layers, in 16 bits."""
    source: str
    """Where the figures stand."""


GPUS: Mapping[str, Gpu] = {
    "h100": Gpu(
        80,
        3_350,
        989,
        50,
        6.88,
        "p5.48xlarge / 8",
        "NVIDIA H100 data sheet, SXM; DGX H100: one 400 Gbit/s adapter a GPU",
    ),
    "h200": Gpu(
        141,
        4_800,
        989,
        50,
        7.912,
        "p5en.48xlarge / 8",
        "NVIDIA H200 data sheet, SXM; DGX H200: one 400 Gbit/s adapter a GPU",
    ),
    "b200": Gpu(
        180,
        8_000,
        2_250,
        50,
        14.2416,
        "p6-b200.48xlarge / 8",
        "NVIDIA DGX B200 data sheet, an eighth of it; one 400 Gbit/s adapter a GPU",
    ),
    "a100-80gb": Gpu(
        80,
        2_039,
        312,
        25,
        3.4309,
        "p4de.24xlarge / 8",
        "NVIDIA A100 data sheet, SXM; DGX A100: one 200 Gbit/s adapter a GPU",
    ),
    "l40s": Gpu(48, 864, 362, 3.125, 1.861, "g6e.xlarge", "NVIDIA L40S data sheet"),
    "l4": Gpu(24, 300, 121, 3.125, 0.8048, "g6.xlarge", "NVIDIA L4 data sheet (242 with sparsity)"),
}

MODELS: Mapping[str, Model] = {
    "llama-3.1-8b": Model(8.03e9, 8.03e9, 131_072, "config.json: 32 layers, 8 KV heads of 128"),
    "llama-3.1-70b": Model(70.6e9, 70.6e9, 327_680, "config.json: 80 layers, 8 KV heads of 128"),
    "qwen3-8b": Model(8.2e9, 8.2e9, 147_456, "model card; config.json: 36 layers, 8 KV heads of 128"),
    "qwen3-32b": Model(32.8e9, 32.8e9, 262_144, "model card; config.json: 64 layers, 8 KV heads of 128"),
    "qwen3-30b-a3b": Model(30.5e9, 3.3e9, 98_304, "model card; config.json: 48 layers, 4 KV heads of 128"),
    "mistral-7b": Model(7.25e9, 7.25e9, 131_072, "v0.3; config.json: 32 layers, 8 KV heads of 128"),
}


def gpu_named(name: str) -> Gpu:
    """Return a preset. Raises ConfigError."""
    return _named("gpu", GPUS, name)


def model_named(name: str) -> Model:
    """Return a preset. Raises ConfigError."""
    return _named("model", MODELS, name)


def worker_of(
    gpu: Gpu,
    model: Model,
    *,
    gpus: int = 1,
    block_tokens: int,
    host_bytes: float = 0.0,
    host_policy: str = "hit-density",
) -> WorkerSpec:
    """Return a worker of so many GPUs. Raises ConfigError where the model does not fit into them.

    host_bytes: of its host tier; 0: it has none.
    """
    bandwidth = gpu.bandwidth_gb_per_s * 1e9 * gpus * DECODE_EFFICIENCY
    room = gpus * (gpu.memory_gb * 1e9 * MEMORY_SHARE - OVERHEAD_BYTES) - model.parameters * BYTES_PER_PARAMETER
    block_bytes = model.kv_bytes_per_token * block_tokens
    if room < block_bytes:
        needed = model.parameters * BYTES_PER_PARAMETER / 1e9
        have = gpus * gpu.memory_gb
        raise ConfigError(
            f"gpus: expected room for {needed:.0f} GB of weights and a KV cache, got {have:.0f} GB of memory"
        )
    profile = Profile(
        kv_blocks=int(room // block_bytes),
        block_tokens=block_tokens,
        prefill_tokens_per_s=gpu.tflops * 1e12 * gpus * PREFILL_EFFICIENCY / (2 * model.active_parameters),
        publish_s=0.006,
        block_bytes=block_bytes,
        pull_bytes_per_s=gpu.link_gb_per_s * 1e9 * gpus,
        pull_fixed_s=PULL_FIXED_S,
    )
    batching = Batching(
        step_s=STEP_FIXED_S + model.active_parameters * BYTES_PER_PARAMETER / bandwidth,
        decode_s=CONTEXT_TOKENS * model.kv_bytes_per_token / bandwidth,
    )
    host = (
        HostTier(int(host_bytes // block_bytes), HOST_BYTES_PER_S, host_policy) if host_bytes >= block_bytes else None
    )
    return WorkerSpec(profile, batching, host, gpu.usd_per_hour * gpus)


def _named(kind: str, presets: Mapping[str, _Preset], name: str) -> _Preset:
    if name not in presets:
        raise ConfigError(f"{kind}: expected one of {', '.join(presets)}, got {name!r}")
    return presets[name]
