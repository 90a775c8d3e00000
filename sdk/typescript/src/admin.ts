/** The router's own API: what it knows of its fleet, and what can be asked of it. */

import type {
  Drain,
  Explanation,
  Flushed,
  FlushScope,
  History,
  Links,
  Locks,
  Prefetched,
  Prefixes,
  Stats,
  Status,
  Worker,
  Workers,
} from "./admin-types.js";
import type { Json } from "./arguments.js";
import type { PromptRequest } from "./calls.js";
import { adminCall } from "./calls.js";
import * as checks from "./checks.js";
import { AnswerMalformed, ArgumentError } from "./errors.js";
import type { Options } from "./options.js";
import { decoded, open } from "./transport.js";

const SCOPES: Readonly<Record<FlushScope, true>> = { session: true, doc: true, prefix: true, tools: true, all: true };

/** What a flush names; see `FlushRequest`. */
export interface FlushTarget {
  session?: string;
  request?: PromptRequest;
  key?: string;
  blocks?: readonly string[];
}

/** Asks the router about its fleet, and orders it about. Throws GhostCacherError: a StatusError without its token. */
export class Admin {
  constructor(private readonly options: Options) {}

  /** Return how the router and its fleet are. */
  status(): Promise<Status> {
    return this.ask<Status>("GET", "/gc/status", "version");
  }

  /** Return the router's counters since its start. */
  stats(): Promise<Stats> {
    return this.ask<Stats>("GET", "/gc/stats", null);
  }

  /** Return every worker that the router knows. */
  async workers(): Promise<Worker[]> {
    return (await this.ask<Workers>("GET", "/gc/workers", "workers")).workers;
  }

  /** Return how the router fared in the intervals that ended after a time, in seconds since 1970; without one: all. */
  async history(options: { after?: number } = {}): Promise<History> {
    const query = options.after === undefined ? "" : `?after=${checks.seconds("after", options.after)}`;
    return this.ask<History>("GET", `/gc/history${query}`, "points");
  }

  /** Return what many prompts begin with, and who holds it. */
  prefixes(): Promise<Prefixes> {
    return this.ask<Prefixes>("GET", "/gc/prefixes", "prefixes");
  }

  /** Return the ghost locks that the router knows of. */
  locks(): Promise<Locks> {
    return this.ask<Locks>("GET", "/gc/locks", "locks");
  }

  /** Return how fast workers, or one of them, read their peers' caches. */
  async links(options: { worker?: string } = {}): Promise<Links> {
    const query = options.worker === undefined ? "" : `?worker=${encodeURIComponent(checks.text("worker", options.worker))}`;
    return this.ask<Links>("GET", `/gc/links${query}`, "links");
  }

  /** Return each worker's forecast for a request, the best first. Nothing is sent to engines. */
  async explain(request: PromptRequest): Promise<Explanation> {
    const { path, body } = requestOf(request);
    return this.ask<Explanation>("POST", `/gc/explain?path=${encodeURIComponent(path)}`, "workers", body);
  }

  /** Have a worker compute or load a prompt before its traffic comes: this one, or where it would be placed. */
  async prefetch(request: PromptRequest, options: { worker?: string } = {}): Promise<Prefetched> {
    const { path, body } = requestOf(request);
    const worker = options.worker === undefined ? {} : { worker: checks.text("worker", options.worker) };
    return this.ask<Prefetched>("POST", "/gc/prefetch", "worker", { ...body, path, ...worker });
  }

  /** Give a worker no new requests. */
  async drain(worker: string): Promise<Drain> {
    return this.ask<Drain>("POST", drainPath(worker), "draining");
  }

  /** Take a drain back. */
  async undrain(worker: string): Promise<Drain> {
    return this.ask<Drain>("DELETE", drainPath(worker), "draining");
  }

  /** Have routers forget and workers drop what is named. */
  async flush(scope: FlushScope, target: FlushTarget = {}): Promise<Flushed> {
    if (!Object.hasOwn(SCOPES, scope)) {
      throw new ArgumentError("scope", `expected one of ${Object.keys(SCOPES).join(", ")}, got ${checks.shown(scope)}`);
    }
    const { request, ...named } = target;
    const of = request === undefined ? {} : { request: requestOf(request).body, path: request.path };
    return this.ask<Flushed>("POST", "/gc/flush", "flushed", { scope, ...named, ...of });
  }

  /** needs: a field that the answer always has. */
  private async ask<Kind>(method: string, path: string, needs: string | null, body: Json | null = null): Promise<Kind> {
    const reply = await open(this.options.fetch, adminCall(this.options, method, path, body));
    const answer = decoded(await reply.text());
    if (needs !== null && !(needs in answer)) throw new AnswerMalformed(`${path}: expected an answer with ${needs}, got none`);
    return answer as Kind;
  }
}

function drainPath(worker: string): string {
  return `/gc/workers/${encodeURIComponent(checks.text("worker", worker))}/drain`;
}

function requestOf(request: unknown): PromptRequest {
  if (checks.isObject(request) && typeof request["path"] === "string" && checks.isObject(request["body"])) {
    return { path: request["path"], body: request["body"] };
  }
  throw new ArgumentError("request", `expected what prepare() returns, got ${checks.shown(request)}`);
}
