// Makes elements. Whatever comes from data becomes text, never markup: names of workers are other people's words.

const SVG = "http://www.w3.org/2000/svg";

// Return an element. attributes: strings and numbers; null leaves one out. children: elements, or texts.
export function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

// The same for drawings.
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

// Return an element for a name that somebody chose: its direction of writing does not reach beyond it.
export function named(text, attributes = {}) {
  return el("bdi", { title: text, ...attributes }, text);
}

export function byId(id) {
  return document.getElementById(id);
}

// Set a text only where it is another one: what is selected, or being read aloud, is left alone.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function show(element, text) {
  element.hidden = !text;
  setText(element, text || "");
}

// Return a table. head: texts. rows: of cells, each a text, an element, or a list of these. kinds: a class per column.
export function table(head, rows, kinds = []) {
  const cell = (tag, content, column, scope) =>
    el(tag, { class: kinds[column] || null, scope: scope || null }, ...[content].flat());
  const titles = el("tr", {}, ...head.map((text, column) => cell("th", text, column, "col")));
  const lines = rows.map((row) => el("tr", {}, ...row.map((content, column) => cell("td", content, column))));
  return el("table", {}, el("thead", {}, titles), el("tbody", {}, ...lines));
}

// Return a bar that is filled to a share in [0, 1]. parts: [share, class] each, side by side.
export function bar(parts, label) {
  const width = 100;
  let at = 0;
  const pieces = parts.map(([share, kind]) => {
    const size = Math.max(0, Math.min(1, share)) * width;
    const piece = svg("rect", { x: at.toFixed(3), y: 0, width: size.toFixed(3), height: 8, class: kind });
    at += size;
    return piece;
  });
  return svg(
    "svg",
    { class: "bar-line", viewBox: `0 0 ${width} 8`, preserveAspectRatio: "none", role: "img", "aria-label": label },
    svg("rect", { x: 0, y: 0, width, height: 8, class: "track" }),
    ...pieces,
  );
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, String(value));
  }
  for (const child of children) {
    if (child !== null && child !== undefined) element.append(child);
  }
  return element;
}
