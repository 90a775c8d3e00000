"""How an SGLang server with the linker is started: its command, its environment, its place. Starts nothing.

What was learned by trying (SGLang 0.5.23), and is relied on here:
- An idle scheduler polls on a whole core without ``--sleep-on-idle``.
- On a CPU SGLang takes most of the machine's memory for its pool, however many engines share it, unless it is told how
  many tokens to hold.
- The connector's settings go into the linker's configuration; those that are secret come from the environment.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ghostcacher_cli.up.launch import Place, gpu_places
from ghostcacher_cli.up.machine import core_shares
from ghostcacher_connector.core.errors import ConfigError

LINKER_MODULE = "ghostcacher_connector.engines.sglang"
MEMORY_FLAG = "--mem-fraction-static"
LINKER_FLAG = "--unified-cache-external-linker-config"
POOL_FLAG = "--max-total-tokens"
CPU_SWITCH = "SGLANG_USE_CPU_ENGINE"
ELEMENT_BYTES = 4
"""Of a key or value, at most: float32."""


def server_command(model: str, port: int, arguments: Sequence[str], *, python: str = sys.executable) -> list[str]:
    """Return the command that serves a model on loopback. python: the interpreter that has SGLang."""
    server = [python, "-m", "sglang.launch_server", "--sleep-on-idle"]
    return [*server, "--model-path", model, "--host", "127.0.0.1", "--port", str(port), *arguments]


def linker_arguments(settings: Mapping[str, Any], port: int) -> list[str]:
    """Return the flags of an engine with the linker, reached at a port of loopback. settings: the connector's."""
    config = {
        "linker": "GhostCacherLinker",
        "linker_module_path": LINKER_MODULE,
        "linker_extra_config": {"http_url": f"http://127.0.0.1:{port}", **settings},
    }
    linker = ["--enable-unified-cache-external-linker", "--unified-cache-external-linker-backend", "dynamic"]
    return [*linker, LINKER_FLAG, json.dumps(config)]


def require_cpu_build(environ: Mapping[str, str]) -> None:
    """Raise ConfigError, saying what is needed, unless SGLang is set up to compute without a GPU."""
    if environ.get(CPU_SWITCH) != "1":
        raise ConfigError(
            f"--engine: no GPU was found, and SGLang without one is for tests: set {CPU_SWITCH}=1, and prepare it as "
            "tests/support/sglang_cpu/README.md says"
        )


def pool_tokens(model: str, kv_gib: int) -> int | None:
    """Return how many tokens a KV cache of so many GiB holds; None for a model whose config.json is not at hand."""
    try:
        config = json.loads(Path(model, "config.json").read_text())
        heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
        head_size = config.get("head_dim") or config["hidden_size"] // heads
        elements = 2 * layers * config.get("num_key_value_heads", heads) * head_size
        return int((kv_gib << 30) // (elements * ELEMENT_BYTES))
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None


def server_environment(model: str) -> dict[str, str]:
    """Return what a server's environment needs beside ours and its place's."""
    return {"HF_HUB_OFFLINE": "1"} if Path(model).exists() else {}


def places(count: int, gpus: Sequence[str], *, ranks: int) -> list[Place]:
    """Return places for `count` engines of `ranks` each: GPUs, or cores of their own where there are no GPUs."""
    if gpus:
        return gpu_places(count, gpus, gpus_each=ranks, memory_flag=MEMORY_FLAG)
    shares = core_shares(count * ranks)
    bound = ["|".join(shares[index * ranks : (index + 1) * ranks]) for index in range(count)]
    return [Place(f"cores {cores}", {"SGLANG_CPU_OMP_THREADS_BIND": cores}) for cores in bound]
