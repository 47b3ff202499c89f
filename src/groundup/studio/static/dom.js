// Elements, made by one function. Nothing here turns a text into markup.
//
// A text that depends on the language is given as a key, or as [key, values], in `t`, `tLabel` (aria-label) or
// `tPlaceholder`. `translate` writes all of them anew, so that changing the language loses nothing on the page.

import { say } from "./texts.js";

const TRANSLATED = { t: "textContent", tLabel: "ariaLabel", tPlaceholder: "placeholder", tTitle: "title" };
const SVG = "http://www.w3.org/2000/svg";

/** An element with properties (`on…` listens, `data-…`, `aria-…` and `role` are attributes) and children. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name in TRANSLATED) speak(element, name, value);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name.includes("-") || ["role", "for"].includes(name)) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** An element of a drawing. */
export function drawn(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Let a part of an element say a text of the language that is chosen, now and after the next choice. */
export function speak(element, part, text) {
  element.spoken = { ...element.spoken, [part]: text };
  element.toggleAttribute("data-spoken", true);
  write(element, part, text);
}

function write(element, part, text) {
  const [key, values] = Array.isArray(text) ? text : [text];
  element[TRANSLATED[part]] = say(key, values);
}

/** Write every text below an element in the language that is chosen. */
export function translate(root) {
  for (const element of root.querySelectorAll("[data-spoken]")) {
    for (const [part, text] of Object.entries(element.spoken)) write(element, part, text);
  }
}

let number = 0;

/** A new id: labels and what they label find each other by it. */
export function newId(word) {
  number += 1;
  return `${word}-${number}`;
}

/** A control with its label in front, and a hint behind where there is one. */
export function field(label, control, hint) {
  control.id ||= newId("field");
  const parts = [h("label", { for: control.id, t: label }), control];
  if (hint) {
    const id = newId("hint");
    control.setAttribute("aria-describedby", id);
    parts.push(h("small", { id, t: hint }));
  }
  return h("div", { class: "field" }, parts);
}

/** What went wrong, and what to do. */
export function alertOf(error) {
  const lines = [h("strong", error.key ? { t: [error.key, error.values] } : { textContent: error.message })];
  if (error.fix) lines.push(h("span", { textContent: error.fix }));
  if (error.fixKey) lines.push(h("span", { t: error.fixKey }));
  return h("div", { class: "alert", role: "alert" }, lines);
}
