/** What the shared cache did for a request, as the router and the engine tell it. */

/** What the shared cache did for one request. Null where nobody told it. */
export interface CacheInfo {
  /** The worker that answered. */
  readonly worker: string | null;
  /** The id under which the router and its log know the request. */
  readonly requestId: string | null;
  /** The router's forecast of the time to first token, in ms. */
  readonly forecastMs: number | null;
  /** Tokens of the prompt that needed no computing, by the router's forecast. */
  readonly forecastCachedTokens: number | null;
  /** How much sooner the first token comes for what was cached, by the router's forecast, in ms. */
  readonly savedMs: number | null;
  /**
   * Tokens of the prompt that were in a cache, as the engine counts them in its answer's usage. Of a stream it is known
   * once the event with the usage has come.
   */
  readonly cachedTokens: number | null;
}

/** Return what the headers of an answer tell. */
export function cacheInfoOf(headers: Headers): CacheInfo {
  return {
    worker: headers.get("x-gc-worker"),
    requestId: headers.get("x-request-id"),
    forecastMs: numberOf(headers.get("x-gc-forecast-ms")),
    forecastCachedTokens: numberOf(headers.get("x-gc-cached-tokens")),
    savedMs: numberOf(headers.get("x-gc-saved-ms")),
    cachedTokens: null,
  };
}

/** Return a cache info with the cached tokens that an answer's, or an event's, usage tells. */
export function withUsage(cache: CacheInfo, told: Record<string, unknown>): CacheInfo {
  // Anthropic's first event has its usage in a message.
  const usage = fieldsOf(told["usage"]) ?? fieldsOf(fieldsOf(told["message"])?.["usage"]);
  const details = fieldsOf(usage?.["prompt_tokens_details"]);
  const tokens = details?.["cached_tokens"] ?? usage?.["cache_read_input_tokens"];
  return typeof tokens === "number" ? { ...cache, cachedTokens: tokens } : cache;
}

/** Return a value's fields; undefined when it is no object. */
export function fieldsOf(value: unknown): Record<string, unknown> | undefined {
  return typeof value === "object" && value !== null && !Array.isArray(value)
    ? (value as Record<string, unknown>)
    : undefined;
}

function numberOf(text: string | null): number | null {
  const number = text === null || text.trim() === "" ? NaN : Number(text);
  return Number.isFinite(number) ? number : null;
}
