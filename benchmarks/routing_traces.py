"""Time to first token of a replayed trace under different ways to route it, in virtual time, always alike.

    python -m benchmarks.routing_traces [--trace FILE [--speed 1.4] | --documents 60:16 [--rate 8] | --short]

FILE: a trace as `ghostcacher simulate` takes it: Mooncake's, Azure's or BurstGPT's format.
--documents N:BLOCKS: questions on N documents of so many blocks of 512 tokens each, all equally likely.

Simulated engines that batch continuously, evict and pull; the router's own code decides. What it does not show is how
fast a router or an engine is: see routing_quality for real engines.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness.program import run_program
from benchmarks.harness.report import ProgressLine, milliseconds, percentile, table
from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_simulator.load.generated import Documents, make_load
from ghostcacher_simulator.load.requests import BLOCK_TOKENS, Load
from ghostcacher_simulator.load.trace_files import read_trace
from ghostcacher_simulator.machines.workers import FleetSpec, fleet_of
from ghostcacher_simulator.replay.policies import Entrant, entrants
from ghostcacher_simulator.replay.replay import Run, replay
from ghostcacher_simulator.virtual_time import run_virtual

PROMPT_TOKENS_MAX = 32_768
"""What is longer is cut: engines of a few thousand blocks could hold hardly two of such prompts."""
DOCUMENTS = "60:16"
"""They about fill the caches."""
WORSE_MAX = 1.25
"""On documents that fill the caches, GhostCacher's mean may be so many times that of the best simple policy."""


class Result(NamedTuple):
    """ttft_s: of each request, its time in the router included. Tokens: of all prompts, and computed."""

    entrant: Entrant
    ttft_s: Sequence[float]
    prompt_tokens: int
    computed_tokens: int
    pulls: int

    @property
    def mean_s(self) -> float:
        return sum(self.ttft_s) / len(self.ttft_s)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.routing_traces", description=(__doc__ or "").split("\n")[0]
    )
    load = parser.add_mutually_exclusive_group()
    load.add_argument("--trace", type=Path, metavar="FILE")
    load.add_argument("--documents", metavar="N:BLOCKS", default=DOCUMENTS)
    load.add_argument("--short", action="store_true", help=f"documents {DOCUMENTS}, few requests, and a check")
    parser.add_argument("--requests", type=int, help="default: 2,000 of a trace, 1,500 on documents")
    parser.add_argument("--speed", type=float, default=1.0, help="of a trace")
    parser.add_argument("--rate", type=float, default=8.0, help="requests a second on documents")
    parser.add_argument("--engines", type=int, help="default: 4 for a trace, 3 for documents")
    parser.add_argument("--blocks", type=int, help="an engine holds; default: 4,000 for a trace, 320 for documents")
    parser.add_argument("--prefill-rate", type=float, help="tokens/s of an engine; default: 20,000 for a trace, 10,000")
    parser.add_argument("--routers", type=int, default=4, help="of the policy with several")
    parser.add_argument("--only", default="", help="policies whose name contains this")
    return parser.parse_args(argv)


def load_of(chosen: argparse.Namespace) -> Load:
    """Return what is to be replayed. Raises ConfigError for a description that is none."""
    if chosen.trace is not None:
        count = chosen.requests or 2_000
        return read_trace(chosen.trace, count=count, speed=chosen.speed, tokens_max=PROMPT_TOKENS_MAX)
    documents, _, blocks = chosen.documents.partition(":")
    if not (documents.isdigit() and blocks.isdigit() and int(documents) and int(blocks)):
        raise ConfigError(f"--documents: expected N:BLOCKS, such as {DOCUMENTS}, got {chosen.documents!r}")
    count = chosen.requests or (400 if chosen.short else 1_500)
    return questions(int(documents), int(blocks), count, chosen.rate)


def questions(documents: int, blocks: int, count: int, rate_per_s: float) -> Load:
    """Return questions on documents of so many blocks, each document as likely as another, at random times."""
    made = Documents(requests=count, rate=rate_per_s, documents=documents, tokens=blocks * BLOCK_TOKENS)
    return make_load(made, block_tokens=BLOCK_TOKENS)


def fleet_of_choice(chosen: argparse.Namespace) -> FleetSpec:
    engines, blocks, rate = (4, 4_000, 20_000.0) if chosen.trace is not None else (3, 320, 10_000.0)
    return fleet_of(chosen.engines or engines, chosen.blocks or blocks, chosen.prefill_rate or rate)


def result_of(run: Run) -> Result:
    """Return what the table and the check need of a run."""
    ttft_s = [each.ttft_s for each in run.served if each.ttft_s is not None]
    return Result(run.entrant, ttft_s, run.load.prompt_tokens, run.computed_tokens, run.pulls)


def report(results: Sequence[Result]) -> str:
    rows = [
        [
            result.entrant.name,
            f"{result.mean_s:.3f} s",
            *(milliseconds(percentile(result.ttft_s, percent)) for percent in (50, 90, 99)),
            f"{result.computed_tokens / 1e6:.2f} M",
            f"{1 - result.computed_tokens / result.prompt_tokens:.0%}",
            str(result.pulls),
        ]
        for result in results
    ]
    return table(["policy", "TTFT mean", "p50", "p90", "p99", "tokens computed", "hit ratio", "pulls"], rows)


def verdict(results: Sequence[Result]) -> int:
    """Return 0 unless a way of ours that shares caches is too much worse than the best simple policy; print which."""
    best = min((result for result in results if not result.entrant.own), key=lambda result: result.mean_s)
    status = 0
    for result in results:
        if result.entrant.own and not result.entrant.weak and result.mean_s > WORSE_MAX * best.mean_s:
            print(f"{result.entrant.name}: expected at most {WORSE_MAX} times the mean of {best.entrant.name}")
            status = 1
    return status


def run(chosen: argparse.Namespace, progress: ProgressLine) -> int:
    """Replay under each policy and print the table. Returns 1 when the check of --short fails."""
    load, fleet = load_of(chosen), fleet_of_choice(chosen)
    results = []
    for entrant in entrants(chosen.routers):
        if chosen.only in entrant.name:
            progress(entrant.name)
            results.append(result_of(run_virtual(replay(entrant, load, fleet))))
    if not results:
        raise ConfigError(f"--only: expected a part of a policy's name, got {chosen.only!r}")
    profile = fleet.worker.profile
    progress.done(
        f"{len(load.requests):,} requests in {load.duration_s:.0f} s; {fleet.workers} engines of "
        f"{profile.kv_blocks:,} blocks that compute {profile.prefill_tokens_per_s:,.0f} tokens/s"
    )
    print(report(results))
    return verdict(results) if chosen.short else 0


def main(argv: Sequence[str] | None = None) -> int:
    chosen = arguments(argv)
    return run_program(lambda: run(chosen, ProgressLine()))


if __name__ == "__main__":
    sys.exit(main())
