"""The simulated engines that are like real ones: what is measured of these, and made into figures of those."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from statistics import median

from benchmarks.harness.client import Client, run_concurrently
from benchmarks.harness.documents import Documents
from benchmarks.harness.engine import Engine
from benchmarks.harness.launch import EngineOptions
from benchmarks.harness.scenario import NotShared, share
from ghostcacher_cli.up.launch import is_cpu_build
from ghostcacher_simulator.engine import Profile
from ghostcacher_simulator.machines.workers import FleetSpec, WorkerSpec
from ghostcacher_simulator.processor import Cores
from ghostcacher_simulator.steps import Batching

BESIDE = 4
"""Answers beside each other, when a step is measured."""
MEASURED_TOKENS = 48
ROUNDS = 3


def cores_of(engines: Sequence[Engine]) -> list[int]:
    """Return a number for each engine, equal for those on the same cores: on a CPU, also those that are on any."""
    unbound = is_cpu_build()
    places = [getattr(engine.options, "cores", None) or ("" if unbound else engine.options.name) for engine in engines]
    order = list(dict.fromkeys(places))
    return [order.index(place) for place in places]


def on_cores_of_their_own(cores: Sequence[int]) -> list[int]:
    """Return the place of the first engine on each of the cores."""
    return [cores.index(core) for core in sorted(set(cores))]


def on_one_core(cores: Sequence[int]) -> list[int]:
    """Return the places of the engines on the core that has most of them."""
    core = max(sorted(set(cores)), key=Counter(cores).__getitem__)
    return [place for place, each in enumerate(cores) if each == core]


class Meter:
    """Measures engines that do nothing else. Their caches are empty afterwards."""

    def __init__(self, engines: Sequence[Engine], texts: Documents, tokens: int) -> None:
        """tokens: of the prompts that are computed."""
        self._engines, self._texts, self._tokens = engines, texts, tokens
        self._seeds = itertools.count(7_000_000)

    def ttft_s(self, places: Sequence[int]) -> float:
        """Return the time to the first token of a prompt that no engine knows, where all of these compute one."""
        times = []
        for _ in range(ROUNDS):
            prompts = [(self._engines[place], self._document(self._tokens)) for place in places]
            times += run_concurrently(
                lambda each: each[0].client.complete(each[1], max_tokens=2, pull=False).ttft_s,
                prompts,
                concurrency=len(places),
            )
        self._forget()
        return median(times)

    def hit_s(self, end_tokens: int, through: Client | None = None) -> float:
        """Return the time to the first token of a prompt that the first engine has but for its end.

        through: a client of the engine or of a router; asked while all other engines compute. None: of the engine,
        while nothing else runs.
        """
        first, found = self._engines[0], []
        with self._others_compute() if through else nullcontext():
            for _ in range(ROUNDS):
                document = self._document(self._tokens)
                first.client.complete(document, max_tokens=2, pull=False)
                ends = [self._document(end_tokens) for _ in range(2 * ROUNDS)]
                answers = [(through or first.client).complete([*document, *end], max_tokens=2) for end in ends]
                # Another one that pulls it ends first the step in which it computes something else.
                own = [each for each in answers if each.worker in {None, first.options.name}]
                found += [each.ttft_s for each in own if (each.cached_tokens or 0) >= self._tokens / 2]
        self._forget()
        if not found:
            raise NotShared(f"{through}: expected {first} to be asked for what it has, it was not")
        return median(found)

    @contextmanager
    def _others_compute(self) -> Iterator[None]:
        """Have all engines but the first compute prompts, one after the other."""
        ended = threading.Event()

        def compute(engine: Engine) -> None:
            while not ended.is_set():
                engine.client.complete(self._document(self._tokens), max_tokens=2, pull=False)

        with ThreadPoolExecutor(len(self._engines)) as pool:
            running = [pool.submit(compute, engine) for engine in self._engines[1:]]
            try:
                yield
            finally:
                ended.set()
        for each in running:
            each.result()

    def gap_s(self, answers: int, prompt_tokens: int) -> float:
        """Return the time between two tokens of an answer of the first engine, of so many beside each other."""
        client = self._engines[0].client

        def one(number: int) -> float:
            prompt = self._texts.tokens(prompt_tokens, seed=9_000_000 + number)
            return median(client.complete(prompt, max_tokens=MEASURED_TOKENS, ignore_eos=True).gaps_s)

        return median(run_concurrently(one, range(answers), concurrency=answers))

    def pull(self, block_tokens: int) -> tuple[int, float]:
        """Return the bytes of a block that one engine pulls from another one, and the rate, in bytes a second."""
        document = self._texts.tokens(self._tokens, seed=8_000_000)
        pull = share(self._engines[0], self._engines[1], document, max_tokens=2).pull
        self._forget()
        blocks = max(1, pull.tokens // block_tokens)
        return max(1, pull.bytes // blocks), max(1.0, pull.bytes / max(1e-6, pull.seconds))

    def _document(self, tokens: int) -> list[int]:
        return self._texts.tokens(tokens, seed=next(self._seeds))

    def _forget(self) -> None:
        for engine in self._engines:
            engine.client.reset_prefix_cache()


def simulated_fleet(
    engines: Sequence[Engine], texts: Documents, router: Client, *, tokens: int, block_tokens: int, step_tokens: int
) -> tuple[FleetSpec, FleetSpec]:
    """Measure engines that are alike, on one machine; return a fleet that is like them, and one like them and a router.

    They differ in what lies between a request and the scheduler, while other engines compute on the machine.
    tokens: of the prompts that are computed for it. step_tokens: that an engine computes in one step, at most.
    """
    meter, cores = Meter(engines, texts, tokens), cores_of(engines)
    long_s, found_s = meter.ttft_s([0]), meter.hit_s(block_tokens)
    step_s, beside_s = meter.gap_s(1, block_tokens), meter.gap_s(BESIDE, block_tokens)
    before_s = max(0.0, found_s - step_s - block_tokens * long_s / tokens)
    alone_s = max(1e-6, long_s - before_s)

    def speeds(places: Sequence[int]) -> list[float]:
        """Return the speed of one of these engines, of two at a time, and so on, as parts of that of one."""
        times = [meter.ttft_s(places[:count]) - before_s for count in range(2, len(places) + 1)]
        return [1.0, *(min(1.0, alone_s / max(1e-6, each_s)) for each_s in times)]

    busy, shared = speeds(on_cores_of_their_own(cores)), speeds(on_one_core(cores))
    block_bytes, pull_bytes_per_s = meter.pull(block_tokens)
    options = engines[0].options
    assert isinstance(options, EngineOptions)
    profile = Profile(
        # One of them vLLM keeps for itself.
        kv_blocks=max(1, (options.num_blocks or 2) - 1),
        block_tokens=block_tokens,
        prefill_tokens_per_s=tokens / max(1e-6, alone_s - step_s),
        arrival_s=before_s,
        block_bytes=block_bytes,
        pull_bytes_per_s=pull_bytes_per_s,
        pull_fixed_s=0.0,
    )
    batching = Batching(step_tokens, step_s, max(0.0, (beside_s - step_s) / (BESIDE - 1)))
    fleet = FleetSpec(len(engines), WorkerSpec(profile, batching), Cores(cores, busy, shared))

    def asked(client: Client) -> FleetSpec:
        """Return the fleet that is asked through a client."""
        later_s = meter.hit_s(block_tokens, through=client) - found_s
        arriving = profile._replace(arrival_s=max(0.0, before_s + later_s))
        return fleet._replace(worker=fleet.worker._replace(profile=arriving))

    return asked(engines[0].client), asked(router)
