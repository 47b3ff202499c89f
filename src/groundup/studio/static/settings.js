// The controls of sampling: one panel for one workspace, and the part of a request that they make.

import { field, h, newId, speak } from "./dom.js";
import { decimal } from "./texts.js";

const SLIDERS = [
  ["temperature", { min: 0, max: 2, step: 0.05, value: 0.7, hint: "temperatureHint" }],
  ["topP", { min: 0.05, max: 1, step: 0.05, value: 0.95 }],
  ["repetition", { min: 1, max: 2, step: 0.05, value: 1 }],
];
const NUMBERS = [
  ["topK", { min: 0, step: 1, value: 0, hint: "topKHint" }],
  ["maxTokens", { min: 1, step: 1, value: 256 }],
];

/** The panel, and `read` and `onChange` of it. `chats` says whether there are instructions to give. */
export class Settings {
  constructor({ chats, context }) {
    this.controls = {};
    this.element = h("section", { class: "settings" });
    const fields = [];
    if (chats) {
      this.controls.system = h("textarea", { rows: 3, maxLength: 20000 });
      fields.push(field("system", this.controls.system, "systemHint"));
    }
    for (const [name, given] of SLIDERS) fields.push(this.slider(name, given));
    for (const [name, given] of NUMBERS) fields.push(this.number(name, { ...given, max: name === "maxTokens" ? context : 100000 }));
    this.controls.seed = h("input", { type: "number", min: 0, step: 1, tPlaceholder: "random" });
    this.controls.stops = h("input", { type: "text", spellcheck: false });
    fields.push(field("seed", this.controls.seed, "seedHint"), field("stops", this.controls.stops, "stopsHint"));
    const reset = h("button", { type: "reset", class: "quiet", t: "reset" });
    const form = h("form", { onsubmit: (event) => event.preventDefault() }, fields, reset);
    form.addEventListener("reset", () => setTimeout(() => this.showValues()));
    const details = h("details", {}, h("summary", { t: "settings" }), form);
    details.open = matchMedia("(min-width: 72rem)").matches;
    this.element.append(details);
    speak(this.element, "tLabel", "settings");
    this.showValues();
  }

  slider(name, { hint, ...range }) {
    const id = newId("slider");
    const output = h("output", { for: id });
    const { value, ...limits } = range;
    const control = h("input", { id, type: "range", ...limits, defaultValue: value });
    control.output = output;
    control.addEventListener("input", () => this.showValues());
    this.controls[name] = control;
    const made = field(name, control, hint);
    made.firstChild.after(output);
    made.classList.add("slider");
    return made;
  }

  number(name, { hint, value, ...limits }) {
    this.controls[name] = h("input", { type: "number", ...limits, defaultValue: value });
    return field(name, this.controls[name], hint);
  }

  showValues() {
    for (const control of Object.values(this.controls)) {
      if (control.output) control.output.textContent = decimal(Number(control.value), 2);
    }
  }

  /** The keys of a request, those left out that would change nothing. */
  read() {
    const { temperature, topP, topK, repetition, maxTokens, seed, stops } = this.controls;
    const asked = { temperature: Number(temperature.value), max_tokens: Number(maxTokens.value) || 256 };
    if (Number(topP.value) < 1) asked.top_p = Number(topP.value);
    if (Number(topK.value) > 0) asked.top_k = Math.floor(Number(topK.value));
    if (Number(repetition.value) > 1) asked.repetition_penalty = Number(repetition.value);
    if (seed.value !== "") asked.seed = Math.floor(Number(seed.value));
    const texts = stops.value.split("|").filter((text) => text !== "");
    if (texts.length) asked.stop = texts;
    return asked;
  }

  /** The instructions to the model, as the first message of a chat, if there are any. */
  get instructions() {
    const text = this.controls.system?.value.trim();
    return text ? [{ role: "system", content: text }] : [];
  }
}
