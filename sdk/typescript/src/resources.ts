/** The calls of a client. */

import type { Answered, ChatChunk, ChatCompletion, Completion, Message, MessageEvent } from "./answers.js";
import type { CallOptions, ChatArguments, CompletionArguments, MessageArguments } from "./arguments.js";
import { cacheInfoOf, withUsage } from "./cache-info.js";
import type { Api, PromptRequest } from "./calls.js";
import { engineCall, promptRequest } from "./calls.js";
import { AnswerMalformed } from "./errors.js";
import type { Options } from "./options.js";
import { Stream } from "./streams.js";
import { decoded, open } from "./transport.js";

/** One API of the engines behind one router. */
export class Resource<Given, Answer, Event> {
  constructor(
    private readonly options: Options,
    private readonly api: Api<Given, Answer, Event>,
  ) {}

  /** Have the answer written. Throws GhostCacherError, or the reason of the call's signal. */
  create(given: Given & { stream?: false }, options?: CallOptions): Promise<Answer & Answered>;
  create(given: Given & { stream: true }, options?: CallOptions): Promise<Stream<Event>>;
  create(given: Given & { stream?: boolean }, options?: CallOptions): Promise<(Answer & Answered) | Stream<Event>>;
  async create(given: unknown, options: CallOptions = {}): Promise<(Answer & Answered) | Stream<Event>> {
    const [call, stream] = engineCall(this.options, this.api, given, options);
    const reply = await open(this.options.fetch, call);
    if (stream) return new Stream(reply, this.api);
    const raw = decoded(await reply.text());
    const list = this.api.lists.answer;
    if (!Array.isArray(raw[list])) throw new AnswerMalformed(`expected an answer with ${list}, got none`);
    const answer = raw as Answer;
    const cache = withUsage(cacheInfoOf(reply.response.headers), raw);
    return Object.assign(raw, { cache, text: this.api.textOf(answer) }) as Answer & Answered;
  }

  /** Return what `create` would send, for `admin`. Throws ArgumentError. */
  prepare(given: Given): PromptRequest {
    return promptRequest(this.api, given);
  }
}

/** Anthropic's API: /v1/messages. */
export type AnthropicMessages = Resource<MessageArguments, Message, MessageEvent>;
/** OpenAI's API: /v1/chat/completions. */
export type ChatCompletions = Resource<ChatArguments, ChatCompletion, ChatChunk>;
/** OpenAI's API: /v1/completions. */
export type Completions = Resource<CompletionArguments, Completion, Completion>;
