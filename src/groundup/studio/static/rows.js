// Labelled tasks: a form, and for each model its answer, drawn as the task wants it.

import { post } from "./api.js";
import { Asking } from "./asking.js";
import { h } from "./dom.js";
import { decimal, percent } from "./texts.js";

const MOST_BARS = 8;
const HUES = 6;

/** What each task asks, and how its answer is shown. */
const TASKS = {
  text_classification: {
    path: "v1/classify",
    button: "classify",
    fields: (model) => [["text", "input", 5, "eg.text"], ...(model.columns.pair ? [["pair", "second", 3, "eg.second"]] : [])],
    body: ({ text, pair }, model) => ({ input: pair === undefined ? text : { [model.columns.text]: text, [model.columns.pair]: pair } }),
    show: verdict,
  },
  token_tagging: {
    path: "v1/tag",
    button: "tag",
    fields: () => [["text", "input", 5, "eg.tokens"]],
    body: ({ text }) => ({ input: text }),
    show: (answer, given, model) => tagged(answer, given.text, model),
  },
  span_qa: {
    path: "v1/answer",
    button: "find",
    fields: () => [["passage", "passage", 7, "eg.passage"], ["question", "question", 2, "eg.question"]],
    body: ({ passage, question }) => ({ question, context: passage }),
    show: (answer, given) => found(answer, given.passage),
  },
  translation: {
    path: "v1/translate",
    button: "translate",
    fields: () => [["text", "source", 5, "eg.source"]],
    body: ({ text }) => ({ input: text }),
    show: (answer) => translated(answer),
  },
};

/** Whether there is a form for the models of a task. */
export function isKnown(task) {
  return task in TASKS;
}

/** The workspace of a model of a labelled task. */
export class Rows extends Asking {
  constructor(model) {
    const { fields, button } = TASKS[model.task];
    super(model, { fields: fields(model), button });
  }

  request(model, given) {
    const { path, body } = TASKS[model.task];
    return [path, { model: model.id, ...body(given, model) }];
  }

  async show(model, given) {
    const started = performance.now();
    const reply = await post(...this.request(model, given));
    return [...TASKS[model.task].show(reply.data[0], given, model), took(started)];
  }
}

/** A class or a number, as it was predicted. */
export function verdict(answer) {
  return answer.number === undefined ? classes(answer) : figure(answer);
}

/** How long an answer took. */
export function took(started) {
  const time = (performance.now() - started) / 1000;
  return h("p", { class: "figures", t: ["took", { time: () => decimal(time, 2) }] });
}

/** Classes as bars, the likeliest first; what was predicted is said as well as drawn. */
function classes(answer) {
  const pairs = Object.entries(answer.probabilities ?? {}).sort((a, b) => b[1] - a[1]);
  const predicted = answer.labels ?? [answer.label];
  const said = predicted.length ? h("span", { textContent: predicted.join(", ") }) : h("span", { t: "none" });
  const bars = pairs.slice(0, MOST_BARS).map(([label, share]) => {
    const bar = h("span", { class: "bar", "aria-hidden": "true" });
    bar.style.setProperty("--share", String(share));
    const isTaken = predicted.includes(label);
    const parts = [h("span", { class: "label", textContent: label }), bar, h("span", { class: "share", textContent: percent(share) })];
    return h("li", { class: isTaken ? "taken" : "" }, parts);
  });
  const rest = pairs.length - bars.length;
  return [
    h("p", { class: "verdict" }, said),
    h("ol", { class: "bars" }, bars),
    rest > 0 ? h("p", { class: "figures", t: ["more", { count: rest }] }) : "",
  ];
}

function figure(answer) {
  return [h("p", { class: "eyebrow", t: "number" }), h("p", { class: "verdict", textContent: decimal(Number(answer.number), 3) })];
}

/** The text with its spans marked, each with its label; a label keeps its colour from text to text. */
function tagged(answer, text, model) {
  const labels = [...new Set(model.labels.map((tag) => tag.replace(/^[A-Z]-/, "")).filter((tag) => tag !== "O"))];
  const places = placesOf(answer.tokens, text);
  const parts = [];
  let end = 0;
  for (const span of answer.spans) {
    const [start, stop] = [places[span.first][0], places[span.last][1]];
    parts.push(text.slice(end, start), marked(text.slice(start, stop), span.label, Math.max(0, labels.indexOf(span.label))));
    end = stop;
  }
  parts.push(text.slice(end));
  const shown = [h("p", { class: "passage" }, parts)];
  if (!answer.spans.length) shown.push(h("p", { class: "note", t: "noSpans" }));
  return shown;
}

function marked(text, label, place) {
  return h("mark", { class: `hue-${place % HUES}` }, text, h("span", { class: "tag", textContent: label }));
}

/** Where each token stands in the text, in order. */
function placesOf(tokens, text) {
  let at = 0;
  return tokens.map((token) => {
    const start = Math.max(at, text.indexOf(token, at));
    at = Math.min(text.length, start + token.length);
    return [start, at];
  });
}

/** The passage with the answer marked. */
function found(answer, passage) {
  // The server counts characters, JavaScript counts halves of some.
  const characters = Array.from(passage);
  const between = (start, end) => characters.slice(start, end).join("");
  const isFound = answer.start !== null && answer.answer !== "";
  const shown = isFound
    ? [between(0, answer.start), h("mark", { class: "hue-0" }, between(answer.start, answer.end)), between(answer.end)]
    : [passage];
  const said = isFound
    ? [h("p", { class: "eyebrow", t: "answerIs" }), h("p", { class: "verdict", textContent: answer.answer })]
    : [h("p", { class: "note", t: "noAnswer" })];
  return [...said, h("p", { class: "passage" }, shown), ...sureness(answer)];
}

function translated(answer) {
  return [h("p", { class: "passage translated", textContent: answer.text }), ...sureness(answer)];
}

function sureness(answer) {
  if (answer.confidence === undefined) return [];
  return [h("p", { class: "figures", t: ["confidence", { share: () => percent(answer.confidence) }] })];
}
