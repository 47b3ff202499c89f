// The page: who is signed in, what is served, and the workspace that the address names.
//
// Addresses: #/model/NAME, #/model/NAME/with/OTHER, #/server. A workspace is made once and kept, so going to another
// and back loses nothing.

import { get, Problem } from "./api.js";
import { Chat } from "./chat.js";
import { alertOf, h, newId, translate } from "./dom.js";
import { Drawing, isDrawn } from "./drawing.js";
import { Figures } from "./figures.js";
import { Photo } from "./photo.js";
import { Recommending } from "./recommending.js";
import { isKnown, Rows } from "./rows.js";
import { Similarity } from "./similarity.js";
import { Speaking } from "./speaking.js";
import { Table } from "./table.js";
import { choose, count, decimal, isSaid, language, LANGUAGES, LOCALES, say } from "./texts.js";
import { card } from "./tokens.js";

const MARGIN_PX = 16;
const THEMES = ["auto", "light", "dark"];
const page = { models: [], workspaces: new Map(), figures: null, shown: null };

start();

async function start() {
  document.documentElement.lang = LOCALES[language()];
  wear(remembered("groundup.theme") ?? "auto");
  page.work = h("div", { class: "work" }, h("p", { class: "empty", t: "loading" }));
  const main = h("main", { id: "main", tabIndex: -1 }, page.work, card.element, card.said);
  const skip = h("a", { class: "skip", href: "#main", t: "skip" });
  skip.addEventListener("click", (event) => {
    event.preventDefault(); // the address names a workspace
    main.focus();
  });
  page.nav = h("nav", { tLabel: "models" });
  page.tools = h("div", { class: "tools" });
  const mark = h("a", { class: "mark", href: "#/", textContent: "groundup", tLabel: "home" });
  document.body.replaceChildren(skip, h("header", {}, mark, page.nav, page.tools), main);
  const session = await get("session").catch(() => null); // a server that lets everybody in knows no sessions
  page.tools.append(languages(), themes(), ...(session ? [signOut()] : []));
  try {
    page.models = (await get("v1/models")).data.filter((model) => kindOf(model) !== null);
  } catch (error) {
    page.trouble = error.status === 403 ? new Problem("", { key: "mayNotInfer", fixKey: "mayNotInferFix" }) : error;
  }
  page.figures = new Figures(page.models);
  navigate();
  addEventListener("hashchange", show);
  show();
}

/** What draws a model, or null for one that the page has nothing for. */
function kindOf(model) {
  if (model.kind === "generate") return Chat;
  if (model.kind === "embed") return Similarity;
  if (isKnown(model.task)) return Rows;
  if (model.form.items) return Recommending;
  const media = Object.values(model.media);
  if (media.includes("audio")) return Speaking;
  if (media.includes("image")) return isDrawn(model) ? Drawing : Photo;
  return model.form.numbers ? Table : null;
}

function taskOf(model) {
  if (model.kind === "embed") return "embedding";
  return model.kind === "generate" ? (model.chats ? "chat" : "language_modeling") : model.task;
}

/** What a model's task is called; tasks of other packages have no name here. */
function nameOf(model) {
  const key = `task.${taskOf(model)}`;
  return isSaid(key) ? key : "task.other";
}

/** How much a model reads: tokens, pixels, seconds. */
function extent({ form, max_model_len: context }) {
  if (form.height) return [["pixels", { height: form.height, width: form.width }]];
  if (form.seconds) return [["seconds", { time: () => decimal(form.seconds, 1), rate: () => decimal(form.rate / 1000, 1) }]];
  if (form.items) return [["items", { count: () => count(form.items.count) }]];
  return context ? [["context", { count: () => count(context) }]] : [];
}

// ------------------------------------------------------------------------------------------------ the head

function navigate() {
  const links = page.models.map((model) => {
    const about = h("small", {}, h("span", { t: nameOf(model) }), ` · ${count(model.parameters)}`);
    return h("li", {}, h("a", { href: addressOf(model) }, h("span", { class: "name", textContent: model.id }), about));
  });
  const server = h("a", { href: "#/server" }, h("span", { class: "name", t: "server" }), h("small", { t: "figures" }));
  page.nav.replaceChildren(
    h("h2", { t: "models" }),
    h("ul", {}, links.length ? links : h("li", { class: "empty", t: "noModels" }), h("li", { class: "apart" }, server)),
  );
}

function languages() {
  const select = h("select", { id: newId("language"), tLabel: "language" });
  for (const [name, own] of Object.entries(LANGUAGES)) select.append(h("option", { value: name, textContent: own, lang: LOCALES[name] }));
  select.value = language();
  select.addEventListener("change", () => {
    choose(select.value);
    document.documentElement.lang = LOCALES[language()];
    navigate();
    translate(document);
    for (const { element } of [page.figures, ...page.workspaces.values()]) translate(element);
    show();
  });
  return select;
}

function themes() {
  const select = h("select", { id: newId("theme"), tLabel: "theme" });
  select.append(...THEMES.map((name) => h("option", { value: name, t: name })));
  select.value = remembered("groundup.theme") ?? "auto";
  select.addEventListener("change", () => wear(select.value));
  return select;
}

function wear(theme) {
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("groundup.theme", theme);
  } catch {
    // A browser that keeps nothing follows the system next time.
  }
}

function remembered(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

function signOut() {
  return h("form", { method: "post", action: "session/end" }, h("button", { type: "submit", class: "quiet", t: "signOut" }));
}

// ------------------------------------------------------------------------------------------------ workspaces

function addressOf(model, other) {
  const name = (one) => encodeURIComponent(one.id);
  return `#/model/${name(model)}${other ? `/with/${name(other)}` : ""}`;
}

/** Show what the address names; the first model where it names nothing. */
function show() {
  const [, place, name, , other] = location.hash.split("/").map(decoded);
  page.shown?.leave?.();
  page.shown = null;
  card.hide();
  if (place === "server") showFigures();
  else if (page.trouble) fill("server", alertOf(page.trouble));
  else showModel(name, other);
  for (const link of page.nav.querySelectorAll("a")) {
    const isHere = link.getAttribute("href") === (place === "server" ? "#/server" : page.here);
    if (isHere) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
    if (isHere) reveal(link);
  }
}

/** Scroll the list of models, and nothing else, until a link can be seen. */
function reveal(link) {
  const [at, seen] = [link.getBoundingClientRect(), page.nav.getBoundingClientRect()];
  page.nav.scrollBy(outside(at.left, at.right, seen.left, seen.right), outside(at.top, at.bottom, seen.top, seen.bottom));
}

function outside(start, end, from, to) {
  return start < from ? start - from - MARGIN_PX : Math.max(0, end - to + MARGIN_PX);
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // typed by hand, and no encoding
  }
}

function showFigures() {
  page.here = "#/server";
  fill(say("server"), h("h1", { t: "server" }), page.figures.element);
  page.shown = page.figures;
  page.figures.enter();
}

function showModel(name, other) {
  const model = name === undefined ? page.models[0] : page.models.find((one) => one.id === name);
  page.here = model ? addressOf(model) : "";
  if (!model) {
    const problem = new Problem("", name === undefined ? { key: "noModels" } : { key: "unknownModel", values: { name } });
    fill("groundup", alertOf(problem));
    return;
  }
  const rivals = page.models.filter((one) => one !== model && taskOf(one) === taskOf(model));
  const rival = rivals.find((one) => one.id === other) ?? null;
  if (!page.workspaces.has(model.id)) page.workspaces.set(model.id, new (kindOf(model))(model));
  const workspace = page.workspaces.get(model.id);
  if (workspace.rival !== rival) {
    workspace.rival = rival;
    workspace.compare(rival);
  }
  fill(model.id, head(model, rivals, rival), workspace.element);
}

function head(model, rivals, rival) {
  const facts = [
    h("li", { t: nameOf(model) }),
    h("li", { t: ["parameters", { count: () => count(model.parameters) }] }),
    ...extent(model).map((text) => h("li", { t: text })),
    h("li", { title: model.digest, t: ["digest", { digest: model.digest.slice(0, 8) }] }),
  ];
  if (model.parent) facts.push(h("li", { t: ["adapter", { model: model.parent }] }));
  const parts = [h("div", {}, h("h1", { textContent: model.id }), h("ul", { class: "facts" }, facts))];
  if (rivals.length) parts.push(comparing(model, rivals, rival));
  return h("div", { class: "head" }, parts);
}

function comparing(model, rivals, rival) {
  const select = h("select", { id: newId("compare") }, h("option", { value: "", t: "nobody" }));
  select.append(...rivals.map((one) => h("option", { value: one.id, textContent: one.id })));
  select.value = rival?.id ?? "";
  select.addEventListener("change", () => {
    history.pushState(null, "", addressOf(model, rivals.find((one) => one.id === select.value)));
    show();
    page.work.querySelector(".head select").focus();
  });
  return h("div", { class: "compare" }, h("label", { for: select.id, t: "compare" }), select);
}

function fill(title, ...parts) {
  document.title = `${title} · groundup`;
  page.work.replaceChildren(...parts);
}
