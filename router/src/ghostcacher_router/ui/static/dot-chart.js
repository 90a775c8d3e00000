// Forecast against observed: a dot an answer, on logarithmic scales, with a band of twice and half.

import { svg } from "./dom.js";
import { ms } from "./format.js";

const HEIGHT = 216;
const LEFT = 52;
const RIGHT = 12;
const TOP = 8;
const BOTTOM = 24;
const LEAST = 1;

export class DotChart {
  constructor(place) {
    this.dots = [];
    this.drawing = svg("svg", { class: "dots", height: HEIGHT, role: "img" });
    place.append(this.drawing);
    new ResizeObserver(() => this.draw()).observe(place);
  }

  // dots: {forecast, observed} each, in ms.
  update(dots, label) {
    this.dots = dots;
    this.drawing.setAttribute("aria-label", label);
    this.draw();
  }

  draw() {
    this.width = this.drawing.parentElement.clientWidth;
    if (!this.width) return;
    const all = this.dots.flatMap(({ forecast, observed }) => [forecast, observed]).map((value) => Math.max(LEAST, value));
    this.low = Math.floor(Math.log10(Math.min(...all, 10)));
    this.high = Math.max(this.low + 1, Math.ceil(Math.log10(Math.max(...all, 1000))));
    this.drawing.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
    this.drawing.setAttribute("width", this.width);
    this.drawing.replaceChildren(...this.scales(), ...this.band(), ...this.dots.map((dot) => this.dot(dot)), ...this.names());
  }

  x(value) {
    return LEFT + this.part(value) * (this.width - LEFT - RIGHT);
  }

  y(value) {
    return TOP + (1 - this.part(value)) * (HEIGHT - TOP - BOTTOM);
  }

  part(value) {
    const part = (Math.log10(Math.max(LEAST, value)) - this.low) / (this.high - this.low);
    return Math.max(0, Math.min(1, part));
  }

  scales() {
    const found = [];
    for (let power = this.low; power <= this.high; power += 1) {
      const value = 10 ** power;
      const x = this.x(value);
      const y = this.y(value);
      found.push(svg("line", { class: "grid", x1: LEFT, x2: this.width - RIGHT, y1: y, y2: y }));
      found.push(svg("line", { class: "grid", x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM }));
      found.push(svg("text", { class: "axis", x: LEFT - 6, y: y + 4, "text-anchor": "end" }, ms(value)));
      const anchor = power === this.low ? "start" : power === this.high ? "end" : "middle";
      found.push(svg("text", { class: "axis", x, y: HEIGHT - 8, "text-anchor": anchor }, ms(value)));
    }
    return found;
  }

  band() {
    const line = (factor, kind) => {
      const from = 10 ** this.low * Math.max(1, 1 / factor);
      const to = 10 ** this.high * Math.min(1, 1 / factor);
      const ends = { x1: this.x(from), y1: this.y(from * factor), x2: this.x(to), y2: this.y(to * factor) };
      return svg("line", { class: kind, ...ends });
    };
    return [line(2, "aside"), line(0.5, "aside"), line(1, "right")];
  }

  dot({ forecast, observed }) {
    return svg("circle", { class: "answer", cx: this.x(forecast).toFixed(1), cy: this.y(observed).toFixed(1), r: 2.6 });
  }

  names() {
    return [
      svg("text", { class: "axis", x: this.width - RIGHT - 4, y: HEIGHT - BOTTOM - 6, "text-anchor": "end" }, "forecast \u2192"),
      svg("text", { class: "axis", x: LEFT + 6, y: TOP + 10 }, "\u2191 observed"),
    ];
  }
}
