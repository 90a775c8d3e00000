// The fleet map: a card for each worker, or, when they are many, a square; one of them in detail in a dialog.

import { get } from "./api.js";
import { bar, byId, el, named, setText, table } from "./dom.js";
import { bytes, count, gigabytes, known, ms, percent, seconds } from "./format.js";
import { linkRows } from "./links.js";

const CARDS_MAX = 40;
const TROUBLE = ["down", "gone", "not_routable", "ejected", "draining", "joining", "ready"];
const MEANINGS = {
  ready: "gets requests",
  ejected: "its probes are fine, its requests failed",
  draining: "gets no new requests",
  joining: "has not answered yet",
  down: "fails its probes",
  gone: "left without being drained",
  not_routable: "cannot be sent requests",
};

let workers = [];
const tiles = new Map(); // name -> {button, kind, parts}
let here = null; // the name of the tile that Tab leads to
let opened = null;

export function stateOf(worker) {
  return worker.ejected ? "ejected" : worker.state;
}

export function kvShare(worker) {
  const load = worker.load;
  return load && load.kv_blocks_total ? load.kv_blocks_used / load.kv_blocks_total : null;
}

export function setUpFleet() {
  byId("find").addEventListener("input", draw);
  byId("order").addEventListener("change", draw);
  byId("fleet").addEventListener("keydown", onKey);
  byId("worker-close").addEventListener("click", () => byId("worker").close());
  byId("worker").addEventListener("close", () => {
    const tile = tiles.get(opened);
    opened = null;
    // The dialog itself gives the focus back, unless the tile was made anew; and this event comes later, when the person
    // may be elsewhere already.
    if (tile && document.activeElement === document.body) tile.button.focus();
  });
}

export function showFleet(found) {
  workers = found;
  draw();
  const worker = workers.find(({ id }) => id === opened);
  if (worker) setText(byId("worker-title"), worker.id);
}

function draw() {
  const counts = new Map();
  for (const worker of workers) counts.set(stateOf(worker), (counts.get(stateOf(worker)) || 0) + 1);
  const models = new Set(workers.flatMap((worker) => worker.models || []));
  const groups = new Set(workers.map((worker) => worker.namespace).filter(Boolean));
  setText(byId("fleet-about"), about(models.size, groups.size));
  const legend = TROUBLE.toReversed().filter((state) => counts.has(state));
  const items = legend.map((state) =>
    el("li", { title: MEANINGS[state] }, el("span", { class: `key state ${state}` }), `${counts.get(state)} ${words(state)}`),
  );
  byId("fleet-legend").replaceChildren(...items);
  place(ordered(workers.filter(wanted)));
}

function about(models, groups) {
  if (!workers.length) return "No worker is known yet";
  const many = (size, word) => `${size} ${word}${size === 1 ? "" : "s"}`;
  const shared = groups ? `, ${many(groups, "group")} that share${groups === 1 ? "s" : ""} KV` : "";
  return `${many(workers.length, "worker")}, ${many(models, "model")}${shared}`;
}

function words(state) {
  return state.replace("_", " ");
}

function wanted(worker) {
  const text = byId("find").value.trim().toLowerCase();
  return !text || [worker.id, ...(worker.models || [])].some((name) => name.toLowerCase().includes(text));
}

function ordered(found) {
  const by = {
    name: () => 0,
    busy: (worker) => -(worker.in_flight || 0) - (worker.load ? worker.load.running + worker.load.waiting : 0),
    kv: (worker) => -(kvShare(worker) ?? -1),
    state: (worker) => TROUBLE.indexOf(stateOf(worker)),
  }[byId("order").value];
  return found.map((worker) => [by(worker), worker]).sort(([one], [two]) => one - two).map(([, worker]) => worker);
}

// Put the tiles in order. One that stays is changed, not made anew: it keeps the focus.
function place(shown) {
  const group = byId("fleet");
  const kind = workers.length > CARDS_MAX ? "square" : "card-tile";
  group.className = kind === "square" ? "squares" : "tiles";
  const names = new Set(shown.map(({ id }) => id));
  for (const [name, tile] of tiles) {
    if (names.has(name) && tile.kind === kind) continue;
    tile.button.remove();
    tiles.delete(name);
  }
  if (!names.has(here)) here = shown.length ? shown[0].id : null;
  shown.forEach((worker, at) => {
    let tile = tiles.get(worker.id);
    if (!tile) {
      tile = { kind, button: el("button", { type: "button", class: kind, "aria-haspopup": "dialog" }) };
      tile.button.addEventListener("click", () => open(worker.id));
      tile.button.addEventListener("focus", () => lead(worker.id));
      tiles.set(worker.id, tile);
    }
    if (group.children[at] !== tile.button) group.insertBefore(tile.button, group.children[at] || null);
    tile.button.tabIndex = worker.id === here ? 0 : -1;
    (kind === "square" ? fillSquare : fillCard)(tile.button, worker);
  });
}

function fillSquare(button, worker) {
  const share = kvShare(worker);
  const label = `${worker.id}: ${words(stateOf(worker))}, KV ${percent(share)}, ${worker.in_flight || 0} in flight`;
  button.className = `square ${stateOf(worker)} heat-${known(share) ? Math.min(4, Math.floor(share * 5)) : "none"}`;
  button.title = label;
  button.setAttribute("aria-label", label);
}

function fillCard(button, worker) {
  const state = stateOf(worker);
  const load = worker.load;
  const lines = [
    el("span", { class: "tile-head" }, el("span", { class: `key state ${state}` }), named(worker.id, { class: "tile-name" })),
    el("span", { class: "muted tile-line" }, tileLine(worker, state)),
  ];
  if (load) lines.push(...tierBars(worker));
  else lines.push(el("span", { class: "muted tile-line" }, worker.why || "reports no load"));
  button.className = `card-tile ${state}`;
  button.replaceChildren(...lines);
}

function since(worker) {
  const state = words(stateOf(worker));
  return known(worker.state_s) ? `${state} for ${seconds(worker.state_s)}` : state;
}

function tileLine(worker, state) {
  if (state !== "ready") return since(worker);
  const load = worker.load;
  return load ? `${load.running} running, ${load.waiting} waiting` : `${worker.in_flight} in flight`;
}

// KV in each tier: in use by requests in the engine's own memory, held in those below it.
function tierBars(worker) {
  const load = worker.load;
  const line = (name, share, kind) =>
    el(
      "span",
      { class: "tier" },
      el("span", { class: "muted" }, name),
      bar([[share, kind]], `${name}: ${percent(share)}`),
      el("span", {}, percent(share)),
    );
  const bars = [line("KV", kvShare(worker) ?? 0, "device")];
  for (const tier of load.tiers) {
    bars.push(line(tier.tier, tier.blocks_max ? tier.blocks / tier.blocks_max : 0, tier.tier === "host" ? "host" : "object"));
  }
  return bars;
}

function lead(name) {
  const before = tiles.get(here);
  if (before) before.button.tabIndex = -1;
  here = name;
  tiles.get(name).button.tabIndex = 0;
}

function onKey(event) {
  const all = [...byId("fleet").children];
  const at = all.indexOf(document.activeElement);
  if (at < 0) return;
  const row = all.filter((tile) => tile.offsetTop === all[0].offsetTop).length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -row, ArrowDown: row }[event.key];
  const to = { Home: 0, End: all.length - 1 }[event.key] ?? (step === undefined ? null : at + step);
  if (to === null) return;
  event.preventDefault();
  if (all[to]) all[to].focus();
}

function open(name) {
  const worker = workers.find(({ id }) => id === name);
  if (!worker) return;
  opened = name;
  setText(byId("worker-title"), name);
  byId("worker-body").replaceChildren(facts(worker), ...tierTable(worker), ...missLine(worker), el("div", { id: "worker-links" }));
  byId("worker").showModal();
  showLinks(name);
}

async function showLinks(name) {
  try {
    const { links } = await get(`links?worker=${encodeURIComponent(name)}`);
    if (opened === name && links.length) {
      const rows = table(["Reads from", "GB/s", "Round trip", "Over", "Measured"], linkRows(links), ["", "number", "number", "", "number"]);
      byId("worker-links").replaceChildren(el("h3", {}, "Links"), el("div", { class: "scroll" }, rows));
    }
  } catch {
    // It shows in the page's own notice, if it lasts.
  }
}

function facts(worker) {
  const load = worker.load;
  const rows = [
    ["State", `${since(worker)}: ${MEANINGS[stateOf(worker)] || ""}`],
    ["Why", worker.ejected || worker.why],
    ["Last error", worker.error],
    ["Listens at", worker.url],
    ["Models", (worker.models || []).join(", ")],
    ["Requests", load && `${load.running} running, ${load.waiting} waiting, ${worker.in_flight} of this router`],
    ["Prompt tokens ahead", load && count(load.waiting_tokens)],
    ["Computes prompts at", load && (load.prefill_tokens_per_s ? `${count(load.prefill_tokens_per_s)} tokens/s` : "not known yet")],
    ["Pulls at", load && load.pull_bytes_per_s ? `${gigabytes(load.pull_bytes_per_s)} GB/s` : null],
    ["A step of decoding takes", load && load.decode_step_s ? ms(load.decode_step_s * 1000) : null],
    ["A block is", load && load.block_tokens ? `${load.block_tokens} tokens, ${bytes(load.block_bytes)} on a rank` : null],
    ["Report is", load && `${seconds(load.age_s)} old`],
    ["Namespace", worker.namespace && worker.namespace.slice(0, 24)],
    ["Incarnation", worker.incarnation],
    ["Lease", worker.lease],
  ];
  const found = rows.filter(([, value]) => value);
  return el("dl", { class: "facts" }, ...found.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, el("bdi", {}, value))]));
}

function tierTable(worker) {
  const load = worker.load;
  if (!load) return [];
  const types = ["tools", "sys", "doc", "session", "user"];
  const rows = [["engine", percent(kvShare(worker)), `${count(load.kv_blocks_used)} of ${count(load.kv_blocks_total)} in use`, "", "", ""]];
  for (const tier of load.tiers) {
    const held = types.filter((type) => tier.blocks_by_type[type]).map((type) => `${type} ${count(tier.blocks_by_type[type])}`);
    const share = tier.blocks_max ? tier.blocks / tier.blocks_max : null;
    rows.push([tier.tier, percent(share), `${count(tier.blocks)} of ${count(tier.blocks_max)}`, held.join(", "),
      count(tier.loaded_blocks), count(tier.evicted_blocks)]);
  }
  const made = table(["Tier", "Full", "Blocks", "By type", "Loaded", "Evicted"], rows, ["", "number", "", "", "number", "number"]);
  return [el("h3", {}, "KV by tier"), el("div", { class: "scroll" }, made)];
}

function missLine(worker) {
  const load = worker.load;
  const misses = load ? Object.entries(load.missed_blocks || {}) : [];
  if (!load || (!misses.length && !load.hit_blocks)) return [];
  const parts = misses.sort(([, one], [, two]) => two - one).map(([reason, blocks]) => `${reason} ${count(blocks)}`);
  return [el("h3", {}, "Blocks since its start"), el("p", {}, `${count(load.hit_blocks)} taken from peers or tiers; missed: ${parts.join(", ") || "none"}`)];
}
