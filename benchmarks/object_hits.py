"""What an object is worth: documents of an engine that is gone, found by a new one with an empty Redis.

    python -m benchmarks.object_hits [--size small] [--documents 3] [--document-tokens 4096] [--answer-tokens 8]
                                     [--compression auto|always|never|fp8] [--url file:///folder]

A real vLLM engine computes documents, which it writes to objects, and ends. Another one is started with a Redis and a
host tier that know nothing, and is asked for the same documents, each of which has to be read from objects, and for
others, each of which has to be computed. Every answer to a document is that of the first engine, which found it in its
own cache, to the last bit that the API shows. With `--compression fp8` it is not; then it is printed how far the
log-probabilities of equal tokens are from each other.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import mean, median

from benchmarks.harness import Documents, EngineOptions, RedisServer, ensure_model, start_many, stop_all
from benchmarks.harness.client import Completion, compare
from benchmarks.harness.engine import Engine
from benchmarks.harness.program import run_program
from benchmarks.harness.report import ProgressLine, milliseconds, table
from benchmarks.harness.scenario import nudge
from benchmarks.tiers import ANSWER_TOKENS, BLOCK_TOKENS, GIB, QUESTION_TOKENS, sizes_of

WRITTEN_S = 120.0
"""Bound of the wait for objects to be written and noted."""


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.object_hits", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--size", choices=["tiny", "small"], default="small")
    parser.add_argument("--documents", type=int, default=3)
    parser.add_argument("--document-tokens", type=int, default=4096)
    parser.add_argument("--answer-tokens", type=int, default=ANSWER_TOKENS, help=f"at most {QUESTION_TOKENS}")
    parser.add_argument("--compression", choices=["auto", "always", "never", "fp8"], default="auto")
    parser.add_argument("--url", default=None, help="default: files in a temporary folder")
    chosen = parser.parse_args(argv)
    chosen.engine_documents = float(chosen.documents + 2)
    return chosen


def run(chosen: argparse.Namespace, progress: ProgressLine) -> int:
    """Measure and print; return 0 when every document was found and every answer was right."""
    model = str(ensure_model(chosen.size))
    documents = Documents(model)
    prompts = [documents.tokens(chosen.document_tokens, seed=7_000_000 + index) for index in range(chosen.documents)]
    others = [documents.tokens(chosen.document_tokens, seed=8_000_000 + index) for index in range(chosen.documents)]
    with tempfile.TemporaryDirectory() as folder:
        url = chosen.url or f"file://{folder}"
        with engine_at(url, "before", model, chosen, progress) as engine:
            first = [engine.client.complete(prompt, max_tokens=chosen.answer_tokens) for prompt in prompts]
            # Found in the engine's own cache: the same blocks, and the same products of matrices as with objects.
            before = [engine.client.complete(prompt, max_tokens=chosen.answer_tokens) for prompt in prompts]
            stored_bytes = wait_written(engine, chosen, progress)
        with engine_at(url, "after", model, chosen, progress) as engine:
            after = []
            computed = []
            for prompt, other in zip(prompts, others, strict=True):
                after.append(engine.client.complete(prompt, max_tokens=chosen.answer_tokens))
                nudge(engine.client)
                computed.append(engine.client.complete(other, max_tokens=chosen.answer_tokens))
                nudge(engine.client)
    progress.done(
        f"{chosen.size} model, documents of {chosen.document_tokens:,} tokens, objects at {url.split(':')[0]}://"
    )
    print(f"objects: {stored_bytes / (1 << 20):.1f} MiB", flush=True)
    if chosen.compression == "fp8":
        print("log-probabilities, of tokens up to the first other one:")
        print("  found in the cache, instead of computed:", logprob_errors(first, before))
        print("  read from objects, instead of found in the cache:", logprob_errors(before, after), flush=True)
    return report(before, after, computed, chosen)


@contextmanager
def engine_at(url: str, name: str, model: str, chosen: argparse.Namespace, progress: ProgressLine) -> Iterator[Engine]:
    """An engine with a fleet of its own, which knows of objects only; it has warmed up."""
    sizes = sizes_of(model, chosen)
    with RedisServer(tcp=True) as redis:
        options = EngineOptions(
            model=model,
            name=name,
            connector={
                "redis_url": redis.url,
                "worker_id": name,
                "object_url": url,
                "object_compression": chosen.compression,
                "host_tier_gib": (2 * sizes.blocks + 0.5) * sizes.block_bytes / GIB,
                "hbm_swap_threshold": 0.0,
                "lookup_deadline_ms": 1000.0,
            },
            max_model_len=chosen.document_tokens + QUESTION_TOKENS,
            num_blocks=2 * sizes.blocks + 1,
            block_size=BLOCK_TOKENS,
        )
        engines = start_many([options], progress)
        try:
            # Not `warm_up`: after a reset of its cache an engine finds nothing that was written before.
            engines[0].client.complete(
                Documents(model).tokens(chosen.document_tokens, seed=6_000_000 + len(name)), max_tokens=2
            )
            yield engines[0]
        finally:
            stop_all(engines)


def wait_written(engine: Engine, chosen: argparse.Namespace, progress: ProgressLine) -> float:
    """Wait until the last blocks are written; requests carry what a rank counts to where it can be seen.

    Returns the size of all objects, in bytes.
    """
    blocks = (chosen.document_tokens - 1) // BLOCK_TOKENS * (chosen.documents + 1)  # with the one to warm up on
    deadline = time.monotonic() + WRITTEN_S
    while time.monotonic() < deadline:
        nudge(engine.client)
        known = engine.client.metrics().sum("gc_object_known_blocks")
        progress(f"objects: {known:.0f} blocks known of at least {blocks}")
        if known >= blocks:
            return engine.client.metrics().sum("gc_object_known_bytes")
        time.sleep(1.0)
    raise TimeoutError(f"objects: expected {blocks} blocks within {WRITTEN_S:g} s")


def report(
    before: Sequence[Completion],
    after: Sequence[Completion],
    computed: Sequence[Completion],
    chosen: argparse.Namespace,
) -> int:
    """Print the table; return 0 when all is right."""
    hit, cold = median(one.ttft_s for one in after), median(one.ttft_s for one in computed)
    rows = [
        ["read from objects", milliseconds(hit), f"{hit / cold:.1%}"],
        ["computed", milliseconds(cold), "100.0%"],
    ]
    print(table(["documents", "TTFT p50", "of computing"], rows), flush=True)
    least = (chosen.document_tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    found = sum((one.cached_tokens or 0) >= least for one in after)
    wrong = sum(not compare(one, two).identical for one, two in zip(before, after, strict=True))
    print(
        f"\n{found} of {len(after)} documents were found whole; {wrong} answers differ from those of the first engine"
    )
    return 1 if (wrong and chosen.compression != "fp8") or found < len(after) else 0


def logprob_errors(before: Sequence[Completion], after: Sequence[Completion]) -> str:
    """Say how far log-probabilities are apart, and how many tokens are alike, up to the first other one of an answer.

    That one counts, too: both are the likeliest, and a model that parts early shows it in few tokens.
    """
    errors: list[float] = []
    tokens = 0
    for one, two in zip(before, after, strict=True):
        same = [a == b for a, b in zip(one.tokens, two.tokens, strict=False)]
        agreed = same.index(False) if False in same else len(same)
        tokens += agreed
        pairs = zip(one.logprobs[: agreed + 1], two.logprobs[: agreed + 1], strict=False)
        errors += [abs(a - b) for a, b in pairs]
    return (
        f"{mean(errors or [math.nan]):.4f} apart on average, {median(errors or [math.nan]):.4f} half of them, "
        f"{max(errors, default=math.nan):.4f} at most; "
        f"{tokens} of {sum(len(one.tokens) for one in before)} tokens alike"
    )


def main(argv: Sequence[str] | None = None) -> int:
    chosen = arguments(argv)
    return run_program(lambda: run(chosen, ProgressLine()))


if __name__ == "__main__":
    sys.exit(main())
