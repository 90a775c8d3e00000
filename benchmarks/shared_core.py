"""What vLLM's process for each rank costs CPU engines, alone and where two of them share a core.

    python -m benchmarks.shared_core [--short] [--size small] [--tokens 1536] [--seconds 30]

Two plain engines without our connector: one computes one new document after the other, the other one answers short
questions on a document that it has, three a second. As `ghostcacher up` starts them, and as vLLM does by itself: with a
process for the rank, which spins, as does the scheduler that waits for it. Also how long engines take to start, side
by side, and the memory of one.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness import Documents, EngineOptions, core_shares, ensure_model, start_many, stop_all
from benchmarks.harness.engine import Engine
from benchmarks.harness.program import run_program
from benchmarks.harness.report import ProgressLine, milliseconds, percentile, table

ANSWER_TOKENS = 8
BLOCK_TOKENS = 32
QUESTION_TOKENS = 16
PAUSE_S = 0.3
"""Between two questions: shorter than the second for which vLLM's processes spin."""
RANK_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}


class Way(NamedTuple):
    """How two engines are started. cores: to which they are bound, None: to none. env: over what `up` sets."""

    name: str
    cores: tuple[str | None, str | None]
    env: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {})


class Found(NamedTuple):
    ready_s: float
    gib: float
    documents_s: list[float]
    questions_s: list[float]


def ways() -> list[Way]:
    """Return the ways to compare, on the first two cores there are."""
    first, second = (share.split(",")[0] for share in core_shares(2))

    def ranks(*cores: str) -> tuple[Mapping[str, str], Mapping[str, str]]:
        one, other = ({**RANK_PROCESS, "VLLM_CPU_OMP_THREADS_BIND": core} for core in cores)
        return one, other

    return [
        Way("a process for the rank, two cores", (None, None), ranks(first, second)),
        Way("a process for the rank, one core", (None, None), ranks(first, first)),
        Way("one process, one core", (first, first)),
        Way("one process, any core", (None, None)),
    ]


def measure(way: Way, chosen: argparse.Namespace, texts: Documents, model: str, progress: ProgressLine) -> Found:
    """Start two engines in one way, and return what they take."""
    longest = chosen.tokens + 256
    options = [
        EngineOptions(
            model=model,
            name=f"w{number}",
            max_model_len=longest,
            block_size=BLOCK_TOKENS,
            num_blocks=3 * longest // BLOCK_TOKENS,
            cores=cores,
            env={"OMP_NUM_THREADS": "1", **env},
        )
        for number, (cores, env) in enumerate(zip(way.cores, way.env, strict=True))
    ]
    engines = start_many(options, progress)
    try:
        for engine in engines:
            engine.client.complete(texts.tokens(chosen.tokens, seed=1), max_tokens=2)
        progress(f"{way.name}: asking")
        until = time.monotonic() + chosen.seconds
        with ThreadPoolExecutor(1) as beside:
            documents = beside.submit(ask_documents, engines[1], texts, chosen.tokens, until)
            questions_s = ask_questions(engines[0], texts, chosen.tokens, until)
            documents_s = documents.result()
        ready_s = max(engine.ready_s or 0.0 for engine in engines)
        return Found(ready_s, memory_gib(engines[1]), documents_s, questions_s)
    finally:
        stop_all(engines)


def ask_documents(engine: Engine, texts: Documents, tokens: int, until: float) -> list[float]:
    """Return the TTFT of documents that are new, one after the other; of one at least."""
    times = list[float]()
    while not times or time.monotonic() < until:
        document = texts.tokens(tokens, seed=1_000 + len(times))
        times.append(engine.client.complete(document, max_tokens=ANSWER_TOKENS).ttft_s)
    return times


def ask_questions(engine: Engine, texts: Documents, tokens: int, until: float) -> list[float]:
    """Return the TTFT of questions on the document that the engine was warmed up with."""
    document, times = texts.tokens(tokens, seed=1), list[float]()
    while time.monotonic() < until:
        question = texts.tokens(QUESTION_TOKENS, seed=100_000 + len(times))
        times.append(engine.client.complete([*document, *question], max_tokens=ANSWER_TOKENS).ttft_s)
        time.sleep(PAUSE_S)
    return times


def memory_gib(engine: Engine) -> float:
    """Return the memory that is an engine's own, of all its processes: without what they share."""
    return sum(map(_own_bytes, engine.process.processes())) / (1 << 30)


def _own_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("Private_", "SwapPss")))


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.shared_core", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--short", action="store_true", help="tiny model, a few seconds each")
    parser.add_argument("--size", choices=["tiny", "small"], default="small")
    parser.add_argument("--tokens", type=int, default=1536, help="of a document")
    parser.add_argument("--seconds", type=float, default=30.0, help="for which engines are asked, in each way")
    chosen = parser.parse_args(argv)
    if chosen.short:
        chosen.size, chosen.tokens, chosen.seconds = "tiny", 512, 3.0
    return chosen


def run(chosen: argparse.Namespace, progress: ProgressLine) -> int:
    model = str(ensure_model(chosen.size))
    texts = Documents(model)
    rows = []
    for way in ways():
        found = measure(way, chosen, texts, model, progress)
        times = [f"{milliseconds(percentile(each, 50))}, {milliseconds(max(each))}" for each in found[2:]]
        rows.append([way.name, f"{found.ready_s:.0f} s", f"{found.gib:.1f} GiB", *times])
    progress.done("")
    heads = ["two engines", "ready in", "memory of one", "documents: p50, slowest", "questions: p50, slowest"]
    print(table(heads, rows))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(lambda: run(arguments(argv), ProgressLine()))


if __name__ == "__main__":
    sys.exit(main())
