// A row of a table, column by column, and which class it belongs to or which number goes with it.

import { post } from "./api.js";
import { Workspace } from "./asking.js";
import { example } from "./curl.js";
import { h, newId } from "./dom.js";
import { took, verdict } from "./rows.js";

const PATH = "v1/classify";
const DIGITS = 4;

/** The workspace of a model that reads named columns. */
export class Table extends Workspace {
  constructor(model) {
    super(model);
    this.controls = {};
    const { numbers = {}, categories = {} } = model.form;
    const fields = [...Object.entries(numbers).map((one) => this.number(...one)), ...Object.entries(categories).map((one) => this.category(...one))];
    this.curl = example(() => this.request(this.model));
    const send = h("button", { type: "submit", class: "primary", t: "classify" });
    const form = h("form", { class: "ask" }, h("div", { class: "columns" }, fields), h("div", { class: "row" }, h("small", { t: "tableHint" }), send), this.curl.element);
    form.addEventListener("input", () => this.curl.update());
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask();
    });
    this.element = h("div", { class: "rows" }, form, this.results);
  }

  number(name, usual) {
    const value = String(Number(usual.toPrecision(DIGITS)));
    return this.field(name, h("input", { type: "number", step: "any", value }));
  }

  category(name, values) {
    const list = h("datalist", { id: newId("values") }, values.filter((value) => value !== "").map((value) => h("option", { value })));
    const control = h("input", { type: "text", value: values[0] ?? "" });
    control.setAttribute("list", list.id);
    return this.field(name, control, list);
  }

  field(name, control, ...more) {
    control.id = newId("column");
    this.controls[name] = control;
    return h("div", { class: "field" }, h("label", { for: control.id, textContent: name }), control, more);
  }

  /** The row as it was typed; what is empty is missing. */
  get given() {
    const row = {};
    for (const [name, control] of Object.entries(this.controls)) {
      if (control.value === "") row[name] = null;
      else row[name] = control.type === "number" ? Number(control.value) : control.value;
    }
    return row;
  }

  request(model) {
    return [PATH, { model: model.id, input: [this.given] }];
  }

  async show(model) {
    const started = performance.now();
    const reply = await post(...this.request(model));
    return [...verdict(reply.data[0]), took(started)];
  }
}
