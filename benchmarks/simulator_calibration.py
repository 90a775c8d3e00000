"""How far `ghostcacher simulate` is from real engines: the same questions, asked of both.

    python -m benchmarks.simulator_calibration [--short] [--size small] [--engines 2,3] [--documents 12] [--requests 72]
        [--clients 4,each] [--rounds 3] [--each FILE]

Real vLLM engines, a real Redis and a real router. First an engine is measured alone: a document that is new, and one
that it has but for its end, asked for by itself and through the router while the others compute, an answer alone and
several beside each other, a pull; and how much slower engines are that compute at one time, on cores of their own and
on the same ones. These figures make the simulated workers. Then both get the same questions, in turns and through the
router, from as many clients. One placement more or less decides where all later ones go: so there are several rounds,
each with other documents in another order and empty caches; figures are of all rounds together. Prompts of which an
engine has most take a small part of the time of the others, and where they are about half the median of all lies
anywhere between the two: so there are medians of either kind, too. Exits with 1 where the simulator is off by more than
20 % in a median TTFT or in tokens computed. What else computes meanwhile makes the engines' speed another one than was
measured. `--each FILE` has what became of each request, of both, as JSON lines.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from operator import attrgetter
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from benchmarks.harness import Documents, EngineOptions, RedisServer, ensure_model, start_many, stop_all
from benchmarks.harness.client import Client, Completion
from benchmarks.harness.engine import Engine
from benchmarks.harness.program import run_program
from benchmarks.harness.report import ProgressLine, milliseconds, percentile, table
from benchmarks.harness.router import RouterProcess
from benchmarks.harness.scenario import wait_until_joined, warm_up
from benchmarks.harness.simulated_engines import simulated_fleet
from benchmarks.harness.workload import Load as Questions
from benchmarks.harness.workload import Result, make_load, round_robin, run_load, through
from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_simulator.load.requests import Load, Row, make_requests
from ghostcacher_simulator.machines.workers import FleetSpec
from ghostcacher_simulator.replay.policies import entrants
from ghostcacher_simulator.replay.replay import Run, replay
from ghostcacher_simulator.virtual_time import run_virtual

ANSWER_TOKENS = 8
BLOCK_TOKENS = 32
STEP_TOKENS = 2_048
OVERCOMMIT = 8 / 7
"""The documents' KV, over what all engines together hold, be they two or three: caches are about full."""
OFF_MAX = 0.2
CHECKED = ("p50_s", "found_p50_s", "computed_p50_s", "tokens")
EACH = "each"
POLICIES = {"round robin": "round-robin", "GhostCacher": "ghostcacher"}


FIGURES: dict[str, tuple[str, Callable[[float], str]]] = {
    "p50_s": ("TTFT p50", milliseconds),
    "found_p50_s": ("of prompts that were found", milliseconds),
    "computed_p50_s": ("of prompts that were computed", milliseconds),
    "mean_s": ("TTFT mean", milliseconds),
    "found_part": ("prompts that were found", "{:.0%}".format),
    "tokens": ("tokens computed", "{:,}".format),
}
"""Of `Side`, in its order: what they are called, and how they are written."""


class InTurn(Client):
    """A client of one engine, which says its name as a router does."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.url, model=engine.client.model)
        self._worker = engine.options.name

    def complete(self, *prompt: Any, **options: Any) -> Completion:
        return super().complete(*prompt, **options)._replace(worker=self._worker)


class Side(NamedTuple):
    """What the real engines made of one load by one policy, or the simulated ones. Times: to the first token, in s."""

    p50_s: float
    found_p50_s: float
    """Of the requests of which an engine had most, or pulled it; NaN where there are none."""
    computed_p50_s: float
    """Of all others."""
    mean_s: float
    found_part: float
    """Of the requests."""
    tokens: int
    """That were computed."""


class Compared(NamedTuple):
    """One load by one policy, of both."""

    engines: int
    policy: str
    clients: int
    real: Side
    simulated: Side

    @property
    def off(self) -> dict[str, float]:
        """Return by what part the simulator is off in each figure, as a part of the real one."""
        pairs = zip(Side._fields, self.real, self.simulated, strict=True)
        return {name: simulated / real - 1 if real else math.nan for name, real, simulated in pairs}

    @property
    def far(self) -> bool:
        """Say whether one of the figures that are checked is off by more than `OFF_MAX`."""
        return any(abs(self.off[name]) > OFF_MAX for name in CHECKED)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulator_calibration", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--short", action="store_true", help="tiny model, two engines, few requests, no check")
    parser.add_argument("--size", choices=["tiny", "small"], default="small")
    parser.add_argument("--engines", default="2,3", metavar="N,N")
    parser.add_argument("--documents", type=int, default=12)
    parser.add_argument("--document-tokens", type=int, default=1536)
    parser.add_argument("--requests", type=int, default=72)
    parser.add_argument(
        "--clients",
        default="4,each",
        metavar="N,N",
        help="that ask at one time; `each`: one for each engine (default: 4,each)",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--each", type=Path, metavar="FILE", help="write what became of each request, as JSON lines")
    chosen = parser.parse_args(argv)
    if chosen.short:
        chosen.size, chosen.engines, chosen.documents, chosen.requests = "tiny", "2", 6, 24
        chosen.document_tokens, chosen.rounds = 768, 1
    if not all(clients == EACH or (clients.isdigit() and int(clients) > 0) for clients in chosen.clients.split(",")):
        raise ConfigError(f"--clients: expected numbers from 1, or {EACH}, such as 4,{EACH}, got {chosen.clients!r}")
    if chosen.rounds < 1:
        raise ConfigError(f"--rounds: expected 1 or more, got {chosen.rounds}")
    if not all(size.isdigit() and int(size) > 1 for size in chosen.engines.split(",")):
        raise ConfigError(f"--engines: expected numbers from 2, such as 2,3, got {chosen.engines!r}")
    return chosen


def clients_of(chosen: argparse.Namespace, engines: int) -> list[int]:
    """Return how many clients ask so many engines, in turn."""
    return [engines if clients == EACH else int(clients) for clients in chosen.clients.split(",")]


def options_of(chosen: argparse.Namespace, model: str, redis_url: str, engines: int) -> list[EngineOptions]:
    """Return the options of all engines: together they hold 1/OVERCOMMIT of the documents."""
    blocks = chosen.documents * chosen.document_tokens / OVERCOMMIT / engines / BLOCK_TOKENS
    longest = chosen.document_tokens + 256
    # An engine must hold what runs at once, else it preempts and measures that.
    needed = (max(clients_of(chosen, engines)) // 2 + 1) * longest // BLOCK_TOKENS
    return [
        EngineOptions(
            model=model,
            name=f"w{index}",
            connector={"redis_url": redis_url, "worker_id": f"w{index}", "pull": "always"},
            max_model_len=longest,
            block_size=BLOCK_TOKENS,
            num_blocks=max(round(blocks), needed),
            extra_args=("--max-num-batched-tokens", str(STEP_TOKENS)),
        )
        for index in range(engines)
    ]


def simulated_load(questions: Questions, texts: Documents) -> Load:
    """Return the same questions for the simulator: tokens as the engines have them, shared where they are equal."""
    rows = []
    for number, prompt in enumerate(questions.prompts):
        ids = texts.encode(prompt)
        pieces = (ids[start : start + BLOCK_TOKENS] for start in range(0, len(ids), BLOCK_TOKENS))
        names = [hashlib.sha256(repr(piece).encode()).hexdigest()[:16] for piece in pieces]
        rows.append(Row(float(number), len(ids), ANSWER_TOKENS, names))
    return Load("questions", make_requests(rows, block_tokens=BLOCK_TOKENS), BLOCK_TOKENS)


class Asked(NamedTuple):
    """One round: the same questions, asked of both by so many clients."""

    policy: str
    clients: int
    order: int
    questions: Questions
    real: Result
    simulated: Run


class Bench(NamedTuple):
    """The real engines and their router, and what is asked of them."""

    chosen: argparse.Namespace
    engines: Sequence[Engine]
    router: RouterProcess
    texts: Documents
    progress: ProgressLine

    def measured(self) -> dict[str, FleetSpec]:
        """Measure the engines, while they do nothing else, and return a fleet that is like them for each policy."""
        tokens = self.chosen.document_tokens
        for number, engine in enumerate(self.engines):
            warm_up(engine, self.texts.tokens(tokens, seed=6_000_000 + number))
        self.progress("measuring the engines")
        fleets = simulated_fleet(
            self.engines,
            self.texts,
            self.router.client,
            tokens=tokens,
            block_tokens=BLOCK_TOKENS,
            step_tokens=STEP_TOKENS,
        )
        return dict(zip(POLICIES, fleets, strict=True))

    def rounds(self, fleets: Mapping[str, FleetSpec]) -> Iterator[Asked]:
        """Ask both in all ways, for as many rounds as were chosen."""
        for clients in clients_of(self.chosen, len(self.engines)):
            for number, policy in enumerate(POLICIES):
                for order in range(1, self.chosen.rounds + 1):
                    questions = make_load(
                        self.texts,
                        documents=self.chosen.documents,
                        document_tokens=self.chosen.document_tokens,
                        requests=self.chosen.requests,
                        seed=len(POLICIES) * order + number,
                        order=order,
                    )
                    yield Asked(
                        policy, clients, order, questions, *self._ask(policy, clients, questions, fleets[policy])
                    )

    def _ask(self, policy: str, clients: int, questions: Questions, fleet: FleetSpec) -> tuple[Result, Run]:
        entrant = next(each for each in entrants(1) if each.key == POLICIES[policy])
        own = entrant.key == "ghostcacher"
        for engine in self.engines:
            engine.client.reset_prefix_cache()
        asked = through(self.router.client) if own else round_robin([InTurn(engine) for engine in self.engines])
        real = run_load(
            asked, questions, concurrency=clients, max_tokens=ANSWER_TOKENS, pull=own, progress=self.progress
        )
        return real, run_virtual(replay(entrant, simulated_load(questions, self.texts), fleet, clients=clients))


def each_request(asked: Asked) -> Iterator[dict[str, Any]]:
    """Yield what became of each request, of both, as JSON has it."""
    policy, clients, order, questions, real, run = asked
    began_at = min(answer.began_at for answer in real.answers)
    served = {each.request.request_id: each for each in run.served}
    for number, (request, document, answer) in enumerate(
        zip(run.load.requests, questions.documents, real.answers, strict=True)
    ):
        each = served[request.request_id]
        yield {
            "engines": run.fleet.workers,
            "policy": policy,
            "clients": clients,
            "round": order,
            "request": number,
            "document": document,
            "prompt_tokens": answer.prompt_tokens,
            "real": {
                "worker": answer.worker,
                "at_s": round(answer.began_at - began_at, 4),
                "ttft_s": round(answer.ttft_s, 4),
                "forecast_ms": answer.forecast_ms,
                "cached_tokens": answer.cached_tokens or 0,
            },
            "simulated": {
                "worker": each.worker,
                "at_s": round(each.request.arrival_s, 4),
                "ttft_s": each.ttft_s and round(each.ttft_s, 4),
                "cached_tokens": each.request.prompt.tokens - each.computed_tokens,
                "pulled_tokens": each.pulled_tokens,
            },
        }


def compared(rounds: Sequence[Asked]) -> Compared:
    """Return what both made of all rounds of one policy, with so many clients."""
    real = [
        (each.ttft_s, each.prompt_tokens, each.prompt_tokens - (each.cached_tokens or 0))
        for asked in rounds
        for each in asked.real.answers
    ]
    simulated = [
        (each.ttft_s, each.request.prompt.tokens, each.computed_tokens)
        for asked in rounds
        for each in asked.simulated.served
        if each.ttft_s is not None
    ]
    first = rounds[0]
    return Compared(first.simulated.fleet.workers, first.policy, first.clients, side_of(real), side_of(simulated))


def side_of(requests: Sequence[tuple[float, int, int]]) -> Side:
    """Return the figures of requests: their TTFT in s, their prompts' tokens, and how many of these were computed."""
    times, found, computed = list[float](), list[float](), list[float]()
    for ttft_s, prompt_tokens, computed_tokens in requests:
        times.append(ttft_s)
        (found if computed_tokens < prompt_tokens / 2 else computed).append(ttft_s)
    tokens = sum(computed_tokens for _, _, computed_tokens in requests)
    return Side(p50(times), p50(found), p50(computed), mean(times), len(found) / len(times), tokens)


def p50(times: Sequence[float]) -> float:
    return percentile(times, 50) if times else math.nan


def report(found: Sequence[Compared]) -> str:
    """Return a table of a row for each figure. NaN: neither had such requests."""
    rows = [
        [each.policy, str(each.engines), str(each.clients), head, show(real), show(simulated), f"{each.off[name]:+.0%}"]
        for each in found
        for (name, (head, show)), real, simulated in zip(FIGURES.items(), each.real, each.simulated, strict=True)
    ]
    return table(["policy", "engines", "clients", "figure", "real", "simulated", "off"], rows)


def describe(fleet: FleetSpec, routed: FleetSpec) -> str:
    """Return the figures of a fleet that was measured, asked in turns and through the router."""
    (profile, batching, _, _), cores = fleet.worker, fleet.cores
    assert cores is not None
    before, behind = (milliseconds(each.worker.profile.arrival_s) for each in (fleet, routed))
    step, further = milliseconds(batching.step_s), milliseconds(batching.decode_s)
    busy, shared = (", ".join(f"{speed:.2f}" for speed in speeds) for speeds in (cores.busy, cores.shared))
    return (
        f"{fleet.workers} engines: {profile.prefill_tokens_per_s:,.0f} tokens/s, {before} before ({behind} through the "
        f"router), steps of {step} and {further} for each further answer, pulls at "
        f"{profile.pull_bytes_per_s / 1e9:.2f} GB/s; speed of one, two, ... at a time on cores of their own: {busy}; "
        f"on the same ones: {shared}"
    )


def run(chosen: argparse.Namespace, progress: ProgressLine) -> int:
    """Measure, simulate and print. Returns 1 when the simulator is off by more than `OFF_MAX`, but for --short."""
    model = str(ensure_model(chosen.size))
    texts = Documents(model)
    found, rows = list[Compared](), list[dict[str, Any]]()
    for size in map(int, chosen.engines.split(",")):
        with RedisServer() as redis:
            engines = start_many(options_of(chosen, model, redis.url, size), progress)
            try:
                wait_until_joined(engines)
                with RouterProcess(redis_url=redis.url) as router:
                    router.wait_workers(size)
                    bench = Bench(chosen, engines, router, texts, progress)
                    fleets = bench.measured()
                    rounds = list(bench.rounds(fleets))
            finally:
                stop_all(engines)
        progress.done(describe(*fleets.values()))
        found += [compared(list(same)) for _, same in groupby(rounds, key=attrgetter("clients", "policy"))]
        rows += chain.from_iterable(map(each_request, rounds))
    if chosen.each is not None:
        chosen.each.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    print(report(found))
    return 0 if chosen.short or not any(each.far for each in found) else 1


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(lambda: run(arguments(argv), ProgressLine()))


if __name__ == "__main__":
    sys.exit(main())
