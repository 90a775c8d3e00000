// Lines over time. The legend reads the values at the newest moment, or where the pointer or the arrow keys are.

import { el, setText, svg } from "./dom.js";
import { clock, known } from "./format.js";

const HEIGHT = 190;
const LEFT = 52;
const RIGHT = 8;
const TOP = 8;
const BOTTOM = 22;
const GAP_STEPS = 2.5;

export class LineChart {
  // lines: {name, kind, of} each: what it is called, its class, and its value of a step. format: shows a value.
  // top: the greatest value of the scale; null: as the lines are.
  constructor(place, { label, lines, format, top = null }) {
    this.label = label;
    this.lines = lines;
    this.format = format;
    this.top = top;
    this.steps = [];
    this.span = 900;
    this.now = 0;
    this.chosen = null; // the `end` of the step that is read; null: the newest
    this.drawing = svg("svg", { class: "lines", height: HEIGHT, tabindex: 0, role: "img" });
    this.values = lines.map((line) => el("strong", {}, ""));
    this.when = el("span", { class: "muted when" }, "");
    const legend = lines.map((line, place) =>
      el("li", {}, el("span", { class: `key ${line.kind}` }), `${line.name} `, this.values[place]),
    );
    place.append(el("ul", { class: "legend" }, ...legend, el("li", {}, this.when)), this.drawing);
    this.drawing.addEventListener("pointermove", (event) => this.choose(this.stepAt(event)));
    this.drawing.addEventListener("pointerleave", () => this.choose(null));
    this.drawing.addEventListener("blur", () => this.choose(null));
    this.drawing.addEventListener("keydown", (event) => this.onKey(event));
    new ResizeObserver(() => this.draw()).observe(place);
  }

  update(steps, now, span) {
    Object.assign(this, { steps, now, span });
    if (!this.chosenStep()) this.chosen = null;
    this.draw();
  }

  draw() {
    this.width = this.drawing.parentElement.clientWidth;
    if (!this.width) return;
    const values = this.steps.flatMap((step) => this.lines.map((line) => line.of(step)).filter(known));
    this.scale = this.top ?? niceTop(Math.max(0, ...values));
    this.drawing.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
    this.drawing.setAttribute("width", this.width);
    this.drawing.replaceChildren(...this.grid(), ...this.lines.map((line) => this.line(line)), ...this.cross());
    if (!values.length) this.drawing.append(this.text(this.width / 2, HEIGHT / 2, "nothing yet", "middle"));
    this.read();
  }

  x(at) {
    return LEFT + (1 - (this.now - at) / this.span) * (this.width - LEFT - RIGHT);
  }

  y(value) {
    return TOP + (1 - Math.min(value, this.scale) / this.scale) * (HEIGHT - TOP - BOTTOM);
  }

  grid() {
    const found = [];
    const parts = partsOf(this.scale);
    for (const part of Array.from({ length: parts + 1 }, (_, place) => place / parts)) {
      const y = this.y(part * this.scale);
      found.push(svg("line", { class: "grid", x1: LEFT, x2: this.width - RIGHT, y1: y, y2: y }));
      found.push(this.text(LEFT - 6, y + 4, this.format(part * this.scale), "end"));
    }
    const narrow = this.width < 360;
    for (const part of narrow ? [0, 1] : [0, 0.5, 1]) {
      const x = LEFT + part * (this.width - LEFT - RIGHT);
      const ago = Math.round(((1 - part) * this.span) / 60);
      const minutes = ((1 - part) * this.span) / 60;
      const text = ago ? `\u2212${Number.isInteger(minutes) ? minutes : minutes.toFixed(1)} min` : "now";
      found.push(this.text(x, HEIGHT - 6, text, part === 0 ? "start" : part === 1 ? "end" : "middle"));
    }
    return found;
  }

  text(x, y, words, anchor) {
    return svg("text", { class: "axis", x, y, "text-anchor": anchor }, words);
  }

  line({ kind, of }) {
    let path = "";
    let before = null;
    for (const step of this.steps) {
      const value = of(step);
      if (!known(value)) continue;
      const joined = before !== null && step.at - before <= GAP_STEPS * step.width;
      // A single value between gaps would be invisible: it is a short stroke.
      path += joined ? "L" : `M${(this.x(step.at) - 1).toFixed(1)} ${this.y(value).toFixed(1)}L`;
      path += `${this.x(step.at).toFixed(1)} ${this.y(value).toFixed(1)}`;
      before = step.at;
    }
    return svg("path", { class: `line ${kind}`, d: path || "M0 0", fill: "none" });
  }

  cross() {
    const step = this.chosenStep();
    if (!step) return [];
    const x = this.x(step.at);
    const dots = this.lines.filter(({ of }) => known(of(step)));
    return [
      svg("line", { class: "cross", x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM }),
      ...dots.map(({ kind, of }) => svg("circle", { class: `dot ${kind}`, cx: x, cy: this.y(of(step)), r: 3.5 })),
    ];
  }

  read() {
    const step = this.chosenStep() ?? this.steps[this.steps.length - 1];
    const shown = this.lines.map(({ of }) => this.format(step ? of(step) : null));
    shown.forEach((text, place) => setText(this.values[place], text));
    setText(this.when, step && this.chosen !== null ? `at ${clock(step.at)}` : "");
    const words = this.lines.map(({ name }, place) => `${name} ${shown[place]}`).join(", ");
    this.drawing.setAttribute("aria-label", `${this.label}: ${words}. Arrow keys read earlier values.`);
  }

  // What is read stays the same moment while newer steps come and older ones leave.
  chosenStep() {
    return this.steps.find((step) => step.end === this.chosen);
  }

  choose(step) {
    const end = step ? step.end : null;
    if (end === this.chosen) return;
    this.chosen = end;
    this.draw();
  }

  stepAt(event) {
    const x = event.clientX - this.drawing.getBoundingClientRect().left;
    let best = null;
    for (const step of this.steps) {
      const far = Math.abs(this.x(step.at) - x);
      if (best === null || far < best.far) best = { far, step };
    }
    return best && best.step;
  }

  onKey(event) {
    const last = this.steps.length - 1;
    const here = this.chosen === null ? last : this.steps.indexOf(this.chosenStep());
    const to = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: last }[event.key];
    if (event.key === "Escape") this.choose(null);
    if (to === undefined || last < 0) return;
    event.preventDefault();
    this.choose(this.steps[Math.max(0, Math.min(last, to))]);
  }
}

// A round number that is not less, and not 0.
export function niceTop(value) {
  if (!(value > 0)) return 1;
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].find((step) => step * unit >= value) * unit;
}

// Into how many parts a scale with such a top is divided, so that each is a round number, too.
function partsOf(top) {
  const first = top / 10 ** Math.floor(Math.log10(top));
  return [2.5, 5].includes(Number(first.toFixed(3))) ? 5 : 4;
}

// A line as small as a word, without scales.
export function sparkline(values) {
  const width = 100;
  const height = 22;
  const present = values.filter(known);
  const top = Math.max(...present, 1e-9);
  let path = "";
  values.forEach((value, place) => {
    if (!known(value)) return;
    const x = (place / Math.max(1, values.length - 1)) * width;
    path += `${path ? "L" : "M"}${x.toFixed(1)} ${(height - 2 - (value / top) * (height - 4)).toFixed(1)}`;
  });
  return svg(
    "svg",
    { class: "spark", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("path", { d: path || "M0 0", fill: "none", class: "line" }),
  );
}
