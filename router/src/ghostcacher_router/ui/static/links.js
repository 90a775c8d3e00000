// How fast workers read each other's caches: a matrix while they are few, else what is worst.

import { byId, el, named, setText, table } from "./dom.js";
import { ago, gigabytes, known } from "./format.js";

const MATRIX_MAX = 12;
const WORST_MAX = 12;

export function linkRows(links) {
  return links.map((link) => [
    named(link.owner),
    link.ok ? gigabytes(link.bytes_per_s) : el("span", { class: "bad", title: link.error }, "fails"),
    known(link.rtt_us) ? `${link.rtt_us.toFixed(0)} \u00b5s` : "\u2013",
    el("bdi", {}, link.transport || "\u2013"),
    ago(link.age_s),
  ]);
}

export function showLinks({ links, readers }) {
  const names = [...new Set(links.flatMap((link) => [link.reader, link.owner]))].sort();
  const place = byId("links");
  if (!links.length) {
    place.replaceChildren(el("p", { class: "muted" }, "No worker has timed a link yet: it takes two that share KV, and a minute."));
    return;
  }
  place.replaceChildren(names.length <= MATRIX_MAX ? matrix(links, names) : worst(links));
  const failing = links.filter((link) => !link.ok).length;
  setText(byId("links-about"), `GB/s at which a worker (row) reads a peer's cache (column), timed by the workers themselves. ${sum(links, readers, failing)}`);
}

function sum(links, readers, failing) {
  return `${links.length} links of ${readers} readers, ${failing ? `${failing} failing` : "none failing"}`;
}

function matrix(links, names) {
  const found = new Map(links.map((link) => [JSON.stringify([link.reader, link.owner]), link]));
  const head = el("tr", {}, el("th", { scope: "col" }, "reads"), ...names.map((name) => el("th", { scope: "col" }, named(name, { class: "clip" }))));
  const rows = names.map((reader) =>
    el("tr", {}, el("th", { scope: "row" }, named(reader, { class: "clip" })), ...names.map((owner) => cell(found.get(JSON.stringify([reader, owner]))))),
  );
  return el("table", { class: "matrix" }, el("thead", {}, head), el("tbody", {}, ...rows));
}

function cell(link) {
  if (!link) return el("td", { class: "none" }, "");
  if (!link.ok) return el("td", { class: "bad", title: link.error }, "fails");
  // A step for each factor of about three, from 0.1 GB/s on.
  const step = known(link.bytes_per_s) ? Math.max(0, Math.min(5, Math.round(2 * Math.log10(link.bytes_per_s / 1e8)))) : 0;
  const title = `${link.transport || ""}, round trip ${known(link.rtt_us) ? link.rtt_us.toFixed(0) : "?"} \u00b5s, measured ${ago(link.age_s)}`;
  return el("td", { class: `speed-${step}`, title }, gigabytes(link.bytes_per_s));
}

function worst(links) {
  const order = [...links].sort((one, two) => one.ok - two.ok || (one.bytes_per_s ?? 0) - (two.bytes_per_s ?? 0));
  const rows = linkRows(order.slice(0, WORST_MAX)).map((row, at) => [named(order[at].reader), ...row]);
  const made = table(["Reader", "Reads from", "GB/s", "Round trip", "Over", "Measured"], rows, ["", "", "number", "number", "", "number"]);
  return el("div", {}, el("p", { class: "muted" }, "The slowest of those that were looked at; choose a worker above for all of its own"), made);
}
