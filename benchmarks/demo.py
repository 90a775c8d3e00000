"""Two vLLM engines behind the router share one KV cache: each takes the other's work instead of repeating it.

    python -m benchmarks.demo [--model DIR_OR_HF_ID] [--size tiny] [--tokens 6144] [--engine-args "..."]

First one long document, engine by engine: what a pull saves, and that the answer is the same to the last bit. Then a
load of short questions on several long documents, of which one engine's cache holds a part: asked through the router of
engines that share, and round robin of the same engines on their own, several rounds of it, all answers compared.
GhostCacher and its router run with their default settings; what is set otherwise, and why, is printed.
Starts its own Redis, router and engines, and ends them all, however it ends. Needs no download and no GPU.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import shutil
import sys
import tempfile
import time
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
from benchmarks.harness.comparison import (
    ROUNDING_MAX,
    Round,
    comparison_table,
    run_round,
    sentence,
    unpulled,
    wrong_answers,
)
from benchmarks.harness.engine import watching
from benchmarks.harness.model import require_model
from benchmarks.harness.program import run_program
from benchmarks.harness.report import ProgressLine, milliseconds
from benchmarks.harness.router import RouterProcess
from benchmarks.harness.scenario import (
    block_tokens,
    pull_line,
    share,
    timing_table,
    verdict,
    wait_until_joined,
    warm_up,
)
from benchmarks.harness.workload import make_load
from ghostcacher_cli.up.launch import is_cpu_build

ANSWER_TOKENS = 16
TEMPLATE_TOKENS = 64
"""Room for a question and its answer, above the document."""
DOCUMENT_SEED = 7
ATTEMPTS = 2
"""A lookup that is late counts as a miss: on a machine that is busy otherwise this may be the case once."""

LOAD_DOCUMENTS = 8
LOAD_REQUESTS = 32
LOAD_CONCURRENCY = 2
LOAD_ANSWER_TOKENS = 4
HELD_PART = 0.65
"""Of the load's documents, by one engine's cache: the two together can hold them all, each on its own cannot."""

TIME_LIMIT_S = 170.0
"""No round of the load begins that would probably end later."""


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo", description=(__doc__ or "").split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--model", help="folder or Hugging Face id; default: a random model, made here")
    size = "tiny" if is_cpu_build() else "small"
    parser.add_argument("--size", choices=["tiny", "small"], default=size, help="of the random model")
    parser.add_argument("--tokens", type=int, default=6144, help="length of the single document")
    parser.add_argument("--load-tokens", type=int, default=4096, help="length of the load's documents")
    parser.add_argument("--requests", type=int, default=LOAD_REQUESTS, help="questions of the load")
    parser.add_argument("--rounds", type=int, default=3, help=f"of the load; fewer where {TIME_LIMIT_S:.0f} s are over")
    parser.add_argument("--pull", choices=["always", "auto"], default="auto", help="GhostCacher's setting of this name")
    parser.add_argument("--block-size", type=int, help="tokens a block; default: the engine's")
    parser.add_argument(
        "--kv-tokens",
        type=int,
        help=f"KV cache of each engine; default: {HELD_PART:.0%} of the load's documents".replace("%", "%%"),
    )
    parser.add_argument("--engine-args", default="", help='more arguments for both engines, as one text: "--a 1 --b 2"')
    parser.add_argument("--logs", type=Path, help="where the engines' logs go; default: kept only after a failure")
    chosen = parser.parse_args(argv)
    for name in ("tokens", "load_tokens"):
        if not 256 <= (count := getattr(chosen, name)) <= 30_000:
            parser.error(f"--{name.replace('_', '-')}: expected 256 to 30000, got {count}")
    for name, least in (("requests", LOAD_DOCUMENTS), ("rounds", 1)):
        if (count := getattr(chosen, name)) < least:
            parser.error(f"--{name}: expected {least} or more, got {count}")
    return chosen


def block_size(chosen: argparse.Namespace) -> int:
    """Return how many tokens a block has: what was asked for, or vLLM's default."""
    return chosen.block_size or (128 if is_cpu_build() else 16)


def context_tokens(chosen: argparse.Namespace) -> int:
    """Return the length of the longest request."""
    longest: int = max(chosen.tokens, chosen.load_tokens)
    return longest + TEMPLATE_TOKENS


def kv_tokens(chosen: argparse.Namespace) -> int:
    """Return how many tokens the KV cache of each engine holds: at least the longest request."""
    wanted: int = chosen.kv_tokens or round(HELD_PART * LOAD_DOCUMENTS * chosen.load_tokens)
    size = block_size(chosen)
    return math.ceil(max(wanted, context_tokens(chosen)) / size) * size


def engine_options(chosen: argparse.Namespace, model: str, redis_url: str, logs: Path) -> list[EngineOptions]:
    """Return the options of engines A and B."""
    changed = {"pull": chosen.pull} if chosen.pull != "auto" else {}
    return [
        EngineOptions(
            model=model,
            name=name,
            connector={"redis_url": redis_url, **changed},
            max_model_len=context_tokens(chosen),
            num_blocks=kv_tokens(chosen) // block_size(chosen) + 1,  # vLLM keeps one for itself
            block_size=chosen.block_size,
            extra_args=tuple(shlex.split(chosen.engine_args)),
            log_dir=logs,
        )
        for name in ("A", "B")
    ]


def run(chosen: argparse.Namespace, logs: Path) -> bool:
    """Run the demo; return whether all answers were right and sharing saved work."""
    deadline = time.monotonic() + TIME_LIMIT_S
    progress = ProgressLine(timed=True)
    model = require_model(chosen.model) if chosen.model else None
    progress.done("two engines, Redis and a router, on this machine: 2 to 3 minutes if its cores are idle")
    progress("making the model, some seconds" if model is None else f"model: {model}")
    model = model or str(ensure_model(chosen.size))
    documents = Documents(model)
    progress.done(f"model: {model}")
    with RedisServer() as redis:
        progress.done("starting the engines: 40 s on two idle cores")
        engines = start_many(engine_options(chosen, model, redis.url, logs), progress)
        try:
            progress.done(f"engines ready after {max(engine.ready_s or 0 for engine in engines):.0f} s")
            with watching(engines), RouterProcess(redis_url=redis.url, log_dir=logs) as router:
                right = show(engines, documents, chosen.tokens, progress)
                print(flush=True)
                router.wait_workers(len(engines))
                rounds = run_rounds(engines, router, documents, chosen, deadline, progress)
        finally:
            progress.done("ending engines and Redis")
            stop_all(engines)
    return report(rounds, chosen) and right


def run_rounds(
    engines: Sequence[Engine],
    router: RouterProcess,
    documents: Documents,
    chosen: argparse.Namespace,
    deadline: float,
    progress: ProgressLine,
) -> list[Round]:
    """Run the load as often as was asked for, as long as there is time."""
    rounds: list[Round] = []
    taken_s = 0.0
    while not rounds or (len(rounds) < chosen.rounds and time.monotonic() + taken_s < deadline):
        began, name = time.monotonic(), f"round {len(rounds) + 1} of {chosen.rounds}"
        load = make_load(
            documents,
            documents=LOAD_DOCUMENTS,
            document_tokens=chosen.load_tokens,
            requests=chosen.requests,
            seed=len(rounds) + 1,
            skew=None,
        )
        found = run_round(
            engines,
            router.client,
            load,
            concurrency=LOAD_CONCURRENCY,
            max_tokens=LOAD_ANSWER_TOKENS,
            progress=lambda text, name=name: progress(f"{name}, {text}"),
        )
        rounds.append(found)
        taken_s = time.monotonic() - began
        progress.done(
            f"{name}: median time to first token {milliseconds(found.alone.p50_s)} alone, "
            f"{milliseconds(found.sharing.p50_s)} sharing"
        )
    return rounds


def report(rounds: Sequence[Round], chosen: argparse.Namespace) -> bool:
    """Print the comparison; return whether every answer was the same and sharing saved work."""
    print()
    print(comparison_table(rounds))
    print()
    print("\n".join(notes(rounds, chosen)))
    print()
    print(sentence(rounds))
    less = sum(one.sharing.computed for one in rounds) < sum(one.alone.computed for one in rounds)
    return less and wrong_answers(rounds) == 0


def notes(rounds: Sequence[Round], chosen: argparse.Namespace) -> list[str]:
    """Return what was compared, and with which settings, in lines that fit a terminal."""
    held = kv_tokens(chosen)
    part = held / (LOAD_DOCUMENTS * chosen.load_tokens)
    few = "" if len(rounds) == chosen.rounds else f" of {chosen.rounds}, for want of time"
    worst = max(difference for one in rounds for difference in one.differences)
    defaults = "defaults" if chosen.pull == "auto" else f"defaults, but pull={chosen.pull}"
    missed = ", ".join(f"{why} {count:.0f}" for why, count in unpulled(rounds).items())
    variables = ", ".join(sorted(name for name in os.environ if name.startswith("GC_")))
    return [
        f"Rounds: {len(rounds)}{few}; each with new documents and empty caches; median (lowest-highest).",
        f"A round: {chosen.requests} questions on {LOAD_DOCUMENTS} documents of {chosen.load_tokens:,} tokens, each "
        f"asked about equally often,",
        f"  in random order, {LOAD_CONCURRENCY} questions at a time;",
        "  each engine alone: asked in turn, with its own prefix cache; GhostCacher does not pull;",
        "  sharing: through the router, the same questions in the same order.",
        *([f"  Blocks that were not pulled, by reason: {missed}."] if missed else []),
        f"Answers: {LOAD_ANSWER_TOKENS} tokens; their log-probabilities differ by {worst:.3f} at most; rounding is "
        f"up to {ROUNDING_MAX:g}.",
        f"Settings: GhostCacher's and the router's {defaults}. Not defaults are vLLM's",
        "  --enforce-eager (it starts sooner) and the size of its KV cache:",
        f"  {held:,} tokens an engine, {part:.0%} of the documents, as in a fleet whose documents do not fit",
        "  one engine; the two together can hold them.",
        *([f"  The environment sets {variables}."] if variables else []),
    ]


def show(engines: Sequence[Engine], documents: Documents, tokens: int, progress: ProgressLine) -> bool:
    """Send one document, print what happened, and return whether B's answers were right."""
    a, b = engines
    wait_until_joined(engines)
    progress("warming up the engines")
    prompts = [documents.tokens(tokens, seed=100 + index) for index in range(len(engines))]
    run_concurrently(lambda pair: warm_up(*pair), zip(engines, prompts, strict=True), concurrency=len(engines))
    progress("the first pull, of a short document, connects the engines")
    size = block_tokens(a.client.metrics())
    share(a, b, documents.tokens(min(tokens, 2 * size + 1), seed=200), max_tokens=1)
    for attempt in range(ATTEMPTS):
        progress(f"a document of {tokens} tokens")
        result = share(a, b, documents.tokens(tokens, seed=DOCUMENT_SEED + attempt), max_tokens=ANSWER_TOKENS)
        if result.pull.tokens:
            break
        progress.done(f"B pulled nothing: {result.pull.misses}")
    progress.done("one document, first computed by A, then asked of B:")
    print()
    print(timing_table(result))
    print()
    print(pull_line(result))
    return verdict(result)


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0 when all answers were right and sharing saved work, 1 when not, 128 + n after signal n."""
    chosen = arguments(argv)
    logs = chosen.logs or Path(tempfile.mkdtemp(prefix="ghostcacher-demo-"))
    status = run_program(lambda: 0 if run(chosen, logs) else 1)
    if status == 1 and logs.is_dir() and any(logs.iterdir()):
        print(f"engine logs: {logs}", file=sys.stderr)
    elif chosen.logs is None:
        shutil.rmtree(logs, ignore_errors=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
