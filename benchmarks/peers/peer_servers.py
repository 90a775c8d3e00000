"""The servers of other projects' caches: each a context that gives the port on loopback where engines reach it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ghostcacher_cli.up.diagnosis import answers
from ghostcacher_cli.up.machine import free_port
from ghostcacher_connector.core.process.guarded import GuardedProcess

START_TIMEOUT_S = 120.0
POLL_S = 0.2
GIB = 1 << 30


class PeerServerError(OSError):
    """A peer's server ended before it answered, or took too long; the message has the end of its log."""


@contextmanager
def lmcache_server(python: str, capacity_bytes: int, chunk_tokens: int, folder: Path) -> Iterator[int]:
    """Run LMCache's multi-process server, whose memory the engines share.

    capacity_bytes: of its first level, the only one. It evicts from 80 % of it on, which is its default.
    """
    port, http_port = free_port(), free_port()
    arguments = {
        "--host": "127.0.0.1",
        "--port": str(port),
        "--http-port": str(http_port),
        "--chunk-size": str(chunk_tokens),
        "--l1-size-gb": str(capacity_bytes / GIB),
        "--eviction-policy": "LRU",
        # On CPUs the engine copies, into memory that it shares with the server.
        "--supported-transfer-mode": "engine_driven",
        "--shm-name": f"gc_lmcache_{os.getpid()}_{port}",
    }
    command = [python, "-m", "lmcache.cli.main", "server", *(text for pair in arguments.items() for text in pair)]
    command += ["--no-l1-use-lazy", "--disable-observability"]
    with _running("LMCache's server", command, folder, lambda: answers(f"http://127.0.0.1:{http_port}/healthcheck")):
        yield port


@contextmanager
def mooncake_master(python: str, folder: Path) -> Iterator[int]:
    """Run Mooncake's master, which knows what lies in which engine's part of the store."""
    port = free_port()
    command = [python, "-m", "mooncake.cli", "--rpc_address=127.0.0.1", f"--rpc_port={port}"]
    command += ["--metrics_host=127.0.0.1", f"--metrics_port={free_port()}"]
    with _running("Mooncake's master", command, folder, lambda: _listens(port)):
        yield port


@contextmanager
def _running(name: str, command: Sequence[str], folder: Path, ready: Callable[[], bool]) -> Iterator[None]:
    env = {**os.environ, "LMCACHE_TRACK_USAGE": "false"}
    process = GuardedProcess(command, log=folder / "peer-server.log", env=env)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise PeerServerError(f"{name} does not answer:\n{process.log_tail(20)}")
            time.sleep(POLL_S)
        yield
    finally:
        process.stop()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0
