// Chats and texts to be continued: one model, or two beside each other that are told the same.

import { stream } from "./api.js";
import { example } from "./curl.js";
import { alertOf, h, newId } from "./dom.js";
import { Settings } from "./settings.js";
import { decimal, say, seconds } from "./texts.js";
import { ofChat, ofCompletion, TokenText } from "./tokens.js";

const ALTERNATIVES = 5;
const SLACK_PX = 80;

/** What one model is asked and says. */
class Lane {
  constructor(model) {
    this.model = model;
    this.messages = [];
    this.log = h("div", { class: "log", role: "log", tabIndex: 0, tLabel: ["conversation", { model: model.id }] });
    this.element = h("section", { class: "lane" }, h("h2", { class: "lane-name", textContent: model.id }), this.log);
  }

  /** Ask, and show the answer as it comes. Resolves when it has ended, however it did. */
  async ask(text, settings, signal) {
    const messages = this.messages; // those of a conversation that is started over meanwhile are not touched
    const answer = new TokenText();
    const wait = h("p", { class: "wait", t: "thinking" });
    const turn = h("article", { class: "turn theirs" }, h("p", { class: "speaker", textContent: this.model.id }), wait, answer.element);
    const ours = h("p", { class: "speaker unseen", t: this.model.chats ? "you" : "begun" });
    this.log.append(h("article", { class: "turn ours" }, ours, h("p", { class: "said", textContent: text })), turn);
    this.log.setAttribute("aria-busy", "true");
    const told = { started: performance.now(), first: 0, tokens: 0, end: "stop" };
    try {
      for await (const piece of this.pieces(text, settings, signal)) {
        const isSeen = this.showsEnd();
        if (piece.text || piece.tokens.length) {
          told.first ||= performance.now();
          told.tokens += Math.max(1, piece.tokens.length);
          wait.remove();
          answer.push(piece.text, piece.tokens);
        }
        told.end = piece.end ?? told.end;
        told.tokens = piece.usage?.completion_tokens ?? told.tokens;
        if (isSeen) this.follow();
      }
    } catch (error) {
      told.problem = error.name === "AbortError" ? null : error;
      told.end = "cancelled";
    }
    const isSeen = this.showsEnd();
    wait.remove();
    this.log.removeAttribute("aria-busy");
    turn.append(told.problem ? alertOf(told.problem) : summary(told));
    if (isSeen) this.follow();
    // What was not answered is no part of the conversation.
    if (answer.text) messages.push({ role: "user", content: text }, { role: "assistant", content: answer.text });
  }

  /** Whether the end of the conversation can be seen; it is followed then, and left alone otherwise. */
  showsEnd() {
    const bottom = Math.min(this.log.getBoundingClientRect().bottom, innerHeight);
    const end = this.log.lastElementChild?.getBoundingClientRect().bottom ?? 0; // started over meanwhile: nothing to see
    return end < bottom + SLACK_PX;
  }

  follow() {
    this.log.lastElementChild?.scrollIntoView({ block: "end" });
  }

  /** The request that a text makes: path and body. */
  request(text, settings) {
    const asked = { model: this.model.id, ...settings.read() };
    if (!this.model.chats) return ["v1/completions", { ...asked, prompt: text, logprobs: ALTERNATIVES }];
    const messages = [...settings.instructions, ...this.messages, { role: "user", content: text }];
    return ["v1/chat/completions", { ...asked, messages, logprobs: true, top_logprobs: ALTERNATIVES }];
  }

  async *pieces(text, settings, signal) {
    for await (const data of stream(...this.request(text, settings), signal)) {
      const choice = data.choices[0];
      yield {
        text: choice?.delta?.content ?? choice?.text ?? "",
        tokens: this.model.chats ? ofChat(choice?.logprobs) : ofCompletion(choice?.logprobs),
        end: choice?.finish_reason,
        usage: data.usage,
      };
    }
  }

  clear() {
    this.messages = [];
    this.log.replaceChildren();
  }
}

/** How an answer ended, and how fast it came. */
function summary(told) {
  const passed = (performance.now() - told.first) / 1000;
  const values = {
    tokens: told.tokens,
    speed: () => (told.tokens > 1 && passed > 0 ? decimal((told.tokens - 1) / passed, 1) : "–"),
    first: () => (told.first ? seconds((told.first - told.started) / 1000) : "–"),
  };
  const end = h("span", { class: `end ${told.end}`, t: `end.${told.end}` });
  return h("p", { class: "figures" }, end, h("span", { t: ["summary", values] }));
}

/** The workspace of a model that generates. */
export class Chat {
  constructor(model) {
    this.model = model;
    this.lanes = [new Lane(model)];
    this.settings = new Settings({ chats: model.chats, context: model.max_model_len });
    this.shade = h("input", { type: "checkbox", id: newId("shade") });
    this.shade.addEventListener("change", () => this.element.classList.toggle("shaded", this.shade.checked));
    this.settings.element.querySelector("form").prepend(
      h("div", { class: "check" }, this.shade, h("label", { for: this.shade.id, t: "shade" })),
    );
    this.curl = example(() => this.lanes[0].request(this.text.value || "…", this.settings));
    this.settings.element.addEventListener("input", () => this.curl.update());
    this.settings.element.append(this.curl.element);
    this.board = h("div", { class: "lanes" });
    this.done = h("div", { class: "unseen", "aria-live": "polite" });
    this.element = h("div", { class: "chat" }, h("div", { class: "talk" }, this.board, this.composer(), this.done), this.settings.element);
    this.show();
  }

  /** Put another model beside it, or with null take it away. */
  compare(model) {
    this.stop();
    this.lanes = [this.lanes[0], ...(model ? [new Lane(model)] : [])];
    if (model) this.forget();
    this.show();
  }

  show() {
    const isNew = this.lanes.every((lane) => !lane.log.childElementCount);
    this.element.classList.toggle("two", this.lanes.length > 1);
    this.element.classList.toggle("new", isNew);
    this.board.replaceChildren(...(isNew ? [this.welcome()] : this.lanes.map((lane) => lane.element)));
  }

  welcome() {
    const kind = this.model.chats ? "chat" : "text";
    const offers = [0, 1, 2].map((place) => {
      const words = () => say(`try.${kind}`)[place];
      const offer = h("button", { type: "button", class: "offer", t: ["offer", { text: words }] });
      offer.addEventListener("click", () => this.send(words()));
      return offer;
    });
    const who = this.lanes.map((lane) => lane.model.id).join(" · ");
    return h("div", { class: "welcome" }, h("p", { class: "who", textContent: who }), h("p", { class: "opening", t: `say.${kind}` }), h("div", { class: "offers" }, offers));
  }

  composer() {
    const word = this.model.chats ? "message" : "prompt";
    this.text = h("textarea", { rows: 2, maxLength: 200000, tLabel: word, tPlaceholder: word, "aria-describedby": newId("hint") });
    this.text.addEventListener("keydown", (event) => this.typed(event));
    this.text.addEventListener("input", () => this.curl.update());
    this.button = h("button", { type: "submit", class: "primary", t: this.model.chats ? "send" : "continue" });
    this.stopButton = h("button", { type: "button", class: "primary", t: "stop", hidden: true, onclick: () => this.stop() });
    const clear = h("button", { type: "button", class: "quiet", t: "clear", onclick: () => this.clear() });
    const hint = h("small", { id: this.text.getAttribute("aria-describedby"), t: "sendHint" });
    const form = h("form", { class: "composer" }, this.text, h("div", { class: "row" }, hint, clear, this.stopButton, this.button));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send(this.text.value);
    });
    return form;
  }

  typed(event) {
    // While a Chinese word is being composed, Enter belongs to the input method.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    this.send(this.text.value);
  }

  async send(text) {
    const given = this.model.chats ? text.trim() : text;
    if (!given.trim() || this.running) return;
    this.text.value = "";
    this.curl.update();
    this.running = new AbortController();
    this.setBusy(true);
    const asked = this.lanes.map((lane) => lane.ask(given, this.settings, this.running.signal));
    this.show();
    for (const lane of this.lanes) lane.follow();
    await Promise.all(asked);
    this.running = null;
    this.setBusy(false);
    this.done.textContent = say("answerDone", { model: this.lanes.map((lane) => lane.model.id).join(", ") });
  }

  setBusy(isBusy) {
    const hadFocus = [this.button, this.stopButton].includes(document.activeElement);
    this.button.hidden = isBusy;
    this.stopButton.hidden = !isBusy;
    if (hadFocus) (isBusy ? this.stopButton : this.text).focus();
  }

  stop() {
    this.running?.abort();
  }

  clear() {
    this.stop();
    this.forget();
    this.show();
    this.text.focus();
  }

  forget() {
    for (const lane of this.lanes) lane.clear();
  }
}
