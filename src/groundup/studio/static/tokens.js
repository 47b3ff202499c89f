// An answer, token by token, and the card that says how likely each token was.
//
// The card follows the pointer, and for the keyboard the answer is one stop of the Tab key: arrows go through its
// tokens, Escape puts the card away. What the card shows is also said to a screen reader.

import { h } from "./dom.js";
import { percent, say } from "./texts.js";

const LEAVE_MS = 160;

/** Text that grows by pieces, each with the tokens that brought it. */
export class TokenText {
  constructor() {
    this.element = h("div", { class: "answer", role: "group", tabIndex: -1 });
    this.spans = [];
    this.waiting = [];
    this.text = "";
    this.place = -1;
    this.element.addEventListener("pointerover", (event) => this.point(event));
    this.element.addEventListener("pointerout", () => card.leave());
    this.element.addEventListener("click", (event) => this.point(event));
    this.element.addEventListener("keydown", (event) => this.move(event));
    this.element.addEventListener("blur", () => card.hide());
  }

  /** Add a piece. `tokens` are [{text, p, others: [{text, p}]}], of this piece or of text that was held back. */
  push(text, tokens) {
    this.waiting.push(...tokens);
    if (!text) return;
    this.text += text;
    for (const [part, brought] of parts(text, this.waiting)) this.span(part, brought);
    this.waiting = [];
    if (this.spans.length && this.element.tabIndex < 0) {
      this.element.tabIndex = 0;
      this.element.setAttribute("aria-description", say("tokensHelp"));
    }
  }

  span(text, tokens) {
    if (!tokens.length) {
      this.element.append(text);
      return;
    }
    const span = h("span", { class: "token", textContent: text });
    const likely = tokens.reduce((product, token) => product * token.p, 1);
    span.style.setProperty("--surprise", String(1 - likely));
    span.tokens = tokens;
    span.place = this.spans.length;
    this.spans.push(span);
    this.element.append(span);
  }

  point(event) {
    const span = event.target.closest?.(".token");
    if (span) card.show(span, this.spans.length, false);
  }

  move(event) {
    const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
    if (event.key === "Escape") card.hide();
    if (!(event.key in steps) || !this.spans.length) return;
    event.preventDefault();
    this.place = Math.max(0, Math.min(this.spans.length - 1, this.place + steps[event.key]));
    const span = this.spans[this.place];
    span.scrollIntoView({ block: "nearest" });
    card.show(span, this.spans.length, true);
  }
}

/** A text cut into the parts that its tokens brought; uncut where they cannot be told apart. */
function parts(text, tokens) {
  if (tokens.length < 2 || tokens.map((token) => token.text).join("") !== text) return [[text, tokens]];
  return tokens.map((token) => [token.text, [token]]);
}

/** The one card of the page. */
class Card {
  constructor() {
    this.element = h("div", { class: "card", hidden: true });
    this.said = h("div", { class: "unseen", "aria-live": "polite" });
    this.element.addEventListener("pointerenter", () => clearTimeout(this.timer));
    this.element.addEventListener("pointerleave", () => this.leave());
    document.addEventListener("keydown", (event) => event.key === "Escape" && this.hide());
    document.addEventListener("scroll", () => this.hide(), { capture: true, passive: true });
  }

  show(span, count, isSaid) {
    clearTimeout(this.timer);
    this.span?.classList.remove("shown");
    this.span = span;
    span.classList.add("shown");
    const values = { token: JSON.stringify(span.textContent), place: span.place + 1, count };
    this.element.replaceChildren(h("p", { class: "place", textContent: say("tokenOf", values) }), ...span.tokens.map(rowsOf));
    if (span.tokens.length > 1) this.element.append(h("p", { textContent: say("several", { count: span.tokens.length }) }));
    this.element.hidden = false;
    this.stand(span);
    if (isSaid) this.said.textContent = say("tokenSays", { ...values, share: percent(span.tokens[0].p) });
  }

  stand(span) {
    const at = span.getClientRects()[0] ?? span.getBoundingClientRect();
    const { width, height } = this.element.getBoundingClientRect();
    const left = Math.max(8, Math.min(at.left, innerWidth - width - 8));
    const below = at.bottom + 4;
    const top = below + height > innerHeight - 8 ? Math.max(8, at.top - height - 4) : below;
    this.element.style.setProperty("left", `${left}px`);
    this.element.style.setProperty("top", `${top}px`);
  }

  leave() {
    this.timer = setTimeout(() => this.hide(), LEAVE_MS);
  }

  hide() {
    this.element.hidden = true;
    this.span?.classList.remove("shown");
  }
}

/** The chosen token and the likeliest others, each with its bar. */
function rowsOf(token) {
  const others = token.others.filter((other) => other.text !== token.text);
  const rows = [token, ...others].map((one, place) => {
    const bar = h("span", { class: "bar", "aria-hidden": "true" });
    bar.style.setProperty("--share", String(one.p));
    const name = h("code", { textContent: visible(one.text) });
    return h("li", { class: place ? "" : "taken" }, name, bar, h("span", { class: "share", textContent: percent(one.p) }));
  });
  return h("ol", {}, rows);
}

/** A token so that its spaces and ends of lines are seen. */
function visible(text) {
  const named = text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥");
  return named.replace(/\p{C}/gu, "·") || "∅";
}

export const card = new Card();

/** The tokens of a chat's piece. */
export function ofChat(told) {
  return (told?.content ?? []).map((one) => ({ text: one.token, p: Math.exp(one.logprob), others: one.top_logprobs.map(likely) }));
}

function likely(one) {
  return { text: one.token, p: Math.exp(one.logprob) };
}

/** The tokens of a completion's piece. */
export function ofCompletion(told) {
  return (told?.tokens ?? []).map((text, place) => {
    const others = Object.entries(told.top_logprobs[place] ?? {}).map(([other, value]) => ({ text: other, p: Math.exp(value) }));
    others.sort((a, b) => b.p - a.p);
    return { text, p: Math.exp(told.token_logprobs[place] ?? -Infinity), others };
  });
}
