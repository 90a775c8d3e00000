"""How far `ghostcacher simulate` is from real engines: the same questions, asked of both.

    python -m benchmarks.simulator_calibration [--short] [--size small] [--engines 2,3] [--documents 12] [--requests 72]
        [--rounds 3] [--each FILE]

Real vLLM engines, a real Redis and a real router. First an engine is measured alone: a document that is new, and one
that it has but for its end, an answer alone and several beside each other, a pull; and how much slower engines are that
compute at one time, on cores of their own and on the same ones. These figures make the simulated workers. Then both get
the same questions on documents whose KV is twice what the fleet holds, from the same number of clients, in turns and
through the router. One placement more or less decides where all later ones go, so there are several rounds, each with
other documents in another order, from empty caches; figures are of all rounds together. Exits with 1 where the
simulator is off by more than 20 % in the median TTFT or in tokens computed. Whatever else computes meanwhile makes the
engines' speed another one than was measured. `--each FILE` has what became of each request, of both, as JSON lines.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
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
OVERCOMMIT = 2.0
"""The documents' KV, over what all engines together hold."""
OFF_MAX = 0.2
POLICIES = {"round robin": "round-robin", "GhostCacher": "ghostcacher"}


class InTurn(Client):
    """A client of one engine, which says its name as a router does."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.url, model=engine.client.model)
        self._worker = engine.options.name

    def complete(self, *prompt: Any, **options: Any) -> Completion:
        return super().complete(*prompt, **options)._replace(worker=self._worker)


class Compared(NamedTuple):
    """One load by one policy, of both."""

    engines: int
    policy: str
    real_p50_s: float
    simulated_p50_s: float
    real_mean_s: float
    simulated_mean_s: float
    real_tokens: int
    simulated_tokens: int

    @property
    def off(self) -> tuple[float, float]:
        """Return by what parts the simulator is off: in TTFT, in tokens."""
        return self.simulated_p50_s / self.real_p50_s - 1, self.simulated_tokens / self.real_tokens - 1


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
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--each", type=Path, metavar="FILE", help="write what became of each request, as JSON lines")
    chosen = parser.parse_args(argv)
    if chosen.short:
        chosen.size, chosen.engines, chosen.documents, chosen.requests = "tiny", "2", 6, 24
        chosen.document_tokens, chosen.rounds = 768, 1
    if chosen.rounds < 1:
        raise ConfigError(f"--rounds: expected 1 or more, got {chosen.rounds}")
    if not all(size.isdigit() and int(size) > 1 for size in chosen.engines.split(",")):
        raise ConfigError(f"--engines: expected numbers from 2, such as 2,3, got {chosen.engines!r}")
    return chosen


def options_of(chosen: argparse.Namespace, model: str, redis_url: str, engines: int) -> list[EngineOptions]:
    """Return the options of all engines: together they hold 1/OVERCOMMIT of the documents."""
    blocks = chosen.documents * chosen.document_tokens / OVERCOMMIT / engines / BLOCK_TOKENS
    longest = chosen.document_tokens + 256
    needed = (chosen.concurrency // 2 + 1) * longest // BLOCK_TOKENS
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


def compare(
    chosen: argparse.Namespace,
    engines: Sequence[Engine],
    router: RouterProcess,
    texts: Documents,
    progress: ProgressLine,
) -> tuple[FleetSpec, list[Compared], list[dict[str, Any]]]:
    """Return the measured fleet, what both made of each policy, and what became of each request."""
    for number, engine in enumerate(engines):
        warm_up(engine, texts.tokens(chosen.document_tokens, seed=6_000_000 + number))
    progress("measuring the engines")
    fleet = simulated_fleet(
        engines, texts, tokens=chosen.document_tokens, block_tokens=BLOCK_TOKENS, step_tokens=STEP_TOKENS
    )
    found, rows = list[Compared](), list[dict[str, Any]]()
    by_key = {each.key: each for each in entrants(1)}
    for number, (name, key) in enumerate(POLICIES.items()):
        own, both = key == "ghostcacher", list[tuple[Result, Run]]()
        for order in range(1, chosen.rounds + 1):
            for engine in engines:
                engine.client.reset_prefix_cache()
            policy = through(router.client) if own else round_robin([InTurn(engine) for engine in engines])
            questions = make_load(
                texts,
                documents=chosen.documents,
                document_tokens=chosen.document_tokens,
                requests=chosen.requests,
                seed=len(POLICIES) * order + number,
                order=order,
            )
            real = run_load(
                policy, questions, concurrency=chosen.concurrency, max_tokens=ANSWER_TOKENS, pull=own, progress=progress
            )
            load = simulated_load(questions, texts)
            run = run_virtual(replay(by_key[key], load, fleet, clients=chosen.concurrency))
            both.append((real, run))
            rows += each_request(name, order, questions, real, run)
        found.append(compared(name, both))
    return fleet, found, rows


def each_request(policy: str, order: int, questions: Questions, real: Result, run: Run) -> Iterator[dict[str, Any]]:
    """Yield what became of each request, of both, as JSON has it."""
    began_at = min(answer.began_at for answer in real.answers)
    served = {each.request.request_id: each for each in run.served}
    for number, (request, document, answer) in enumerate(
        zip(run.load.requests, questions.documents, real.answers, strict=True)
    ):
        each = served[request.request_id]
        yield {
            "engines": run.fleet.workers,
            "policy": policy,
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


def compared(policy: str, both: Sequence[tuple[Result, Run]]) -> Compared:
    """Return what both made of all rounds of one policy."""
    real_s = [seconds for real, _ in both for seconds in real.ttft_s]
    simulated_s = [each.ttft_s for _, run in both for each in run.served if each.ttft_s is not None]
    return Compared(
        both[0][1].fleet.workers,
        policy,
        percentile(real_s, 50),
        percentile(simulated_s, 50),
        mean(real_s),
        mean(simulated_s),
        sum(real.computed for real, _ in both),
        sum(run.computed_tokens for _, run in both),
    )


def report(found: Sequence[Compared]) -> str:
    rows = [
        [
            each.policy,
            str(each.engines),
            milliseconds(each.real_p50_s),
            milliseconds(each.simulated_p50_s),
            f"{each.off[0]:+.0%}",
            milliseconds(each.real_mean_s),
            milliseconds(each.simulated_mean_s),
            f"{each.real_tokens:,}",
            f"{each.simulated_tokens:,}",
            f"{each.off[1]:+.0%}",
        ]
        for each in found
    ]
    heads = ["policy", "engines", "TTFT p50", "simulated", "off", "mean", "simulated", "computed", "simulated", "off"]
    return table(heads, rows)


def describe(fleet: FleetSpec) -> str:
    """Return the figures of a fleet that was measured."""
    (profile, batching, _, _), cores = fleet.worker, fleet.cores
    assert cores is not None
    busy, shared = (", ".join(f"{speed:.2f}" for speed in speeds) for speeds in (cores.busy, cores.shared))
    return (
        f"{fleet.workers} engines: {profile.prefill_tokens_per_s:,.0f} tokens/s, {milliseconds(profile.arrival_s)} "
        f"before, steps of {milliseconds(batching.step_s)} and {milliseconds(batching.decode_s)} for each further "
        f"answer, pulls at {profile.pull_bytes_per_s / 1e9:.2f} GB/s; speed where one core is busy, two, ...: {busy}; "
        f"where one computes on a core, two, ...: {shared}"
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
                    fleet, compared, each = compare(chosen, engines, router, texts, progress)
            finally:
                stop_all(engines)
        progress.done(describe(fleet))
        found, rows = found + compared, rows + each
    if chosen.each is not None:
        chosen.each.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    print(report(found))
    far = [each for each in found if max(map(abs, each.off)) > OFF_MAX]
    return 0 if chosen.short or not far else 1


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(lambda: run(arguments(argv), ProgressLine()))


if __name__ == "__main__":
    sys.exit(main())
