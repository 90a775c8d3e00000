// One request explained: what it would cost on each worker, term by term.

import { post } from "./api.js";
import { bar, byId, el, named, show, table } from "./dom.js";
import { count, ms } from "./format.js";

const ROWS_MAX = 40;
const TERMS = [
  ["queue_ms", "queue", "the work that is ahead"],
  ["wait_ms", "wait", "waiting for a prefix that another request computes"],
  ["pull_ms", "pull", "pulling KV from peers"],
  ["compute_ms", "compute", "computing what is nowhere at hand"],
  ["penalty_ms", "penalty", "no free room in the KV cache"],
  ["decode_ms", "decode", "a price for decoding beside others; no part of the TTFT"],
  ["others_ms", "others", "what other requests lose; no part of the TTFT"],
];

export function setUpExplain() {
  byId("explain").addEventListener("submit", (event) => {
    event.preventDefault();
    explain();
  });
  byId("body").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      explain();
    }
  });
}

async function explain() {
  const body = byId("body").value.trim();
  const path = byId("path").value;
  show(byId("explain-error"), "");
  byId("explained").replaceChildren();
  try {
    JSON.parse(body);
  } catch (error) {
    show(byId("explain-error"), body ? `The body is no JSON: ${error.message}` : "Paste the body of a request.");
    byId("body").focus();
    return;
  }
  try {
    draw(await post(path ? `explain?path=${encodeURIComponent(path)}` : "explain", body));
  } catch (error) {
    show(byId("explain-error"), error.message);
  }
}

function draw({ path, workers, prefill = [] }) {
  const parts = prefill.length
    ? [
        ["Step 1, of those that compute prompts: by what they have of this one", "Prefill workers", prefill],
        ["Step 2, of those that answer: by load", "Decode workers", workers],
      ].flatMap(([about, name, each]) => [el("h3", {}, about), ...forecasts(each, name)])
    : forecasts(workers, "Forecasts");
  byId("explained").replaceChildren(
    el("p", { class: "muted" }, `${path}: the best first. Tokens that are local, pulled and computed are those of the prompt`),
    ...parts,
  );
}

function forecasts(workers, name) {
  const shown = workers.slice(0, ROWS_MAX);
  const most = Math.max(...shown.map((worker) => worker.total_ms ?? 0), 1e-9);
  const used = TERMS.filter(([field]) => shown.some((worker) => worker[field] > 0));
  const legend = el("ul", { class: "legend" }, ...used.map(([, name, why]) => el("li", { title: why }, el("span", { class: `key term-${name}` }), name)));
  const rows = shown.map((worker) => {
    const parts = used.map(([field, name]) => [(worker[field] ?? 0) / most, `term-${name}`]);
    const said = used.filter(([field]) => worker[field] > 0).map(([field, name]) => `${name} ${ms(worker[field])}`);
    return [
      named(worker.worker),
      ms(worker.total_ms),
      [bar(parts, said.join(", ")), el("span", { class: "muted terms" }, said.join(" \u00b7 "))],
      count(worker.local_tokens),
      count(worker.pulled_tokens),
      count(worker.computed_tokens),
      count(worker.in_flight),
    ];
  });
  const head = ["Worker", "Cost", "Made of", "Local", "Pulled", "Computed", "In flight"];
  const made = table(head, rows, ["", "number", "wide", "number", "number", "number", "number"]);
  const more = workers.length - shown.length;
  const best = shown.length ? el("p", {}, "The next such request would most likely go to ", named(shown[0].worker, { class: "chip" })) : null;
  return [
    ...[best].filter(Boolean),
    legend,
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": name }, made),
    ...(more > 0 ? [el("p", { class: "muted" }, `and ${more} more workers`)] : []),
  ];
}
