"""What GhostCacher costs an engine when nothing is shared: CPU time of all its processes a token, against plain vLLM.

    python -m benchmarks.overhead [--short] [--size tiny] [--pairs 15] [--host-tier 0 0.5] [--json FILE]
                                  [--requests prompt-logprobs]

Two engines with the same flags on the same core, one plain and one with the connector, which is in a fleet: its prompts
are looked up among a peer's blocks, and a router listens. No prompt shares a prefix with another. Both get the same
prompts, in turns and never at the same time: plain, shared, shared, plain make a pair, the next one the other way
round, so that drift of the machine meets both alike. All requests of a turn are sent at once.

Counted is the CPU time of all threads of each engine, and of Redis, which has no other user; nothing of the client.
Elapsed time is printed beside it: it says more about the machine's other users. Printed are the median of the pairs
and their quartiles, which say how far the median can be trusted on this machine. Target: less than 1 % on the small
model. A tiny model is the hard case: its steps are short, and so any fixed cost is a large part of them.

The difference between two engines is as uncertain as the machine is busy. So what is ours is also measured by itself:
thread by thread, and the calls that vLLM makes of the connector by a clock around each. Their sum is the line "direct";
what it leaves out are vLLM's own costs of having a connector at all, and what threads cost each other.

With ``--requests prompt-logprobs`` all requests are of a kind for which nothing is pulled: it must lose nothing either.

With several sizes of the host tier each of them is measured in turn, against a plain engine of its own.

Scheduler and rank are in one process, as on a GPU: where they are two (vLLM's default on CPUs), each spins while it
waits for the other, and CPU time is no more than elapsed time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from benchmarks.harness import (
    EngineOptions,
    RedisServer,
    ensure_model,
    run_concurrently,
    start_many,
    stop_all,
)
from benchmarks.harness.cost_report import Pair, Turn, as_json, calls_report, idle_report, report
from benchmarks.harness.cpu_time import Group, Snapshot, Use, snapshot, used
from benchmarks.harness.engine import Engine
from benchmarks.harness.model_recipe import Size, recipe
from benchmarks.harness.program import run_program
from benchmarks.harness.quiet_fleet import QuietFleet
from benchmarks.harness.report import ProgressLine, now
from benchmarks.harness.timed_connector import CALLS, FILE_VARIABLE, Times, make_times
from ghostcacher_cli.up.launch import transfer_config

WORKER = "overhead"
SETTLE_S = 0.05
"""After the last answer of a turn: what the connector still has to send belongs to the turn."""
REST_S = 1.0
"""Before an idle engine is looked at: what its last request left behind is over by then."""
IDLE_S = 10.0
IDLE_SHORT_S = 3.0
NUM_BLOCKS = 128
"""Blocks of 128 tokens: full after some turns, so that blocks are evicted and withdrawn, too."""
ONE_PROCESS = ("--distributed-executor-backend", "uni")
ONE_PROCESS_ENV = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1"}
"""Else vLLM refuses the above on CPUs: there it cannot bind the computing threads, of which there is one here."""


CORE = "engine core"
IN_CALLS = Group(CORE, "gc-calls")
"""What the main thread does in the connector's calls; counted as if it were a thread."""


class Load(NamedTuple):
    """The requests of one turn."""

    requests: int
    prompt_tokens: int
    answer_tokens: int
    fields: Mapping[str, Any] = {}
    """What each of them says beside its prompt."""

    @property
    def tokens(self) -> int:
        return self.requests * (self.prompt_tokens + self.answer_tokens)


LOADS: dict[Size, Load] = {"tiny": Load(8, 512, 64), "small": Load(4, 256, 64)}
PAIRS: dict[Size, int] = {"tiny": 40, "small": 16}
SHORT = Load(requests=4, prompt_tokens=256, answer_tokens=32)
SHORT_PAIRS = 4


RequestKind = Literal["text", "prompt-logprobs"]
FIELDS: dict[RequestKind, dict[str, Any]] = {"text": {}, "prompt-logprobs": {"prompt_logprobs": 0}}


class Found(NamedTuple):
    """What was measured with one model."""

    pairs: list[Pair]
    idle: Mapping[str, Turn]
    """What each engine uses while it has nothing to do."""
    calls: Mapping[str, Use]
    """CPU time and number of each call that vLLM has made of the connector, over all pairs."""


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--short", action="store_true", help="4 pairs of a small load: for continuous tests")
    parser.add_argument("--size", choices=list(LOADS), help="one model only; default: both")
    parser.add_argument("--pairs", type=int, help="pairs of each model; default: 40 of tiny, 16 of small")
    parser.add_argument(
        "--host-tier",
        type=float,
        nargs="+",
        default=[0.0],
        metavar="GIB",
        help="of the engine with the connector; one table for each; default: 0, none",
    )
    parser.add_argument("--requests", choices=list(FIELDS), default="text", help="of which kind all requests are")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every pair, thread by thread")
    return parser.parse_args(argv)


def run(chosen: argparse.Namespace, progress: ProgressLine) -> int:
    """Measure and print; return 0."""
    sizes: list[Size] = [chosen.size] if chosen.size else ["tiny"] if chosen.short else ["tiny", "small"]
    results: dict[str, Any] = {}
    for size, tier in itertools.product(sizes, chosen.host_tier):
        load = (SHORT if chosen.short else LOADS[size])._replace(fields=FIELDS[chosen.requests])
        count = chosen.pairs or (SHORT_PAIRS if chosen.short else PAIRS[size])
        began = now()
        found = compare(size, load, count, IDLE_SHORT_S if chosen.short else IDLE_S, progress, tier)
        name = f"{size}, host tier of {tier:g} GiB" if tier else size
        progress.done(f"{name}: {count} pairs of 4 turns of {load}, {now() - began:.0f} s")
        tables = report(found.pairs, load.tokens), calls_report(found.calls), idle_report(found.idle)
        print(*tables, sep="\n\n", end="\n\n", flush=True)
        results[name] = {"load": load._asdict(), **as_json(found.pairs, found.idle, found.calls)}
        if chosen.json:
            chosen.json.write_bytes(msgspec.json.format(msgspec.json.encode(results)))
    return 0


def compare(size: Size, load: Load, count: int, idle_s: float, progress: ProgressLine, host_tier_gib: float) -> Found:
    """Return what one model shows. host_tier_gib: size of the shared engine's host tier."""
    with RedisServer() as redis, tempfile.TemporaryDirectory() as folder:
        times = make_times(Path(folder) / "times")
        common: dict[str, Any] = {
            "model": str(ensure_model(size)),
            "max_model_len": 2048,
            "num_blocks": NUM_BLOCKS,
            "extra_args": ONE_PROCESS,
            "env": ONE_PROCESS_ENV,
        }
        timed = {
            **common,
            "extra_args": (*ONE_PROCESS, "--kv-transfer-config", timed_config(redis.url, host_tier_gib)),
            "env": {**ONE_PROCESS_ENV, FILE_VARIABLE: f"{folder}/times"},
        }
        engines = start_many([EngineOptions(name="plain", **common), EngineOptions(name="shared", **timed)], progress)
        try:
            with QuietFleet(redis.url, WORKER):
                bench = Bench(*engines, redis, times, load, recipe(size).vocab)
                pairs = bench.measure(count, progress)
                by_call = zip(CALLS, times.sum(axis=0).tolist(), strict=True)
                calls = {name: Use(seconds, int(number)) for name, (seconds, number) in by_call}
                idle = {engine.options.name: bench.idle(engine, idle_s) for engine in engines}
                return Found(pairs, idle, calls)
        finally:
            stop_all(engines)


def timed_config(redis_url: str, host_tier_gib: float) -> str:
    """Return the JSON of ``--kv-transfer-config`` for the connector that times its calls."""
    settings = {"redis_url": redis_url, "worker_id": WORKER, "host_tier_gib": host_tier_gib}
    config = json.loads(transfer_config(settings, 0))
    del config["kv_connector_extra_config"]["http_url"]
    return json.dumps({**config, "kv_connector_module_path": "benchmarks.harness.timed_connector"})


class Bench:
    """Two engines and the load that they get in turns."""

    def __init__(self, plain: Engine, shared: Engine, redis: RedisServer, times: Times, load: Load, vocab: int) -> None:
        """times: of the calls that the second engine makes of its connector."""
        self._plain = plain
        self._shared = shared
        self._redis = redis
        self._times = times
        self._load = load
        self._vocab = vocab
        self._chance = random.Random(1)

    def measure(self, count: int, progress: ProgressLine) -> list[Pair]:
        """Return `count` pairs; one more is run before them, and thrown away."""
        pairs = []
        for index in range(count + 1):
            progress(f"pair {index} of {count}")
            first, second = (self._plain, self._shared) if index % 2 == 0 else (self._shared, self._plain)
            turns: dict[str, list[Turn]] = {"plain": [], "shared": []}
            for order in ((first, second), (second, first)):
                prompts = self._prompts()
                for engine in order:
                    turns[engine.options.name].append(self._turn(engine, prompts))
            pairs.append(Pair(sum(turns["plain"], Turn.nothing()), sum(turns["shared"], Turn.nothing())))
        return pairs[1:]

    def idle(self, engine: Engine, seconds: float) -> Turn:
        """Look at an engine for some seconds in which it has nothing to do."""
        time.sleep(REST_S)
        before, start = self._look(engine), now()
        time.sleep(seconds)
        return Turn(used(before, self._look(engine)), now() - start)

    def _turn(self, engine: Engine, prompts: Sequence[Sequence[int]]) -> Turn:
        # Named as a router names its requests: the connector reports them.
        named = [(f"overhead-{self._chance.getrandbits(64):x}", prompt) for prompt in prompts]
        before, start = self._look(engine), now()
        answers = run_concurrently(
            lambda request: engine.client.complete(
                request[1],
                max_tokens=self._load.answer_tokens,
                ignore_eos=True,
                request_id=request[0],
                **self._load.fields,
            ),
            named,
            concurrency=len(named),
        )
        elapsed_s = now() - start
        time.sleep(SETTLE_S)
        use = used(before, self._look(engine))
        tokens = sum(answer.prompt_tokens + answer.completion_tokens for answer in answers)
        assert tokens == self._load.tokens, f"expected {self._load.tokens} tokens, got {tokens}"
        assert not any(answer.cached_tokens for answer in answers), "no prompt shares a prefix with another"
        return Turn(use, elapsed_s)

    def _prompts(self) -> list[list[int]]:
        """Return prompts that were never seen before."""
        count, tokens = self._load.requests, self._load.prompt_tokens
        return [[self._chance.randrange(10, self._vocab) for _ in range(tokens)] for _ in range(count)]

    def _look(self, engine: Engine) -> Snapshot:
        server, *others = engine.process.processes()
        roles = {"API server": [server], CORE: others}
        if engine is not self._shared:
            return snapshot(roles)
        seen = snapshot({**roles, "Redis": self._redis.process.processes()})
        seconds, calls = self._times.sum(axis=(0, 1)).tolist()
        return seen.split(Group(CORE, "main"), IN_CALLS, Use(seconds, int(calls)))


def main(argv: Sequence[str] | None = None) -> int:
    chosen = arguments(argv)
    return run_program(lambda: run(chosen, ProgressLine()))


if __name__ == "__main__":
    sys.exit(main())
