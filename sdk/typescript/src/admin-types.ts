/**
 * What the router's admin API answers and takes.
 *
 * Made by sdk/generate_types.py from the router's schema: change that, then `make reference`.
 */

/** The state of a worker that has a lease, but cannot be sent requests. */
export const NOT_ROUTABLE = "not_routable";

/** The state of a worker that has left the fleet without being drained before. */
export const GONE = "gone";

/**
 * What an order to flush names. Routers and workers send each other the values.
 *
 * - `session`: A session: to which worker it is bound, and the blocks of its history, without what it shares with others.
 * - `doc`: The documents of a prompt: where they were seen, their blocks, and all that follow them.
 * - `prefix`: A whole prompt: where it was seen, its last blocks and all that follow them, and those before them that nothing else follows.
 * - `tools`: The blocks of all tools, and all that follow them.
 * - `all`: Everything.
 */
export type FlushScope = "session" | "doc" | "prefix" | "tools" | "all";

/** A tier below a worker's engine cache, as its connector reports. Counts are since its start. */
export interface TierLoad {
  /** host or object. */
  tier: string;
  /** Blocks that it holds now. */
  blocks?: number;
  /** Blocks that it has room for. */
  blocks_max?: number;
  /** How many of its blocks are tools, sys, doc, session and user. */
  blocks_by_type?: Record<string, number>;
  /** Blocks that requests of this worker have taken from it. */
  loaded_blocks?: number;
  /** Blocks that made room for others, or whose time was over. */
  evicted_blocks?: number;
  /** Blocks that were not worth what would have had to go. */
  refused_blocks?: number;
  /** Copies that are ordered and not done. */
  copies_under_way?: number;
}

/** What a worker has to do, and how fast it does it, as its connector reports. */
export interface Load {
  /** Requests that the engine's scheduler runs. */
  running?: number;
  /** Requests that wait in the engine's scheduler. */
  waiting?: number;
  /** Prompt tokens of all of these that are still to be computed. */
  waiting_tokens?: number;
  /** KV blocks in use by requests. */
  kv_blocks_used?: number;
  /** KV blocks that the worker's own cache has. */
  kv_blocks_total?: number;
  /** How fast the worker computes prompts, as measured; 0 when that is not known. */
  prefill_tokens_per_s?: number;
  /** Tokens in a KV block. */
  block_tokens?: number;
  /** Bytes of a KV block on one rank. */
  block_bytes?: number;
  /** How fast the worker pulls, as measured; 0 when that is not known. */
  pull_bytes_per_s?: number;
  /** How long a pull takes however small it is, as measured; 0 when that is not known. */
  pull_fixed_s?: number;
  /** How old this report is. */
  age_s?: number;
  /** Whether no step has told the prefill rate lately. */
  prefill_rate_stale?: boolean;
  /** How long a step takes that only decodes, as measured, in s; 0 when that is not known. */
  decode_step_s?: number;
  /** What one more request adds to such a step, in s; 0 when that is not known. */
  decode_request_s?: number;
  /** Those below the engine's cache. */
  tiers?: TierLoad[];
  /** KV blocks that its requests took from peers or tiers instead of having them computed, since its start. */
  hit_blocks?: number;
  /** KV blocks that were computed though the fleet might have held them, since its start, by the reason why. */
  missed_blocks?: Record<string, number>;
}

/** One worker, as the router sees it. */
export interface Worker {
  /** The worker's name. */
  id: string;
  /** joining, ready, draining or down; `NOT_ROUTABLE` or `GONE` for one that gets no requests at all. */
  state: string;
  /** For how long it has been in this state. */
  state_s?: number;
  /** Whether it is to get no new requests. Holds, too, for one that is joining or down. */
  draining?: boolean;
  /** Where it listens. */
  url?: string;
  /** Which of the engines there it is; None where there is one. */
  data_parallel_rank?: number | null;
  /** What it served when it last answered. */
  models?: string[];
  /** Requests of this router that are on their way there. */
  in_flight?: number;
  /** held: by its lease in Redis. kept: for now, though Redis does not know of a lease. static: by its URL. */
  lease?: string | null;
  /** Workers with equal namespaces share KV blocks; None for an engine without a connector. */
  namespace?: string | null;
  /** Of this run of the worker, in hex; None for an engine without a connector. */
  incarnation?: string | null;
  /** Tokens in a KV block; None for an engine without a connector. */
  block_tokens?: number | null;
  /** None when it reports none. */
  load?: Load | null;
  /** Probes and connections that failed in a row. */
  failures?: number;
  /** Requests that got no connection to it, or no whole answer, since it is known. */
  refusals?: number;
  /** The last thing that went wrong with it. */
  error?: string | null;
  /** Why it gets no requests for the moment though its probes are fine; None when it is not ejected. */
  ejected?: string | null;
  /** Why it gets no requests, when its state is `NOT_ROUTABLE` or `GONE`. */
  why?: string | null;
}

/** A worker that gets no requests. It is sent with those fields only that mean something, and read as a `Worker`. */
export interface AbsentWorker extends Worker {
}

/** Answers GET /gc/workers. */
export interface Workers {
  /** Every worker that the router knows, by name; then those that get no requests. */
  workers: Worker[];
}

/** Answers GET /gc/pods, the older name of /gc/workers. */
export interface Pods {
  /** The same as `Workers.workers`. */
  pods: Worker[];
}

/** The requests that wait in the router for their turn, since no worker has room for them (flow control). */
export interface Queue {
  /** How many wait. */
  requests: number;
  /** How many may; 0 where flow control has no queue. */
  requests_max: number;
  /** Of their bodies. */
  bytes: number;
  /** How many by priority, the first to go first; "again" are those that a worker has refused or left unanswered. */
  by_priority?: Record<string, number>;
  /** The tenants that have most waiting, with how many. Names are digests; empty: of requests that name none. */
  tenants?: Record<string, number>;
  /** The workers that have no room, by name. */
  saturated?: string[];
  /** When one that finds the queue full is told to come back. */
  retry_after_s?: number;
}

/** Answers GET /gc/status: the router as a whole. */
export interface Status {
  /** The version of GhostCacher. */
  version: string;
  /** Since the router started. */
  uptime_s: number;
  /** Whether a worker can take requests. */
  ready: boolean;
  /** None when the router is ready. */
  why_not_ready?: string | null;
  /** How many workers are joining, ready, draining and down. */
  workers?: Record<string, number>;
  /** How many workers have a lease, but cannot be sent requests. */
  not_routable?: number;
  /** Workers that have left in the last minutes without being drained before; the latest first. */
  gone?: Worker[];
  /** Why workers get no requests for the moment though their probes are fine, by name. When more than half of those of a model are, all of them get requests. */
  ejected?: Record<string, string>;
  /** Whether Redis answers; false without one. */
  redis_available?: boolean;
  /** Why it does not, or refuses a part of what a router needs, such as a wrong password or a missing permission (NOPERM); null while all is well. */
  redis_error?: string | null;
  /** Routers alive, this one included; None when that is not known. */
  replicas?: number | null;
  /** Every known model, by id. */
  models?: string[];
  /** The name of this run of the router: another router has another one, and so has this one after a restart. */
  router?: string;
  /** What waits for its turn; None without flow control. */
  queue?: Queue | null;
  /** Processes of this router that have answered; what is counted is of all of them. */
  processes?: number;
}

/** Requests that have ended, without those that the router answers itself. */
export interface Requests {
  /** All of them. */
  total?: number;
  /** By the status of the response; 499 when the client left. */
  by_status?: Record<string, number>;
}

/** How values are spread: within buckets, so that the last digits say nothing. */
export interface Quantiles {
  /** How many there were. */
  count?: number;
  /** Half of them are below; None before the first. */
  p50?: number | null;
  /** Nine tenths of them are below; None before the first. */
  p90?: number | null;
  /** All but a hundredth of them are below; None before the first. */
  p99?: number | null;
}

/** Answers GET /gc/stats: counters since the router started. */
export interface Stats {
  /** Requests that have ended. */
  requests?: Requests;
  /** Placements, by why that worker was picked. */
  picks?: Record<string, number>;
  /** Placements, by worker. */
  picks_by_worker?: Record<string, number>;
  /** Placements without an exact forecast, by what was missing. */
  fallbacks?: Record<string, number>;
  /** Requests that were sent to another worker, by what had failed. */
  retries?: Record<string, number>;
  /** Ghost locks that were asked for, by how that ended. */
  ghost_locks?: Record<string, number>;
  /** Prompt tokens of requests that were answered. */
  prompt_tokens?: number;
  /** How many of those prompt tokens needed no computing, by the forecast. */
  hit_tokens?: number;
  /** hit_tokens over prompt_tokens; 0 before the first. */
  hit_ratio?: number;
  /** Forecast time to first token that cached prefixes saved. */
  saved_ttft_ms?: number;
  /** What the router adds to a request. */
  overhead_ms?: Quantiles;
  /** Of streams: from the request written to the first byte of the answer's body. */
  ttft_ms?: Quantiles;
  /** Observed over forecast time to first token. */
  forecast_ratio?: Quantiles;
}

/** Answers POST and DELETE /gc/workers/ID/drain. */
export interface Drain {
  /** The worker. */
  id: string;
  /** Whether it is to get no new requests from now on. */
  draining: boolean;
  /** Its state now; None when it has just left. */
  state: string | null;
  /** Requests of this router that are still on their way there. */
  in_flight: number;
  /** Whether every router knows of it now; if not, each will soon. */
  shared: boolean;
}

/** The body of POST /gc/flush. Of DOC and PREFIX it has one of `request`, `key` and `blocks`. */
export interface FlushRequest {
  /** What to forget. */
  scope: FlushScope;
  /** The client's own name for it, of SESSION. */
  session?: string | null;
  /** The body of a request that has the documents, or the prompt. */
  request?: Record<string, unknown> | null;
  /** Where that request would be sent, such as /v1/chat/completions; guessed from its body when not given. */
  path?: string | null;
  /** The digest of a boundary, in hex. */
  key?: string | null;
  /** Chain hashes of KV blocks, in hex. */
  blocks?: string[] | null;
}

/** What one tier of a worker has dropped. */
export interface TierFlushed {
  /** device, host or object. */
  tier: string;
  /** How many blocks. */
  blocks?: number;
  /** What they took there, on all ranks together. Objects are the fleet's: each counts at the worker that has deleted it. */
  bytes?: number;
  /** What is left, why, and what becomes of it; None when all is gone. */
  error?: string | null;
}

/** What a worker has dropped. */
export interface WorkerFlushed {
  /** Its name. */
  worker: string;
  /** Whether it has said so in time. One that has not may drop it later, or not at all. */
  answered?: boolean;
  /** Each tier that it has. */
  tiers?: TierFlushed[];
  /** Whether it takes orders to flush. One that takes none keeps all it has, and is not waited for. */
  supported?: boolean;
}

/** Answers POST /gc/flush. Routers have forgotten what was named; what workers have dropped, is listed. */
export interface Flushed {
  /** What was named. */
  flushed: FlushScope;
  /** How many blocks all workers have dropped, in all tiers. */
  blocks?: number;
  /** What they took there. */
  bytes?: number;
  /** Every worker with a connector. */
  workers?: WorkerFlushed[];
  /** Why workers were not told, or not asked any more; None when all went well. */
  error?: string | null;
}

/** Answers POST /gc/prefetch: a worker has the prefix in its engine's cache now. */
export interface Prefetched {
  /** The worker's name. */
  worker: string;
  /** How long it took, from the placement to the worker's answer. */
  seconds: number;
  /** Tokens of the whole prompt, as the engine counts them; None when it does not say. */
  prompt_tokens?: number | null;
  /** Those of them that were in a cache or a tier already; None when the engine does not say. */
  cached_tokens?: number | null;
}

/** What a request would cost on one worker. Times in ms; null in JSON for one that has no end. */
export interface WorkerForecast {
  /** The worker's name. */
  worker: string;
  /** What is compared: the sum of the terms below. The time to first token is all of them but `decode_ms` and `others_ms`. */
  total_ms?: number | null;
  /** The work that is ahead of the request. */
  queue_ms?: number | null;
  /** Waiting until a prefix that another request computes is there. */
  wait_ms?: number | null;
  /** Pulling KV blocks from peers. */
  pull_ms?: number | null;
  /** Computing what is neither in the worker's cache nor pulled. */
  compute_ms?: number | null;
  /** A surcharge for tokens that its KV cache has no free room for. */
  penalty_ms?: number | null;
  /** A price for decoding beside the requests that run there. */
  decode_ms?: number | null;
  /** What other requests lose: those behind it wait longer, and what it evicts is computed again. And a price where the worker was sent far more than its share of late. */
  others_ms?: number | null;
  /** Tokens in its own cache. */
  local_tokens?: number;
  /** Tokens whose blocks come from a peer. */
  pulled_tokens?: number;
  /** Tokens that it computes. */
  computed_tokens?: number;
  /** Where it listens. */
  endpoint?: string;
  /** Whether its load is known from its own report. */
  load_reported?: boolean;
  /** Requests of this router that are on their way there. */
  in_flight?: number;
  /** Getting the request's LoRA adapter ready there: a part of `queue_ms`. */
  adapter_ms?: number;
  /** With flow control: whether it has no room, so that requests go elsewhere, or wait in the router. */
  saturated?: boolean;
}

/** Answers /gc/explain. Nothing was sent anywhere. */
export interface Explanation {
  /** Where the request would be sent. */
  path: string;
  /** Each worker that could answer it, the best first; by load, as one token, where another computes its prompt. */
  workers: WorkerForecast[];
  /** Each worker that could compute its prompt for one that answers, the best first; none where one does both. */
  prefill?: WorkerForecast[];
}

/** How the router fared in one interval. What was nothing is left out. */
export interface HistoryPoint {
  /** The end of the interval, in seconds since 1970. */
  at: number;
  /** How long it was. */
  seconds: number;
  /** Requests that ended, without those that the router answers itself. */
  requests?: number;
  /** Those of them that were answered with a server's error (5xx). */
  failed?: number;
  /** Prompt tokens of requests that were answered. */
  prompt_tokens?: number;
  /** How many of those needed no computing, by the forecast. */
  hit_tokens?: number;
  /** Forecast time to first token that cached prefixes saved, in ms. */
  saved_ttft_ms?: number;
  /** Of streams: from the request written to the first byte of the answer's body, in ms. */
  ttft_ms?: Quantiles;
  /** What the router added to a request, waiting for a ghost lock included, in ms. */
  overhead_ms?: Quantiles;
  /** Observed over forecast time to first token. */
  forecast_ratio?: Quantiles;
  /** Requests of this router at workers, at the end of the interval. */
  in_flight?: number;
  /** Workers that were ready then. */
  ready?: number;
  /** KV blocks that workers' requests took from peers or tiers. */
  hit_blocks?: number;
  /** KV blocks that were computed though the fleet might have held them, by the reason why. */
  missed_blocks?: Record<string, number>;
}

/** The forecasts of the last answers, each beside what came of it. Both have one number an answer, oldest first. */
export interface FirstTokens {
  /** The forecast time to first token, in ms. */
  forecast_ms?: number[];
  /** The observed one, in ms. */
  observed_ms?: number[];
}

/** Answers GET /gc/history?after=T. */
export interface History {
  /** The name of this run of the router, as in `Status`: after a restart it knows nothing of before. */
  router: string;
  /** The router's time, in seconds since 1970. */
  now: number;
  /** How long an interval is, in seconds. */
  interval_s: number;
  /** Those that ended after T (all, without T), oldest first. */
  points?: HistoryPoint[];
  /** The last few hundred answers to streams that had a forecast. */
  first_tokens?: FirstTokens;
}

/** What many prompts began with lately, up to the end of a section. No text of it is kept. */
export interface Prefix {
  /** The digest of the text up to there, in hex: what POST /gc/flush takes as `key`. */
  key: string;
  /** The type of the section at its end: tools, sys, doc, session or user. */
  section: string;
  /** The size of the text, in the form in which the router hashes it. */
  bytes: number;
  /** How many of the prompts that were looked at began with it; what is older counts less. */
  uses: number;
  /** How long ago the last one came, in seconds. */
  last_s: number;
  /** KV blocks that it fills; None when no worker with a connector has told. */
  blocks?: number | null;
  /** Tokens of these blocks; None likewise. */
  tokens?: number | null;
  /** Workers that hold it, at most 16 of them; of plain engines it is a guess. */
  holders?: string[];
  /** How many hold it, as far as was asked. */
  holder_count?: number;
}

/** Answers GET /gc/prefixes: what is hottest, of each type of section. */
export interface Prefixes {
  /** The hottest first, at most ten of a type. */
  prefixes?: Prefix[];
  /** Prompts that were looked at, since the router started. A busy router looks at a part of them. */
  seen?: number;
}

/** A ghost lock: a worker computes a cold prefix, and others who need it wait for that. */
export interface LockReport {
  /** The digest of its deepest boundary, in hex. */
  key: string;
  /** Who computes. */
  worker: string;
  /** Whether a request of this router holds it. Of other routers' locks it knows those that its requests met. */
  ours: boolean;
  /** Whether the store has granted it, or has not answered in time. */
  confirmed: boolean;
  /** Since when this router knows of it, in seconds. */
  age_s: number;
  /** When it will be computed, as forecast, in seconds from now; negative when it is late. */
  ready_s: number;
  /** Boundaries of the prompt that it covers, one in about each KiB. */
  boundaries: number;
}

/** Answers GET /gc/locks. */
export interface Locks {
  /** Those that are held now, the oldest first, at most 64. */
  locks?: LockReport[];
  /** How many there are. */
  total?: number;
}

/** One worker's way to a peer's cache, as it has timed it itself, once a minute; of rank 0. */
export interface Link {
  /** Who reads. */
  reader: string;
  /** Whose cache is read. */
  owner: string;
  /** Whether the last timed read went well. */
  ok: boolean;
  /** What carried it, such as nixl or relay; None when nothing did. */
  transport?: string | null;
  /** How fast it was; None when that was not measured. */
  bytes_per_s?: number | null;
  /** The round trip, in us; None when that was not measured. */
  rtt_us?: number | null;
  /** What went wrong; empty when nothing did. */
  error?: string;
  /** How old this is, in seconds. */
  age_s?: number;
}

/** Answers GET /gc/links: of all workers, or with ?worker=ID of one of them. */
export interface Links {
  /** By reader and owner, at most 64 of a reader. */
  links?: Link[];
  /** Readers that were looked at, 24 at most. */
  readers?: number;
}
