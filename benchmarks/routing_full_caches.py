"""Tokens computed and TTFT by how much of a load the caches of a fleet hold, over several seeds, in virtual time.

    python -m benchmarks.routing_full_caches [--load documents:requests=400] [--workers 3] [--sizes 0.5,0.9,1,1.5,3]
                                             [--seeds 12] [--policies hashing,ghostcacher] [--short]

A size of 1 means that all caches together hold just what is asked for more than once, and nothing for what is not: for
questions, answers and copies. Each policy is asked the same of each seed, from empty caches. "computed" is a share of
all prompt tokens; "new" of it was never asked for before, and is computed whatever is done. "balance" is the requests
of the worker that got most, over the mean. All are means over the seeds but "fewer in": in how many of them the policy
computed fewer tokens than the first one did.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness.program import run_program
from benchmarks.harness.report import ProgressLine, milliseconds, percentile, table
from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.types import BlockHash
from ghostcacher_simulator.load.generated import KINDS, make_load, parse_made
from ghostcacher_simulator.load.requests import Load
from ghostcacher_simulator.load.trace_files import read_trace
from ghostcacher_simulator.machines.presets import gpu_named, model_named, worker_of
from ghostcacher_simulator.machines.workers import FleetSpec
from ghostcacher_simulator.replay.policies import Entrant, entrants
from ghostcacher_simulator.replay.replay import replay
from ghostcacher_simulator.virtual_time import run_virtual

LOAD = "documents:requests=400"
SIZES, SHORT_SIZES = "0.5,0.9,1,1.5,3", "1"
POLICIES = "hashing,ghostcacher"
BLOCK_TOKENS = 128
"""Of a KV block, where no trace says it."""
MORE_MAX = 1.06
"""In a short run, the last policy may compute so many times what the first one does: before anything is evicted, some
copies are made that have no room later."""
PROMPT_TOKENS_MAX = 32_768
"""What of a trace is longer is cut."""


class Result(NamedTuple):
    """What one policy made of one seed."""

    computed: float
    """The share of the prompt tokens that was computed."""
    pulled: float
    """That was pulled."""
    ttft_s: Sequence[float]
    balance: float


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.routing_full_caches", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--load", default=LOAD, help="a kind of load, or a trace, as `ghostcacher simulate` takes it")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--sizes", help=f"of all caches, over what is asked for more than once; default: {SIZES}")
    parser.add_argument("--prefill-rate", type=float, default=10_000.0, help="tokens/s of a worker")
    parser.add_argument("--seeds", type=int, default=12, help="from 1 on; of a trace there is one")
    parser.add_argument("--requests", type=int, default=2_000, help="of a trace")
    parser.add_argument("--speed", type=float, default=1.0, help="of a trace")
    parser.add_argument("--policies", default=POLICIES)
    parser.add_argument("--routers", type=int, default=4, help="of the policy with several")
    parser.add_argument("--short", action="store_true", help="one size, two seeds, and a check")
    chosen = parser.parse_args(argv)
    if chosen.short:
        chosen.seeds = 2
    for name in ("workers", "seeds", "routers"):
        if (value := getattr(chosen, name)) < 1:
            raise ConfigError(f"--{name}: expected 1 or more, got {value}")
    chosen.sizes = sizes_of(chosen.sizes or (SHORT_SIZES if chosen.short else SIZES))
    chosen.policies = policies_of(chosen.policies, chosen.routers)
    return chosen


def sizes_of(text: str) -> list[float]:
    """Return sizes that are separated by commas. Raises ConfigError."""
    try:
        sizes = [float(size) for size in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or not all(0 < size < math.inf for size in sizes):
        raise ConfigError(f"--sizes: expected numbers above 0, such as {SIZES}, got {text!r}")
    return sizes


def policies_of(text: str, routers: int) -> list[Entrant]:
    """Return the policies of these keys, which are separated by commas. Raises ConfigError."""
    known = {entrant.key: entrant for entrant in entrants(routers)}
    try:
        return [known[key] for key in text.split(",")]
    except KeyError:
        raise ConfigError(f"--policies: expected some of {', '.join(known)}, got {text!r}") from None


def loads_of(chosen: argparse.Namespace) -> list[Load]:
    """Return the load of each seed. Raises ConfigError for a description that is none."""
    if chosen.load.partition(":")[0] in KINDS:
        made = parse_made(chosen.load)
        return [make_load(made, seed=seed, block_tokens=BLOCK_TOKENS) for seed in range(1, chosen.seeds + 1)]
    trace = Path(chosen.load)
    return [read_trace(trace, count=chosen.requests, speed=chosen.speed, tokens_max=PROMPT_TOKENS_MAX)]


def times_asked(load: Load) -> Counter[BlockHash]:
    """Return how many prompts have each block."""
    found: Counter[BlockHash] = Counter()
    for request in load.requests:
        found.update(set(request.prompt.blocks))
    return found


def fleet_of_size(chosen: argparse.Namespace, load: Load, size: float) -> FleetSpec:
    """Return a fleet whose caches hold so much of what the load asks for more than once."""
    blocks = sum(count > 1 for count in times_asked(load).values())
    worker = worker_of(gpu_named("h100"), model_named("llama-3.1-8b"), gpus=1, block_tokens=load.block_tokens)
    kv_blocks = max(1, round(blocks * size / chosen.workers))
    profile = worker.profile._replace(kv_blocks=kv_blocks, prefill_tokens_per_s=chosen.prefill_rate)
    return FleetSpec(chosen.workers, worker._replace(profile=profile))


def measure(entrant: Entrant, load: Load, fleet: FleetSpec) -> Result:
    run = run_virtual(replay(entrant, load, fleet))
    got = Counter(served.worker for served in run.served)
    return Result(
        run.computed_tokens / load.prompt_tokens,
        sum(served.pulled_tokens for served in run.served) / load.prompt_tokens,
        [served.ttft_s for served in run.served if served.ttft_s is not None],
        max(got.values()) * fleet.workers / len(run.served),
    )


def row(name: str, size: float, results: Sequence[Result], first: Sequence[Result]) -> list[str]:
    """Return a row of the table. first: the results of the first policy."""

    def mean(numbers: Sequence[float]) -> float:
        return sum(numbers) / len(numbers)

    fewer = sum(one.computed < other.computed for one, other in zip(results, first, strict=True))
    return [
        f"{size:g}",
        name,
        f"{mean([one.computed for one in results]):.1%}",
        f"{mean([one.pulled for one in results]):.1%}",
        f"{fewer} of {len(results)}" if results is not first else "",
        milliseconds(mean([mean(one.ttft_s) for one in results])),
        *(milliseconds(mean([percentile(one.ttft_s, percent) for one in results])) for percent in (50, 90, 99)),
        f"{mean([one.balance for one in results]):.2f}",
    ]


def run(chosen: argparse.Namespace, progress: ProgressLine) -> int:
    """Replay and print the table; return 1 where the last policy of a short run computed too much."""
    loads, rows, status = loads_of(chosen), [], 0
    for size in chosen.sizes:
        first: list[Result] | None = None
        for entrant in chosen.policies:
            progress(f"{size:g}: {entrant.name}")
            results = [measure(entrant, load, fleet_of_size(chosen, load, size)) for load in loads]
            first = results if first is None else first
            rows.append(row(entrant.name, size, results, first))
        if chosen.short and first is not None:
            status |= sum(one.computed for one in results) > MORE_MAX * sum(one.computed for one in first)
    load = loads[0]
    new = len(times_asked(load)) * load.block_tokens / load.prompt_tokens
    progress.done(f"{chosen.load}: {len(load.requests):,} requests, {chosen.workers} workers, new: {new:.1%}")
    print(
        table(["size", "policy", "computed", "pulled", "fewer in", "TTFT mean", "p50", "p90", "p99", "balance"], rows)
    )
    return status


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(lambda: run(arguments(argv), ProgressLine()))


if __name__ == "__main__":
    sys.exit(main())
