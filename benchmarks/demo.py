"""Two vLLM engines behind the router share one KV cache: each takes the other's work instead of repeating it.

    python -m benchmarks.demo [--model DIR_OR_HF_ID] [--size small] [--tokens 4096] [--engine-args "..."]

First one long document, engine by engine: what a pull saves, and that the answer is the same. Then a mixed load of
questions on several documents, spread by the router and, for comparison, round robin over engines that do not share.
Starts its own Redis, router and engines, and ends them all, however it ends. Needs no download and no GPU.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import (
    Documents,
    Engine,
    EngineOptions,
    RedisServer,
    ensure_model,
    run_concurrently,
    start_many,
    stop_all,
)
from benchmarks.harness.program import run_program
from benchmarks.harness.report import ProgressLine, mebibytes, milliseconds, rate, table
from benchmarks.harness.router import RouterProcess
from benchmarks.harness.scenario import Sharing, block_tokens, ratio, share, wait_until_joined, warm_up
from benchmarks.harness.workload import Result, make_load, round_robin, run_load, through

ANSWER_TOKENS = 16
TEMPLATE_TOKENS = 64
"""Room for the answer and more, above the prompt."""
DOCUMENT_SEED = 7
LOAD_CONCURRENCY = 3
LOAD_DOCUMENTS = 6
LOAD_REQUESTS = 36


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo", description=(__doc__ or "").split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--model", help="folder or Hugging Face id; default: a random model, made here")
    parser.add_argument("--size", choices=["tiny", "small"], default="small", help="of the random model")
    parser.add_argument("--tokens", type=int, default=4096, help="length of the document")
    parser.add_argument("--load-tokens", type=int, default=1024, help="length of the mixed load's documents")
    parser.add_argument("--requests", type=int, default=LOAD_REQUESTS, help="of the mixed load, under each policy")
    parser.add_argument(
        "--pull",
        choices=["always", "auto"],
        default="always",
        help="auto: only what is forecast to be faster than computing it; on a busy machine that may be nothing",
    )
    parser.add_argument("--block-size", type=int, help="tokens a block; default: the engine's")
    parser.add_argument("--kv-gib", type=int, default=1, help="KV cache of each engine, on CPU")
    parser.add_argument("--engine-args", default="", help='more arguments for both engines, as one text: "--a 1 --b 2"')
    parser.add_argument("--logs", type=Path, help="where the engines' logs go; default: kept only after a failure")
    chosen = parser.parse_args(argv)
    for name in ("tokens", "load_tokens"):
        if not 256 <= (count := getattr(chosen, name)) <= 30_000:
            parser.error(f"--{name.replace('_', '-')}: expected 256 to 30000, got {count}")
    if chosen.requests < LOAD_DOCUMENTS:
        parser.error(f"--requests: expected {LOAD_DOCUMENTS} or more, got {chosen.requests}")
    return chosen


def engine_options(chosen: argparse.Namespace, model: str, redis_url: str, logs: Path) -> list[EngineOptions]:
    """Return the options of engines A and B."""
    return [
        EngineOptions(
            model=model,
            name=name,
            connector={
                "redis_url": redis_url,
                "worker_id": f"demo-{name}",
                "lookup_deadline_ms": 1000.0,
                "pull": chosen.pull,
            },
            max_model_len=max(2048, chosen.tokens + TEMPLATE_TOKENS, 2 * chosen.load_tokens),
            kv_gib=chosen.kv_gib,
            block_size=chosen.block_size,
            extra_args=tuple(shlex.split(chosen.engine_args)),
            log_dir=logs,
        )
        for name in ("A", "B")
    ]


def run(chosen: argparse.Namespace, logs: Path) -> bool:
    """Run the demo; return whether B's answers were right."""
    progress = ProgressLine()
    progress("making the model")
    model = chosen.model or str(ensure_model(chosen.size))
    documents = Documents(model)
    progress.done(f"model: {model}")
    with RedisServer() as redis:
        progress.done(f"redis: {redis.url}")
        engines = start_many(engine_options(chosen, model, redis.url, logs), progress)
        try:
            times = ", ".join(f"{engine.options.name} after {engine.ready_s:.0f} s" for engine in engines)
            progress.done(f"engines ready: {times}")
            right = show(engines, documents, chosen.tokens, progress)
            print()
            return compare_policies(engines, documents, chosen, redis.url, logs, progress) and right
        finally:
            progress.done("ending engines and Redis")
            stop_all(engines)


def compare_policies(
    engines: Sequence[Engine],
    documents: Documents,
    chosen: argparse.Namespace,
    redis_url: str,
    logs: Path,
    progress: ProgressLine,
) -> bool:
    """Run the mixed load round robin and through the router, print both; return whether the router computed less."""
    with RouterProcess(redis_url=redis_url, log_dir=logs) as router:
        router.wait_workers(len(engines))
        progress.done(f"router: {router.url}, {len(engines)} workers")
        results: list[Result] = []
        for seed, policy in enumerate((round_robin([e.client for e in engines]), through(router.client)), start=1):
            for engine in engines:
                engine.client.reset_prefix_cache()
            load = make_load(
                documents,
                documents=LOAD_DOCUMENTS,
                document_tokens=chosen.load_tokens,
                requests=chosen.requests,
                seed=seed,
            )
            alone = len(results) == 0
            results.append(
                run_load(
                    policy,
                    load,
                    concurrency=LOAD_CONCURRENCY,
                    max_tokens=ANSWER_TOKENS,
                    pull=not alone,
                    progress=progress,
                )
            )
    progress.done("done")
    print()
    print(load_table(results, chosen))
    apart, shared = results
    less = shared.computed < apart.computed
    share_of = f"{shared.computed / apart.computed:.0%}"
    print(
        f"\n{'LESS' if less else 'NOT LESS'}: GhostCacher computed {share_of} of the tokens that round robin computed"
    )
    return less


def load_table(results: Sequence[Result], chosen: argparse.Namespace) -> str:
    apart, _ = results
    title = f"{chosen.requests} questions on {LOAD_DOCUMENTS} documents of {chosen.load_tokens:,} tokens"
    rows = [
        [
            name,
            f"{result.hit_ratio:.0%}",
            f"{result.computed:,}",
            milliseconds(result.p50_s),
            milliseconds(result.p90_s),
            f"{result.seconds:.1f} s",
            ratio(apart.seconds, result.seconds),
        ]
        for name, result in zip(("round robin, not sharing", "GhostCacher"), results, strict=True)
    ]
    return table([title, "hit ratio", "tokens computed", "TTFT p50", "p90", "all done in", "faster"], rows)


def show(engines: Sequence[Engine], documents: Documents, tokens: int, progress: ProgressLine) -> bool:
    """Send the document, print what happened, and return whether B's answers were right."""
    a, b = engines
    wait_until_joined(engines)
    progress("warming up the engines")
    prompts = [documents.tokens(tokens, seed=100 + index) for index in range(len(engines))]
    run_concurrently(lambda pair: warm_up(*pair), zip(engines, prompts, strict=True), concurrency=len(engines))
    progress("the first pull, of a short document, connects the engines")
    size = block_tokens(a.client.metrics())
    share(a, b, documents.tokens(min(tokens, 2 * size + 1), seed=200), max_tokens=1)
    progress(f"a document of {tokens} tokens")
    result = share(a, b, documents.tokens(tokens, seed=DOCUMENT_SEED), max_tokens=ANSWER_TOKENS)
    progress.done("done")
    print()
    print(timing_table(result))
    print()
    print(pull_table(result))
    print()
    return verdict(result)


def timing_table(result: Sharing) -> str:
    rows = [
        ("A, cold", result.cold, "computed everything"),
        ("B, pulled", result.pulled, "took A's blocks" if result.pull.tokens else "pulled nothing"),
        ("B, local hit", result.local, "had them itself by then"),
        ("B, cold", result.alone_cold, "pulling off, cache emptied"),
    ]
    base = result.alone_cold.ttft_s
    lines = [
        [who, f"{c.prompt_tokens:,}", f"{c.cached_tokens or 0:,}", milliseconds(c.ttft_s), ratio(base, c.ttft_s), what]
        for who, c, what in rows
    ]
    return table(["request", "prompt tokens", "from a cache", "TTFT", "against B cold", "what the engine did"], lines)


def pull_table(result: Sharing) -> str:
    pull = result.pull
    share_of_prefill = pull.seconds / result.alone_cold.ttft_s
    return table(
        ["B's pull, from its own metrics", ""],
        [
            ["tokens pulled", f"{pull.tokens:,}"],
            ["bytes", mebibytes(pull.bytes)],
            ["time, with the seal check", milliseconds(pull.seconds)],
            ["rate", rate(pull.bytes, pull.seconds)],
            ["share of B's cold TTFT", f"{share_of_prefill:.1%}"],
        ],
    )


def verdict(result: Sharing) -> bool:
    """Print whether the pulled answer is the one that B gives by itself, and return it."""
    local, cold, rounding = result.against_local, result.against_cold, result.rounding
    if result.pull.tokens == 0:
        print(f"FAILED: B pulled nothing. Blocks missed, by reason: {result.pull.misses or 'none counted'}")
        return False
    right = local.identical and cold.logprob_max <= rounding.logprob_max
    print(
        f"{'RIGHT' if right else 'WRONG'}: {len(result.pulled.tokens)} greedy tokens and their log-probabilities, "
        "pulled against B's own:\n"
        f"  local hit, computed by B itself:  tokens {_same(local.same_tokens)}, "
        f"largest difference {local.logprob_max:g}\n"
        f"  cold, everything computed by B:   tokens {_same(cold.same_tokens)}, "
        f"largest difference {cold.logprob_max:.4f} (B's own local hit: {rounding.logprob_max:.4f}, rounding)"
    )
    return right


def _same(equal: bool) -> str:
    return "equal" if equal else "differ"


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0 when B pulled and answered rightly, 1 when not, 128 + n after signal n."""
    chosen = arguments(argv)
    logs = chosen.logs or Path(tempfile.mkdtemp(prefix="ghostcacher-demo-"))
    status = run_program(lambda: 0 if run(chosen, logs) else 1)
    if status != 1 and chosen.logs is None:
        shutil.rmtree(logs, ignore_errors=True)
    elif status == 1:
        print(f"engine logs: {logs}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
