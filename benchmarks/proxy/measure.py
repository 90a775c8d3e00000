"""What is measured of one proxy under one load, and what is printed of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness.report import table
from benchmarks.proxy.insight import Insight, insight, read_metrics
from benchmarks.proxy.proxies import NGINX, OURS
from benchmarks.proxy.running import Answered, Load, Server, run_load

KIB = 1 << 10
TARGETS_US = {2 * KIB: 75.0, 32 * KIB: 130.0, 256 * KIB: 450.0}
"""CPU per request that our router may take, by size of the body."""

CHUNKS_PER_S_TARGET = 100_000
DIRECT = "no proxy"


class Scenario(NamedTuple):
    """One kind of load. rate: requests a second for the latency, low enough for every proxy."""

    body_bytes: int
    stream: bool
    rate: float

    @property
    def name(self) -> str:
        return f"{'streamed' if self.stream else 'plain'} {self.body_bytes // KIB} KiB"


SCENARIOS = tuple(
    Scenario(size, stream, rate)
    for stream in (False, True)
    for size, rate in ((2 * KIB, 300.0), (32 * KIB, 300.0), (256 * KIB, 150.0))
)


def chosen_scenarios(sizes_kib: Sequence[int], kinds: Sequence[str]) -> list[Scenario]:
    """Return the scenarios of these sizes and kinds ("plain", "streamed"); none named: of all."""
    return [
        scenario
        for scenario in SCENARIOS
        if (not sizes_kib or scenario.body_bytes // KIB in sizes_kib)
        and (not kinds or scenario.name.partition(" ")[0] in kinds)
    ]


class Plan(NamedTuple):
    """How long it all takes. requests: of the memory check, of one proxy."""

    warm_s: float
    full_s: float
    rate_s: float
    streams_s: float
    requests: int


FULL = Plan(warm_s=1.0, full_s=4.0, rate_s=4.0, streams_s=4.0, requests=200_000)
SHORT = Plan(warm_s=0.2, full_s=0.7, rate_s=0.7, streams_s=1.0, requests=5_000)


class Result(NamedTuple):
    """One proxy under one load: `full` as much as it can take, `paced` at the scenario's rate. cpu_s: during `full`.

    own: what our router says of itself, during `paced`; None of the others.
    """

    server: str
    scenario: Scenario
    full: Answered
    cpu_s: float
    paced: Answered
    rss_bytes: int
    own: Insight | None

    @property
    def cpu_us(self) -> float:
        return 1e6 * self.cpu_s / max(1, self.full.answers)


class Inputs(NamedTuple):
    """Where the load's files are, and on which core it runs."""

    folder: Path
    core: int

    def load(self, scenario: Scenario, *, connections: int, seconds: float, requests: int = 0, rate: float = 0) -> Load:
        return Load(
            bodies=self.folder / f"bodies-{scenario.body_bytes}-{scenario.stream:d}",
            body_bytes=scenario.body_bytes,
            expected=self.folder / f"expected-{scenario.stream:d}",
            connections=connections,
            seconds=seconds,
            requests=requests,
            rate=rate,
        )


def measure(server: Server, scenario: Scenario, plan: Plan, inputs: Inputs, connections: int) -> Result:
    """Return what one proxy does with one load, after a warm-up."""

    def run(seconds: float, rate: float = 0) -> Answered:
        load = inputs.load(scenario, connections=connections, seconds=seconds, rate=rate)
        return run_load(load, server.port, inputs.core, inputs.folder)

    run(plan.warm_s)
    before = server.cpu_s()
    full = run(plan.full_s)
    cpu_s = server.cpu_s() - before
    earlier = read_metrics(server) if server.name.startswith(OURS) else None
    paced = run(plan.rate_s, scenario.rate)
    own = insight(earlier, read_metrics(server)) if earlier else None
    return Result(server.name, scenario, full, cpu_s, paced, server.rss_bytes(), own)


def scenario_table(results: Sequence[Result]) -> str:
    """Return the table of one scenario. results: all of this scenario, the direct one and nginx among them or not."""
    direct = next((result.paced for result in results if result.server == DIRECT), None)
    nginx = next((result.cpu_us for result in results if result.server == NGINX), None)
    headers = [
        results[0].scenario.name,
        "CPU us",
        "x nginx",
        "target us",
        "req/s",
        "+p50 us",
        "+p99 us",
        "errors",
        "RSS",
    ]
    rows = []
    for result in results:
        proxied = result.server != DIRECT
        target = TARGETS_US[result.scenario.body_bytes] if result.server.startswith(OURS) else None
        rows.append(
            [
                result.server,
                f"{result.cpu_us:,.1f}" if proxied else "-",
                f"{result.cpu_us / nginx:.2f}" if proxied and nginx else "-",
                f"{target:,.0f} {'ok' if result.cpu_us <= target else 'MISSED'}" if target else "-",
                f"{result.full.answers / result.full.seconds:,.0f}",
                f"{result.paced.p50_us - direct.p50_us:,.0f}"
                if proxied and direct
                else f"({result.paced.p50_us:,.0f})",
                f"{result.paced.p99_us - direct.p99_us:,.0f}"
                if proxied and direct
                else f"({result.paced.p99_us:,.0f})",
                str(result.full.errors + result.paced.errors),
                f"{result.rss_bytes / (1 << 20):,.0f} MiB" if proxied else "-",
            ]
        )
    said = [f"{result.server}: {result.own}" for result in results if result.own]
    return "\n".join([table(headers, rows), *said])


class Streams(NamedTuple):
    """Many streams at once. per_stream, gap_us: events of each answer but the last, and the time between them."""

    streams: int
    per_stream: int
    gap_us: int

    @property
    def offered_per_s(self) -> float:
        return self.streams * 1e6 / self.gap_us

    @property
    def name(self) -> str:
        return f"{self.streams} streams, {self.offered_per_s:,.0f} events/s offered"


STREAMS = (Streams(200, 500, 1_000), Streams(200, 50, 20_000))
"""More than a proxy can take, so that what waits is read and sent in one piece; and the speed of engines, where each
event is a read and a write of its own."""


class StreamsResult(NamedTuple):
    """events: that reached the client. reads: of the client, so events / reads of them came in one piece."""

    server: str
    events: float
    reads: int
    seconds: float
    cpu_s: float
    errors: int


def measure_streams(
    server: Server, streams: Streams, seconds: float, inputs: Inputs, answer_bytes: int
) -> StreamsResult:
    """Return how many events a proxy forwards. answer_bytes: of one whole answer."""
    load = inputs.load(Scenario(2 * KIB, True, 0), connections=streams.streams, seconds=seconds)
    before = server.cpu_s()
    answered = run_load(load, server.port, inputs.core, inputs.folder)
    cpu_s = server.cpu_s() - before
    events = answered.bytes / answer_bytes * (streams.per_stream + 1)
    return StreamsResult(server.name, events, answered.reads, answered.seconds, cpu_s, answered.errors)


def streams_table(streams: Streams, results: Sequence[StreamsResult]) -> str:
    headers = [streams.name, "events/s", "CPU us/event", "events per core-s", "target", "events/read", "errors"]
    rows = []
    for result in results:
        proxied = result.server != DIRECT
        per_core = result.events / result.cpu_s if result.cpu_s else 0.0
        verdict = f"{CHUNKS_PER_S_TARGET:,} {'ok' if per_core >= CHUNKS_PER_S_TARGET else 'MISSED'}"
        targeted = streams is STREAMS[0] and result.server.startswith(OURS)
        rows.append(
            [
                result.server,
                f"{result.events / result.seconds:,.0f}",
                f"{1e6 * result.cpu_s / max(1.0, result.events):.2f}" if proxied else "-",
                f"{per_core:,.0f}" if proxied else "-",
                verdict if targeted else "-",
                f"{result.events / max(1, result.reads):.2f}",
                str(result.errors),
            ]
        )
    return table(headers, rows)


class Memory(NamedTuple):
    """Resident bytes of a proxy before, in the middle and after a number of requests."""

    server: str
    requests: int
    errors: int
    before: int
    middle: int
    after: int

    @property
    def growth_per_million(self) -> float:
        """Bytes a million requests add, from the second half: the first one fills caches and pools."""
        return (self.after - self.middle) / max(1, self.requests / 2) * 1e6


def measure_memory(server: Server, scenario: Scenario, requests: int, inputs: Inputs, connections: int) -> Memory:
    """Return what a proxy's memory does over that many requests."""
    before = server.rss_bytes()
    halves = []
    for part in (requests // 2, requests - requests // 2):
        load = inputs.load(scenario, connections=connections, seconds=0, requests=part)
        answered = run_load(load, server.port, inputs.core, inputs.folder)
        halves.append((answered.errors, server.rss_bytes()))
    return Memory(server.name, requests, sum(errors for errors, _ in halves), before, halves[0][1], halves[1][1])


def memory_table(results: Sequence[Memory]) -> str:
    headers = ["memory", "requests", "before", "half way", "after", "per million, 2nd half", "errors"]

    rows = []
    for each in results:
        sizes = (each.before, each.middle, each.after, each.growth_per_million)
        shown = [f"{size / (1 << 20):,.1f} MiB" for size in sizes]
        rows.append([each.server, f"{each.requests:,}", *shown, str(each.errors)])
    return table(headers, rows)
