// A place to ask, and beside it what each model answers: what all tasks with rows have in common.

import { example } from "./curl.js";
import { alertOf, field, h } from "./dom.js";
import { say } from "./texts.js";

/** A workspace where something goes in and answers come out. What it is gives `given` (null for nothing yet) and `show`. */
export class Workspace {
  constructor(model, empty = "say.rows") {
    this.model = model;
    this.models = [model];
    this.results = h("div", { class: "results", "aria-live": "polite" }, h("p", { class: "empty", t: empty }));
    this.asked = 0;
  }

  /** Put another model beside it, or with null take it away. */
  compare(model) {
    this.models = [this.model, ...(model ? [model] : [])];
    if (this.results.querySelector("section")) this.ask();
  }

  /** Ask every model; of several answers under way, only what was asked last is shown. */
  async ask() {
    const given = this.given;
    if (given === null) return;
    this.asked += 1;
    const turn = this.asked;
    this.curl?.update();
    this.results.setAttribute("aria-busy", "true");
    const shown = await Promise.all(this.models.map((model) => this.answer(model, given)));
    if (turn !== this.asked) return;
    this.results.removeAttribute("aria-busy");
    this.results.replaceChildren(...shown);
  }

  async answer(model, given) {
    const section = h("section", { class: "result", tLabel: ["results", { model: model.id }] }, h("h2", { textContent: model.id }));
    try {
      section.append(...(await this.show(model, given)));
    } catch (error) {
      section.append(alertOf(error));
    }
    return section;
  }
}

/** A workspace of texts in, answers out. A task gives `request` (path and body) and `show` (parts of an answer). */
export class Asking extends Workspace {
  /** `fields` are [name, label, rows, example], each a text; `button` is the key of what asking is called. */
  constructor(model, { fields, button }) {
    super(model);
    this.controls = {};
    this.curl = example(() => this.request(this.model, this.texts));
    this.element = h("div", { class: "rows" }, this.form(fields, button), this.results);
  }

  form(fields, button) {
    const made = fields.map(([name, label, rows, example]) => {
      this.controls[name] = h("textarea", { rows, required: true, maxLength: 200000 });
      this.controls[name].example = example;
      return field(label, this.controls[name]);
    });
    const fill = h("button", { type: "button", class: "quiet", t: "example", onclick: () => this.fill() });
    const send = h("button", { type: "submit", class: "primary", t: button });
    const row = h("div", { class: "row" }, h("small", { t: "runHint" }), fill, send);
    const form = h("form", { class: "ask" }, made, row, this.curl.element);
    form.addEventListener("input", () => this.curl.update());
    form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask();
    });
    return form;
  }

  /** What was typed, by field. */
  get texts() {
    return Object.fromEntries(Object.entries(this.controls).map(([name, control]) => [name, control.value]));
  }

  get given() {
    const texts = this.texts;
    return Object.values(texts).some((text) => !text.trim()) ? null : texts;
  }

  fill() {
    for (const control of Object.values(this.controls)) control.value = say(control.example);
    this.ask();
  }
}
