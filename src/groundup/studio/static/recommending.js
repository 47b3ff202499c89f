// A few things that somebody liked, looked for by their names, and what may come next.
//
// The search is a combobox: arrows go through what was found, Enter takes it, Escape closes the list.

import { get, post } from "./api.js";
import { Workspace } from "./asking.js";
import { example } from "./curl.js";
import { h, newId, speak } from "./dom.js";
import { took } from "./rows.js";
import { decimal, say } from "./texts.js";

const PATH = "v1/recommend";
const FOUND = 8;
const TOLD = 10;
const WAIT_MS = 160;

/** The workspace of a model that says what comes next. */
export class Recommending extends Workspace {
  constructor(model) {
    super(model, "say.recommending");
    this.chosen = [];
    this.found = [];
    this.place = -1;
    this.curl = example(() => [PATH, this.body(this.model)]);
    this.list = h("ul", { class: "options", id: newId("options"), role: "listbox", hidden: true, tLabel: "search" });
    this.search = h("input", { type: "text", id: newId("search"), role: "combobox", autocomplete: "off", spellcheck: false });
    this.search.setAttribute("aria-controls", this.list.id);
    this.search.setAttribute("aria-expanded", "false");
    this.search.setAttribute("aria-autocomplete", "list");
    this.picked = h("ol", { class: "picked", tLabel: "picked" });
    this.said = h("p", { class: "unseen", "aria-live": "polite" });
    this.listen();
    const count = { count: () => decimal(model.form.items.count, 0) };
    const field = h("div", { class: "field search" }, h("label", { for: this.search.id, t: "search" }), this.search, this.list, h("small", { t: ["searchHint", count] }));
    const clear = h("button", { type: "button", class: "quiet", t: "clear", onclick: () => this.clear() });
    const panel = h("div", { class: "ask" }, field, this.picked, h("div", { class: "row" }, clear), this.said, this.curl.element);
    this.element = h("div", { class: "rows" }, panel, this.results);
  }

  get given() {
    return this.chosen.length ? this.chosen : null;
  }

  body(model) {
    return { model: model.id, items: this.chosen.map((one) => one.item), k: TOLD };
  }

  async show(model) {
    const started = performance.now();
    const reply = await post(PATH, this.body(model));
    const { items, unknown } = reply.data[0];
    const best = items[0]?.score ?? 0;
    const rows = items.map((one) => {
      const bar = h("span", { class: "bar", "aria-hidden": "true" });
      bar.style.setProperty("--share", String(Math.exp(one.score - best)));
      const take = h("button", { type: "button", class: "quiet", tLabel: ["take", { name: titleOf(one) }], textContent: "+", onclick: () => this.take(one) });
      return h("li", {}, h("span", { class: "label", textContent: titleOf(one) }), bar, h("span", { class: "share", textContent: decimal(one.score, 2) }), take);
    });
    const note = unknown ? [h("p", { class: "note", t: ["unknownItems", { names: unknown.join(", ") }] })] : [];
    return [h("ol", { class: "ranked" }, rows), ...note, took(started)];
  }

  // ---------------------------------------------------------------------------------------------- choosing

  listen() {
    this.search.addEventListener("input", () => this.later());
    this.search.addEventListener("focus", () => this.look());
    this.search.addEventListener("blur", () => setTimeout(() => this.close(), WAIT_MS));
    this.search.addEventListener("keydown", (event) => this.key(event));
  }

  later() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.look(), WAIT_MS);
  }

  async look() {
    const text = this.search.value;
    const query = new URLSearchParams({ model: this.model.id, search: text, limit: String(FOUND + this.chosen.length) });
    const reply = await get(`v1/items?${query}`).catch(() => ({ data: [] }));
    if (text !== this.search.value || document.activeElement !== this.search) return; // another search is under way, or none
    const taken = new Set(this.chosen.map((one) => one.item));
    this.found = reply.data.filter((one) => !taken.has(one.item)).slice(0, FOUND);
    this.place = -1;
    this.list.replaceChildren(...this.found.map((one) => this.option(one)));
    this.open(this.found.length > 0);
    this.said.textContent = say("foundItems", { count: this.found.length });
  }

  option(one) {
    const option = h("li", { id: newId("option"), role: "option", "aria-selected": "false", textContent: titleOf(one) });
    option.addEventListener("pointerdown", (event) => {
      event.preventDefault(); // the search keeps the focus
      this.take(one);
    });
    return option;
  }

  key(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1 };
    if (event.key in steps && this.found.length) {
      this.place = (this.place + steps[event.key] + this.found.length + (this.place < 0 && event.key === "ArrowUp" ? 1 : 0)) % this.found.length;
      [...this.list.children].forEach((option, place) => option.setAttribute("aria-selected", String(place === this.place)));
      this.search.setAttribute("aria-activedescendant", this.list.children[this.place].id);
    } else if (event.key === "Enter" && this.found.length) {
      this.take(this.found[Math.max(0, this.place)]);
    } else if (event.key === "Escape") {
      this.close();
    } else return;
    event.preventDefault();
  }

  open(isOpen) {
    this.list.hidden = !isOpen;
    this.search.setAttribute("aria-expanded", String(isOpen));
    this.search.removeAttribute("aria-activedescendant");
  }

  close() {
    this.open(false);
    this.found = [];
  }

  take(one) {
    if (this.chosen.some((other) => other.item === one.item)) return;
    this.chosen.push(one);
    this.search.value = "";
    this.changed();
    if (document.activeElement === this.search) this.look();
  }

  leave(one) {
    const place = this.chosen.indexOf(one);
    this.chosen.splice(place, 1);
    this.changed();
    (this.picked.querySelectorAll("button")[Math.min(place, this.chosen.length - 1)] ?? this.search).focus();
  }

  clear() {
    this.chosen = [];
    this.changed();
    this.search.focus();
  }

  changed() {
    this.picked.replaceChildren(...this.chosen.map((one) => {
      const remove = h("button", { type: "button", class: "quiet", textContent: "×", onclick: () => this.leave(one) });
      speak(remove, "tLabel", ["leave", { name: titleOf(one) }]);
      return h("li", {}, h("span", { textContent: titleOf(one) }), remove);
    }));
    if (this.chosen.length) this.ask();
    else {
      this.asked += 1;
      this.results.replaceChildren(h("p", { class: "empty", t: "say.recommending" }));
    }
  }
}

function titleOf(one) {
  return one.title ?? one.item;
}
