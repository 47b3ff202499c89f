// A word that is spoken, or a recording that is chosen, and which word it is.

import { FileSpace } from "./files.js";
import { alertOf, drawn, h, speak } from "./dom.js";
import { loudest, loudness, play, record, samplesOf, wav } from "./sound.js";
import { decimal } from "./texts.js";

const LONGEST_S = 4;
const HEIGHT = 100;

/** The workspace of a model of recordings. */
export class Speaking extends FileSpace {
  constructor(model) {
    super(model, "say.speaking");
    this.rate = model.form.rate;
    this.wave = h("div", { class: "wave", role: "img", tLabel: "wave" });
    this.recorder = h("button", { type: "button", class: "primary", t: "record", onclick: () => this.toggle() });
    this.player = h("button", { type: "button", class: "quiet", t: "play", hidden: true, onclick: () => play(this.samples, this.rate) });
    this.trouble = h("div", {});
    const choose = this.chooser("audio/*,.wav,.flac", "chooseSound", (file) => this.take(file));
    const hint = h("small", { t: ["speakHint", { time: () => decimal(model.form.seconds, 1), rate: () => decimal(this.rate / 1000, 1) }] });
    const row = h("div", { class: "row" }, this.player, choose, this.recorder);
    this.element = h("div", { class: "rows level" }, h("div", { class: "ask" }, this.wave, hint, row, this.trouble, this.curl.element), this.results);
    this.draw([]);
  }

  /** Begin to record, or end it; it ends by itself after a while. */
  async toggle() {
    if (this.recording) {
      this.recording.stop();
      return;
    }
    this.recorder.disabled = true;
    this.trouble.replaceChildren();
    try {
      this.recording = await record(this.rate);
      speak(this.recorder, "t", "stopRecording");
      this.wave.classList.add("listening");
      const timer = setTimeout(this.recording.stop, LONGEST_S * 1000);
      this.recorder.disabled = false;
      const samples = await this.recording.samples;
      clearTimeout(timer);
      await this.heard(samples, "recording.wav");
    } catch (error) {
      this.trouble.replaceChildren(alertOf(error));
    } finally {
      this.recording = null;
      this.recorder.disabled = false;
      this.wave.classList.remove("listening");
      speak(this.recorder, "t", "record");
    }
  }

  /** Ask with the loudest part of what was heard, as long as the model's recordings are. */
  async heard(samples, name) {
    const part = loudest(samples, Math.round(this.model.form.seconds * this.rate));
    this.shown(part);
    this.file = { content: wav(part, this.rate), name };
    await this.ask();
  }

  /** A file that the server reads is sent as it is; others are read here. */
  async take(file) {
    this.trouble.replaceChildren();
    try {
      const samples = await samplesOf(file, this.rate);
      if (!/\.(wav|flac)$/i.test(file.name)) {
        await this.heard(samples, "recording.wav");
        return;
      }
      this.shown(samples);
    } catch (error) {
      if (!/\.(wav|flac)$/i.test(file.name)) {
        this.trouble.replaceChildren(alertOf(error));
        return;
      }
      this.shown([]);
    }
    this.file = { content: file, name: file.name };
    await this.ask();
  }

  shown(samples) {
    this.samples = samples;
    this.player.hidden = samples.length === 0;
    this.draw(samples);
  }

  /** How loud it is along its length. */
  draw(samples) {
    const bins = loudness(samples);
    const most = Math.max(...bins, 0.02);
    const bars = bins.map((value, place) => {
      const height = Math.max(1, (value / most) * HEIGHT);
      return drawn("rect", { x: place, y: (HEIGHT - height) / 2, width: 0.6, height, rx: 0.3 });
    });
    this.wave.replaceChildren(drawn("svg", { viewBox: `0 0 ${bins.length} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" }, ...bars));
  }
}
