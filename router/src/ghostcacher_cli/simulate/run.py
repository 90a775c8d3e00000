"""`ghostcacher simulate`: runs a load through fleets, and shows what came of it."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence

import msgspec

from ghostcacher_cli.simulate.arguments import LoadOptions, SimulateOptions, parse
from ghostcacher_cli.simulate.pictures import require, write_picture
from ghostcacher_cli.simulate.results import LeastFound, report_of, run_found
from ghostcacher_cli.simulate.results_text import report_lines
from ghostcacher_cli.simulate.slo import PASSED_OVER, least_workers, serves
from ghostcacher_cli.terminal.live import Live
from ghostcacher_connector.core.errors import ConfigError, GhostCacherError
from ghostcacher_simulator.load.generated import KINDS, make_load
from ghostcacher_simulator.load.requests import Load
from ghostcacher_simulator.load.tenants import shared_out
from ghostcacher_simulator.load.trace_files import read_trace
from ghostcacher_simulator.replay.invariants import InvariantBroken
from ghostcacher_simulator.replay.policies import Entrant
from ghostcacher_simulator.replay.replay import Run, replay
from ghostcacher_simulator.replay.watched import watched_replay
from ghostcacher_simulator.virtual_time import run_virtual

NEW_OBJECTS = 20_000
"""Between two looks of the garbage collector: most of what a run makes lives to its end, and looking at all of it again
and again took a sixth of the time."""


def main(words: Sequence[str]) -> int:
    """Simulate, print what came of it, and return the exit code. Raises GhostCacherError."""
    options = parse(words)
    require(options.plot)
    live = Live(sys.stderr)
    try:
        load = shared_out(load_of(options.load), options.tenants, seed=options.load.seed)
        gc.freeze()
        gc.set_threshold(NEW_OBJECTS, 20, 20)
        runs, least = simulate(options, load, lambda what: live.show([what]))
    finally:
        live.clear()
    if options.plot is not None:
        write_picture(runs, options.plot)
    report = report_of(load, options.fleet, runs, least)
    if options.as_json:
        print(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    else:
        print(*report_lines(report), sep="\n")
    return 0


def load_of(options: LoadOptions) -> Load:
    """Return the load that options describe. Raises GhostCacherError."""
    if options.made is not None:
        return make_load(options.made, seed=options.seed, block_tokens=options.block_tokens, speed=options.speed)
    assert options.trace is not None
    if not options.trace.exists():
        raise ConfigError(f"LOAD: expected a file, or one of {', '.join(KINDS)}; there is no file {options.trace}")
    return read_trace(
        options.trace,
        first=options.first,
        count=options.requests,
        speed=options.speed,
        block_tokens=options.block_tokens,
        answer_tokens=options.answer_tokens,
    )


def _run(options: SimulateOptions, load: Load, workers: int, entrant: Entrant) -> Run:
    fleet = options.fleet.of(workers)
    if not options.failures:
        return run_virtual(replay(entrant, load, fleet, clients=options.load.clients))
    try:
        return run_virtual(watched_replay(entrant, load, fleet, options.failures, clients=options.load.clients))
    except InvariantBroken as exc:
        raise GhostCacherError(f"{entrant.key}, {workers} workers: a fault of what is simulated: {exc}") from exc


def simulate(
    options: SimulateOptions, load: Load, tell: Callable[[str], object]
) -> tuple[Sequence[Run], Sequence[LeastFound]]:
    """Return all runs, by size, and the least fleet of each policy where one is looked for.

    tell: is told what is being done.
    """
    runs: dict[tuple[int, str], Run] = {}

    def run(workers: int, entrant: Entrant) -> Run:
        tell(f"{entrant.name}, {workers} workers")
        found = runs[workers, entrant.key] = _run(options, load, workers, entrant)
        return found

    for workers in options.workers:
        for entrant in options.policies:
            run(workers, entrant)
    least = []
    if options.goals:
        goals = [str(goal) for goal in options.goals]
        for entrant in options.policies:
            size = least_workers(
                lambda workers, entrant=entrant: serves(run_found(run(workers, entrant)), options.goals),  # type: ignore[misc]
                options.workers_max,
            )
            tried = size or max(workers for workers, key in runs if key == entrant.key)
            found = run_found(runs[tried, entrant.key])
            reached = [goal.said(found) for goal in options.goals]
            reached += [f"{found.endings[ending]:,} {ending}" for ending in found.endings if ending not in PASSED_OVER]
            least.append(LeastFound(entrant.key, entrant.name, goals, size, tried, reached))
    order = [entrant.key for entrant in options.policies]
    return [runs[key] for key in sorted(runs, key=lambda key: (key[0], order.index(key[1])))], least
