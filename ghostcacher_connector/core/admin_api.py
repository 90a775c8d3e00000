"""The schema of the router's admin API, `/gc/*`: what it answers, and the body that it takes.

    GET /gc/status                     Status
    GET /gc/stats                      Stats
    GET /gc/workers                    Workers
    GET /gc/pods                       Pods: the same under an older name
    POST /gc/workers/ID/drain          Drain; DELETE takes the drain back
    POST /gc/flush                     takes FlushRequest, answers Flushed
    POST /gc/prefetch                  takes the body of a request, with `worker` and `path`; answers Prefetched
    GET, POST /gc/explain              Explanation; POST takes the body of a request as a client would send it

The router encodes these, and whoever reads its answers decodes them. Readers ignore fields that they do not know, and
fields that are missing get a value that shows as nothing: so a router of another version can still be read. Fields may
be added, and keep their names.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ghostcacher_connector.core.types import FlushScope

NOT_ROUTABLE = "not_routable"
"""The state of a worker that has a lease, but cannot be sent requests."""
GONE = "gone"
"""The state of a worker that has left the fleet without being drained before."""


class TierLoad(msgspec.Struct, frozen=True):
    """A tier below a worker's engine cache, as its connector reports. Counts are since its start."""

    tier: str
    """host or object."""
    blocks: int = 0
    """Blocks that it holds now."""
    blocks_max: int = 0
    """Blocks that it has room for."""
    blocks_by_type: dict[str, int] = {}
    """How many of its blocks are tools, sys, doc, session and user."""
    loaded_blocks: int = 0
    """Blocks that requests of this worker have taken from it."""
    evicted_blocks: int = 0
    """Blocks that made room for others, or whose time was over."""
    refused_blocks: int = 0
    """Blocks that were not worth what would have had to go."""
    copies_under_way: int = 0
    """Copies that are ordered and not done."""


class Load(msgspec.Struct, frozen=True):
    """What a worker has to do, and how fast it does it, as its connector reports."""

    running: int = 0
    """Requests that the engine's scheduler runs."""
    waiting: int = 0
    """Requests that wait in the engine's scheduler."""
    waiting_tokens: int = 0
    """Prompt tokens of all of these that are still to be computed."""
    kv_blocks_used: int = 0
    """KV blocks in use by requests."""
    kv_blocks_total: int = 0
    """KV blocks that the worker's own cache has."""
    prefill_tokens_per_s: float = 0.0
    """How fast the worker computes prompts, as measured; 0 when that is not known."""
    block_tokens: int = 0
    """Tokens in a KV block."""
    block_bytes: int = 0
    """Bytes of a KV block on one rank."""
    pull_bytes_per_s: float = 0.0
    """How fast the worker pulls, as measured; 0 when that is not known."""
    pull_fixed_s: float = 0.0
    """How long a pull takes however small it is, as measured; 0 when that is not known."""
    age_s: float = 0.0
    """How old this report is."""
    prefill_rate_stale: bool = False
    """Whether no step has told the prefill rate lately."""
    decode_step_s: float = 0.0
    """How long a step takes that only decodes, as measured, in s; 0 when that is not known."""
    decode_request_s: float = 0.0
    """What one more request adds to such a step, in s; 0 when that is not known."""
    tiers: tuple[TierLoad, ...] = ()
    """Those below the engine's cache."""
    hit_blocks: int = 0
    """KV blocks that its requests took from peers or tiers instead of having them computed, since its start."""
    missed_blocks: dict[str, int] = {}
    """KV blocks that were computed though the fleet might have held them, since its start, by the reason why."""


class Worker(msgspec.Struct, frozen=True):
    """One worker, as the router sees it."""

    id: str
    """The worker's name."""
    state: str
    """joining, ready, draining or down; `NOT_ROUTABLE` or `GONE` for one that gets no requests at all."""
    state_s: float = 0.0
    """For how long it has been in this state."""
    draining: bool = False
    """Whether it is to get no new requests. Holds, too, for one that is joining or down."""
    url: str = ""
    """Where it listens."""
    data_parallel_rank: int | None = None
    """Which of the engines there it is; None where there is one."""
    models: tuple[str, ...] = ()
    """What it served when it last answered."""
    in_flight: int = 0
    """Requests of this router that are on their way there."""
    lease: str | None = None
    """held: by its lease in Redis. kept: for now, though Redis does not know of a lease. static: by its URL."""
    namespace: str | None = None
    """Workers with equal namespaces share KV blocks; None for an engine without a connector."""
    incarnation: str | None = None
    """Of this run of the worker, in hex; None for an engine without a connector."""
    block_tokens: int | None = None
    """Tokens in a KV block; None for an engine without a connector."""
    load: Load | None = None
    """None when it reports none."""
    failures: int = 0
    """Probes and connections that failed in a row."""
    refusals: int = 0
    """Requests that got no connection to it, or no whole answer, since it is known."""
    error: str | None = None
    """The last thing that went wrong with it."""
    ejected: str | None = None
    """Why it gets no requests for the moment though its probes are fine; None when it is not ejected."""
    why: str | None = None
    """Why it gets no requests, when its state is `NOT_ROUTABLE` or `GONE`."""


class AbsentWorker(Worker, frozen=True, omit_defaults=True):
    """A worker that gets no requests. It is sent with those fields only that mean something, and read as a `Worker`."""


class Workers(msgspec.Struct, frozen=True):
    """Answers GET /gc/workers."""

    workers: tuple[Worker, ...]
    """Every worker that the router knows, by name; then those that get no requests."""


class Pods(msgspec.Struct, frozen=True):
    """Answers GET /gc/pods, the older name of /gc/workers."""

    pods: tuple[Worker, ...]
    """The same as `Workers.workers`."""


class Queue(msgspec.Struct, frozen=True):
    """The requests that wait in the router for their turn, since no worker has room for them (flow control)."""

    requests: int
    """How many wait."""
    requests_max: int
    """How many may; 0 where flow control has no queue."""
    bytes: int
    """Of their bodies."""
    by_priority: dict[str, int] = {}
    """How many by priority, the first to go first; "again" are those that a worker has refused or left unanswered."""
    tenants: dict[str, int] = {}
    """The tenants that have most waiting, with how many. Names are digests; empty: of requests that name none."""
    saturated: tuple[str, ...] = ()
    """The workers that have no room, by name."""
    retry_after_s: int = 1
    """When one that finds the queue full is told to come back."""


class Status(msgspec.Struct, frozen=True):
    """Answers GET /gc/status: the router as a whole."""

    version: str
    """The version of GhostCacher."""
    uptime_s: float
    """Since the router started."""
    ready: bool
    """Whether a worker can take requests."""
    why_not_ready: str | None = None
    """None when the router is ready."""
    workers: dict[str, int] = {}
    """How many workers are joining, ready, draining and down."""
    not_routable: int = 0
    """How many workers have a lease, but cannot be sent requests."""
    gone: tuple[Worker, ...] = ()
    """Workers that have left in the last minutes without being drained before; the latest first."""
    ejected: dict[str, str] = {}
    """Why workers get no requests for the moment though their probes are fine, by name. When more than half of those of
    a model are, all of them get requests."""
    redis_available: bool = False
    """Whether Redis answers; false without one."""
    redis_error: str | None = None
    """Why it does not, or refuses a part of what a router needs, such as a wrong password or a missing permission
    (NOPERM); null while all is well."""
    replicas: int | None = None
    """Routers alive, this one included; None when that is not known."""
    models: tuple[str, ...] = ()
    """Every known model, by id."""
    router: str = ""
    """The name of this run of the router: another router has another one, and so has this one after a restart."""
    queue: Queue | None = None
    """What waits for its turn; None without flow control."""
    processes: int = 1
    """Processes of this router that have answered; what is counted is of all of them."""


class Requests(msgspec.Struct, frozen=True):
    """Requests that have ended, without those that the router answers itself."""

    total: float = 0.0
    """All of them."""
    by_status: dict[str, float] = {}
    """By the status of the response; 499 when the client left."""


class Quantiles(msgspec.Struct, frozen=True):
    """How values are spread: within buckets, so that the last digits say nothing."""

    count: int = 0
    """How many there were."""
    p50: float | None = None
    """Half of them are below; None before the first."""
    p90: float | None = None
    """Nine tenths of them are below; None before the first."""
    p99: float | None = None
    """All but a hundredth of them are below; None before the first."""


class Stats(msgspec.Struct, frozen=True):
    """Answers GET /gc/stats: counters since the router started."""

    requests: Requests = Requests()
    """Requests that have ended."""
    picks: dict[str, float] = {}
    """Placements, by why that worker was picked."""
    picks_by_worker: dict[str, float] = {}
    """Placements, by worker."""
    fallbacks: dict[str, float] = {}
    """Placements without an exact forecast, by what was missing."""
    retries: dict[str, float] = {}
    """Requests that were sent to another worker, by what had failed."""
    ghost_locks: dict[str, float] = {}
    """Ghost locks that were asked for, by how that ended."""
    prompt_tokens: float = 0.0
    """Prompt tokens of requests that were answered."""
    hit_tokens: float = 0.0
    """How many of those prompt tokens needed no computing, by the forecast."""
    hit_ratio: float = 0.0
    """hit_tokens over prompt_tokens; 0 before the first."""
    saved_ttft_ms: float = 0.0
    """Forecast time to first token that cached prefixes saved."""
    overhead_ms: Quantiles = Quantiles()
    """What the router adds to a request."""
    ttft_ms: Quantiles = Quantiles()
    """Of streams: from the request written to the first byte of the answer's body."""
    forecast_ratio: Quantiles = Quantiles()
    """Observed over forecast time to first token."""


class Drain(msgspec.Struct, frozen=True):
    """Answers POST and DELETE /gc/workers/ID/drain."""

    id: str
    """The worker."""
    draining: bool
    """Whether it is to get no new requests from now on."""
    state: str | None
    """Its state now; None when it has just left."""
    in_flight: int
    """Requests of this router that are still on their way there."""
    shared: bool
    """Whether every router knows of it now; if not, each will soon."""


class FlushRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of POST /gc/flush. Of DOC and PREFIX it has one of `request`,
    `key` and `blocks`."""

    scope: FlushScope
    """What to forget."""
    session: str | None = None
    """The client's own name for it, of SESSION."""
    request: dict[str, Any] | None = None
    """The body of a request that has the documents, or the prompt."""
    path: str | None = None
    """Where that request would be sent, such as /v1/chat/completions; guessed from its body when not given."""
    key: str | None = None
    """The digest of a boundary, in hex."""
    blocks: tuple[str, ...] | None = None
    """Chain hashes of KV blocks, in hex."""


class TierFlushed(msgspec.Struct, frozen=True):
    """What one tier of a worker has dropped."""

    tier: str
    """device, host or object."""
    blocks: int = 0
    """How many blocks."""
    bytes: int = 0
    """What they took there, on all ranks together. Objects are the fleet's: each counts at the worker that has
    deleted it."""
    error: str | None = None
    """What is left, why, and what becomes of it; None when all is gone."""


class WorkerFlushed(msgspec.Struct, frozen=True):
    """What a worker has dropped."""

    worker: str
    """Its name."""
    answered: bool = True
    """Whether it has said so in time. One that has not may drop it later, or not at all."""
    tiers: tuple[TierFlushed, ...] = ()
    """Each tier that it has."""
    supported: bool = True
    """Whether it takes orders to flush. One that takes none keeps all it has, and is not waited for."""


class Flushed(msgspec.Struct, frozen=True, omit_defaults=True):
    """Answers POST /gc/flush. Routers have forgotten what was named; what workers have dropped, is listed."""

    flushed: FlushScope
    """What was named."""
    blocks: int = 0
    """How many blocks all workers have dropped, in all tiers."""
    bytes: int = 0
    """What they took there."""
    workers: tuple[WorkerFlushed, ...] = ()
    """Every worker with a connector."""
    error: str | None = None
    """Why workers were not told, or not asked any more; None when all went well."""


class Prefetched(msgspec.Struct, frozen=True):
    """Answers POST /gc/prefetch: a worker has the prefix in its engine's cache now."""

    worker: str
    """The worker's name."""
    seconds: float
    """How long it took, from the placement to the worker's answer."""
    prompt_tokens: int | None = None
    """Tokens of the whole prompt, as the engine counts them; None when it does not say."""
    cached_tokens: int | None = None
    """Those of them that were in a cache or a tier already; None when the engine does not say."""


class WorkerForecast(msgspec.Struct, frozen=True):
    """What a request would cost on one worker. Times in ms; null in JSON for one that has no end."""

    worker: str
    """The worker's name."""
    total_ms: float | None = None
    """What is compared: the sum of the terms below. The time to first token is all of them but `decode_ms` and
    `others_ms`."""
    queue_ms: float | None = None
    """The work that is ahead of the request."""
    wait_ms: float | None = None
    """Waiting until a prefix that another request computes is there."""
    pull_ms: float | None = None
    """Pulling KV blocks from peers."""
    compute_ms: float | None = None
    """Computing what is neither in the worker's cache nor pulled."""
    penalty_ms: float | None = None
    """A surcharge for tokens that its KV cache has no free room for."""
    decode_ms: float | None = None
    """A price for decoding beside the requests that run there."""
    others_ms: float | None = None
    """What other requests lose: those behind it wait longer, and what it evicts is computed again. And a price where
    the worker was sent far more than its share of late."""
    local_tokens: int = 0
    """Tokens in its own cache."""
    pulled_tokens: int = 0
    """Tokens whose blocks come from a peer."""
    computed_tokens: int = 0
    """Tokens that it computes."""
    endpoint: str = ""
    """Where it listens."""
    load_reported: bool = False
    """Whether its load is known from its own report."""
    in_flight: int = 0
    """Requests of this router that are on their way there."""
    adapter_ms: float = 0.0
    """Getting the request's LoRA adapter ready there: a part of `queue_ms`."""
    saturated: bool = False
    """With flow control: whether it has no room, so that requests go elsewhere, or wait in the router."""


class Explanation(msgspec.Struct, frozen=True):
    """Answers /gc/explain. Nothing was sent anywhere."""

    path: str
    """Where the request would be sent."""
    workers: tuple[WorkerForecast, ...]
    """Each worker that could answer it, the best first; by load, as one token, where another computes its prompt."""
    prefill: tuple[WorkerForecast, ...] = ()
    """Each worker that could compute its prompt for one that answers, the best first; none where one does both."""
