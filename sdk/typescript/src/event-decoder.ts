/** Server-sent events from the bytes of a stream. No I/O. */

import { AnswerMalformed } from "./errors.js";

/** Of one event, in UTF-16 code units. The longest that engines send has the log-probabilities of a whole prompt. */
const EVENT_CHARS_MAX = 64 << 20;

/** One event. */
export interface Event {
  /** Its `event` field; empty when it has none. */
  name: string;
  /** Its `data` lines, joined. */
  data: string;
}

/** Takes the bytes of a stream in pieces of any size, and gives whole events. */
export class EventDecoder {
  // It also takes away a byte-order mark at the front.
  private readonly text = new TextDecoder();
  private rest: string[] = [];
  private endsInCr = false;
  private name = "";
  private data: string[] = [];
  private size = 0;
  private restSize = 0;

  /** Return the events that end in these bytes. Throws AnswerMalformed for one that is too long. */
  feed(bytes: Uint8Array): Event[] {
    let piece = this.text.decode(bytes, { stream: true });
    if (piece === "") return [];
    // A CR at the very end may be half a CRLF: its line ended there, and the other half is passed over.
    if (this.endsInCr && piece.startsWith("\n")) piece = piece.slice(1);
    if (piece !== "") this.endsInCr = piece.endsWith("\r");
    else this.endsInCr = false;
    const lines = piece.split(/\r\n|\n|\r/);
    const last = lines.pop() ?? "";
    const events: Event[] = [];
    for (const line of lines) {
      const event = this.line(this.rest.join("") + line);
      this.rest = [];
      this.restSize = 0;
      if (event !== null) events.push(event);
    }
    if (last !== "") this.rest.push(last);
    this.restSize += last.length;
    if (this.size + this.restSize > EVENT_CHARS_MAX) {
      throw new AnswerMalformed(`expected events of at most ${EVENT_CHARS_MAX} characters, got a longer one`);
    }
    return events;
  }

  /** Take one line; return the event that it ends. */
  private line(line: string): Event | null {
    if (line === "") {
      const event = this.data.length > 0 ? { name: this.name, data: this.data.join("\n") } : null;
      this.name = "";
      this.data = [];
      this.size = 0;
      return event;
    }
    this.size += line.length;
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "data") {
      this.data.push(value);
    } else if (field === "event") {
      this.name = value;
    }
    return null;
  }
}
