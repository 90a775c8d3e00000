"""What a placement costs, and how evenly requests are spread, from 2 workers to 512, in virtual time.

    python -m benchmarks.routing_scale [--short] [--workers 2,64,256,512] [--rate 4] [--requests 40] [--zipf 0.8]

Load and documents grow with the fleet, so that each worker has as much to do in all sizes. The router's own code
decides; engines are simulated. "decision": CPU time of the calls that place one request, without what they await, and
without load reports, which are taken in as they come. "balance": requests of the worker that got most, over the
mean; in brackets the same if each went to any worker at random, which even a policy that is right cannot be far below
while workers get few requests each. Compare CPU times of one run only, and with little else running.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from random import Random
from time import thread_time
from types import coroutine
from typing import Any, NamedTuple, cast

from benchmarks.harness.program import run_program
from benchmarks.harness.report import ProgressLine, milliseconds, percentile, table
from ghostcacher_router.build import Routing
from ghostcacher_router.garbage import set_survivors_aside
from ghostcacher_router.types import Ask, Dispatcher, Placement
from ghostcacher_simulator.load.generated import Documents, make_load
from ghostcacher_simulator.load.requests import BLOCK_TOKENS
from ghostcacher_simulator.machines.workers import fleet_of
from ghostcacher_simulator.replay.policies import Entrant, GhostCacher, Policy, Workers, entrants
from ghostcacher_simulator.replay.replay import Run, replay
from ghostcacher_simulator.replay.stores import Stores
from ghostcacher_simulator.virtual_time import run_virtual

BLOCKS, TOKENS_PER_S = 4_000, 20_000.0
"""Of each engine."""
DOCUMENTS_EACH = 10
"""Documents for each worker."""
POLICIES = ("ghostcacher", "sent-prefix", "hashing")


class Meter:
    """CPU time of the placements of one router, in s: stands before its dispatcher."""

    def __init__(self, routing: Routing) -> None:
        self.spent: list[float] = []
        self._place_now, self._place = routing.dispatcher.place_now, routing.dispatcher.place
        # All that a replay calls.
        routing.dispatcher = cast(Dispatcher, self)

    def place_now(self, ask: Ask) -> Placement | None:
        began = thread_time()
        placed = self._place_now(ask)
        self.spent.append(thread_time() - began)
        return placed

    async def place(self, ask: Ask) -> Placement:
        # It follows a `place_now` of the same request, with nothing between.
        return await self._metered(self._place(ask), len(self.spent) - 1)

    @coroutine
    def _metered(self, call: Any, number: int) -> Generator[Any, Any, Placement]:
        error: BaseException | None = None
        while True:
            began = thread_time()
            try:
                awaited = call.send(None) if error is None else call.throw(error)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]
            finally:
                self.spent[number] += thread_time() - began
            try:
                error = None
                yield awaited
            except BaseException as exc:
                # A time-out, say, which is for what is metered.
                error = exc


class Result(NamedTuple):
    """One policy at one size of the fleet. decision_s: of each request; empty of a policy that is none of ours."""

    policy: str
    workers: int
    run: Run
    decision_s: Sequence[float]

    @property
    def balance(self) -> float:
        return unevenness(Counter(each.worker for each in self.run.served if each.worker is not None), self.workers)

    @property
    def hit_ratio(self) -> float:
        return 1.0 - self.run.computed_tokens / self.run.load.prompt_tokens


def unevenness(counts: Counter[str], workers: int) -> float:
    """Return the most of the counts over their mean."""
    return max(counts.values()) * workers / counts.total()


def by_chance(requests: int, workers: int) -> float:
    """Return how uneven it is to send each request to any worker."""
    rng = Random(1)
    return unevenness(Counter(str(rng.randrange(workers)) for _ in range(requests)), workers)


def measure(entrant: Entrant, workers: int, chosen: argparse.Namespace) -> Result:
    made = Documents(
        requests=chosen.requests * workers,
        rate=chosen.rate * workers,
        documents=DOCUMENTS_EACH * workers,
        zipf=chosen.zipf,
    )
    meters: list[Meter] = []

    def metered(simulated: Workers, stores: Stores | None) -> Policy:
        policy = entrant.make(simulated, stores)
        if isinstance(policy, GhostCacher):
            meters.extend(Meter(router.routing) for router in policy.routers)
        return policy

    load = make_load(made, block_tokens=BLOCK_TOKENS)
    fleet = fleet_of(workers, BLOCKS, TOKENS_PER_S)
    # As a router does that has started: a run of the garbage collector over the whole load is no part of a decision.
    set_survivors_aside()
    run = run_virtual(replay(entrant._replace(make=metered), load, fleet))
    return Result(entrant.name, workers, run, [spent for meter in meters for spent in meter.spent])


def row_of(result: Result) -> list[str]:
    ttft_s = [each.ttft_s for each in result.run.served if each.ttft_s is not None]
    decision = "-"
    if result.decision_s:
        decision = " / ".join(milliseconds(percentile(result.decision_s, percent)) for percent in (50, 99))
    chance = by_chance(len(result.run.served), result.workers)
    return [
        str(result.workers),
        result.policy,
        decision,
        f"{result.balance:.2f} ({chance:.2f})",
        f"{result.hit_ratio:.1%}",
        *(milliseconds(percentile(ttft_s, percent)) for percent in (50, 90, 99)),
        str(result.run.pulls),
    ]


def run(chosen: argparse.Namespace, progress: ProgressLine) -> int:
    """Measure and print; return 0."""
    by_key = {each.key: each for each in entrants(1)}
    rows = []
    for workers in chosen.workers:
        for key in chosen.policies:
            progress(f"{workers} workers, {by_key[key].name}")
            rows.append(row_of(measure(by_key[key], workers, chosen)))
    progress.done(f"{chosen.requests} requests for each worker, {chosen.rate:g} a second")
    headers = ["workers", "policy", "decision p50 / p99", "balance", "hit ratio", "TTFT p50", "p90", "p99", "pulls"]
    print(table(headers, rows))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.routing_scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sizes: Callable[[str], list[int]] = lambda text: [int(each) for each in text.split(",")]  # noqa: E731
    parser.add_argument("--short", action="store_true", help="2 and 32 workers, few requests")
    parser.add_argument("--workers", type=sizes, default=[2, 64, 256, 512], metavar="N,N")
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second for each worker")
    parser.add_argument("--requests", type=int, default=40, help="for each worker")
    parser.add_argument("--zipf", type=float, default=0.8, help="how much more popular the first documents are")
    parser.add_argument("--policies", type=lambda text: text.split(","), default=list(POLICIES), metavar="A,B")
    chosen = parser.parse_args(argv)
    if chosen.short:
        chosen.workers, chosen.requests = [2, 32], 10
    return run_program(lambda: run(chosen, ProgressLine()))


if __name__ == "__main__":
    sys.exit(main())
