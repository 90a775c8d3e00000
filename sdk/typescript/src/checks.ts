/** The checks of arguments. Each throws ArgumentError, which names the field, what was expected and what came. */

import type { Json } from "./arguments.js";
import { ArgumentError } from "./errors.js";

const HEADER_NAME = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/;
const HEADER_VALUE = /^[\x20-\x7e]*$/;
const SESSION = /^[\x21-\x7e]{1,256}$/;

/** Return the arguments that were given. */
export function known(given: unknown, names: Readonly<Record<string, boolean>>, what: string): Record<string, unknown> {
  if (!isObject(given)) throw new ArgumentError(what, `expected an object, got ${shown(given)}`);
  const found: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(given)) {
    if (!Object.hasOwn(names, name)) {
      throw new ArgumentError(name, `unknown; known are ${Object.keys(names).join(", ")}`);
    }
    if (value !== undefined) found[name] = value;
  }
  for (const [name, required] of Object.entries(names)) {
    if (required && !Object.hasOwn(found, name)) throw new ArgumentError(name, "expected it, got nothing");
  }
  return found;
}

/** Return a text that is not empty. */
export function text(field: string, value: unknown): string {
  if (typeof value !== "string" || value === "") throw new ArgumentError(field, `expected a text, got ${shown(value)}`);
  return value;
}

/** Return a time in seconds. */
export function seconds(field: string, value: unknown): number {
  if (!Number.isFinite(value) || !((value as number) > 0)) {
    throw new ArgumentError(field, `expected a number of seconds above 0, got ${shown(value)}`);
  }
  return value as number;
}

/** Return a whole number. */
export function count(field: string, value: unknown, atLeast: number): number {
  if (!Number.isSafeInteger(value) || (value as number) < atLeast) {
    throw new ArgumentError(field, `expected a whole number from ${atLeast}, got ${shown(value)}`);
  }
  return value as number;
}

/** Return a time. */
export function milliseconds(field: string, value: unknown): number {
  // A timer takes no longer one.
  if (typeof value !== "number" || !(value > 0) || value >= 2 ** 31) {
    throw new ArgumentError(field, `expected a number of ms above 0 and below 2147483648, got ${shown(value)}`);
  }
  return value;
}

/** Return an object. */
export function object(field: string, value: unknown): Json {
  if (!isObject(value)) throw new ArgumentError(field, `expected an object, got ${shown(value)}`);
  return value;
}

/** Return a list of objects. */
export function objects(field: string, value: unknown): Json[] {
  if (!Array.isArray(value)) throw new ArgumentError(field, `expected a list, got ${shown(value)}`);
  return value.map((each, index) => object(`${field}[${index}]`, each));
}

/** Return messages, each of which has a role. */
export function messages(value: unknown): Json[] {
  const found = objects("messages", value);
  if (found.length === 0) throw new ArgumentError("messages", "expected at least one, got none");
  found.forEach((message, index) => text(`messages[${index}].role`, message["role"]));
  return found;
}

/** Return the name of a session, which is sent in a header. */
export function session(field: string, value: unknown): string {
  if (typeof value !== "string" || !SESSION.test(value)) {
    throw new ArgumentError(
      field,
      `expected 1 to 256 printable ASCII characters without spaces, got ${shown(value)}`,
    );
  }
  return value;
}

/** Return headers by their names in small letters. */
export function headers(field: string, value: unknown): Record<string, string> {
  const found: Record<string, string> = {};
  for (const [name, one] of Object.entries(object(field, value))) {
    if (!HEADER_NAME.test(name)) throw new ArgumentError(field, `expected the name of a header, got ${shown(name)}`);
    found[name.toLowerCase()] = headerValue(`${field}.${name}`, one);
  }
  return found;
}

/** Return the value of a header. secret: it is not to be shown. */
export function headerValue(field: string, value: unknown, secret = false): string {
  if (typeof value !== "string" || !HEADER_VALUE.test(value)) {
    throw new ArgumentError(field, `expected printable ASCII characters${secret ? "" : `, got ${shown(value)}`}`);
  }
  return value;
}

/** Return the base URL of a router, without a path /v1. */
export function routerUrl(field: string, value: unknown): string {
  const url = text(field, value).replace(/\/+$/, "").replace(/\/v1$/, "");
  const parts = URL.canParse(url) ? new URL(url) : null;
  const fine = parts !== null && (parts.protocol === "http:" || parts.protocol === "https:");
  if (!fine || parts.search !== "" || parts.hash !== "" || parts.username !== "") {
    throw new ArgumentError(field, `expected a URL such as http://router:8000, got ${shown(value)}`);
  }
  return url;
}

/** Return a body as JSON. Throws ArgumentError, which names the field that JSON cannot have. */
export function jsonOf(body: Json): string {
  const pieces: string[] = [];
  for (const [name, value] of Object.entries(body)) {
    try {
      pieces.push(`${JSON.stringify(name)}:${JSON.stringify(value, onlyJson)}`);
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error);
      throw new ArgumentError(name, `expected what JSON has, got something else: ${why}`);
    }
  }
  return `{${pieces.join(",")}}`;
}

function onlyJson(_: string, value: unknown): unknown {
  const bad = typeof value === "function" || typeof value === "symbol" || typeof value === "bigint";
  if (bad || (typeof value === "number" && !Number.isFinite(value))) throw new TypeError(shown(value));
  return value;
}

/** Say whether a value is an object, and no list. */
export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Return a value for a message. */
export function shown(value: unknown): string {
  if (typeof value === "string" || isObject(value) || Array.isArray(value)) {
    try {
      return JSON.stringify(value).slice(0, 100);
    } catch {
      return Object.prototype.toString.call(value);
    }
  }
  return String(value).slice(0, 100);
}
