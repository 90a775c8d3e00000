// Hottest prefixes, ghost locks, and misses by reason.

import { bar, byId, el, named, setText, table } from "./dom.js";
import { ago, bytes, count, percent, seconds, short } from "./format.js";

const SECTIONS = ["all", "tools", "sys", "doc", "session", "user"];
const HOLDERS = 4;
const REASONS = {
  not_indexed: "nobody was known to hold it",
  index_unavailable: "Redis could not be asked",
  lookup_deadline: "Redis answered too late",
  stale_generation: "its holder had reused the slot",
  peer_unreachable: "its holder could not be reached",
  fingerprint_mismatch: "its holder computes differently",
  malformed_entry: "what the index said could not be believed",
  slower_than_recompute: "pulling would have taken longer",
  timeout: "the pull took too long",
  transfer_failed: "the transfer failed",
  cancelled: "the request ended meanwhile",
  preempted: "the engine took the place back",
  disabled: "pulling is switched off",
  unknown: "a reason that only a newer version knows",
};

let prefixes = { prefixes: [], seen: 0 };
let section = "all";

export function setUpTables() {
  const buttons = SECTIONS.map((name) => el("button", { type: "button", "aria-pressed": name === section }, name));
  for (const [at, button] of buttons.entries()) {
    button.addEventListener("click", () => {
      section = SECTIONS[at];
      buttons.forEach((one) => one.setAttribute("aria-pressed", String(one === button)));
      drawPrefixes();
    });
  }
  byId("sections").append(...buttons);
}

export function showPrefixes(found) {
  prefixes = found;
  drawPrefixes();
}

function drawPrefixes() {
  const shown = prefixes.prefixes.filter((one) => section === "all" || one.section === section).slice(0, section === "all" ? 15 : 10);
  if (!shown.length) {
    byId("prefixes").replaceChildren(el("p", { class: "muted" }, "No prompt with such a section came lately."));
    return;
  }
  const rows = shown.map((one) => [
    el("code", { title: one.key }, short(one.key)),
    el("span", { class: `tag ${one.section}` }, one.section),
    one.tokens === null ? bytes(one.bytes) : `${count(one.tokens)} tokens`,
    count(one.uses),
    ago(one.last_s),
    holders(one),
  ]);
  const head = ["Digest", "Ends with", "Size", "Uses", "Last", "Held by"];
  byId("prefixes").replaceChildren(table(head, rows, ["", "", "number", "number", "number", "wide"]));
}

function holders(one) {
  if (!one.holder_count) return el("span", { class: "muted" }, "nobody now");
  const chips = one.holders.slice(0, HOLDERS).map((name) => named(name, { class: "chip" }));
  const more = one.holder_count - chips.length;
  return more > 0 ? [...chips, el("span", { class: "muted" }, ` and ${more} more`)] : chips;
}

export function showLocks({ locks, total }) {
  if (!locks.length) {
    byId("locks").replaceChildren(el("p", { class: "muted" }, "None is held now."));
    return;
  }
  const rows = locks.map((lock) => [
    el("code", { title: lock.key }, short(lock.key)),
    named(lock.worker),
    lock.ours ? (lock.confirmed ? "this router" : "this router, not confirmed yet") : "another router",
    seconds(lock.age_s),
    lock.ready_s >= 0 ? `in ${seconds(lock.ready_s)}` : el("span", { class: "bad" }, `${seconds(-lock.ready_s)} late`),
    count(lock.boundaries),
  ]);
  const made = table(["Digest", "Computed by", "Held for", "Age", "Ready", "KiB, about"], rows, ["", "", "", "number", "number", "number"]);
  byId("locks").replaceChildren(made);
  if (total > locks.length) byId("locks").append(el("p", { class: "muted" }, `and ${total - locks.length} more`));
}

// misses: blocks by reason. hits: blocks that were taken instead. span: of how many seconds.
export function showMisses(misses, hits, span) {
  const rows = Object.entries(misses).sort(([, one], [, two]) => two - one);
  const total = rows.reduce((all, [, blocks]) => all + blocks, 0);
  const about = `KV blocks of the last ${Math.round(span / 60)} min that were computed though the fleet might have held them`;
  setText(byId("misses-about"), about);
  const lines = rows.map(([reason, blocks]) =>
    el(
      "li",
      {},
      el("span", { class: "miss-name" }, el("strong", {}, reason.replaceAll("_", " ")), el("span", { class: "muted" }, REASONS[reason] || "")),
      el("span", { class: "number" }, count(blocks)),
      bar([[blocks / total, "miss"]], `${reason}: ${percent(blocks / total)}`),
    ),
  );
  const taken = el("p", { class: "about" }, `${count(hits)} blocks were taken from peers or tiers, ${count(total)} missed`);
  byId("misses").replaceChildren(taken, el("ul", { class: "misses" }, ...lines));
}
