"""Our router as it is meant to run: a Redis, simulated connectors of its workers, and a router that knows no URL."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.harness import GuardedProcess, RedisServer, ServerError, free_port
from benchmarks.harness.client import parse_metrics
from benchmarks.proxy.proxies import our_router
from benchmarks.proxy.running import GRACE_S, Cores, Server, ask, pinned, start_server, wait_for

JOIN_TIMEOUT_S = 20.0
POLL_S = 0.05


def start_ours(
    stack: ExitStack,
    workers: Sequence[int],
    report: Path,
    cores: Cores,
    folder: Path,
    *,
    indexed: bool,
    processes: int = 1,
    site: Path | None = None,
) -> Server:
    """Return our router, with all workers in its fleet. indexed: through Redis, else it is given their URLs.

    site: where another build of it is installed, with compiled modules.
    Several processes have as many cores, as far as there are any beside the one of everything else.
    """
    port = free_port()
    redis_url = start_connectors(stack, workers, report, cores, folder) if indexed else None
    peer = our_router(port, workers, redis_url, processes, site)
    assert peer.command is not None
    server = start_server(stack, peer.name, peer.command, port, cores.proxies(processes), folder)
    wait_workers(server, len(workers), processes)
    return server


def start_connectors(stack: ExitStack, workers: Sequence[int], report: Path, cores: Cores, folder: Path) -> str:
    """Start a Redis and the simulated connectors; return the Redis's address."""
    redis = stack.enter_context(RedisServer())  # on the core of this process: not the proxy's
    command = [sys.executable, "-m", "benchmarks.proxy.connectors", redis.url, str(report), *map(str, workers)]
    connectors = GuardedProcess(pinned(cores.others, command), log=folder / "connectors.log", grace_s=GRACE_S)
    stack.callback(connectors.stop)
    wait_for("benchmarks.proxy.connectors", connectors, lambda: "ready" in connectors.log_tail())
    return redis.url


def wait_workers(server: Server, count: int, processes: int = 1) -> None:
    """Return when so many processes of the router send requests to so many workers. Raises ServerError after 20 s."""
    deadline = time.monotonic() + JOIN_TIMEOUT_S
    ready = 0
    while time.monotonic() < deadline:
        _, answer = ask(server.port, "GET", "/metrics")
        page = parse_metrics(answer.decode())
        seen = page.by("gc_router_workers", "state").get("ready", 0.0)
        ready = int(seen // processes)
        if ready >= count:
            return
        time.sleep(POLL_S)
    shown = json.dumps(answer.decode(errors="replace"))[:500]
    raise ServerError(f"{server.name}: expected {count} workers that are ready, got {ready}: {shown}")
