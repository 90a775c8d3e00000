"""SGLang: time to first token cold, pulled and local; what the linker costs where nothing is shared; HiCache.

    python -m benchmarks.sglang_ttft [--short] [--size small] [--tokens 1024 4096] [--repeat 5]

Real SGLang servers without a GPU (tests/support/sglang_cpu), a real Redis, the same documents for all:

    shared   A computes a document; B pulls it from A's pool; B finds it in its own; B computes it (under a salt)
    plain    an engine without a linker computes it
    HiCache  one engine computes it, and SGLang writes it to files; another one reads it from there

Medians of time to first token. Every answer is checked against the one that B computes alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.harness import Completion, Documents, RedisServer, compare, ensure_model, start_many, stop_all
from benchmarks.harness.engine import Engine
from benchmarks.harness.program import run_program
from benchmarks.harness.report import ProgressLine, milliseconds, table
from benchmarks.harness.sglang import SglangClient, SglangOptions, sglang_python

ANSWER_TOKENS = 4
PAGE_TOKENS = 16
WRITTEN_S = 1.5
"""Between the owner's answer and the other's question: HiCache writes its files beside the engine."""

TOLERANCE = 1e-3
HICACHE = (
    "--enable-hierarchical-cache",
    *("--hicache-storage-backend", "file"),
    *("--hicache-io-backend", "direct"),
    *("--hicache-mem-layout", "page_first_direct"),
    *("--hicache-write-policy", "write_through"),
    *("--hicache-storage-prefetch-policy", "wait_complete"),
)


class Times(NamedTuple):
    """Times to first token of one document, in s, and how far its answers are from the right one at most."""

    cold: float
    pulled: float
    local: float
    plain: float
    off: float
    cached: int


class FileTimes(NamedTuple):
    """The same by HiCache's files."""

    read: float
    off: float
    cached: int


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sglang_ttft", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--short", action="store_true", help="tiny model, 1,024 tokens, 2 times: for continuous tests")
    parser.add_argument("--size", choices=["tiny", "small"], default="small")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--repeat", type=int, default=5)
    chosen = parser.parse_args(argv)
    if chosen.short:
        chosen.size, chosen.tokens, chosen.repeat = "tiny", [1024], 2
    return chosen


def run(chosen: argparse.Namespace, progress: ProgressLine) -> int:
    """Measure and print; return 0 when every answer was right and every document was pulled."""
    if not sglang_python().exists():
        print(f"skipped: SGLang is not installed for {sglang_python()} (make setup-sglang)")
        return 0
    model = ensure_model(chosen.size)
    documents = Documents(model)
    prompts = {
        count: [documents.tokens(count, seed=7_000 + 100 * count + number) for number in range(chosen.repeat + 1)]
        for count in chosen.tokens
    }
    answers: dict[tuple[int, int], Completion] = {}
    shared = measure_shared(model, prompts, answers, progress)
    files = measure_files(model, prompts, answers, progress)
    progress.done(f"{chosen.size} model, float32, {chosen.repeat} documents of each length")
    print(report(shared, files))
    return 0 if check(shared, files) else 1


def measure_shared(
    model: Path,
    prompts: dict[int, list[list[int]]],
    answers: dict[tuple[int, int], Completion],
    progress: ProgressLine,
) -> dict[int, list[Times]]:
    """Measure two engines with the linker and one without; note the right answers."""
    with RedisServer() as redis:
        connector = {"redis_url": redis.url, "pull": "always", "lookup_deadline_ms": 1000.0}
        engines = start_many(
            [
                options(model, prompts, "A", connector={**connector, "worker_id": "sglang-A"}),
                options(model, prompts, "B", connector={**connector, "worker_id": "sglang-B"}),
                options(model, prompts, "plain"),
            ],
            progress,
        )
        try:
            warm_up(engines, prompts)
            found = {
                count: [one_shared(engines, answers, count, number, prompt) for number, prompt in enumerate(some)][1:]
                for count, some in prompts.items()
            }
            progress.done(waits(client(engines[1])))
            return found
        finally:
            stop_all(engines)


def one_shared(
    engines: Sequence[Engine], answers: dict[tuple[int, int], Completion], count: int, number: int, prompt: list[int]
) -> Times:
    a, b, plain = map(client, engines)
    # Each goes first half of the time: on a shared machine the second one is served by warmer caches.
    both = [lambda: b.complete(prompt, max_tokens=ANSWER_TOKENS, cache_salt="alone")]
    both.insert(number % 2, lambda: plain.complete(prompt, max_tokens=ANSWER_TOKENS))
    done = [ask() for ask in both]
    alone, bare = (done[0], done[1]) if number % 2 else (done[1], done[0])
    answers[count, number] = alone
    a.complete(prompt, max_tokens=ANSWER_TOKENS)
    time.sleep(WRITTEN_S)
    pulled = b.complete(prompt, max_tokens=ANSWER_TOKENS)
    local = b.complete(prompt, max_tokens=ANSWER_TOKENS)
    off = max(compare(answer, alone).logprob_max for answer in (pulled, local, bare))
    return Times(alone.ttft_s, pulled.ttft_s, local.ttft_s, bare.ttft_s, off, pulled.cached_tokens or 0)


def waits(reader: SglangClient) -> str:
    """Return how long an engine's scheduler waited for lookups: the share of them under a millisecond, and the mean."""
    reader.settle()
    page = reader.metrics()
    name = "gc_lookup_wait_seconds"
    count = max(1.0, page.sum(f"{name}_count"))
    quick = page.sum(f"{name}_bucket", le="0.001") / count
    return f"waits for a lookup: {quick:.0%} under 1 ms, {milliseconds(page.sum(f'{name}_sum') / count)} on average"


def measure_files(
    model: Path,
    prompts: dict[int, list[list[int]]],
    answers: dict[tuple[int, int], Completion],
    progress: ProgressLine,
) -> dict[int, list[FileTimes]]:
    """Measure two engines that share a folder of files through HiCache."""
    with tempfile.TemporaryDirectory(prefix="ghostcacher-hicache-") as folder:
        env = {"SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR": folder}
        engines = start_many(
            [options(model, prompts, name, extra_args=HICACHE, env=env) for name in ("H1", "H2")], progress
        )
        try:
            warm_up(engines, prompts)
            found: dict[int, list[FileTimes]] = {}
            for count, some in prompts.items():
                for number, prompt in enumerate(some):
                    owner, reader = map(client, engines)
                    owner.complete(prompt, max_tokens=ANSWER_TOKENS)
                    time.sleep(WRITTEN_S)
                    read = reader.complete(prompt, max_tokens=ANSWER_TOKENS)
                    off = compare(read, answers[count, number]).logprob_max
                    found.setdefault(count, []).append(FileTimes(read.ttft_s, off, read.cached_tokens or 0))
                del found[count][0]
            return found
        finally:
            stop_all(engines)


def options(model: Path, prompts: dict[int, list[list[int]]], name: str, **changes: object) -> SglangOptions:
    longest = max(prompts)
    return SglangOptions(
        model=str(model),
        name=name,
        page_tokens=PAGE_TOKENS,
        context_tokens=longest + 64,
        # Room for all documents of all lengths, once under a salt: nothing is evicted while it is measured.
        pool_tokens=sum(3 * len(some) * count for count, some in prompts.items()) // PAGE_TOKENS * PAGE_TOKENS,
        chunk_tokens=longest,
        **changes,
    )


def client(engine: Engine) -> SglangClient:
    found = engine.client
    assert isinstance(found, SglangClient)
    return found


def warm_up(engines: Sequence[Engine], prompts: dict[int, list[list[int]]]) -> None:
    """Let each engine compute one prompt of each length that is not measured."""
    for engine in engines:
        for some in prompts.values():
            client(engine).complete(some[0], max_tokens=ANSWER_TOKENS, cache_salt="warm-up")


def report(shared: dict[int, list[Times]], files: dict[int, list[FileTimes]]) -> str:
    """Return the table of medians."""
    headers = [
        "tokens",
        "plain SGLang, cold",
        "cold",
        "linker's cost",
        "pulled",
        "local",
        "cold/pulled",
        "HiCache, file",
    ]
    rows = []
    for count, found in shared.items():
        cold, pulled, local, plain = (median(column) for column in list(zip(*found, strict=True))[:4])
        read = median(one.read for one in files[count])
        cells = [milliseconds(plain), milliseconds(cold), f"{cold / plain - 1:+.1%}", milliseconds(pulled)]
        rows.append([f"{count:,}", *cells, milliseconds(local), f"{cold / pulled:.1f}", milliseconds(read)])
    return table(headers, rows)


def check(shared: dict[int, list[Times]], files: dict[int, list[FileTimes]]) -> bool:
    """Print what was wrong, if anything was, and return whether all was right."""
    right = True
    for count, found in shared.items():
        for name, some in (("pulled", found), ("HiCache", files[count])):
            wrong = max(one.off for one in some)
            if wrong > TOLERANCE:
                print(f"WRONG: {count} tokens, {name}: answers are off by up to {wrong:g}")
                right = right and name != "pulled"
        if any(one.cached < (count - 1) // PAGE_TOKENS * PAGE_TOKENS for one in found):
            print(f"FAILED: {count} tokens: a document was not pulled")
            right = False
        if not all(one.cached for one in files[count]):
            print(f"note: {count} tokens: HiCache did not read every document from its files")
    return right


def main(argv: Sequence[str] | None = None) -> int:
    chosen = arguments(argv)
    return run_program(lambda: run(chosen, ProgressLine()))


if __name__ == "__main__":
    sys.exit(main())
