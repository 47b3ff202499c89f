// The request that a workspace would send, as a line for a shell.

import { asCurl } from "./api.js";
import { h, speak } from "./dom.js";

const SHOWN_MS = 1500;

/** A part that opens; `request` gives path and body (as `written` takes them), and is asked whenever something changed. */
export function example(request, written = asCurl) {
  const text = h("pre", { tabIndex: 0, tLabel: "curl", role: "region" });
  const copy = h("button", { type: "button", class: "quiet", t: "copy" });
  copy.addEventListener("click", async () => {
    await navigator.clipboard?.writeText(text.textContent);
    speak(copy, "t", "copied");
    setTimeout(() => speak(copy, "t", "copy"), SHOWN_MS);
  });
  const element = h("details", { class: "curl" }, h("summary", { t: "curl" }), text, copy);
  const update = () => {
    if (element.open) text.textContent = written(...request());
  };
  element.addEventListener("toggle", update);
  return { element, update };
}
