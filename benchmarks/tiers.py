"""What a host tier is worth: documents revisited in random order by two engines that hold half of them.

    python -m benchmarks.tiers [--short] [--size small] [--ways plain off host] [--documents 12] [--requests 48]
                               [--engine-documents 3.5] [--concurrency 2] [--no-ttft]

Two real vLLM engines and a real Redis on this machine. Each way gets engines of its own and the same prompts in the
same order, after the engines have warmed up on something else:

    plain      plain engines, in turn
    router     plain engines behind the router alone
    off        the router, and the connector without a host tier
    host       the same with a host tier of the same bytes as the engines' own cache
    offload    plain engines behind the router, with vLLM's own OffloadingConnector of the same bytes; vLLM 0.32
               refuses it on CPUs

The first visit of a document has to be computed by somebody, and so have the questions: no way can take more from a
cache than the whole blocks of the other visits; their share is printed. Every answer must be that of the first way, up
to rounding.

Then the time to first token of one prompt of a document's length: found in the engine's own cache, in this worker's
host tier, in a peer's engine and in a peer's host tier.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from statistics import mean, median
from typing import Any, NamedTuple

from benchmarks.harness import Client, Documents, EngineOptions, RedisServer, ensure_model, start_many, stop_all
from benchmarks.harness.client import compare
from benchmarks.harness.comparison import ROUNDING_MAX
from benchmarks.harness.engine import Engine
from benchmarks.harness.program import run_program
from benchmarks.harness.report import ProgressLine, milliseconds, table
from benchmarks.harness.router import RouterProcess
from benchmarks.harness.scenario import nudge, wait_until_joined, warm_up
from benchmarks.harness.workload import Load, Result, make_load, round_robin, run_load, through

ANSWER_TOKENS = 8
QUESTION_TOKENS = 64
"""More than a question takes."""
ENGINES = 2
BLOCK_TOKENS = 128
"""The default on CPUs."""
GIB = 1 << 30
WAYS = ("plain", "router", "off", "host", "offload")
TTFT_DOCUMENTS = 6


class Sizes(NamedTuple):
    """What the engines hold."""

    blocks: int
    """In the engine's cache, of each engine."""
    block_bytes: int

    @property
    def gib(self) -> float:
        """The same in GiB."""
        return self.blocks * self.block_bytes / GIB


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tiers", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--short", action="store_true", help="tiny model, 6 documents, 18 requests")
    parser.add_argument("--size", choices=["tiny", "small"], default="small")
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=["plain", "router", "off", "host"])
    parser.add_argument("--documents", type=int, default=12)
    parser.add_argument("--document-tokens", type=int, default=4096)
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--engine-documents", type=float, default=3.5, help="documents that one engine's cache holds")
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-ttft", action="store_true", help="leave out the second part")
    chosen = parser.parse_args(argv)
    if chosen.short:
        chosen.size, chosen.documents, chosen.requests, chosen.document_tokens = "tiny", 6, 18, 1024
        chosen.engine_documents = 2.0
    return chosen


def run(chosen: argparse.Namespace, progress: ProgressLine) -> int:
    """Measure and print; return 0 when every answer was right."""
    model = str(ensure_model(chosen.size))
    documents = Documents(model)
    sizes = sizes_of(model, chosen)
    load = make_load(
        documents,
        documents=chosen.documents,
        document_tokens=chosen.document_tokens,
        requests=chosen.requests,
        seed=chosen.seed,
        skew=None,
    )
    results = [measure(way, chosen, sizes, load, documents, progress) for way in chosen.ways]
    progress.done(
        f"{chosen.size} model, {ENGINES} engines of {sizes.blocks} blocks ({sizes.gib:.2f} GiB, "
        f"{chosen.engine_documents} documents each); {chosen.requests} requests on {chosen.documents} documents of "
        f"{chosen.document_tokens:,} tokens, {chosen.concurrency} at once"
    )
    wrong = 0
    if results:
        print(report(results, reusable_share(load, documents)), flush=True)
        wrong = sum(different(results[0], result) for result in results[1:])
        print(f"\n{wrong} answers differ from those of the first way by more than rounding", flush=True)
    if not chosen.no_ttft:
        print(ttft_report(ttft(chosen, model, sizes, documents, progress)), flush=True)
    return 1 if wrong else 0


def sizes_of(model: str, chosen: argparse.Namespace) -> Sizes:
    """Return how many blocks hold the documents that an engine is to hold, and the bytes of a block."""
    with open(f"{model}/config.json") as file:
        config = json.load(file)
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    token_bytes = 2 * 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head
    blocks = round(chosen.engine_documents * chosen.document_tokens / BLOCK_TOKENS)
    return Sizes(blocks, token_bytes * BLOCK_TOKENS)


def options_of(
    way: str, chosen: argparse.Namespace, model: str, sizes: Sizes, redis: str, *, tier: float = 1.0
) -> list[EngineOptions]:
    """Return the options of both engines for one way. tier: bytes of the host tier over those of the engine's cache."""
    settings: dict[str, Any] = {"redis_url": redis, "lookup_deadline_ms": 1000.0}
    if way == "host":
        settings["host_tier_gib"] = (tier * sizes.blocks + 0.5) * sizes.block_bytes / GIB
    shared = way in ("off", "host")
    offload = {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"cpu_bytes_to_use": sizes.blocks * sizes.block_bytes},
    }
    return [
        EngineOptions(
            model=model,
            name=f"{way}{number}",
            connector={**settings, "worker_id": f"{way}{number}"} if shared else None,
            max_model_len=chosen.document_tokens + QUESTION_TOKENS,
            num_blocks=sizes.blocks + 1,  # vLLM keeps one to itself
            block_size=BLOCK_TOKENS,
            extra_args=("--kv-transfer-config", json.dumps(offload)) if way == "offload" else (),
        )
        for number in range(ENGINES)
    ]


def measure(
    way: str,
    chosen: argparse.Namespace,
    sizes: Sizes,
    load: Load,
    documents: Documents,
    progress: ProgressLine,
) -> Result:
    """Answer the load in one way."""
    model = str(ensure_model(chosen.size))
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer(tcp=True))
        engines = start_many(options_of(way, chosen, model, sizes, redis.url), progress)
        stack.callback(stop_all, engines)
        clients = [engine.client for engine in engines]
        if way in ("off", "host"):
            wait_until_joined(engines)
        for number, engine in enumerate(engines):
            progress(f"{way}: warming up {engine.options.name}")
            warm_up(engine, documents.tokens(chosen.document_tokens, seed=9_000_000 + number))
        policy = round_robin(clients)
        if way != "plain":
            # After the warming up: what the engines have forgotten is no document of theirs.
            plain = [engine.url for engine in engines] if way in ("router", "offload") else []
            router = RouterProcess(redis_url=None if plain else redis.url, workers=plain)
            stack.enter_context(router)
            policy = through(router.wait_workers(len(engines)).client)
        policy.name = way
        result = run_load(
            policy,
            load,
            concurrency=chosen.concurrency,
            max_tokens=ANSWER_TOKENS,
            pull=True,
            progress=progress,
        )
    progress.done(f"{way}: {result.hit_ratio:.1%} from a cache, TTFT mean {milliseconds(mean(result.ttft_s))}")
    return result


def different(one: Result, other: Result) -> int:
    """Return how many answers differ by more than rounding."""
    pairs = zip(one.answers, other.answers, strict=True)
    return sum(compare(first, second).logprob_max > ROUNDING_MAX for first, second in pairs)


def reusable_share(load: Load, documents: Documents) -> float:
    """Return the share of the prompts' tokens that can come from a cache, if nothing is ever lost: whole blocks."""
    before: dict[int, list[list[int]]] = {}
    total = found = 0
    for text, document in zip(load.prompts, load.documents, strict=True):
        prompt = documents.encode(text)
        earlier = before.setdefault(document, [])
        shared = max((_common(prompt, other) for other in earlier), default=0)
        found += min(shared, len(prompt) - 1) // BLOCK_TOKENS * BLOCK_TOKENS
        total += len(prompt)
        earlier.append(prompt)
    return found / total


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    return next((count for count, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))


def report(results: Sequence[Result], reusable: float) -> str:
    """Return the table of all ways. reusable: the share of all tokens that can come from a cache."""
    rows = [
        [
            result.policy,
            f"{result.hit_ratio:.1%}",
            f"{result.hit_ratio / reusable:.1%}",
            milliseconds(mean(result.ttft_s)),
            milliseconds(result.p50_s),
            milliseconds(result.p90_s),
            f"{result.seconds:.0f} s",
        ]
        for result in results
    ]
    headers = [
        "way",
        "from a cache",
        f"of the {reusable:.1%} that can be",
        "TTFT mean",
        "p50",
        "p90",
        "all answered in",
    ]
    return table(headers, rows)


def ttft(
    chosen: argparse.Namespace, model: str, sizes: Sizes, documents: Documents, progress: ProgressLine
) -> dict[str, list[float]]:
    """Return times to first token, in s, by where the document was found."""
    prompts = [documents.tokens(chosen.document_tokens, seed=5_000_000 + index) for index in range(TTFT_DOCUMENTS)]
    found: dict[str, list[float]] = {}
    with RedisServer() as redis:
        options = options_of("host", chosen, model, sizes, redis.url, tier=2.0)
        engines = start_many(options, progress)
        try:
            wait_until_joined(engines)
            for engine in engines:
                warm_up(engine, documents.tokens(chosen.document_tokens, seed=6_000_000))
            _visit(engines, prompts, found, progress)
        finally:
            stop_all(engines)
    return found


def _visit(
    engines: Sequence[Engine],
    prompts: Sequence[list[int]],
    found: dict[str, list[float]],
    progress: Callable[[str], None],
) -> None:
    """Ask A for all documents in turn, each twice, so that the first time it is in the host tier; then ask B."""
    a, b = (engine.client for engine in engines)
    for number in range(3 * len(prompts)):
        progress(f"time to first token: {number} of {3 * len(prompts)}")
        prompt = prompts[number % len(prompts)]
        where = "cold" if number < len(prompts) else "own host tier"
        _ask(a, prompt, where, found)
        _ask(a, prompt, "own engine", found)
    for _ in range(3):
        # The oldest ones of A are in its host tier alone; the last one is in its engine.
        for prompt, where in ((prompts[0], "peer's host tier"), (prompts[-1], "peer's engine")):
            progress(f"time to first token: {where}")
            _ask(b, prompt, where, found)
        b.reset_prefix_cache()
        nudge(b)


def _ask(client: Client, prompt: list[int], where: str, found: dict[str, list[float]]) -> None:
    answer = client.complete(prompt, max_tokens=ANSWER_TOKENS)
    computed = len(prompt) - (answer.cached_tokens or 0)
    if computed > 2 * BLOCK_TOKENS and where != "cold":
        where = f"not all in {where}"
    found.setdefault(where, []).append(answer.ttft_s)
    nudge(client)


def ttft_report(found: dict[str, list[float]]) -> str:
    """Return the table of where a document was found."""
    base = median(found.get("own engine", [float("nan")]))
    rows = [
        [where, str(len(times)), milliseconds(median(times)), milliseconds(min(times)), f"{median(times) / base:.2f}x"]
        for where, times in found.items()
    ]
    return "\n" + table(["document found in", "times", "TTFT p50", "least", "of an engine hit"], rows)


def main(argv: Sequence[str] | None = None) -> int:
    chosen = arguments(argv)
    return run_program(lambda: run(chosen, ProgressLine()))


if __name__ == "__main__":
    sys.exit(main())
