/**
 * Puts documents into one message, always in the same order, and says to the router which message that is.
 *
 * Prompts share KV blocks as far as they begin alike. So the same documents have to come in the same order, whoever asks
 * and however they were found: they are sorted by the bytes of their text in UTF-8, as every language can.
 */

import type { Json } from "./arguments.js";
import { isObject, object, shown, text } from "./checks.js";
import { ArgumentError } from "./errors.js";

const FIELDS = ["text", "title", "cache_control"];
/** The roles that a conversation begins with: documents come behind them. */
const HEAD: unknown[] = ["system", "developer"];

interface Part {
  type: "text";
  text: string;
  cache_control?: Json;
}

/**
 * Return the messages with one more that has the documents, and what the router is to be told of it: null when there are
 * no documents. Throws ArgumentError.
 */
export function withDocuments(messages: Json[], documents: unknown): [Json[], string | null] {
  const parts = documentParts(documents);
  if (parts.length === 0) return [messages, null];
  const found = messages.findIndex((message) => !HEAD.includes(message["role"]));
  const place = found < 0 ? messages.length : found;
  const message = { role: "user", content: parts };
  return [[...messages.slice(0, place), message, ...messages.slice(place)], `doc=${place}`];
}

/** Return documents as the parts of a message's content, sorted, each once. Throws ArgumentError. */
export function documentParts(documents: unknown): Part[] {
  if (!Array.isArray(documents)) throw new ArgumentError("documents", `expected a list, got ${shown(documents)}`);
  const found = new Map<string, Part>();
  documents.forEach((document: unknown, index) => {
    const part = partOf(`documents[${index}]`, document);
    if (/\p{Surrogate}/u.test(part.text)) {
      throw new ArgumentError(`documents[${index}]`, "expected Unicode, got half of a surrogate pair");
    }
    // Of doubles the one that is to be kept counts.
    if (part.cache_control !== undefined || !found.has(part.text)) found.set(part.text, part);
  });
  return [...found.values()].sort((a, b) => compareAsUtf8(a.text, b.text));
}

/** Compare two texts by their bytes in UTF-8: as by code points, and not by code units of UTF-16. */
function compareAsUtf8(a: string, b: string): number {
  const length = Math.min(a.length, b.length);
  for (let at = 0; at < length; at++) {
    const [one, other] = [a.charCodeAt(at), b.charCodeAt(at)];
    if (one !== other) return rank(one) - rank(other);
  }
  return a.length - b.length;
}

/** Return where a code unit stands: halves of surrogate pairs, for what is beyond U+FFFF, behind all others. */
function rank(unit: number): number {
  return unit >= 0xd800 && unit <= 0xdfff ? unit + 0x10000 : unit;
}

function partOf(field: string, document: unknown): Part {
  if (typeof document === "string") return { type: "text", text: text(field, document) };
  if (!isObject(document)) {
    throw new ArgumentError(field, `expected a text, or an object with a text, got ${shown(document)}`);
  }
  for (const name of Object.keys(document)) {
    if (!FIELDS.includes(name)) {
      throw new ArgumentError(`${field}.${name}`, `unknown; known are ${FIELDS.join(", ")}`);
    }
  }
  const body = text(`${field}.text`, document["text"]);
  const [title, mark] = [document["title"], document["cache_control"]];
  const printed = title === undefined || title === null ? body : `${text(`${field}.title`, title)}\n\n${body}`;
  const part: Part = { type: "text", text: printed };
  return mark === undefined || mark === null ? part : { ...part, cache_control: object(`${field}.cache_control`, mark) };
}
