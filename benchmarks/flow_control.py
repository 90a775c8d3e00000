"""What flow control gives where more comes than workers can do: time to first token by who asks, with it and without.

    python -m benchmarks.flow_control [--short] [--workers 4] [--overload 1.5]

In virtual time: simulated workers that batch and report their load, and the router's own picker and flow control. Three
kinds of requests come at once, each at random times: a flood of one tenant, which alone is `overload` times what the
workers can do; a few of another tenant with the same priority; and a few urgent ones, whose priority is lower. The same
requests are sent four times: without flow control; with a queue alone; with priorities; and with fair shares as well.
Then questions on documents that do not all fit into one worker's cache, at a rate that is nearly too much, without flow
control and with a queue: what it must not cost is that a prefix is computed where it is not. Alike whenever it is run.
Exits with 1 where urgent requests, or those of the small tenant, wait longer with all of it than without, where the
workers do less work, or where documents are computed more often.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from random import Random
from statistics import median
from typing import NamedTuple

import msgspec

from benchmarks.harness.report import percentile, table
from ghostcacher_router.flow.settings import FlowSettings
from ghostcacher_router.prompt.boundaries import hash_prompt
from ghostcacher_router.types import Ask, NoWorker, Outcome, Placement, RequestShape, Turn
from ghostcacher_simulator.engine import Prefilled
from ghostcacher_simulator.load.generated import Documents, make_load
from ghostcacher_simulator.load.requests import Request, Row, make_requests
from ghostcacher_simulator.machines.workers import FleetSpec, fleet_of
from ghostcacher_simulator.replay.policies import entrants
from ghostcacher_simulator.replay.replay import Ending, Run, replay
from ghostcacher_simulator.replay.routers import DIGEST_SEED, SimulatedRouter
from ghostcacher_simulator.replay.stores import Stores
from ghostcacher_simulator.replay.workers import MODEL, REPORT_S, SimulatedWorker
from ghostcacher_simulator.virtual_time import run_virtual

PROMPT_TOKENS, ANSWER_TOKENS = 3_000, 200
BLOCK_TOKENS = 128
KV_BLOCKS = 800
"""Of a worker: 32 requests at a time."""
PREFILL_TOKENS_PER_S = 20_000.0
SYSTEM_BLOCKS = 8
"""Each tenant's prompts begin with so many blocks in common."""
SMALL_PER_S = URGENT_PER_S = 0.5
SECONDS, SECONDS_SHORT = 120.0, 30.0
PATIENCE_S = 30.0
"""Answers later than that, from the arrival to the first token, are of no use to anybody."""
FLOOD, SMALL, URGENT = "flood", "small", "urgent"
KINDS = (FLOOD, SMALL, URGENT)
DOCUMENTS = Documents(requests=800, rate=25.0, documents=30, zipf=1.0, answer=200)
DOCUMENT_BLOCKS, DOCUMENT_TOKENS_PER_S = 500, 10_000.0
"""Of a worker, and its speed: some seven documents, whose prefixes running requests have in common."""
SEEDS = range(1, 9)
"""Of the loads of documents. Of one of them alone a queue may have computed a quarter more or a twentieth less."""
MORE_MAX = 1.15
"""How much more of documents may be computed with a queue, over without: what the order of requests changes."""
LESS_MAX = 0.05
"""How much less work may be done with flow control, as a part: what lies between two reports, and in a short run what
waits in the router when the last request has come."""


class Way(NamedTuple):
    """One way to send them."""

    name: str
    flow: FlowSettings | None


BOUNDED = {"flow_queue_max": 200, "flow_queue_timeout_s": PATIENCE_S}
WAYS = (
    Way("without", None),
    Way("a queue", FlowSettings(**BOUNDED)),
    Way("and priorities", FlowSettings(**BOUNDED, flow_priorities="client")),
    Way("and fair shares", FlowSettings(**BOUNDED, flow_priorities="client", flow_tenants="cache_salt")),
)


class Sent(NamedTuple):
    """What became of one request."""

    kind: str
    ttft_s: float | None
    """From its arrival; None where it was refused."""
    ended_at: float


class Outcomes(NamedTuple):
    """What became of all of them."""

    sent: Sequence[Sent]
    computed_tokens_per_s: float
    """Of prompts, while requests came."""

    def ttft_s(self, kind: str) -> list[float]:
        return [one.ttft_s for one in self.sent if one.kind == kind and one.ttft_s is not None]

    def useful(self, kind: str) -> float:
        """Return the share of a kind's requests that was answered while somebody waited for it."""
        all_of = [one for one in self.sent if one.kind == kind]
        return sum(one.ttft_s is not None and one.ttft_s <= PATIENCE_S for one in all_of) / len(all_of)


def capacity_per_s(fleet: FleetSpec) -> float:
    """Return how many requests a fleet can do in a second, about: by its KV memory, or by computing prompts."""
    worker = fleet.worker
    places = worker.profile.kv_blocks // -(-(PROMPT_TOKENS + ANSWER_TOKENS) // BLOCK_TOKENS)
    prefill_s = PROMPT_TOKENS * (1 - SYSTEM_BLOCKS * BLOCK_TOKENS / PROMPT_TOKENS) / PREFILL_TOKENS_PER_S
    decode_s = ANSWER_TOKENS * (worker.batching.step_s + places * worker.batching.decode_s)
    # What computes prompts decodes meanwhile, and its steps are so much longer.
    return fleet.workers * min(1 / prefill_s, places / (decode_s + places * prefill_s))


def load_of(fleet: FleetSpec, overload: float, seconds: float) -> list[tuple[str, Request]]:
    """Return all requests by kind, in the order in which they come."""
    rng = Random(1)
    rows: list[tuple[float, str]] = []
    for kind, per_s in ((FLOOD, overload * capacity_per_s(fleet)), (SMALL, SMALL_PER_S), (URGENT, URGENT_PER_S)):
        at = rng.expovariate(per_s)
        while at < seconds:
            rows.append((at, kind))
            at += rng.expovariate(per_s)
    rows.sort()
    blocks = -(-PROMPT_TOKENS // BLOCK_TOKENS)
    common = {kind: [f"{kind}/{place}" for place in range(SYSTEM_BLOCKS)] for kind in KINDS}
    made = make_requests(
        (
            Row(at, PROMPT_TOKENS, ANSWER_TOKENS, [*common[kind], *(f"{number}/{place}" for place in range(blocks))])
            for number, (at, kind) in enumerate(rows)
        ),
        block_tokens=BLOCK_TOKENS,
    )
    return list(zip((kind for _, kind in rows), made, strict=True))


class Bench:
    """One way, while it goes on."""

    def __init__(self, way: Way, fleet: FleetSpec, load: Sequence[tuple[str, Request]]) -> None:
        self._load = load
        self._clock = asyncio.get_running_loop().time
        stores = Stores(pulls=True)
        self.workers = [SimulatedWorker(f"w{number}", fleet.worker, stores) for number in range(fleet.workers)]
        records = stores.index.workers()
        for worker in self.workers:
            worker.know(records)
        self._at = {worker.name: worker for worker in self.workers}
        self.router = SimulatedRouter("r", self.workers, stores)
        if way.flow is not None:
            self.router.routing.control_flow(way.flow)
        self.sent: list[Sent] = []

    async def run(self) -> Outcomes:
        reporting = asyncio.create_task(self._report())
        await asyncio.sleep(2.5)  # until routers and workers know of each other
        began_at = self._clock()
        async with asyncio.TaskGroup() as group:
            for kind, request in self._load:
                await asyncio.sleep(max(0.0, began_at + request.arrival_s - self._clock()))
                group.create_task(self._send(kind, request))
            seconds, computed = self._clock() - began_at, sum(worker.computed_tokens for worker in self.workers)
        reporting.cancel()
        return Outcomes(self.sent, computed / seconds)

    async def _report(self) -> None:
        flow = self.router.routing.flow
        while True:
            for worker in self.workers:
                worker.report()
            if flow is not None:
                flow.changed()
            await asyncio.sleep(REPORT_S)

    async def _send(self, kind: str, request: Request) -> None:
        came_at, ttft_s = self._clock(), None
        try:
            placement = await self._place(kind, request)
        except NoWorker:
            self.sent.append(Sent(kind, None, self._clock()))
            return

        def first_token(_: Prefilled) -> None:
            nonlocal ttft_s
            ttft_s = self._clock() - came_at
            placement.first_byte()

        placement.sent()
        await self._at[placement.worker].serve(request, first_token)
        placement.ended(Outcome.DONE, 200)
        self.sent.append(Sent(kind, ttft_s, self._clock()))

    async def _place(self, kind: str, request: Request) -> Placement:
        text = request.text()
        prompt = hash_prompt(text, (), request.text_sections(), preamble=b"", seed=DIGEST_SEED)
        priority = 0 if kind == URGENT else 1
        shape = RequestShape(MODEL, True, prompt, None, priority=priority, cache_salt=kind)
        turn = Turn(self._clock(), len(text))
        ask = Ask(request.request_id, "POST", "/v1/completions", shape, {}, turn=turn)
        dispatcher = self.router.routing.dispatcher
        return dispatcher.place_now(ask) or await dispatcher.place(ask)


def measured(way: Way, fleet: FleetSpec, load: Sequence[tuple[str, Request]]) -> Outcomes:
    async def run() -> Outcomes:
        return await Bench(way, fleet, load).run()

    return run_virtual(run())


def of_documents(workers: int, flow: FlowSettings | None, *, short: bool) -> list[Run]:
    """Return what becomes of questions on documents, for each of the seeds."""
    fleet = fleet_of(workers, DOCUMENT_BLOCKS, DOCUMENT_TOKENS_PER_S, BLOCK_TOKENS)
    made = msgspec.structs.replace(DOCUMENTS, requests=DOCUMENTS.requests // 4) if short else DOCUMENTS
    loads = [make_load(made, seed=seed, block_tokens=BLOCK_TOKENS) for seed in SEEDS]
    entrant = next(each for each in entrants(1, flow) if each.key == "ghostcacher")
    return [run_virtual(replay(entrant, load, fleet)) for load in loads]


def seconds_shown(values: Sequence[float]) -> str:
    return f"{median(values):.2f} / {percentile(values, 99):.2f}" if values else "-"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--short", action="store_true", help=f"{SECONDS_SHORT:g} s of load instead of {SECONDS:g} s")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--overload", type=float, default=1.5, help="the flood, over what the workers can do")
    options = parser.parse_args(arguments)
    fleet = fleet_of(options.workers, KV_BLOCKS, PREFILL_TOKENS_PER_S, BLOCK_TOKENS)
    load = load_of(fleet, options.overload, SECONDS_SHORT if options.short else SECONDS)
    counts = ", ".join(f"{sum(kind == each for kind, _ in load)} {each}" for each in KINDS)
    print(f"{options.workers} workers, {capacity_per_s(fleet):.1f} requests/s or so; {counts}\n")
    found = {way.name: measured(way, fleet, load) for way in WAYS}
    rows = [
        (
            name,
            *(cell for kind in KINDS for cell in (seconds_shown(each.ttft_s(kind)), f"{each.useful(kind):.0%}")),
            f"{each.computed_tokens_per_s:,.0f}",
        )
        for name, each in found.items()
    ]
    heads = [head for kind in KINDS for head in (f"{kind}: TTFT p50 / p99, s", f"within {PATIENCE_S:g} s")]
    print(table(("", *heads, "tokens computed/s"), rows))
    documents = {way.name: of_documents(options.workers, way.flow, short=options.short) for way in WAYS[:2]}
    served = {name: [each for run in runs for each in run.served] for name, runs in documents.items()}
    alone, queued = (sum(run.computed_tokens for run in runs) for runs in documents.values())
    rows = [
        (
            name,
            seconds_shown([each.ttft_s for each in of_way if each.ttft_s is not None]),
            f"{sum(each.ending is Ending.ANSWERED for each in of_way)} of {len(of_way)}",
            f"{computed:,}",
        )
        for (name, of_way), computed in zip(served.items(), (alone, queued), strict=True)
    ]
    print(f"\n{table(('documents', 'TTFT p50 / p99, s', 'answered', 'tokens computed'), rows)}")
    before, after = found[WAYS[0].name], found[WAYS[-1].name]
    worse = [kind for kind in (SMALL, URGENT) if median(after.ttft_s(kind)) > median(before.ttft_s(kind))]
    idle = after.computed_tokens_per_s < (1 - LESS_MAX) * before.computed_tokens_per_s
    return 1 if worse or idle or queued > MORE_MAX * alone else 0


if __name__ == "__main__":
    sys.exit(main())
