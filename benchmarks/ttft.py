"""Time to first token: computed, pulled from a peer, and found in the engine's own cache.

    python -m benchmarks.ttft [--short] [--size small [--kind window] | --model DIR_OR_HF_ID] [--adapter]
                              [--tokens 1024 4096 8192]

Two real vLLM engines and a real Redis on this machine. Each repetition takes a new document, has A compute it, and
then asks B (see harness/scenario.py); "cold" is B computing everything itself, so that all columns come from the same
engine. Medians, with the lowest and highest beside them. Every answer is checked against B's own.
The target for 4,096 tokens is a pull of less than 10 % of the prefill that it saves.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import get_args

from benchmarks.harness import Documents, EngineOptions, RedisServer, ensure_model, start_many, stop_all
from benchmarks.harness.engine import Engine
from benchmarks.harness.lora_adapter import make_adapter
from benchmarks.harness.model import require_model
from benchmarks.harness.model_recipe import Kind
from benchmarks.harness.program import run_program
from benchmarks.harness.report import ProgressLine, mebibytes, milliseconds, rate, table
from benchmarks.harness.scenario import Sharing, ratio, share, wait_until_joined, warm_up

ANSWER_TOKENS = 4


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ttft", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--short", action="store_true", help="tiny model, 1,024 tokens, 3 times: for continuous tests")
    parser.add_argument("--size", choices=["tiny", "small"], default="small", help="of the random model")
    parser.add_argument("--kind", choices=get_args(Kind), default="qwen3", help="of the random model")
    parser.add_argument("--adapter", action="store_true", help="requests are for a random LoRA adapter (vLLM)")
    parser.add_argument("--model", help="folder or Hugging Face id; default: a random model, made here")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096, 8192])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--block-size", type=int, help="tokens a block; default: the engine's")
    parser.add_argument("--engine-args", default="", help='more arguments for both engines, as one text: "--a 1 --b 2"')
    chosen = parser.parse_args(argv)
    if chosen.short:
        chosen.size, chosen.tokens, chosen.repeat = "tiny", [1024], 3
    return chosen


def run(chosen: argparse.Namespace, progress: ProgressLine) -> int:
    """Measure and print; return 0 when every answer was right and every document was pulled."""
    model = require_model(chosen.model) if chosen.model else str(ensure_model(chosen.size, kind=chosen.kind))
    documents = Documents(model)
    with RedisServer() as redis, tempfile.TemporaryDirectory() as folder:
        adapter = make_adapter(Path(folder), Path(model), seed=1) if chosen.adapter else None
        options = [
            EngineOptions(
                model=model,
                name=name,
                connector={
                    "redis_url": redis.url,
                    "worker_id": f"ttft-{name}",
                    "pull": "always",
                    "lookup_deadline_ms": 1000.0,
                },
                max_model_len=max(chosen.tokens) + 64,
                block_size=chosen.block_size,
                adapter=adapter,
                extra_args=tuple(shlex.split(chosen.engine_args)),
            )
            for name in ("A", "B")
        ]
        engines = start_many(options, progress)
        try:
            wait_until_joined(engines)
            results = {count: measure(engines, documents, count, chosen.repeat, progress) for count in chosen.tokens}
        finally:
            stop_all(engines)
    named = f"{chosen.model or f'{chosen.size} {chosen.kind}'} model{' with an adapter' if adapter else ''}"
    progress.done(f"{named}, {chosen.repeat} documents of each length")
    print(report(results))
    return 0 if check(results) else 1


def measure(
    engines: Sequence[Engine], documents: Documents, count: int, repeat: int, progress: ProgressLine
) -> list[Sharing]:
    """Return `repeat` measurements of documents of `count` tokens; the first one of all is thrown away."""
    a, b = engines
    for index, engine in enumerate(engines):
        progress(f"{count} tokens: warming up {engine.options.name}")
        warm_up(engine, documents.tokens(count, seed=count + index))
    results = []
    for index in range(repeat + 1):
        progress(f"{count} tokens: document {index} of {repeat}")
        prompt = documents.tokens(count, seed=1_000_000 + 1000 * count + index)
        results.append(share(a, b, prompt, max_tokens=ANSWER_TOKENS))
    return results[1:]


def report(results: dict[int, list[Sharing]]) -> str:
    """Return the table of medians."""
    headers = ["tokens", "cold", "pulled", "local hit", "cold/pulled", "pull", "bytes", "rate", "pull/prefill"]
    return table(headers, [_row(count, found) for count, found in results.items()])


def _row(count: int, found: list[Sharing]) -> list[str]:
    cold, pulled, pull = (median(values) for values in _columns(found))
    moved = median(one.pull.bytes for one in found)
    return [
        f"{count:,}",
        _spread(found, lambda one: one.alone_cold.ttft_s),
        _spread(found, lambda one: one.pulled.ttft_s),
        _spread(found, lambda one: one.local.ttft_s),
        ratio(cold, pulled),
        milliseconds(pull),
        mebibytes(moved),
        rate(moved, pull),
        f"{pull / cold:.1%}",
    ]


def _columns(found: list[Sharing]) -> tuple[list[float], list[float], list[float]]:
    return (
        [one.alone_cold.ttft_s for one in found],
        [one.pulled.ttft_s for one in found],
        [one.pull.seconds for one in found],
    )


def _spread(found: list[Sharing], value: Callable[[Sharing], float]) -> str:
    values = [value(one) for one in found]
    return f"{milliseconds(median(values))} ({min(values) * 1e3:,.0f}-{max(values) * 1e3:,.0f})"


def check(results: dict[int, list[Sharing]]) -> bool:
    """Print what was wrong, if anything was, and return whether all was right."""
    right = True
    for count, found in results.items():
        missed = [one.pull.misses for one in found if one.pull.tokens == 0]
        wrong = [one.against_local.logprob_max for one in found if not one.against_local.identical]
        if missed:
            print(f"FAILED: {count} tokens: {len(missed)} documents were not pulled; blocks missed: {missed}")
        if wrong:
            print(f"WRONG: {count} tokens: {len(wrong)} answers differ from B's own local hit, by up to {max(wrong):g}")
        right = right and not missed and not wrong
    return right


def main(argv: Sequence[str] | None = None) -> int:
    chosen = arguments(argv)
    return run_program(lambda: run(chosen, ProgressLine()))


if __name__ == "__main__":
    sys.exit(main())
