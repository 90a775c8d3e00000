"""`ghostcacher simulate`: runs a load through fleets, and shows what came of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence

import msgspec

from ghostcacher_cli.simulate.arguments import LoadOptions, SimulateOptions, parse
from ghostcacher_cli.simulate.pictures import require, write_picture
from ghostcacher_cli.simulate.results import report_of
from ghostcacher_cli.simulate.results_text import report_lines
from ghostcacher_cli.terminal.live import Live
from ghostcacher_simulator.load.generated import make_load
from ghostcacher_simulator.load.requests import Load
from ghostcacher_simulator.load.trace_files import read_trace
from ghostcacher_simulator.replay.replay import Run, replay
from ghostcacher_simulator.virtual_time import run_virtual


def main(words: Sequence[str]) -> int:
    """Simulate, print what came of it, and return the exit code. Raises ConfigError and BadTrace."""
    options = parse(words)
    require(options.plot)
    live = Live(sys.stderr)
    try:
        load = load_of(options.load)
        runs = list(simulate(options, load, lambda what: live.show([what])))
    finally:
        live.clear()
    if options.plot is not None:
        write_picture(runs, options.plot)
    report = report_of(load, options.fleet, runs)
    if options.as_json:
        print(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    else:
        print(*report_lines(report), sep="\n")
    return 0


def load_of(options: LoadOptions) -> Load:
    """Return the load that options describe. Raises ConfigError and BadTrace."""
    if options.made is not None:
        return make_load(options.made, seed=options.seed, block_tokens=options.block_tokens, speed=options.speed)
    assert options.trace is not None
    return read_trace(
        options.trace,
        first=options.first,
        count=options.requests,
        speed=options.speed,
        block_tokens=options.block_tokens,
    )


def simulate(options: SimulateOptions, load: Load, tell: Callable[[str], object]) -> Iterator[Run]:
    """Yield one run after the other. tell: is told what is being done."""
    for workers in options.workers:
        for entrant in options.policies:
            tell(f"{entrant.name}, {workers} workers")
            yield run_virtual(replay(entrant, load, options.fleet.of(workers)))
