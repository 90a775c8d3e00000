"""How the engines of tests and benchmarks are started: options, command line, environment. Starts nothing.

What is true of every vLLM server is in ghostcacher_cli/up/launch.py. Learned by trying, and relied on here:
- Block sizes are multiples of 32 tokens (16 is refused: "No common block size"); the default is 128.
- The first request takes seconds longer than the next ones of its length: warm up before measuring.
- A local hit and a cold run of the same prompt differ by rounding (0.01 to 0.1 in a log-probability), since matrix
  shapes differ. Two runs that compute the same tokens on top of the same cache agree to the last bit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.harness.lora_adapter import RANK
from ghostcacher_cli.up import launch
from ghostcacher_cli.up.launch import GPU_MEMORY_FLAG, is_cpu_build
from ghostcacher_cli.up.machine import core_shares, free_port, visible_gpus

ADAPTER = "adapter"
"""What engines call the adapter that they are started with."""
LORA = ("--enable-lora", "--max-lora-rank", str(RANK), "--lora-modules")

PARALLEL = frozenset(("--tensor-parallel-size", "--pipeline-parallel-size"))
"""Flags of engines that have a process for each rank."""

READY_TIMEOUT_S = 600.0
"""Ready in 40 s on two idle cores, in 200 s on two very busy ones; a large model takes longer and has to say so."""


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to start one engine.

    model: folder or Hugging Face id. connector: None for a plain engine, else GhostCacher's settings (may be empty).
    kv_gib: size of the KV cache on CPU. num_blocks: its exact size in blocks, instead. block_size: tokens a block, None
    for the engine's default. cores: CPU cores such as "0,1" on the CPU build; None: what `start_many` decides, and
    where that is one core, any. python: the interpreter, of another environment with vLLM; None for ours.
    module_path: False leaves kv_connector_module_path out (the connector is then found as an installed plugin). eager:
    False lets the engine compile and capture CUDA graphs. adapter: folder of a LoRA adapter, named by all requests.
    nixl_role: of a NixlConnector beside ours, in a MultiConnector; None: ours is alone.
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
    python: str | None = None
    module_path: bool = True
    eager: bool = True
    adapter: str | None = None
    nixl_role: str | None = None
    extra_args: tuple[str, ...] = ()
    env: Mapping[str, str] = msgspec.field(default_factory=dict)
    log_dir: Path | None = None
    ready_timeout_s: float = READY_TIMEOUT_S


def placed(options: Sequence[Any]) -> list[Any]:
    """Return the options with a place for each engine that has none: CPU cores, or a GPU."""
    count = len(options)
    if is_cpu_build():
        return [
            option if option.cores else _on_cores(option, share)
            for option, share in zip(options, core_shares(count), strict=True)
        ]
    return [
        msgspec.structs.replace(
            option,
            env={**place.env, **option.env},
            extra_args=option.extra_args
            if GPU_MEMORY_FLAG in option.extra_args
            else (*place.arguments, *option.extra_args),
        )
        for option, place in zip(options, launch.gpu_places(count, visible_gpus()), strict=True)
    ]


def _on_cores(option: Any, share: str) -> Any:
    if isinstance(option, EngineOptions) and "," not in share:
        return msgspec.structs.replace(option, env={**launch.ANY_CORE.env, **option.env})
    return msgspec.structs.replace(option, cores=share)


def command_line(options: EngineOptions, port: int) -> list[str]:
    """Return the command that starts the server."""
    arguments = {
        "--served-model-name": options.served_name,
        "--dtype": options.dtype,
        "--max-model-len": str(options.max_model_len),
        "--block-size": options.block_size and str(options.block_size),
        "--num-gpu-blocks-override": options.num_blocks and str(options.num_blocks),
        "--kv-transfer-config": transfer_config(options, port),
    }
    pairs = [text for flag, value in arguments.items() if value for text in (flag, value)]
    eager = ["--enforce-eager"] if options.eager else []
    adapter = [*LORA, f"{ADAPTER}={options.adapter}"] if options.adapter else []
    flags = [*eager, "--enable-prompt-tokens-details", *adapter, *options.extra_args]
    python, *command = launch.server_command(options.model, port, [*pairs, *flags])
    return [options.python or python, *command]


def transfer_config(options: EngineOptions, port: int) -> str | None:
    """Return the JSON of ``--kv-transfer-config``, or None for a plain engine."""
    if options.connector is None:
        return None
    ours = launch.transfer_config(options.connector, port, role=options.role, module_path=options.module_path)
    if options.nixl_role is None:
        return ours
    children = [{"kv_connector": "NixlConnector", "kv_role": options.nixl_role}, json.loads(ours)]
    outer = {"kv_connector": "MultiConnector", "kv_role": "kv_both", "kv_load_failure_policy": "recompute"}
    return json.dumps({**outer, "kv_connector_extra_config": {"connectors": children}})


def environment(options: EngineOptions) -> dict[str, str]:
    """Return the server's environment: ours, without a network, with the development endpoints, on its cores."""
    side = {} if options.nixl_role is None else {"VLLM_NIXL_SIDE_CHANNEL_PORT": str(free_port())}
    added = {"VLLM_SERVER_DEV_MODE": "1", **side, **launch.server_environment(options.model, options.kv_gib)}
    if is_cpu_build() and options.cores:
        added |= launch.cpu_place(options.cores).env
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, **added, **options.env}


def memory_needed_gib(options: EngineOptions) -> float:
    """Estimate the memory of one engine in GiB; on a GPU only its host part."""
    kv_gib = options.kv_gib if is_cpu_build() and options.num_blocks is None else 0
    in_one_process = is_cpu_build() and PARALLEL.isdisjoint(options.extra_args)
    base_gib = launch.ONE_PROCESS_BASE_GIB if in_one_process else launch.ENGINE_BASE_GIB
    return launch.memory_needed_gib(options.model, kv_gib, base_gib)
