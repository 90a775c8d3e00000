/** Answers that come event by event. */

import type { CacheInfo } from "./cache-info.js";
import { cacheInfoOf, fieldsOf, withUsage } from "./cache-info.js";
import type { Api } from "./calls.js";
import { AnswerBroken, AnswerMalformed } from "./errors.js";
import type { Event as ServerEvent } from "./event-decoder.js";
import { EventDecoder } from "./event-decoder.js";
import type { Reply } from "./transport.js";
import { codeOf, decoded } from "./transport.js";

/**
 * The events of one answer, in order; to be iterated over once.
 *
 * Throws AnswerBroken where the stream breaks off, behind what had come. Leaving it early, by `close`, a `break` or the
 * signal of the call, ends the request in the engine, too.
 */
export class Stream<Event> implements AsyncIterable<Event> {
  private readonly decoder = new EventDecoder();
  private readonly events: AsyncGenerator<Event, void, undefined>;
  private done = false;
  private closed = false;
  private info: CacheInfo;

  constructor(
    private readonly reply: Reply,
    private readonly api: Pick<Api<never, never, Event>, "lists" | "newTextOf">,
  ) {
    this.info = cacheInfoOf(reply.response.headers);
    this.events = this.read();
  }

  /** What the shared cache did for the request, as far as it is known by now. */
  get cache(): CacheInfo {
    return this.info;
  }

  [Symbol.asyncIterator](): AsyncIterator<Event> {
    return this.events;
  }

  /** Yield each new piece of the text. */
  async *texts(): AsyncGenerator<string, void, undefined> {
    for await (const event of this) {
      const text = this.api.newTextOf(event);
      if (text !== "") yield text;
    }
  }

  /** End it, and the request. Idempotent. */
  close(): void {
    this.closed = true;
    this.reply.leave();
  }

  private async *read(): AsyncGenerator<Event, void, undefined> {
    try {
      while (!this.done && !this.closed) {
        const part = await this.reply.next();
        if (part === null) throw new AnswerBroken("the stream ended before its last event");
        for (const event of this.decoder.feed(part)) {
          if (event.data === "[DONE]") this.done = true;
          if (this.done) break;
          // The caller may have left while the last event was looked at, with more of them here already.
          if (this.closed) return;
          this.reply.check();
          yield this.eventOf(event);
        }
      }
      if (!this.closed) await this.toTheEnd();
    } finally {
      this.reply.leave();
    }
  }

  private eventOf(event: ServerEvent): Event {
    const raw = decoded(event.data);
    const error = fieldsOf(raw["error"]);
    if (error !== undefined) {
      const said = error["message"];
      throw new AnswerBroken(typeof said === "string" ? said : "the server told of an error", codeOf(error));
    }
    const list = this.api.lists.event;
    if (list !== null && !Array.isArray(raw[list])) throw new AnswerMalformed(`expected an event with ${list}, got ${event.data.slice(0, 80)}`);
    this.done = raw["type"] === "message_stop";
    this.info = withUsage(this.info, raw);
    return raw as Event;
  }

  /** Read to the end of the body, so that the connection can be used again; the answer is whole already. */
  private async toTheEnd(): Promise<void> {
    try {
      while ((await this.reply.next()) !== null);
    } catch {
      // Nothing is missing.
    }
  }
}
