// Live figures of the server, from `/metrics`. Nothing is asked while the page cannot be seen.

import { get, Problem } from "./api.js";
import { alertOf, drawn, h } from "./dom.js";
import { quantile, Samples } from "./metrics.js";
import { count, decimal, percent, seconds } from "./texts.js";

const EVERY_S = 3;
const KEPT = 40;
const [WIDTH, HEIGHT] = [240, 44];

/** The workspace with the server's figures; `enter` begins to read them, `leave` ends it. */
export class Figures {
  constructor(models) {
    this.models = models;
    this.readings = [];
    this.state = h("p", { class: "live", t: "live" });
    this.tiles = h("div", { class: "tiles" });
    this.table = h("div", { class: "scroll", tabIndex: 0, role: "region", tLabel: "perModel" });
    this.trouble = h("div", {});
    this.element = h("div", { class: "server" }, h("div", { class: "row" }, h("p", { class: "note", t: "say.figures" }), this.state), this.trouble, this.tiles, this.table);
    document.addEventListener("visibilitychange", () => this.isShown && this.look());
  }

  enter() {
    this.isShown = true;
    this.look();
  }

  leave() {
    this.isShown = false;
    clearTimeout(this.timer);
  }

  async look() {
    clearTimeout(this.timer);
    this.state.classList.toggle("still", document.hidden);
    if (document.hidden || !this.isShown) return;
    let waitS = EVERY_S;
    try {
      this.readings.push(new Samples(await get("metrics")));
      this.readings = this.readings.slice(-KEPT);
      this.trouble.replaceChildren();
      this.show();
    } catch (error) {
      const told = error.status === 403 ? new Problem("", { key: "mayNot", fixKey: "mayNotFix" }) : error;
      this.trouble.replaceChildren(alertOf(told));
      if (error.status === 401 || error.status === 403) return;
      waitS = Math.max(EVERY_S * 2, error.waitS ?? 0);
    }
    if (this.isShown) this.timer = setTimeout(() => this.look(), waitS * 1000);
  }

  show() {
    const now = this.readings.at(-1);
    const first = this.readings[0];
    this.tiles.replaceChildren(
      this.throughput(),
      tile("running", decimal(now.sum("num_requests_running"), 0), ["waiting", { count: now.sum("num_requests_waiting") }], this.series((one) => one.sum("num_requests_running"))),
      latency("first", "time_to_first_token_seconds", first, now),
      latency("between", "inter_token_latency_seconds", first, now),
      tile("cache", percent(now.most("kv_cache_usage_perc")), ["setBack", { count: now.sum("num_preemptions_total") }], this.series((one) => one.most("kv_cache_usage_perc"))),
      prefixes(now),
      replies(now),
      engines(now),
    );
    this.table.replaceChildren(this.byModel(now));
  }

  /** Tokens a second between each two readings. */
  throughput() {
    const rates = this.readings.slice(1).map((now, place) => {
      const before = this.readings[place];
      return Math.max(0, (now.sum("generation_tokens_total") - before.sum("generation_tokens_total")) / (now.at - before.at));
    });
    const shown = rates.length ? decimal(rates.at(-1), 1) : "–";
    return tile("throughput", shown, ["lately", { time: () => count(Math.round(this.readings.at(-1).at - this.readings[0].at)) }], rates);
  }

  series(value) {
    return this.readings.map(value);
  }

  byModel(now) {
    const heads = ["model", "task", "requests", "read", "written"].map((key, place) => h("th", { scope: "col", class: place > 1 ? "number" : "", t: key }));
    const rows = this.models.map((model) => {
      const is = (labels) => labels.model_name === model.id;
      const task = model.chats ? "chat" : model.task;
      const figures = ["request_success_total", "prompt_tokens_total", "generation_tokens_total"];
      const cells = figures.map((name) => h("td", { class: "number", textContent: count(now.sum(name, is)) }));
      return h("tr", {}, h("th", { scope: "row", textContent: model.id }), h("td", { t: `task.${task}` }), cells);
    });
    return h("table", { class: "models" }, h("caption", { t: "perModel" }), h("thead", {}, h("tr", {}, heads)), h("tbody", {}, rows));
  }
}

function tile(key, value, note, series) {
  const parts = [h("h2", { t: key }), h("p", { class: "value", textContent: value }), h("p", { class: "figures", t: note })];
  return h("section", { class: "tile" }, parts, series ? line(series) : null);
}

function latency(key, name, first, now) {
  // Until something happened since the page was opened: since the server's start.
  const before = quantile(0.5, name, first, now) === null ? new Samples("") : first;
  const [median, most] = [quantile(0.5, name, before, now), quantile(0.99, name, before, now)];
  if (median === null) return tile(key, "–", "noSample");
  return tile(key, seconds(median), ["median", { most: () => seconds(most) }]);
}

function prefixes(now) {
  const [found, asked] = [now.sum("prefix_cache_hits_total"), now.sum("prefix_cache_queries_total")];
  const values = { found: () => count(found), asked: () => count(asked) };
  return tile("prefixes", asked ? percent(found / asked) : "–", ["prefixNote", values]);
}

function replies(now) {
  const ours = (labels) => labels.route.startsWith("/v1");
  const such = (digit) => now.sum("http_requests_total", (labels) => ours(labels) && labels.status.startsWith(digit));
  return tile("replies", count(such("2")), ["refused", { refused: such("4"), failed: such("5") }]);
}

function engines(now) {
  const ready = now.sum("engine_ready");
  const values = { ready, count: now.of("engine_ready").length, restarts: now.sum("engine_restarts_total") };
  return tile("memory", `${decimal(now.sum("engine_memory_bytes") / 2 ** 20, 0)} MiB`, ["engines", values]);
}

/** A line through the values, over a faint ground. It repeats what stands beside it in words. */
function line(values) {
  const most = Math.max(...values, 1e-9);
  const step = WIDTH / Math.max(1, values.length - 1);
  const points = values.map((value, place) => `${(place * step).toFixed(1)},${(HEIGHT - 3 - (value / most) * (HEIGHT - 6)).toFixed(1)}`);
  const ground = `0,${HEIGHT} ${points.join(" ")} ${WIDTH},${HEIGHT}`;
  const shapes = values.length > 1 ? [drawn("polygon", { points: ground }), drawn("polyline", { points: points.join(" ") })] : [];
  return drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true", class: "spark" }, ...shapes);
}
