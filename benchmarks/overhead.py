"""What GhostCacher costs a workload that shares nothing: throughput and time per step against plain vLLM.

    python -m benchmarks.overhead [--short] [--size tiny] [--pairs 15]

Two engines on the same cores, one plain and one with the connector. They work in turns, never at the same time, the
order changing from pair to pair, so that drift of the machine meets both alike. What is compared is each pair; printed
are the median of the pairs and the quartiles, which say how far the median can be trusted on this machine.
Targets: less than 1 % of throughput, less than 0.2 ms a step. Idle engines are looked at too: a thread that spins while
there is nothing to do takes a core from those who have work.

A tiny model is the hard case: its steps are short, and so any fixed cost is a large part of them.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

from benchmarks.harness import (
    EngineOptions,
    RedisServer,
    core_shares,
    ensure_model,
    run_concurrently,
    start_many,
    stop_all,
)
from benchmarks.harness.engine import Engine
from benchmarks.harness.model import recipe
from benchmarks.harness.program import run_program
from benchmarks.harness.report import ProgressLine, milliseconds, now, percentile, table


class Load(NamedTuple):
    """The workload of one turn. stream_tokens: length of the single answer whose steps are timed."""

    requests: int
    concurrency: int
    prompt_tokens: int
    answer_tokens: int
    stream_tokens: int


FULL = Load(requests=32, concurrency=8, prompt_tokens=512, answer_tokens=64, stream_tokens=256)
SHORT = Load(requests=12, concurrency=4, prompt_tokens=256, answer_tokens=32, stream_tokens=128)


class Turn(NamedTuple):
    """What one engine did in one turn. throughput: prompt and answer tokens a second. step_s: mean of one stream."""

    throughput: float
    step_s: float


class Pair(NamedTuple):
    plain: Turn
    shared: Turn


IDLE_S = 5.0


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--short", action="store_true", help="4 pairs of a small load: for continuous tests")
    parser.add_argument("--size", choices=["tiny", "small"], default="tiny")
    parser.add_argument("--pairs", type=int, default=15)
    chosen = parser.parse_args(argv)
    if chosen.short:
        chosen.size, chosen.pairs = "tiny", 4
    return chosen


def run(chosen: argparse.Namespace, progress: ProgressLine) -> int:
    """Measure and print; return 0."""
    model, load = ensure_model(chosen.size), SHORT if chosen.short else FULL
    vocab = recipe(chosen.size).vocab
    with RedisServer() as redis:
        # All cores but one for computing, the same for both: the servers' own threads and the client need one.
        cores = core_shares(1)[0].split(",")
        common: dict[str, Any] = {
            "model": str(model),
            "max_model_len": 2048,
            "cores": ",".join(cores[1:] or cores),
        }
        settings = {"redis_url": redis.url, "worker_id": "overhead"}
        options = [
            EngineOptions(name="plain", **common),
            EngineOptions(name="shared", connector=settings, **common),
        ]
        plain, shared = start_many(options, progress)
        try:
            pairs = measure(plain, shared, load, chosen.pairs, vocab, progress)
            idle = [idle_cores(engine) for engine in (plain, shared)]
        finally:
            stop_all([plain, shared])
    progress.done(f"{chosen.size} model, {chosen.pairs} pairs of {load}")
    print(report(pairs, idle))
    return 0


def measure(plain: Engine, shared: Engine, load: Load, count: int, vocab: int, progress: ProgressLine) -> list[Pair]:
    """Return `count` pairs; one more is run before them, and thrown away."""
    chance = random.Random(1)
    pairs = []
    for index in range(count + 1):
        progress(f"pair {index} of {count}")
        order = (plain, shared) if index % 2 == 0 else (shared, plain)
        turns = {engine.options.name: take_turn(engine, load, vocab, chance) for engine in order}
        pairs.append(Pair(turns["plain"], turns["shared"]))
    return pairs[1:]


def take_turn(engine: Engine, load: Load, vocab: int, chance: random.Random) -> Turn:
    """Run the load on one engine, with prompts that were never seen before."""
    client = engine.client

    def prompt(length: int) -> list[int]:
        return [chance.randrange(10, vocab) for _ in range(length)]

    prompts = [prompt(load.prompt_tokens) for _ in range(load.requests)]
    start = now()
    answers = run_concurrently(
        lambda ids: client.complete(ids, max_tokens=load.answer_tokens, ignore_eos=True),
        prompts,
        concurrency=load.concurrency,
    )
    elapsed = now() - start
    tokens = sum(answer.prompt_tokens + answer.completion_tokens for answer in answers)
    stream = client.complete(prompt(32), max_tokens=load.stream_tokens, ignore_eos=True)
    return Turn(tokens / elapsed, (stream.total_s - stream.ttft_s) / (load.stream_tokens - 1))


def idle_cores(engine: Engine) -> float:
    """Return how much of a CPU core an engine uses while it has nothing to do."""
    time.sleep(1.0)  # what the last request left behind
    before, start = engine.process.cpu_s(), now()
    time.sleep(IDLE_S)
    return (engine.process.cpu_s() - before) / (now() - start)


def report(pairs: Sequence[Pair], idle: Sequence[float]) -> str:
    """Return the table of medians and quartiles of the pairs. idle: cores used by the plain and the shared engine."""

    def line(name: str, value: Callable[[Turn], float], show: Callable[[float], str]) -> list[str]:
        return [name, show(median(value(p.plain) for p in pairs)), show(median(value(p.shared) for p in pairs))]

    lost = [1 - p.shared.throughput / p.plain.throughput for p in pairs]
    added = [p.shared.step_s - p.plain.step_s for p in pairs]
    rows = [
        [*line("throughput", lambda t: t.throughput, lambda v: f"{v:,.0f} tokens/s"), *_spread(lost, _percent)],
        [*line("one step", lambda t: t.step_s, milliseconds), *_spread(added, _signed_milliseconds)],
        ["CPU cores when idle", *(f"{cores:.2f}" for cores in idle), f"{idle[1] - idle[0]:+.2f}", ""],
    ]
    return table(["", "plain", "with GhostCacher", "cost, median of pairs", "quartiles"], rows)


def _spread(values: Sequence[float], show: Callable[[float], str]) -> list[str]:
    return [show(median(values)), f"{show(percentile(values, 25))} to {show(percentile(values, 75))}"]


def _percent(value: float) -> str:
    return f"{value:+.1%}"


def _signed_milliseconds(value: float) -> str:
    return f"{value * 1e3:+.3f} ms"


def main(argv: Sequence[str] | None = None) -> int:
    chosen = arguments(argv)
    return run_program(lambda: run(chosen, ProgressLine()))


if __name__ == "__main__":
    sys.exit(main())
