/** Sends requests, again where nothing came of them, and reads answers piece by piece. */

import type { Call } from "./calls.js";
import { fieldsOf } from "./cache-info.js";
import { AnswerBroken, AnswerMalformed, AnswerTimeout, ConnectFailed, StatusError } from "./errors.js";
import { pauseBeforeRetry, retryAfterMsOf } from "./retries.js";

/** Of an answer that is not streamed. */
const ANSWER_BYTES_MAX = 256 << 20;
const REASON_CHARS_MAX = 500;
/** What Node's own limits are called. */
const TIMEOUT_CODES: unknown[] = ["UND_ERR_HEADERS_TIMEOUT", "UND_ERR_BODY_TIMEOUT"];

/** An answer that has begun, and is no error. Whoever has it reads it to its end, or leaves it. */
export class Reply {
  private readonly reader: ReadableStreamDefaultReader<Uint8Array> | null;

  constructor(
    readonly response: Response,
    private readonly call: Call,
    private readonly watch: Watch,
  ) {
    this.reader = response.body?.getReader() ?? null;
  }

  /** Return the next part of the body; null behind the last one. Throws what `failureOf` says. */
  async next(): Promise<Uint8Array | null> {
    this.watch.begin();
    try {
      const part = await this.reader?.read();
      if (part?.value !== undefined) return part.value;
      this.watch.end();
      return null;
    } catch (error) {
      this.watch.end();
      throw this.watch.reasonFor(error) ?? failureOf(error, this.call, true);
    } finally {
      this.watch.pause();
    }
  }

  /** Return the whole body. */
  async text(): Promise<string> {
    const decoder = new TextDecoder();
    const pieces: string[] = [];
    let size = 0;
    for (let part = await this.next(); part !== null; part = await this.next()) {
      size += part.length;
      if (size > ANSWER_BYTES_MAX) {
        this.leave();
        throw new AnswerMalformed(`expected an answer of at most ${ANSWER_BYTES_MAX} bytes, got a longer one`);
      }
      pieces.push(decoder.decode(part, { stream: true }));
    }
    return pieces.join("") + decoder.decode();
  }

  /** Throw the reason of the caller's signal, if that has ended it. */
  check(): void {
    this.call.signal?.throwIfAborted();
  }

  /** End it, and the request. Idempotent. */
  leave(): void {
    this.watch.leave();
  }
}

/** Ends one attempt when it takes too long, or when the caller says so. */
class Watch {
  private readonly own = new AbortController();
  private timer: ReturnType<typeof setTimeout> | undefined;
  private readonly onAbort = () => this.own.abort(this.call.signal?.reason);

  constructor(private readonly call: Call) {
    if (call.signal?.aborted) this.onAbort();
    call.signal?.addEventListener("abort", this.onAbort, { once: true });
  }

  get signal(): AbortSignal {
    return this.own.signal;
  }

  /** Wait for something from now on. */
  begin(): void {
    this.pause();
    const { url, timeoutMs } = this.call;
    this.timer = setTimeout(() => {
      this.own.abort(new AnswerTimeout(`${url}: nothing of the answer within ${timeoutMs} ms`));
    }, timeoutMs);
  }

  /** Wait for nothing. */
  pause(): void {
    clearTimeout(this.timer);
  }

  /** Wait for nothing any more. */
  end(): void {
    this.pause();
    this.call.signal?.removeEventListener("abort", this.onAbort);
  }

  /** End the attempt. */
  leave(): void {
    this.end();
    this.own.abort();
  }

  /** Return why it was ended, if it was: the caller's own reason, or that it took too long. */
  reasonFor(error: unknown): unknown {
    return this.own.signal.aborted ? (this.own.signal.reason ?? error) : undefined;
  }
}

/** Return the answer to a request. Throws GhostCacherError, or the reason of the caller's signal. */
export async function open(send: typeof fetch, call: Call): Promise<Reply> {
  for (let attempt = 0; ; attempt++) {
    let failure: unknown;
    try {
      return await attemptOf(send, call);
    } catch (error) {
      failure = error;
    }
    const pauseMs = pauseBeforeRetry(failure, attempt, call.retriesMax);
    if (pauseMs === null) throw failure;
    await pause(pauseMs, call.signal);
  }
}

async function attemptOf(send: typeof fetch, call: Call): Promise<Reply> {
  const watch = new Watch(call);
  let response: Response;
  watch.begin();
  try {
    response = await send(call.url, {
      method: call.method,
      headers: call.headers,
      body: call.body,
      redirect: "manual",
      signal: watch.signal,
    });
  } catch (error) {
    watch.end();
    throw watch.reasonFor(error) ?? failureOf(error, call, false);
  }
  watch.pause();
  const reply = new Reply(response, call, watch);
  if (response.ok) return reply;
  throw statusError(response, await reply.text());
}

/** Wait, unless the caller says otherwise. */
function pause(ms: number, signal: AbortSignal | null): Promise<void> {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, ms);
    if (signal?.aborted) stop();
    else signal?.addEventListener("abort", stop, { once: true });
  });
}

/** Return what an error of fetch means. begun: whether an answer had begun. */
function failureOf(error: unknown, call: Call, begun: boolean): Error {
  const cause = fieldsOf(error)?.["cause"] ?? error;
  const what = cause instanceof Error && cause.message !== "" ? cause.message : String(fieldsOf(cause)?.["code"] ?? cause);
  if (TIMEOUT_CODES.includes(fieldsOf(cause)?.["code"])) return new AnswerTimeout(`${call.url}: ${what}`, { cause: error });
  if (begun) return new AnswerBroken(`${call.url}: the connection broke off: ${what}`, null, { cause: error });
  return new ConnectFailed(`${call.url}: no answer: ${what}`, { cause: error });
}

/** Return the error that an answer tells of, in the form of either API, or in none. */
function statusError(response: Response, text: string): StatusError {
  const raw = fieldsOf(parsed(text));
  const error = fieldsOf(raw?.["error"]) ?? raw ?? {};
  const said = error["message"] ?? error["detail"];
  const reason = (typeof said === "string" && said) || text || "no reason given";
  const param = error["param"];
  return new StatusError(response.status, reason.slice(0, REASON_CHARS_MAX), {
    code: codeOf(error),
    param: typeof param === "string" ? param : null,
    requestId: response.headers.get("x-request-id"),
    retryAfterMs: retryAfterMsOf(response.headers.get("retry-after"), Date.now()),
  });
}

/** Return OpenAI's code of an error, or else its type, which Anthropic's API has alone. */
export function codeOf(error: Record<string, unknown>): string | null {
  const code = error["code"] ?? error["type"];
  return code === undefined || code === null ? null : String(code);
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** Return the object that a text is as JSON. Throws AnswerMalformed. */
export function decoded(text: string): Record<string, unknown> {
  const found = fieldsOf(parsed(text));
  if (found === undefined) throw new AnswerMalformed(`expected an answer in JSON, got ${JSON.stringify(text.slice(0, 80))}`);
  return found;
}
