// Carries out what drivers.py asks for, a line of JSON each, with @ghostcacher/client: node driver.mjs PACKAGE
import { createInterface } from "node:readline";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const { GhostCacherClient, AnswerBroken } = await import(pathToFileURL(join(process.argv[2], "dist/esm/index.js")));

// Names of Python's client; what is not here is called alike.
const NAMES = {
  ghostcacher_url: "ghostcacherUrl",
  api_key: "apiKey",
  admin_token: "adminToken",
  retries_max: "retriesMax",
  extra_body: "extraBody",
};
const POSITIONAL = {
  "admin.explain": ["request"],
  "admin.prefetch": ["request"],
  "admin.drain": ["worker"],
  "admin.undrain": ["worker"],
  "admin.flush": ["scope"],
};

function renamed(options) {
  const found = {};
  for (const [name, value] of Object.entries(options)) {
    if (name === "timeout_s") found.timeoutMs = typeof value === "number" ? value * 1000 : value;
    else found[NAMES[name] ?? name] = value;
  }
  return found;
}

function cacheOf(cache) {
  return {
    worker: cache.worker,
    request_id: cache.requestId,
    forecast_ms: cache.forecastMs,
    forecast_cached_tokens: cache.forecastCachedTokens,
    saved_ms: cache.savedMs,
    cached_tokens: cache.cachedTokens,
  };
}

function failed(error, texts) {
  const told = { error: error.constructor.name, message: error.message };
  for (const name of ["field", "status", "code", "param"]) if (name in error) told[name] = error[name];
  if ("requestId" in error) told.request_id = error.requestId;
  if ("retryAfterMs" in error) told.retry_after_s = error.retryAfterMs === null ? null : error.retryAfterMs / 1000;
  if (error instanceof AnswerBroken || texts.length > 0) told.texts = texts;
  return told;
}

async function useOf({ client: setUp, call, given, options, stop_after }) {
  const texts = [];
  try {
    const client = new GhostCacherClient(renamed(setUp));
    const path = call.split(".");
    const method = path.pop();
    const resource = path.reduce((found, name) => found[name], client);
    const leaving = new AbortController();
    let taken;
    if (call in POSITIONAL) {
      const named = { ...given };
      if ("request" in named) named.request = client.messages.prepare(named.request);
      const places = POSITIONAL[call].map((name) => {
        const value = named[name];
        delete named[name];
        return value;
      });
      taken = [...places, named];
    } else {
      taken = [given, { ...renamed(options), ...(stop_after !== null && { signal: leaving.signal }) }];
    }
    const answer = await resource[method](...taken);
    if (given.stream !== true) return "cache" in answer ? { ...answer, cache: cacheOf(answer.cache) } : answer;
    try {
      for await (const event of answer) {
        texts.push(textOf(event));
        if (texts.length === stop_after) leaving.abort();
      }
    } catch (error) {
      if (!leaving.signal.aborted || error !== leaving.signal.reason) throw error;
    }
    return { texts, cache: cacheOf(answer.cache) };
  } catch (error) {
    return failed(error, texts);
  }
}

function textOf(event) {
  if (event.choices === undefined) return event.delta?.text ?? "";
  return event.choices.map((one) => one.text ?? one.delta.content ?? "").join("");
}

for await (const line of createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(await useOf(JSON.parse(line))));
}
