// How near texts are to each other: the cosines of their vectors, as a table of tinted numbers.

import { post, Problem } from "./api.js";
import { Asking } from "./asking.js";
import { h } from "./dom.js";
import { decimal } from "./texts.js";

const MOST = 24;
const NEAREST = 3;

/** The workspace of a model that gives vectors. */
export class Similarity extends Asking {
  constructor(model) {
    super(model, { fields: [["lines", "lines", 9, "eg.lines"]], button: "measure" });
  }

  request(model, { lines }) {
    return ["v1/embeddings", { model: model.id, input: cut(lines) }];
  }

  async show(model, given) {
    const lines = cut(given.lines);
    if (lines.length < 2) throw new Problem("", { key: "atLeastTwo" });
    if (lines.length > MOST) throw new Problem("", { key: "atMost", values: { count: lines.length } });
    const reply = await post(...this.request(model, given));
    const vectors = reply.data.map((one) => unit(one.embedding));
    return [table(lines, vectors), h("h3", { t: "nearest" }), nearest(lines, vectors)];
  }
}

function cut(text) {
  return text.split("\n").map((line) => line.trim()).filter((line) => line);
}

function unit(vector) {
  const length = Math.hypot(...vector) || 1;
  return vector.map((value) => value / length);
}

function cosine(a, b) {
  return a.reduce((sum, value, place) => sum + value * b[place], 0);
}

function table(lines, vectors) {
  const numbers = lines.map((line, place) => h("th", { scope: "col", title: line, textContent: String(place + 1) }));
  const rows = lines.map((line, place) => {
    const name = h("th", { scope: "row", title: line }, h("span", { class: "line" }, h("b", { textContent: `${place + 1} ` }), line));
    return h("tr", {}, name, vectors.map((other, column) => cell(cosine(vectors[place], other), column === place)));
  });
  const caption = h("caption", { t: "similarity" });
  const head = h("thead", {}, h("tr", {}, h("td", {}), numbers));
  const whole = h("table", { class: "cosines" }, caption, head, h("tbody", {}, rows));
  return h("div", { class: "scroll", tabIndex: 0, role: "region", tLabel: "similarity" }, whole);
}

function cell(value, isSame) {
  const made = h("td", { class: isSame ? "same" : "", textContent: decimal(value, 2) });
  made.style.setProperty("--share", String(Math.max(0, value) ** 1.5));
  return made;
}

/** The pairs that are nearest to each other. */
function nearest(lines, vectors) {
  const pairs = [];
  for (let a = 0; a < lines.length; a += 1) {
    for (let b = a + 1; b < lines.length; b += 1) pairs.push([cosine(vectors[a], vectors[b]), lines[a], lines[b]]);
  }
  pairs.sort((one, other) => other[0] - one[0]);
  const shown = pairs.slice(0, NEAREST).map(([value, a, b]) => {
    const texts = h("span", { class: "pair" }, h("span", { textContent: a }), h("span", { textContent: b }));
    return h("li", {}, h("span", { class: "share", textContent: decimal(value, 2) }), texts);
  });
  return h("ol", { class: "nearest" }, shown);
}
