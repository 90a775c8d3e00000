/** How a client is set up. */

import type { Names } from "./arguments.js";
import * as checks from "./checks.js";
import { ArgumentError } from "./errors.js";

/** Whose API `messages` speaks. */
export type Provider = "anthropic" | "openai";

const PROVIDERS: readonly string[] = ["anthropic", "openai"];
// What Node's fetch itself waits for at most.
const TIMEOUT_MS = 300_000;
const RETRIES_MAX = 2;
const ANTHROPIC_VERSION = "2023-06-01";

/** What a client takes. */
export interface ClientOptions<P extends Provider = Provider> {
  /** Whose API `messages` speaks. */
  provider: P;
  /** Of the router. */
  ghostcacherUrl: string;
  /** Of the engines, which check it; the router passes it on. */
  apiKey?: string;
  /** Of the router, for `admin`. */
  adminToken?: string;
  /** Your name for the conversation: the router keeps a session at its worker while that costs little. */
  session?: string;
  /** The longest wait for an answer to begin, and for each next part of it. */
  timeoutMs?: number;
  /** How often a request is sent again that nothing came of. */
  retriesMax?: number;
  /** More headers of every request for an engine. */
  headers?: Readonly<Record<string, string>>;
  /** What sends requests in place of the global fetch. */
  fetch?: typeof fetch;
}

const NAMES: Names<ClientOptions> = {
  provider: true,
  ghostcacherUrl: true,
  apiKey: false,
  adminToken: false,
  session: false,
  timeoutMs: false,
  retriesMax: false,
  headers: false,
  fetch: false,
};

/** What a client was set up with, checked. */
export interface Options {
  readonly url: string;
  readonly session: string | null;
  readonly timeoutMs: number;
  readonly retriesMax: number;
  /** Of a request for an engine. */
  readonly engineHeaders: Readonly<Record<string, string>>;
  /** Of a request for the router itself: its token, and nothing that is the engines'. */
  readonly adminHeaders: Readonly<Record<string, string>>;
  readonly fetch: typeof fetch;
}

/** Return the options of a client. Throws ArgumentError. */
export function checked(given: unknown): Options {
  const { provider, ghostcacherUrl, apiKey, adminToken, session, timeoutMs, retriesMax, headers, fetch: send } =
    checks.known(given, NAMES, "options");
  if (typeof provider !== "string" || !PROVIDERS.includes(provider)) {
    throw new ArgumentError("provider", `expected one of ${PROVIDERS.join(", ")}, got ${checks.shown(provider)}`);
  }
  if (send !== undefined && typeof send !== "function") {
    throw new ArgumentError("fetch", `expected a function, got ${checks.shown(send)}`);
  }
  const key = apiKey === undefined ? null : checks.headerValue("apiKey", apiKey, true);
  const token = adminToken === undefined ? null : checks.headerValue("adminToken", adminToken, true);
  const anthropic = provider === "anthropic";
  return {
    url: checks.routerUrl("ghostcacherUrl", ghostcacherUrl),
    session: session === undefined ? null : checks.session("session", session),
    timeoutMs: checks.milliseconds("timeoutMs", timeoutMs ?? TIMEOUT_MS),
    retriesMax: checks.count("retriesMax", retriesMax ?? RETRIES_MAX, 0),
    engineHeaders: {
      // Engines look for a key here alone; what Anthropic's API has instead is sent, too, where that API is spoken.
      ...(key !== null && { authorization: `Bearer ${key}` }),
      ...(key !== null && anthropic && { "x-api-key": key }),
      ...(anthropic && { "anthropic-version": ANTHROPIC_VERSION }),
      ...checks.headers("headers", headers ?? {}),
    },
    adminHeaders: token === null ? {} : { authorization: `Bearer ${token}` },
    fetch: (send as typeof fetch | undefined) ?? ((input, init) => fetch(input, init)),
  };
}
