/** From arguments to requests. Nothing is sent here. */

import type { ChatChunk, ChatCompletion, Completion, Message, MessageEvent } from "./answers.js";
import type { ChatArguments, CompletionArguments, Json, MessageArguments, Names } from "./arguments.js";
import { CALL_OPTION_NAMES, CHAT_NAMES, COMPLETION_NAMES, MESSAGE_NAMES } from "./arguments.js";
import * as checks from "./checks.js";
import { withDocuments } from "./documents.js";
import { ArgumentError } from "./errors.js";
import type { Options } from "./options.js";

/** The header that tells the router which messages are documents. It stays at the router. */
const SECTIONS = "x-gc-sections";
/** The same in a body's metadata, where there are no headers: for explain, prefetch and flush. */
const SECTIONS_FIELD = "gc_sections";
const SESSION = "x-gc-session";

/** One API of the engines. */
export interface Api<Given, Answer, Event> {
  /** Where it is. */
  readonly path: string;
  /** The arguments of a call. */
  readonly names: Names<Given>;
  /** The field that every answer and event of it has a list in; null for events that may have none. */
  readonly lists: { readonly answer: keyof Answer & string; readonly event: (keyof Event & string) | null };
  readonly textOf: (answer: Answer) => string;
  readonly newTextOf: (event: Event) => string;
}

export const MESSAGES: Api<MessageArguments, Message, MessageEvent> = {
  path: "/v1/messages",
  names: MESSAGE_NAMES,
  lists: { answer: "content", event: null },
  textOf: (answer) => answer.content.map((block) => (block.type === "text" ? (block.text ?? "") : "")).join(""),
  newTextOf: (event) => (event.delta?.type === "text_delta" ? (event.delta.text ?? "") : ""),
};

export const CHAT: Api<ChatArguments, ChatCompletion, ChatChunk> = {
  path: "/v1/chat/completions",
  names: CHAT_NAMES,
  lists: { answer: "choices", event: "choices" },
  textOf: (answer) => answer.choices[0]?.message?.content ?? "",
  newTextOf: (event) => event.choices.map((one) => (one.index === 0 ? (one.delta?.content ?? "") : "")).join(""),
};

export const COMPLETIONS: Api<CompletionArguments, Completion, Completion> = {
  path: "/v1/completions",
  names: COMPLETION_NAMES,
  lists: { answer: "choices", event: "choices" },
  textOf: (answer) => answer.choices[0]?.text ?? "",
  newTextOf: (event) => event.choices.map((one) => (one.index === 0 ? one.text : "")).join(""),
};

/** One request, as it is to be sent. */
export interface Call {
  readonly method: string;
  /** With its path and query. */
  readonly url: string;
  readonly headers: Readonly<Record<string, string>>;
  /** JSON; null of a request without a body. */
  readonly body: string | null;
  /** For the answer to begin, and for each next part of it. */
  readonly timeoutMs: number;
  readonly retriesMax: number;
  readonly signal: AbortSignal | null;
}

/** A request as it would be sent to engines, for admin.explain, admin.prefetch and admin.flush. */
export interface PromptRequest {
  /** Where it would be sent, such as /v1/chat/completions. */
  readonly path: string;
  readonly body: Json;
}

/** Return what a call would send, with its sections named in the body. Throws ArgumentError. */
export function promptRequest<Given, A, E>(api: Api<Given, A, E>, given: unknown): PromptRequest {
  const [body, sections] = bodyOf(api, given, {});
  if (sections !== null) body["metadata"] = { ...(body["metadata"] as Json), [SECTIONS_FIELD]: sections };
  checks.jsonOf(body);
  return { path: api.path, body };
}

/** Return the request of a call to engines, and whether its answer is streamed. Throws ArgumentError. */
export function engineCall<Given, A, E>(
  options: Options,
  api: Api<Given, A, E>,
  given: unknown,
  more: unknown,
): [Call, boolean] {
  const { stream = false, ...fields } = checks.object("arguments", given);
  if (typeof stream !== "boolean") throw new ArgumentError("stream", `expected true or false, got ${checks.shown(stream)}`);
  const { session, timeoutMs, retriesMax, headers, extraBody, signal } = checks.known(more, CALL_OPTION_NAMES, "options");
  const [body, sections] = bodyOf(api, fields, checks.object("extraBody", extraBody ?? {}));
  if (stream) body["stream"] = true;
  const all: Record<string, string> = {
    "content-type": "application/json",
    ...options.engineHeaders,
    ...checks.headers("headers", headers ?? {}),
  };
  const named = session === undefined ? options.session : checks.session("session", session);
  if (named !== null) all[SESSION] = named;
  if (sections !== null) {
    if (SECTIONS in all) throw new ArgumentError(`headers.${SECTIONS}`, "expected none beside documents, whose place it names");
    all[SECTIONS] = sections;
  }
  if (signal !== undefined && !(signal instanceof AbortSignal)) {
    throw new ArgumentError("signal", `expected an AbortSignal, got ${checks.shown(signal)}`);
  }
  const call = {
    method: "POST",
    url: options.url + api.path,
    headers: all,
    body: checks.jsonOf(body),
    timeoutMs: checks.milliseconds("timeoutMs", timeoutMs ?? options.timeoutMs),
    retriesMax: checks.count("retriesMax", retriesMax ?? options.retriesMax, 0),
    signal: signal ?? null,
  };
  return [call, stream];
}

/** Return a request to the router itself. Throws ArgumentError. */
export function adminCall(options: Options, method: string, path: string, body: Json | null = null): Call {
  return {
    method,
    url: options.url + path,
    headers: { ...options.adminHeaders, ...(body !== null && { "content-type": "application/json" }) },
    body: body === null ? null : checks.jsonOf(body),
    timeoutMs: options.timeoutMs,
    retriesMax: options.retriesMax,
    signal: null,
  };
}

/** Return the body of a call, and what the router is to be told of its sections. */
function bodyOf<Given, A, E>(
  api: Api<Given, A, E>,
  given: unknown,
  extra: Json,
): [Record<string, unknown>, string | null] {
  const { documents, ...body } = checks.known(given, api.names, "arguments");
  for (const name of Object.keys(extra)) {
    if (name in body || name === "stream" || name === "documents") {
      throw new ArgumentError(`extraBody.${name}`, `expected it as an argument of its own, ${name}`);
    }
  }
  checks.text("model", body["model"]);
  if ("max_tokens" in body) checks.count("max_tokens", body["max_tokens"], 1);
  if ("tools" in body) checks.objects("tools", body["tools"]);
  const metadata = "metadata" in body ? checks.object("metadata", body["metadata"]) : {};
  let sections: string | null = null;
  if ("messages" in api.names) {
    let messages = checks.messages(body["messages"]);
    if ("system" in body) messages = placeSystem(api.path, body, messages);
    if (documents !== undefined && documents !== null) [messages, sections] = withDocuments(messages, documents);
    body["messages"] = messages;
  }
  if (sections !== null && SECTIONS_FIELD in metadata) {
    throw new ArgumentError(`metadata.${SECTIONS_FIELD}`, "expected none beside documents, whose place it names");
  }
  return [{ ...body, ...extra }, sections];
}

/** Put the system text where the API wants it: Anthropic's beside the messages, OpenAI's before them. */
function placeSystem(path: string, body: Record<string, unknown>, messages: Json[]): Json[] {
  const system = body["system"];
  if (typeof system !== "string") checks.objects("system", system);
  if (path === MESSAGES.path) return messages;
  delete body["system"];
  const empty = (system as string | Json[]).length === 0;
  return empty ? messages : [{ role: "system", content: system }, ...messages];
}
