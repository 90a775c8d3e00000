"""What a request costs in the router, beside nginx and the routers that others build, in the same run.

    python -m benchmarks.router_proxy [--short] [--requests N] [--install-peers] [--json FILE]

The proxy has one core to itself; mock engines and load, both in C, have another. Every answer is compared byte for
byte. For bodies of 2, 32 and 256 KiB, plain and streamed:
- CPU us: the proxy's user and system time for one request, at full load. What counts most: it is the router's share
  of a machine, and hardly depends on who else uses this one. "x nginx": over nginx doing nothing but forward.
- req/s: what 32 connections get through.
- +p50, +p99: latency at a low, fixed rate, less that without a proxy in the same run. In brackets: that latency.
Then 200 streams at once, and the memory over many requests. Our router finds its workers, what they hold and what they
have to do in a Redis, where simulated connectors tell it; "no index" is the same router with static URLs alone.

With --compiled FOLDER our router runs once more, with the compiled modules of a wheel that is installed there
(`make compiled-wheel && pip install --no-deps --target FOLDER dist/*.whl`).

With --processes N our router has so many, each on a core of its own, as far as there are cores; where there are fewer,
its CPU per request is what can be compared with that of one.

Peers are compared when they are there: nginx on the PATH, sglang-router and vllm-router in a virtual environment
(--peers-venv, $GHOSTCACHER_PEERS_VENV, or made by --install-peers). --only NAME,... limits the run to proxies whose
names begin so, --sizes and --kinds to some bodies, --cpu-only to these tables: `--short --only "ghostcacher" --sizes 2
--kinds plain --cpu-only` is what to run while one changes the router.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.harness import free_port
from benchmarks.harness.program import run_program
from benchmarks.harness.report import ProgressLine
from benchmarks.proxy.bodies import write_bodies
from benchmarks.proxy.fleet import start_ours
from benchmarks.proxy.measure import (
    DIRECT,
    FULL,
    SCENARIOS,
    SHORT,
    STREAMS,
    Inputs,
    Memory,
    Plan,
    Result,
    Scenario,
    StreamsResult,
    chosen_scenarios,
    measure,
    measure_memory,
    measure_streams,
    memory_table,
    scenario_table,
    streams_table,
)
from benchmarks.proxy.proxies import (
    COMPILED,
    OURS,
    PEER_PACKAGES,
    SGLANG,
    VLLM,
    VLLM_CACHE,
    Peer,
    nginx_peer,
    peers_venv,
    rust_peer,
)
from benchmarks.proxy.running import Cores, Mocks, Server, start_server, two_cores

CONNECTIONS = 32
INSTALL_TIMEOUT_S = 900


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.router_proxy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--short", action="store_true", help="a minute, less exact, without the slow peers")
    parser.add_argument("--workers", type=int, default=8, help="mock engines (default: 8)")
    parser.add_argument("--requests", type=int, help="of the memory check (1000000 takes some minutes)")
    parser.add_argument("--processes", type=int, default=1, help="of our router (default: %(default)s)")
    parser.add_argument("--compiled", type=Path, metavar="FOLDER", help="where `pip install --target` put that wheel")
    parser.add_argument("--only", default="", help="names of proxies, or how they begin, with commas between them")
    parser.add_argument("--sizes", type=numbers, default=[], metavar="KIB,...", help="of bodies (default: all)")
    parser.add_argument("--kinds", type=names, default=[], help="plain, streamed, or both (default), with a comma")
    parser.add_argument("--cpu-only", action="store_true", help="leave out many streams, and memory")
    parser.add_argument("--peers-venv", type=Path, default=peers_venv(), help="where sglang-router and vllm-router are")
    parser.add_argument("--install-peers", action="store_true", help="make that virtual environment first")
    parser.add_argument("--json", type=Path, help="also write all numbers here")
    chosen = parser.parse_args(argv)
    if not chosen_scenarios(chosen.sizes, chosen.kinds):
        known = ", ".join(scenario.name for scenario in SCENARIOS)
        parser.error(f"--sizes, --kinds: expected some of: {known}; got {chosen.sizes} and {chosen.kinds}")
    return chosen


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def names(text: str) -> list[str]:
    return text.split(",")


def install_peers(venv: Path) -> None:
    """Make a virtual environment with the peers. Raises OSError when it fails."""
    for command in (
        [sys.executable, "-m", "venv", str(venv)],
        [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", *PEER_PACKAGES],
    ):
        if subprocess.run(command, timeout=INSTALL_TIMEOUT_S, check=False).returncode != 0:
            raise OSError(f"{' '.join(command)} failed")


def wanted(name: str, only: str) -> bool:
    return not only or any(name.startswith(part) for part in only.split(",") if part)


def start_peers(stack: ExitStack, chosen: argparse.Namespace, mocks: Mocks, cores: Cores, folder: Path) -> list[Server]:
    """Return the peers that are installed and wanted, running; say which are not installed."""
    peers: list[tuple[int, Peer]] = []
    port = free_port()
    peers.append((port, nginx_peer(folder, port, mocks.ports)))
    for name in () if chosen.short else (SGLANG, VLLM, VLLM_CACHE):
        port = free_port()
        peers.append((port, rust_peer(name, chosen.peers_venv, port, free_port(), mocks.ports)))
    servers = []
    for port, peer in peers:
        if not wanted(peer.name, chosen.only):
            continue
        if peer.command is None:
            print(f"{peer.name}: not installed ({peer.hint})")
        else:
            servers.append(start_server(stack, peer.name, peer.command, port, cores.proxy, folder))
    return servers


def start_routers(
    stack: ExitStack, chosen: argparse.Namespace, mocks: Mocks, cores: Cores, folder: Path
) -> list[Server]:
    """Return our router in each of its forms that are wanted, running."""
    report, count = folder / "report", chosen.processes
    servers = []
    for site in (None, chosen.compiled) if chosen.compiled else (None,):
        for indexed in (True,) if chosen.short else (True, False):
            name = OURS if site is None else COMPILED
            if wanted(name if indexed else f"{name}, no index", chosen.only):
                server = start_ours(
                    stack, mocks.ports, report, cores, folder, indexed=indexed, processes=count, site=site
                )
                servers.append(server)
    return servers


def write_inputs(mocks: Mocks, folder: Path) -> None:
    """Write the bodies of all scenarios and the answers that they must get."""
    mocks.set(chunks=16, gap_us=0)
    for stream in (False, True):
        (folder / f"expected-{stream:d}").write_bytes(mocks.answer(stream=stream))
    for scenario in SCENARIOS:
        target = folder / f"bodies-{scenario.body_bytes}-{scenario.stream:d}"
        write_bodies(target, scenario.body_bytes, stream=scenario.stream)


def run_scenarios(
    scenarios: Sequence[Scenario], servers: Sequence[Server], plan: Plan, inputs: Inputs, progress: ProgressLine
) -> list[Result]:
    """Print a table for each scenario, and return all results."""
    found: list[Result] = []
    for scenario in scenarios:
        results = []
        for server in servers:
            progress(f"{scenario.name}: {server.name}")
            results.append(measure(server, scenario, plan, inputs, CONNECTIONS))
        progress.done(f"{scenario.name}, {CONNECTIONS} connections; latency at {scenario.rate:.0f} requests/s")
        print(scenario_table(results) + "\n", flush=True)
        found += results
    return found


def run_streams(
    servers: Sequence[Server], mocks: Mocks, seconds: float, inputs: Inputs, progress: ProgressLine
) -> dict[str, list[StreamsResult]]:
    """Print a table for each kind of streams, and return all results."""
    found: dict[str, list[StreamsResult]] = {}
    for streams in STREAMS:
        mocks.set(chunks=streams.per_stream, gap_us=0)
        expected = mocks.answer(stream=True)
        (inputs.folder / "expected-1").write_bytes(expected)
        mocks.set(chunks=streams.per_stream, gap_us=streams.gap_us)
        results = []
        for server in servers:
            progress(f"{streams.name}: {server.name}")
            results.append(measure_streams(server, streams, seconds, inputs, len(expected)))
        progress.done(streams.name)
        print(streams_table(streams, results) + "\n", flush=True)
        found[streams.name] = results
    return found


def run_memory(servers: Sequence[Server], requests: int, inputs: Inputs, progress: ProgressLine) -> list[Memory]:
    """Print a table of the memory of our router over many requests, and return it."""
    results = []
    for server in servers:
        if server.name.startswith(OURS):
            progress(f"memory: {server.name}")
            results.append(measure_memory(server, SCENARIOS[0], requests, inputs, CONNECTIONS))
    if results:
        progress.done(f"memory over {requests:,} requests")
        print(memory_table(results), flush=True)
    return results


def run(chosen: argparse.Namespace, progress: ProgressLine) -> int:
    """Measure and print; return 0, or 1 when an answer was wrong."""
    cores, plan = two_cores(), SHORT if chosen.short else FULL
    os.sched_setaffinity(0, {cores.others})  # what measures must not disturb what is measured
    if chosen.install_peers:
        install_peers(chosen.peers_venv)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gc-proxy-")))
        report = folder / "report"
        os.mkfifo(report)
        mocks = Mocks(stack, folder, cores.others, chosen.workers, report)
        inputs = Inputs(folder, cores.others)
        write_inputs(mocks, folder)
        servers = [Server(DIRECT, mocks.ports[0], None)]
        servers += start_peers(stack, chosen, mocks, cores, folder)
        servers += start_routers(stack, chosen, mocks, cores, folder)
        scenarios = chosen_scenarios(chosen.sizes, chosen.kinds)
        results = run_scenarios(scenarios, servers, plan, inputs, progress)
        streams: dict[str, list[StreamsResult]] = {}
        memory: list[Memory] = []
        if not chosen.cpu_only:
            streams = run_streams(servers, mocks, plan.streams_s, inputs, progress)
            write_inputs(mocks, folder)
            memory = run_memory(servers, chosen.requests or plan.requests, inputs, progress)
    if chosen.json:
        chosen.json.write_text(json.dumps(as_json(results, streams, memory), indent=1))
    wrong = sum(r.full.errors + r.paced.errors for r in results) + sum(m.errors for m in memory)
    return 1 if wrong + sum(each.errors for found in streams.values() for each in found) else 0


def as_json(
    results: Sequence[Result], streams: dict[str, list[StreamsResult]], memory: Sequence[Memory]
) -> dict[str, Any]:
    """Return all numbers as plain values."""
    return {
        "scenarios": [
            {
                "server": result.server,
                "scenario": result.scenario.name,
                "cpu_us": result.cpu_us,
                "requests_per_s": result.full.answers / result.full.seconds,
                "p50_us": result.paced.p50_us,
                "p99_us": result.paced.p99_us,
                "rss_bytes": result.rss_bytes,
            }
            for result in results
        ],
        "streams": {name: [each._asdict() for each in found] for name, found in streams.items()},
        "memory": [each._asdict() for each in memory],
    }


def main(argv: Sequence[str] | None = None) -> int:
    chosen = arguments(argv)
    return run_program(lambda: run(chosen, ProgressLine()))


if __name__ == "__main__":
    sys.exit(main())
