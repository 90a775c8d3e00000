"""What `ghostcacher simulate` finds, as it prints it in JSON. Times in s, tokens of prompts unless said otherwise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from ghostcacher_cli.simulate.fleets import FleetOptions
from ghostcacher_cli.terminal.text import percentile
from ghostcacher_simulator.load.requests import Load
from ghostcacher_simulator.replay.replay import FLOW_ENDINGS, Ending, Run, Served

PERCENTS = (50, 90, 99)
MONTH_S = 30 * 86_400


class Report(msgspec.Struct, frozen=True):
    """All of it."""

    load: LoadFound
    """What came."""
    worker: WorkerFound
    """What each worker is."""
    runs: list[RunFound]
    """One for each policy and size of the fleet; by size, and in the order in which policies were asked for."""
    least: list[LeastFound] = []
    """The least fleet that keeps --slo, for each policy; empty where nothing is to be kept."""


class LeastFound(msgspec.Struct, frozen=True):
    """The least fleet that keeps what is wanted."""

    policy: str
    """As on the command line."""
    policy_name: str
    """For people."""
    goals: list[str]
    """What is wanted."""
    workers: int | None
    """Its size; null where no fleet up to the largest one that was tried is enough."""
    tried: int = 0
    """The size of which `reached` tells: the least fleet, or the largest one that was tried."""
    reached: list[str] = []
    """What that fleet has of each goal, and whether it lost answers."""


class LoadFound(msgspec.Struct, frozen=True):
    """What came to the fleet."""

    name: str
    """The file, or the kind of load."""
    requests: int
    """Requests."""
    duration_s: float
    """From the first arrival to the last one."""
    prompt_tokens: int
    """Tokens of all prompts."""
    answer_tokens: int
    """Tokens of all answers."""
    distinct_tokens: int
    """Prompt tokens that are left when each block is counted once: what a cache without bounds would compute."""
    block_tokens: int
    """Tokens of a KV block."""


class WorkerFound(msgspec.Struct, frozen=True):
    """What each worker of the fleet is."""

    kv_tokens: int
    """Tokens that its KV cache holds."""
    host_tokens: int
    """Tokens that its host tier holds."""
    object_bytes_per_s: float | None
    """At which it reads from the object tier, and writes; null where there is none."""
    prefill_tokens_per_s: float
    """Prompt tokens that it computes in a second."""
    step_s: float
    """Time of a step, whatever is in it."""
    answer_s: float
    """What each running answer adds to a step."""
    pull_bytes_per_s: float
    """At which it pulls from a peer."""
    kv_bytes_per_token: int
    """KV of a token."""
    usd_per_hour: float | None
    """Its price; null where none is known."""
    sources: list[str]
    """Where the figures come from that were not given."""


class Percentiles(msgspec.Struct, frozen=True):
    """Of a time, over requests."""

    mean_s: float
    """The mean."""
    p50_s: float
    """Half of all are as fast."""
    p90_s: float
    """90 % of all are as fast."""
    p99_s: float
    """99 % of all are as fast."""


class Sources(msgspec.Struct, frozen=True):
    """Parts of the prompt tokens of all requests that got a first token; they add up to 1."""

    engine: float
    """Found in the worker's own KV cache."""
    host: float
    """Loaded from its host tier."""
    peers: float
    """Pulled from a peer's cache or host tier."""
    objects: float
    """Read from the object tier."""
    computed: float
    """Computed."""


class RunFound(msgspec.Struct, frozen=True):
    """What came of one run."""

    policy: str
    """As on the command line."""
    policy_name: str
    """For people."""
    workers: int
    """How many there are."""
    endings: dict[str, int]
    """How many requests ended how; only those endings that came."""
    ttft: Percentiles | None
    """Time to the first token, from the arrival; null where none came."""
    itl: Percentiles | None
    """Time between two tokens of an answer, the mean of each answer; null where no answer has two."""
    sources: Sources | None
    """Where prompt tokens came from; null where no first token came."""
    computed_tokens: int
    """Prompt tokens that workers computed, also for answers that never came."""
    pulls: int
    """Prompts of which a part was pulled."""
    stale_blocks: int
    """Blocks that were pulled and dropped, since they had become others."""
    requests_max_over_mean: float
    """Requests of the worker that had most, over the mean: 1 is an even balance."""
    computed_max_over_mean: float
    """The same of tokens computed."""
    took_s: float
    """From the first arrival to the last ending."""
    usd_per_million_tokens: float | None
    """The price of the workers for that time, and of what is stored in the end, for each million tokens of prompts and
    answers that were served; null without a price."""
    stored_bytes: int
    """In the object tier at the end."""
    tenants: list[TenantFound] = []
    """Of each tenant and priority, by priority; empty where nobody is told apart, and routers have no flow control."""


class TenantFound(msgspec.Struct, frozen=True):
    """What came of the requests of one tenant with one priority."""

    tenant: str
    """Its name; empty where nobody is told apart."""
    priority: int
    """Lower goes first, where routers look at it."""
    requests: int
    """How many came."""
    endings: dict[str, int]
    """How many of them ended how."""
    queued: int
    """How many of them waited for their turn in a router."""
    wait: Percentiles | None
    """For how long they waited there, all of them, also those that got no turn; null where none came."""
    ttft: Percentiles | None
    """Time to the first token, from the arrival; null where none came."""


def report_of(load: Load, fleet: FleetOptions, runs: Sequence[Run], least: Sequence[LeastFound] = ()) -> Report:
    """Return what there is to say of runs of one load. least: what was found for --slo."""
    return Report(_load_found(load), _worker_found(fleet), [run_found(run) for run in runs], list(least))


def run_found(run: Run) -> RunFound:
    """Return what came of a run."""
    begun = [each for each in run.served if each.ttft_s is not None]
    ttft = [each.ttft_s for each in begun if each.ttft_s is not None]
    requests: Counter[str | None] = Counter(each.worker for each in begun)
    computed: Counter[str | None] = Counter()
    for each in begun:
        computed[each.worker] += each.computed_tokens
    return RunFound(
        run.entrant.key,
        run.entrant.name,
        run.fleet.workers,
        dict(sorted(Counter(each.ending.value for each in run.served).items())),
        _percentiles(ttft),
        _percentiles([each.itl_s for each in run.served if each.itl_s is not None]),
        _sources(run),
        run.computed_tokens,
        run.pulls,
        run.stale_blocks,
        _max_over_mean(requests, run.fleet.workers),
        _max_over_mean(computed, run.fleet.workers),
        run.took_s,
        _usd_per_million(run),
        run.stored_bytes,
        _tenants_found(run),
    )


def _tenants_found(run: Run) -> list[TenantFound]:
    by_tenant: dict[tuple[int, str], list[Served]] = {}
    for each in run.served:
        by_tenant.setdefault((each.request.priority, each.request.tenant or ""), []).append(each)
    if len(by_tenant) < 2 and not any(each.queued_s or each.ending in FLOW_ENDINGS.values() for each in run.served):  # noqa: PLR2004
        return []
    return [
        TenantFound(
            name,
            priority,
            len(served),
            dict(sorted(Counter(each.ending.value for each in served).items())),
            sum(each.queued_s > 0 for each in served),
            _percentiles([each.queued_s for each in served]),
            _percentiles([each.ttft_s for each in served if each.ttft_s is not None]),
        )
        for (priority, name), served in sorted(by_tenant.items())
    ]


def _load_found(load: Load) -> LoadFound:
    requests = load.requests
    blocks = {block for request in requests for block in request.prompt.blocks}
    ends = sum(request.prompt.tokens % load.block_tokens for request in requests)
    return LoadFound(
        load.name,
        len(requests),
        load.duration_s,
        load.prompt_tokens,
        sum(request.prompt.answer_tokens for request in requests),
        len(blocks) * load.block_tokens + ends,
        load.block_tokens,
    )


def _worker_found(fleet: FleetOptions) -> WorkerFound:
    profile, batching, host, price = fleet.worker
    return WorkerFound(
        profile.kv_blocks * profile.block_tokens,
        0 if host is None else host.blocks * profile.block_tokens,
        None if fleet.objects is None else fleet.objects.bytes_per_s,
        profile.prefill_tokens_per_s,
        batching.step_s,
        batching.decode_s,
        profile.pull_bytes_per_s,
        profile.block_bytes // profile.block_tokens,
        price,
        list(fleet.sources),
    )


def _percentiles(values: Sequence[float]) -> Percentiles | None:
    if not values:
        return None
    ordered = sorted(values)
    return Percentiles(sum(values) / len(values), *(percentile(ordered, percent) for percent in PERCENTS))


def _sources(run: Run) -> Sources | None:
    begun = [each for each in run.served if each.ttft_s is not None]
    engine = sum(each.local_tokens for each in begun)
    host = sum(each.loaded_tokens for each in begun)
    peers = sum(each.pulled_tokens for each in begun)
    objects = sum(each.stored_tokens for each in begun)
    computed = sum(each.computed_tokens for each in begun)
    parts = (engine, host, peers, objects, computed)
    whole = sum(parts)
    return Sources(*(part / whole for part in parts)) if whole else None


def _max_over_mean(counts: Counter[str | None], workers: int) -> float:
    whole = sum(counts.values())
    return max(counts.values()) * workers / whole if whole else 1.0


def _usd_per_million(run: Run) -> float | None:
    price = run.fleet.worker.usd_per_hour
    prompts = (each.request.prompt for each in run.served if each.ending is Ending.ANSWERED)
    tokens = sum(prompt.tokens + prompt.answer_tokens for prompt in prompts)
    if price is None or not tokens:
        return None
    usd = price * run.fleet.workers * run.took_s / 3_600
    if run.fleet.objects is not None and run.fleet.objects.usd_per_gb_month is not None:
        usd += run.stored_bytes / 1e9 * run.fleet.objects.usd_per_gb_month * run.took_s / MONTH_S
    return usd / tokens * 1e6
