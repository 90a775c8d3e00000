/**
 * Decides whether a failed request is sent again, and when. Pure.
 *
 * Sent again is what nothing came of: no connection, none that lived until an answer began, or an answer that asks for it
 * (429, 503 and 529). The router has by then tried other workers itself, so 500, 502 and 504 are final: the request itself
 * may be what engines fail at.
 */

import { ConnectFailed, StatusError } from "./errors.js";

const RETRIED_STATUSES = new Set([429, 503, 529]);
const PAUSE_FIRST_MS = 500;
const PAUSE_MAX_MS = 8_000;
/** A server that wants a longer pause gets no second request: the error says when to try again. */
const RETRY_AFTER_MAX_MS = 60_000;

/**
 * Return how long to wait before a request is sent again, in ms; null when it is not.
 *
 * attempt: how often it was sent before this failure, from 0.
 */
export function pauseBeforeRetry(failure: unknown, attempt: number, retriesMax: number): number | null {
  if (attempt >= retriesMax) return null;
  if (failure instanceof StatusError) {
    if (!RETRIED_STATUSES.has(failure.status)) return null;
    if (failure.retryAfterMs !== null) return failure.retryAfterMs <= RETRY_AFTER_MAX_MS ? failure.retryAfterMs : null;
  } else if (!(failure instanceof ConnectFailed)) {
    return null;
  }
  const longestMs = Math.min(PAUSE_MAX_MS, PAUSE_FIRST_MS * 2 ** attempt);
  // So that clients that failed together do not come back together.
  return longestMs / 2 + (Math.random() * longestMs) / 2;
}

/** Return the ms that a `retry-after` header asks for, be it a number of seconds or a date; null when it is neither. */
export function retryAfterMsOf(value: string | null, nowMs: number): number | null {
  if (value === null) return null;
  if (/^\s*[0-9]+\s*$/.test(value)) return Number(value) * 1000;
  const at = Date.parse(value);
  return Number.isNaN(at) ? null : Math.max(0, at - nowMs);
}
