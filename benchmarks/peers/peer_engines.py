"""What an engine has to be told to use another project's cache, and the servers that the cache needs.

Each is given the bytes that the host tiers of all engines have together, and keeps its own defaults for how it uses
them:

    lmcache    one server for all engines, with all the bytes; data through shared memory, chunks of one block
    mooncake   each engine contributes its part to one store (embedded mode), over TCP; one master
    offload    each engine has its part for itself: the connector shares nothing
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peers.peer_servers import lmcache_server, mooncake_master
from ghostcacher_cli.up.machine import free_port
from ghostcacher_connector.core.errors import ConfigError

IMPORT_TIMEOUT_S = 120.0
MOONCAKE_PART_BYTES_MIN = 16 << 20
"""The store takes no less, so that it has more than the others with the tiny model."""
MOONCAKE_BUFFER_BYTES = 64 << 20
"""Of each engine, beside its part of the store; blocks are read straight into the engine's cache."""


class PeerEngine(NamedTuple):
    """How one engine of a peer's way differs from a plain one.

    transfer: what ``--kv-transfer-config`` gets. python: the interpreter, None for ours. env: added to the environment.
    """

    transfer: Mapping[str, Any]
    python: str | None = None
    env: Mapping[str, str] = {}

    @property
    def arguments(self) -> tuple[str, str]:
        """The engine's further arguments."""
        return "--kv-transfer-config", json.dumps({"kv_role": "kv_both", **self.transfer})


class Setup(NamedTuple):
    """What a way is set up for.

    python: the peers' interpreter, where one was named. bytes_each: of each engine's part. block_tokens: of the
    engines' blocks. folder: for configurations and logs.
    """

    python: str | None
    engines: int
    bytes_each: int
    block_tokens: int
    folder: Path


MODULES = {"lmcache": "lmcache.integration.vllm.lmcache_mp_connector", "mooncake": "mooncake.store"}
"""What a peer's Python must be able to import, by way."""


def require_importable(ways: list[str], python: str | None) -> None:
    """Raise ConfigError, with the option to give, unless the peers' Python has what these ways need."""
    for way in ways:
        if (module := MODULES.get(way)) is None:
            continue
        if python is None:
            raise ConfigError(
                f"--ways {way}: expected --peer-python PATH, the Python of an environment with {way} "
                "(benchmarks/peers/__init__.py says how to make one), found none"
            )
        if (reason := _import_error(python, module)) is not None:
            raise ConfigError(f"--peer-python {python}: expected one that can import {module}, found: {reason}")


def _import_error(python: str, module: str) -> str | None:
    """Return the last line of what an import says, None when it succeeds."""
    try:
        done = subprocess.run(
            [python, "-c", f"import {module}"], capture_output=True, text=True, timeout=IMPORT_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        return str(exc)
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]


@contextmanager
def peer_engines(way: str, setup: Setup) -> Iterator[list[PeerEngine]]:
    """Start what the way needs beside its engines and say how each of these is started; none for a way of ours."""
    with ExitStack() as stack:
        yield STARTS[way](setup, stack) if way in STARTS else []


def _offload(setup: Setup, stack: ExitStack) -> list[PeerEngine]:  # noqa: ARG001 - one signature for all
    extra = {
        "cpu_bytes_to_use": setup.bytes_each,
        "spec_name": "CpuCopySpec",
        "spec_module_path": "benchmarks.peers.offloading_on_cpu",
    }
    one = PeerEngine({"kv_connector": "OffloadingConnector", "kv_connector_extra_config": extra})
    return [one] * setup.engines


def _lmcache(setup: Setup, stack: ExitStack) -> list[PeerEngine]:
    assert setup.python is not None
    port = stack.enter_context(
        lmcache_server(setup.python, setup.engines * setup.bytes_each, setup.block_tokens, setup.folder)
    )
    transfer = {
        "kv_connector": "LMCacheMPConnector",
        # vLLM's own connector of this name records CUDA events.
        "kv_connector_module_path": MODULES["lmcache"],
        "kv_connector_extra_config": {"lmcache.mp.host": "tcp://127.0.0.1", "lmcache.mp.port": port},
    }
    one = PeerEngine(transfer, setup.python, {"LMCACHE_TRACK_USAGE": "false"})
    return [one] * setup.engines


def _mooncake(setup: Setup, stack: ExitStack) -> list[PeerEngine]:
    assert setup.python is not None
    master = stack.enter_context(mooncake_master(setup.python, setup.folder))
    config = setup.folder / "mooncake.json"
    config.write_text(
        json.dumps(
            {
                "metadata_server": "P2PHANDSHAKE",
                "master_server_address": f"127.0.0.1:{master}",
                "protocol": "tcp",
                "global_segment_size": max(setup.bytes_each, MOONCAKE_PART_BYTES_MIN),
                "local_buffer_size": MOONCAKE_BUFFER_BYTES,
            }
        )
    )
    env = {"MOONCAKE_CONFIG_PATH": str(config), "MOONCAKE_REQUESTER_LOCAL_HOSTNAME": "127.0.0.1"}
    return [
        PeerEngine(
            {
                "kv_connector": "MooncakeStoreOnCpu",
                "kv_connector_module_path": "benchmarks.peers.mooncake_on_cpu",
                # Names a socket between scheduler and worker: engines of one machine need different ones.
                "kv_connector_extra_config": {"lookup_rpc_port": free_port()},
            },
            setup.python,
            env,
        )
        for _ in range(setup.engines)
    ]


STARTS: Mapping[str, Callable[[Setup, ExitStack], list[PeerEngine]]] = {
    "offload": _offload,
    "lmcache": _lmcache,
    "mooncake": _mooncake,
}
