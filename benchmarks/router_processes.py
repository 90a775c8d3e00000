"""What several processes of one router cost together, and what one costs that serves nothing.

    python -m benchmarks.router_processes [--short] [--processes 1,2,4] [--sizes 2,32,256] [--seconds S]

Mock engines, load and Redis have one core, all processes of the router another, as in benchmarks.router_proxy: what is
compared is CPU time for one request, not requests per second.
- one connection, so that one process serves all requests: its CPU us, that of each process beside it (without what it
  takes at rest, for probes and heartbeats), and that of the feed, which reads Redis for all of them;
- 32 connections, which the kernel spreads: the CPU us of all processes that serve, without and with the feed.
"x one": how many times the requests of one process so many could serve, each on a core of its own, by that: by what one
serves while the others stand by, each of which it costs something; and by what all serve, where each has but a part of
the core, and so does fewer requests for what it does every 10 ms.
Beside that, what a ghost lock costs, by where processes agree on it (no mock engines, no requests).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness.program import run_program
from benchmarks.harness.report import ProgressLine, table
from benchmarks.proxy.fleet import start_ours
from benchmarks.proxy.lock_costs import lock_costs
from benchmarks.proxy.measure import KIB, SCENARIOS, Inputs, Scenario
from benchmarks.proxy.running import Answered, Mocks, Server, run_load, two_cores
from benchmarks.router_proxy import CONNECTIONS, write_inputs

WORKERS = 8
WARM_S = 1.5
FEED, CHILD = "feed_main", "child_main"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Spent(NamedTuple):
    """CPU time in s of a router's processes during one load. serving: by process id. feed: 0.0 where there is none."""

    requests: int
    seconds: float
    serving: dict[int, float]
    feed: float

    def per_request(self, seconds: float) -> float:
        """Return us for one request."""
        return 1e6 * seconds / max(1, self.requests)


class Row(NamedTuple):
    """One number of processes with one size of bodies: CPU us for a request."""

    processes: int
    body_bytes: int
    alone: float
    beside: float
    feed: float
    spread: float
    spread_with_feed: float
    rest_ms: float
    """CPU of one process in a second without requests."""


def cpu_by_process(server: Server) -> dict[int, tuple[str, float]]:
    """Return the program and the CPU seconds of each process of a router that serves, or feeds those that do."""
    assert server.process is not None
    found = {}
    for pid in server.process.processes():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_text()
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        program = next((name for name in (FEED, CHILD) if name in words), "")
        found[pid] = program, (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    return found


def spent(
    before: Mapping[int, tuple[str, float]], after: Mapping[int, tuple[str, float]], requests: int, seconds: float
) -> Spent:
    """Return what was spent between two looks. A router in one process is the one of its processes that works most."""
    gone = {pid: (program, cpu_s - before.get(pid, ("", 0.0))[1]) for pid, (program, cpu_s) in after.items()}
    serving = {pid: cpu_s for pid, (program, cpu_s) in gone.items() if program == CHILD}
    if not serving:
        busiest = max(gone, key=lambda pid: gone[pid][1])
        serving = {busiest: gone[busiest][1]}
    return Spent(requests, seconds, serving, sum(cpu_s for program, cpu_s in gone.values() if program == FEED))


def measure(server: Server, scenario: Scenario, inputs: Inputs, connections: int, seconds: float) -> Spent:
    """Return what a router spends on a load, after a warm-up. Raises OSError when an answer is wrong."""

    def run(seconds: float) -> Answered:
        load = inputs.load(scenario, connections=connections, seconds=seconds)
        answered = run_load(load, server.port, inputs.core, inputs.folder)
        if answered.errors:
            raise OSError(f"{answered.errors} wrong answers")
        return answered

    run(min(WARM_S, seconds))
    before = cpu_by_process(server)
    answered = run(seconds)
    return spent(before, cpu_by_process(server), answered.answers, answered.seconds)


def at_rest(server: Server, seconds: float) -> float:
    """Return the CPU time of one process that serves, in s a second, while nothing is asked."""
    before = cpu_by_process(server)
    time.sleep(seconds)
    serving = spent(before, cpu_by_process(server), 0, seconds).serving.values()
    return sum(serving) / len(serving) / seconds


def row_of(processes: int, scenario: Scenario, one: Spent, spread: Spent, rest: float) -> Row:
    """Return the figures. one: over one connection. rest: as `at_rest` says."""
    alone = max(one.serving.values())
    idle = sorted(one.serving.values())[:-1]
    beside = max(0.0, sum(idle) / len(idle) - rest * one.seconds) if idle else 0.0
    together = sum(spread.serving.values())
    return Row(
        processes,
        scenario.body_bytes,
        alone=one.per_request(alone),
        beside=one.per_request(beside),
        feed=one.per_request(one.feed),
        spread=spread.per_request(together),
        spread_with_feed=spread.per_request(together + spread.feed),
        rest_ms=1e3 * rest,
    )


def rows_table(rows: Sequence[Row]) -> str:
    """Return the table of one size of bodies."""
    first = rows[0]
    headers = [
        f"{first.body_bytes // KIB} KiB, CPU us a request",
        "one serves",
        "each beside",
        "feed",
        "all serve",
        "with the feed",
        "at rest, ms/s",
        "x one, one serves",
        "x one, all serve",
    ]
    shown = []
    for row in rows:
        times = row.processes / first.processes
        by_one = times * first.alone / (row.alone + (row.processes - 1) * row.beside)
        gains = [f"{by_one:.2f}", f"{times * first.spread / row.spread:.2f}"]
        shown.append([f"{row.processes} processes", *(f"{value:,.0f}" for value in row[2:]), *gains])
    return table(headers, shown)


def run(chosen: argparse.Namespace, progress: ProgressLine) -> int:
    cores = two_cores()
    os.sched_setaffinity(0, {cores.others})  # what measures must not disturb what is measured
    scenarios = [each for each in SCENARIOS if not each.stream and each.body_bytes // KIB in chosen.sizes]
    rows: list[Row] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gc-proxy-")))
        report = folder / "report"
        os.mkfifo(report)
        mocks = Mocks(stack, folder, cores.others, WORKERS, report)
        inputs = Inputs(folder, cores.others)
        write_inputs(mocks, folder)
        for count in chosen.processes:
            with ExitStack() as inner:
                one_core = cores._replace(more=())
                server = start_ours(inner, mocks.ports, report, one_core, folder, indexed=True, processes=count)
                progress(f"{count} processes at rest")
                rest = at_rest(server, chosen.seconds)
                for scenario in scenarios:
                    progress(f"{scenario.name}: {count} processes")
                    one, spread = (
                        measure(server, scenario, inputs, connections, chosen.seconds)
                        for connections in (1, CONNECTIONS)
                    )
                    rows.append(row_of(count, scenario, one, spread, rest))
    progress.done("CPU time of all processes of a router")
    for scenario in scenarios:
        print(rows_table([row for row in rows if row.body_bytes == scenario.body_bytes]) + "\n", flush=True)
    costs = [[where, f"{each:,.0f}"] for where, each in lock_costs()]
    print(table(["a ghost lock, agreed upon in", "CPU us"], costs), flush=True)
    return 0


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.router_processes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--processes", type=numbers, default=[1, 2, 4], help="how many (default: 1,2,4)")
    parser.add_argument("--sizes", type=numbers, default=[2, 32, 256], help="of bodies, in KiB (default: 2,32,256)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each load (default: %(default)s)")
    parser.add_argument("--short", action="store_true", help="half a minute, less exact")
    chosen = parser.parse_args(argv)
    if chosen.short:
        chosen.seconds, chosen.processes = 0.7, chosen.processes[:2]
    return run_program(lambda: run(chosen, ProgressLine()))


if __name__ == "__main__":
    sys.exit(main())
