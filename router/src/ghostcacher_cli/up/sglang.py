"""How an SGLang server with the linker is started: its command, its environment, its place. Starts nothing.

What was learned by trying (SGLang 0.5.23), and is relied on here:
- An idle scheduler polls on a whole core without ``--sleep-on-idle``.
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

LINKER_MODULE = "ghostcacher_connector.engines.sglang"
MEMORY_FLAG = "--mem-fraction-static"
LINKER_FLAG = "--unified-cache-external-linker-config"


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
