// The numbers at the top, each with its course.

import { byId, el, setText } from "./dom.js";
import { count, ms, percent, times } from "./format.js";
import { sparkline } from "./line-chart.js";

// name, value of all of the range and of the page's state, value of one step for the line beneath.
export const FIGURES = [
  { name: "Requests", value: (all) => `${count(all.perSecond)}/s`, of: (step) => step.perSecond },
  { name: "Hit ratio", value: (all) => percent(all.hitRatio), of: (step) => step.hitRatio },
  { name: "TTFT, median", value: (all) => ms(all.ttft.p50), of: (step) => step.ttft.p50 },
  { name: "TTFT saved", value: (all) => ms(all.savedMs), of: (step) => step.savedMs },
  { name: "Off forecast by", value: (all) => times(all.ratio.p50), of: (step) => step.ratio.p50 },
  { name: "Router adds", value: (all) => ms(all.overhead.p50), of: (step) => step.overhead.p50 },
  { name: "Server errors", value: (all) => count(all.failed), of: (step) => step.failed },
  { name: "In flight", value: (all, state) => count(inFlight(state, all)), of: (step) => step.inFlight },
  { name: "Workers ready", value: (all, state) => ready(state), of: () => null },
  { name: "Ghost locks", value: (all, state) => count(state.locks), of: () => null },
];

export function showFigures(figures, all, steps, state) {
  const place = byId("figures");
  if (!place.children.length) {
    place.append(...figures.map(({ name }) => el("div", {}, el("dt", {}, name), el("dd", {}, "\u2013"), el("dd", { class: "course" }))));
  }
  if (all === null) return;
  figures.forEach(({ value, of }, at) => {
    const [, shown, course] = place.children[at].children;
    setText(shown, value(all, state));
    const values = steps.map(of);
    course.replaceChildren(...(values.some((one) => one !== null) ? [sparkline(values)] : []));
  });
}

function inFlight(state, all) {
  return state.workers.length ? state.workers.reduce((sum, worker) => sum + (worker.in_flight || 0), 0) : all.inFlight;
}

function ready(state) {
  if (!state.status) return "\u2013";
  const counts = Object.values(state.status.workers);
  const total = counts.reduce((sum, one) => sum + one, 0) + state.status.not_routable + state.status.gone.length;
  return `${state.status.workers.ready || 0} of ${total}`;
}
