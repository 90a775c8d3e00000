"""Which eviction policy keeps the blocks that are asked for again: hits of prefixes by policy and size.

    python -m benchmarks.policies [--trace FILE[:FIRST:LAST]]... [--capacities 1000,3000] [--short]

FILE: JSON lines with timestamp (ms) and hash_ids, as in Mooncake's traces; FIRST:LAST are the requests to take. Without
traces the loads are made: documents that are all equally likely, sessions, and both with prompts between them that
never come again. A block counts as a hit if it and all before it in its prompt are there. The bound knows the future.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.eviction.caches import Cache, S3Fifo, Tier, WTinyLfu, bound, hit_ratio
from benchmarks.eviction.loads import Load, documents, of_trace, sessions, with_scan
from benchmarks.harness.program import run_program
from benchmarks.harness.report import ProgressLine, table
from ghostcacher_connector.core.errors import ConfigError

CAPACITIES = "1000,3000,10000,30000,50000"
MADE_CAPACITIES = "300,1000"
PARTS = 3
POLICIES: dict[str, Callable[[int], Cache]] = {
    "lru": lambda capacity: Tier("lru", capacity),
    "seed-score": lambda capacity: Tier("seed-score", capacity),
    "S3-FIFO": S3Fifo,
    "W-TinyLFU": WTinyLfu,
    "hit-density": lambda capacity: Tier("hit-density", capacity),
}
WORSE_MAX = 0.03
"""The default policy may lose so much of a load's hits to LRU before this fails."""


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.policies", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--trace", action="append", default=[], metavar="FILE[:FIRST:LAST]")
    parser.add_argument("--capacities", help=f"in blocks; default: {CAPACITIES} of traces, {MADE_CAPACITIES} of others")
    parser.add_argument("--short", action="store_true", help="short loads that are made")
    return parser.parse_args(argv)


def loads_of(chosen: argparse.Namespace) -> list[Load]:
    """Return what is to be run. Raises ConfigError for a description that is none."""
    if chosen.trace:
        return [_trace(text) for text in chosen.trace]
    requests = 600 if chosen.short else 4_000
    made = [documents(60, 16, requests), documents(200, 16, requests), sessions(requests)]
    return [*made, *(with_scan(load, 2, 16) for load in made)]


def _trace(text: str) -> Load:
    path, *part = text.split(":")
    if len(part) not in {0, PARTS - 1} or not all(one.isdigit() or not one for one in part):
        raise ConfigError(f"--trace: expected FILE or FILE:FIRST:LAST, got {text!r}")
    first, last = part or ("", "")
    return of_trace(Path(path), int(first or 0), int(last) if last else None)


def capacities_of(chosen: argparse.Namespace) -> list[int]:
    text = chosen.capacities or (CAPACITIES if chosen.trace else MADE_CAPACITIES)
    sizes = text.split(",")
    if not all(size.isdigit() and int(size) for size in sizes):
        raise ConfigError(f"--capacities: expected numbers of blocks such as {CAPACITIES}, got {text!r}")
    return [int(size) for size in sizes]


def run(chosen: argparse.Namespace, progress: ProgressLine) -> int:
    """Print a table for each load. Returns 1 where the default policy loses too much to LRU."""
    capacities, status = capacities_of(chosen), 0
    for load in loads_of(chosen):
        found = {}
        for name, make in POLICIES.items():
            progress(f"{load.name}: {name}")
            found[name] = [hit_ratio(make(capacity), load) for capacity in capacities]
        found["bound"] = [bound(load, capacity) for capacity in capacities]
        progress.done(f"{load.name}: {len(load.prompts):,} prompts of {load.block_count:,} blocks")
        rows = [[name, *(f"{100 * ratio:.1f} %" for ratio in ratios)] for name, ratios in found.items()]
        print(table(["blocks in the tier", *(f"{capacity:,}" for capacity in capacities)], rows), flush=True)
        for capacity, ours, lru in zip(capacities, found["hit-density"], found["lru"], strict=True):
            if ours < lru - WORSE_MAX:
                print(f"{load.name}, {capacity} blocks: expected at least {lru - WORSE_MAX:.3f}, got {ours:.3f}")
                status = 1
    return status


def main(argv: Sequence[str] | None = None) -> int:
    chosen = arguments(argv)
    return run_program(lambda: run(chosen, ProgressLine()))


if __name__ == "__main__":
    sys.exit(main())
