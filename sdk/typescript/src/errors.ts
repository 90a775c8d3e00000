/** What can go wrong with a request. All of it is a `GhostCacherError`. */

/** The base of all errors of this client. */
export class GhostCacherError extends Error {
  constructor(message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** An argument that makes no sense; nothing was sent. */
export class ArgumentError extends GhostCacherError {
  /** The argument, with its place: `messages[1].role`. */
  readonly field: string;

  constructor(field: string, why: string) {
    super(`${field}: ${why}`);
    this.field = field;
  }
}

/** No connection could be made, or it closed before anything of an answer had come. */
export class ConnectFailed extends GhostCacherError {}

/** The answer, or its next part, did not come in time. Never tried again: the engine may still be at it. */
export class AnswerTimeout extends GhostCacherError {}

/** An answer that had begun broke off, or ended with an error. What has come of a stream until then is good. */
export class AnswerBroken extends GhostCacherError {
  /** What the server calls the error; null where the connection just ended. */
  readonly code: string | null;

  constructor(message: string, code: string | null = null, options?: { cause?: unknown }) {
    super(message, options);
    this.code = code;
  }
}

/** An answer that is not of the form that its API promises: likely no router is there. */
export class AnswerMalformed extends GhostCacherError {}

/** What an answer with an error says beside its message. */
export interface Refusal {
  code: string | null;
  param: string | null;
  requestId: string | null;
  retryAfterMs: number | null;
}

/** The router or an engine refused the request, or failed. */
export class StatusError extends GhostCacherError {
  /** Of HTTP. */
  readonly status: number;
  /** What the server says. */
  readonly reason: string;
  /** OpenAI's code of the error, or else its type; null where it has none. */
  readonly code: string | null;
  /** The field that is wrong; null where the server names none. */
  readonly param: string | null;
  /** The id under which the router and its log know the request. */
  readonly requestId: string | null;
  /** When to try again, in ms; null where the server does not say. */
  readonly retryAfterMs: number | null;

  constructor(status: number, reason: string, refusal: Refusal) {
    super(`${status}: ${reason}`);
    this.status = status;
    this.reason = reason;
    this.code = refusal.code;
    this.param = refusal.param;
    this.requestId = refusal.requestId;
    this.retryAfterMs = refusal.retryAfterMs;
  }
}
