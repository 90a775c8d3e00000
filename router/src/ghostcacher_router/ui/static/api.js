// Asks the router that this page came from. The token is entered by a person, kept in this tab alone (sessionStorage), and
// sent as a header: never in an address, where logs and histories would keep it.

const KEY = "ghostcacher-admin-token";
const ROOT = new URL("../", import.meta.url); // .../gc/
const TIMEOUT_MS = 10000;

// The router's word on a request: status, and why. status 0: there was no answer.
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function token() {
  return sessionStorage.getItem(KEY);
}

export function keepToken(text) {
  if (text === null) sessionStorage.removeItem(KEY);
  else sessionStorage.setItem(KEY, text);
}

// Return the JSON at a path below /gc/. given: a token to try instead of the one that is kept. Throws Refused.
export async function get(path, given = token()) {
  return ask("GET", path, null, given);
}

export async function post(path, body) {
  return ask("POST", path, body, token());
}

async function ask(method, path, body, given) {
  const headers = {};
  if (given !== null) headers.authorization = `Bearer ${given}`;
  if (body !== null) headers["content-type"] = "application/json";
  let answer;
  try {
    answer = await fetch(new URL(path, ROOT), {
      method,
      headers,
      body,
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
      referrerPolicy: "no-referrer",
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    if (answer.ok) return await answer.json();
  } catch (error) {
    throw new Refused(0, error.name === "TimeoutError" ? "no answer within 10 s" : "no answer");
  }
  throw new Refused(answer.status, await why(answer));
}

async function why(answer) {
  try {
    const message = (await answer.json()).error.message;
    if (typeof message === "string") return message.slice(0, 1000);
  } catch {
    // No JSON, or another one: a proxy's page.
  }
  return `status ${answer.status}`;
}
