"""What a host tier is worth: documents revisited in random order by two engines that hold half of them.

    python -m benchmarks.tiers [--short] [--size small] [--ways plain off host] [--documents 12] [--requests 48]
                               [--engine-documents 3.5] [--concurrency 2] [--no-ttft] [--peer-python PATH]

Two real vLLM engines and a real Redis on this machine. Each way gets engines of its own and the same prompts in the
same order, after the engines have warmed up on something else:

    plain      plain engines, in turn
    router     plain engines behind the router alone
    off        the router, and the connector without a host tier
    host       the same with a host tier of the same bytes as the engines' own cache
    offload    plain engines behind the router, with vLLM's own OffloadingConnector, made to run on CPUs
    lmcache    the same with LMCache's multi-process server
    mooncake   the same with Mooncake's store

The last three get the bytes that the host tiers have; how they are set up and installed stands in benchmarks/peers.
lmcache and mooncake need --peer-python, the Python of an environment that has them.

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
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

from benchmarks.harness import Documents, EngineOptions, RedisServer, ensure_model, start_many, stop_all
from benchmarks.harness.client import compare
from benchmarks.harness.hit_places import hit_places, hit_places_report
from benchmarks.harness.program import run_program
from benchmarks.harness.report import ProgressLine, milliseconds, table
from benchmarks.harness.router import RouterProcess
from benchmarks.harness.scenario import wait_until_joined, warm_up
from benchmarks.harness.workload import Load, Result, make_load, round_robin, run_load, through
from benchmarks.peers.peer_engines import STARTS, PeerEngine, Setup, peer_engines, require_importable

ANSWER_TOKENS = 8
QUESTION_TOKENS = 64
"""More than a question takes."""
ENGINES = 2
BLOCK_TOKENS = 128
"""The default on CPUs."""
GIB = 1 << 30
WRONG_MIN = 0.3
"""Prompts that are computed at the same time round otherwise than those that are computed alone: on the small model one
plain engine was off from itself by up to 0.2. With one of 16 blocks taken from another document, ten of twelve answers
were off by 0.3 to 1.9."""
WAYS = ("plain", "router", "off", "host", *STARTS)


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
    parser.add_argument("--short", action="store_true", help="tiny model, 6 documents, 18 requests, two ways")
    parser.add_argument("--size", choices=["tiny", "small"], default="small")
    parser.add_argument("--ways", nargs="*", choices=WAYS, help="default: plain router off host")
    parser.add_argument("--documents", type=int, default=12)
    parser.add_argument("--document-tokens", type=int, default=4096)
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--engine-documents", type=float, default=3.5, help="documents that one engine's cache holds")
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-ttft", action="store_true", help="leave out the second part")
    parser.add_argument("--peer-python", metavar="PATH", help="of an environment with LMCache and Mooncake")
    chosen = parser.parse_args(argv)
    if chosen.ways is None:
        chosen.ways = ["router", "host"] if chosen.short else ["plain", "router", "off", "host"]
    if chosen.short:
        chosen.size, chosen.documents, chosen.requests, chosen.document_tokens = "tiny", 6, 18, 1024
        chosen.engine_documents = 2.0
    return chosen


def run(chosen: argparse.Namespace, progress: ProgressLine) -> int:
    """Measure and print; return 0 when every answer was right."""
    require_importable(chosen.ways, chosen.peer_python)
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
        wrong = sum(off > WRONG_MIN for result in results[1:] for off in distances(results[0], result))
        print(f"\n{wrong} answers differ from those of the first way by more than rounding ({WRONG_MIN})", flush=True)
    if not chosen.no_ttft:
        print(hit_places_report(ttft(chosen, model, sizes, documents, progress)), flush=True)
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
    way: str,
    chosen: argparse.Namespace,
    model: str,
    sizes: Sizes,
    redis: str,
    *,
    tier: float = 1.0,
    peers: Sequence[PeerEngine] = (),
) -> list[EngineOptions]:
    """Return the options of both engines for one way.

    tier: bytes of the host tier over those of the engine's cache. peers: of a way that is another project's.
    """
    settings: dict[str, Any] = {"redis_url": redis, "lookup_deadline_ms": 1000.0}
    if way == "host":
        settings["host_tier_gib"] = (tier * sizes.blocks + 0.5) * sizes.block_bytes / GIB
    shared = way in ("off", "host")
    return [
        EngineOptions(
            model=model,
            name=f"{way}{number}",
            connector={**settings, "worker_id": f"{way}{number}"} if shared else None,
            max_model_len=chosen.document_tokens + QUESTION_TOKENS,
            num_blocks=sizes.blocks + 1,  # vLLM keeps one to itself
            block_size=BLOCK_TOKENS,
            python=peers[number].python if peers else None,
            extra_args=peers[number].arguments if peers else (),
            env=peers[number].env if peers else {},
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
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gc-peers-")))
        bytes_each = sizes.blocks * sizes.block_bytes
        setup = Setup(chosen.peer_python, ENGINES, bytes_each, BLOCK_TOKENS, folder)
        peers = stack.enter_context(peer_engines(way, setup))
        engines = start_many(options_of(way, chosen, model, sizes, redis.url, peers=peers), progress)
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
            plain = [] if way in ("off", "host") else [engine.url for engine in engines]
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


def distances(one: Result, other: Result) -> list[float]:
    """Return how far each answer is from its twin: the largest distance of their log-probabilities."""
    pairs = zip(one.answers, other.answers, strict=True)
    return [compare(first, second).logprob_max for first, second in pairs]


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
            _off(results[0], result),
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
        "answers off, p50 (most)",
    ]
    return table(headers, rows)


def _off(first: Result, result: Result) -> str:
    if result is first:
        return "-"
    off = distances(first, result)
    return f"{median(off):.3f} ({max(off):.3f})"


def ttft(
    chosen: argparse.Namespace, model: str, sizes: Sizes, documents: Documents, progress: ProgressLine
) -> dict[str, list[float]]:
    """Return times to first token, in s, by where the document was found."""
    with RedisServer() as redis:
        engines = start_many(options_of("host", chosen, model, sizes, redis.url, tier=2.0), progress)
        try:
            wait_until_joined(engines)
            return hit_places(engines, documents, chosen.document_tokens, BLOCK_TOKENS, progress)
        finally:
            stop_all(engines)


def main(argv: Sequence[str] | None = None) -> int:
    chosen = arguments(argv)
    return run_program(lambda: run(chosen, ProgressLine()))


if __name__ == "__main__":
    sys.exit(main())
