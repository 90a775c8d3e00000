"""Time to first token and computed tokens under different ways to spread one load over three engines.

    python -m benchmarks.routing_quality [--short] [--size small] [--engines 3] [--documents 12] [--requests 72]

Real vLLM engines and a real Redis. The load asks many questions on documents whose KV together is twice what the whole
fleet can hold, so that every engine keeps evicting. The simple policies go to the engines directly, without sharing:
that is what a fleet of plain engines does behind nginx (round robin, least connections) or behind a hashing balancer.
`round robin, pulls` shares the caches, but routes blindly: the difference to it is the router's own part.
Each policy gets new documents, is asked for them in the same order, and begins with empty caches.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from benchmarks.harness import Client, Documents, EngineOptions, RedisServer, ensure_model, start_many, stop_all
from benchmarks.harness.engine import Engine
from benchmarks.harness.program import run_program
from benchmarks.harness.report import ProgressLine, milliseconds, table
from benchmarks.harness.router import RouterProcess
from benchmarks.harness.scenario import ratio, wait_until_joined, warm_up
from benchmarks.harness.workload import Policy, Result, consistent_hash, least_load, make_load, round_robin, run_load
from benchmarks.harness.workload import through as through_router

ANSWER_TOKENS = 8
BLOCK_TOKENS = 32
ORDER = 1
"""Of the questions, for all policies: whose documents happen to be asked for more often is no merit of a policy."""
OVERCOMMIT = 2.0
"""The documents' KV, over what all engines together hold."""


class Entrant(NamedTuple):
    """A policy to measure. pull: whether the engines share their caches."""

    make: Callable[[Sequence[Client]], Policy]
    pull: bool
    name: str | None = None


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.routing_quality", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--short", action="store_true", help="tiny model, two engines, few requests")
    parser.add_argument("--size", choices=["tiny", "small"], default="small")
    parser.add_argument("--engines", type=int, default=3)
    parser.add_argument("--documents", type=int, default=12)
    parser.add_argument("--document-tokens", type=int, default=1536)
    parser.add_argument("--requests", type=int, default=72)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--pull", choices=["always", "auto"], default="auto")
    chosen = parser.parse_args(argv)
    if chosen.short:
        chosen.size, chosen.engines, chosen.documents, chosen.requests = "tiny", 2, 6, 24
        chosen.document_tokens = 768
    return chosen


def engine_options(chosen: argparse.Namespace, model: str, redis_url: str) -> list[EngineOptions]:
    """Return the options of all engines: together they hold 1/OVERCOMMIT of the documents."""
    blocks = chosen.documents * chosen.document_tokens / OVERCOMMIT / chosen.engines / BLOCK_TOKENS
    longest = chosen.document_tokens + 256
    # An engine must hold what runs at once, else it preempts and measures that.
    needed = (chosen.concurrency // 2 + 1) * longest // BLOCK_TOKENS
    return [
        EngineOptions(
            model=model,
            name=f"w{index}",
            connector={"redis_url": redis_url, "worker_id": f"w{index}", "pull": chosen.pull},
            max_model_len=longest,
            block_size=BLOCK_TOKENS,
            num_blocks=max(round(blocks), needed),
        )
        for index in range(chosen.engines)
    ]


def entrants(router: Client) -> list[Entrant]:
    return [
        Entrant(round_robin, pull=False),
        Entrant(least_load, pull=False),
        Entrant(consistent_hash, pull=False),
        Entrant(round_robin, pull=True, name="round robin, pulls"),
        Entrant(lambda clients: through_router(router), pull=True),  # noqa: ARG005
    ]


def run(chosen: argparse.Namespace, progress: ProgressLine) -> int:
    """Measure and print; return 0 when the router computed no more than round robin."""
    model = str(ensure_model(chosen.size))
    texts = Documents(model)
    with RedisServer() as redis:
        engines = start_many(engine_options(chosen, model, redis.url), progress)
        try:
            wait_until_joined(engines)
            with RouterProcess(redis_url=redis.url) as router:
                router.wait_workers(len(engines))
                results = [
                    measure(engines, entrant, chosen, texts, seed, progress)
                    for seed, entrant in enumerate(entrants(router.client), start=1)
                ]
        finally:
            stop_all(engines)
    held = engines[0].options.num_blocks or 0
    progress.done(
        f"{chosen.size} model, {chosen.engines} engines of {held * BLOCK_TOKENS:,} tokens of KV; {chosen.requests} "
        f"requests on {chosen.documents} documents of {chosen.document_tokens:,} tokens, {chosen.concurrency} at once"
    )
    print(report(results))
    return 0 if results[-1].computed <= results[0].computed else 1


def measure(
    engines: Sequence[Engine],
    entrant: Entrant,
    chosen: argparse.Namespace,
    texts: Documents,
    seed: int,
    progress: ProgressLine,
) -> Result:
    """Run the load under one policy, from empty caches."""
    policy = entrant.make([engine.client for engine in engines])
    policy.name = entrant.name or policy.name
    for index, engine in enumerate(engines):
        progress(f"{policy.name}: warming up {engine.options.name}")
        warm_up(engine, texts.tokens(chosen.document_tokens, seed=10_000 * seed + index))
    load = make_load(
        texts,
        documents=chosen.documents,
        document_tokens=chosen.document_tokens,
        requests=chosen.requests,
        seed=seed,
        order=ORDER,
    )
    return run_load(
        policy, load, concurrency=chosen.concurrency, max_tokens=ANSWER_TOKENS, pull=entrant.pull, progress=progress
    )


def report(results: Sequence[Result]) -> str:
    """Return the table; the last columns are against the first policy."""
    base = results[0]
    rows = [
        [
            result.policy,
            milliseconds(result.p50_s),
            milliseconds(result.p90_s),
            f"{result.computed:,}",
            f"{result.hit_ratio:.0%}",
            ratio(base.p50_s, result.p50_s),
            ratio(base.p90_s, result.p90_s),
            ratio(base.computed, result.computed),
        ]
        for result in results
    ]
    headers = ["policy", "TTFT p50", "p90", "tokens computed", "hit ratio", "p50 better", "p90 better", "compute saved"]
    return table(headers, rows)


def main(argv: Sequence[str] | None = None) -> int:
    chosen = arguments(argv)
    return run_program(lambda: run(chosen, ProgressLine()))


if __name__ == "__main__":
    sys.exit(main())
