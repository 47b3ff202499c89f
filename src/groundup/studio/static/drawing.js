// A small picture drawn by hand, white on black, and what it is taken for while it is drawn.
//
// Pointers draw; with the keyboard arrows move the pen and Space puts it down. What is sent is as large as the model's
// pictures are. Handwritten digits are usually centred by their mass in a box of 20 of 28 pixels (LeCun et al. 1998),
// where there are few pixels in all of them by their edges, and so is the drawing, unless that is switched off.

import { FileSpace } from "./files.js";
import { h, newId } from "./dom.js";
import { say } from "./texts.js";

const LARGEST_SIDE = 64;
const SURFACE = 336;
const PEN = 0.085;
const THINNEST = 1.2; // pixels of what the model sees
const STEP = 0.03;
const BOX = 20 / 28;
const COARSE_SIDE = 20;
const PAUSE_MS = 120;
const SAID_MS = 900;
const DARK = 24;
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Whether the pictures of a model are small and grey enough to be drawn. */
export function isDrawn({ form }) {
  return form.channels === 1 && Math.max(form.height, form.width) <= LARGEST_SIDE;
}

/** The workspace of a model of small grey pictures. */
export class Drawing extends FileSpace {
  constructor(model) {
    super(model, "say.drawing");
    const { width, height } = model.form;
    const scale = SURFACE / Math.max(width, height);
    this.surface = h("canvas", { class: "surface", width: Math.round(width * scale), height: Math.round(height * scale), tabIndex: 0, role: "application", tLabel: "surface" });
    this.surface.setAttribute("aria-describedby", (this.hintId = newId("hint")));
    this.pencil = this.surface.getContext("2d", { willReadFrequently: true });
    this.seen = h("canvas", { class: "seen", width, height, role: "img", tLabel: ["seen", { width, height }] });
    this.cross = h("span", { class: "cross", hidden: true, "aria-hidden": "true" });
    this.said = h("p", { class: "unseen", "aria-live": "polite" });
    this.results.removeAttribute("aria-live"); // it changes with every stroke: `said` waits for the end of one
    this.pen = { x: this.surface.width / 2, y: this.surface.height / 2, isDown: false };
    this.listen();
    this.wipe();
    const frame = h("div", { class: "frame" }, this.surface, this.cross);
    this.element = h("div", { class: "rows level drawing" }, frame, this.results, this.tools(width, height), this.said);
  }

  tools(width, height) {
    this.centred = h("input", { type: "checkbox", id: newId("centred"), checked: true, onchange: () => this.changed() });
    const check = h("div", { class: "check" }, this.centred, h("label", { for: this.centred.id, t: "centred" }));
    const clear = h("button", { type: "button", class: "quiet", t: "wipe", onclick: () => this.wipe() });
    const choose = this.chooser("image/*", "chooseImage", (file) => this.take(file));
    const preview = h("figure", {}, this.seen, h("figcaption", { t: ["seen", { width, height }] }));
    const hint = h("small", { id: this.hintId, t: "drawHint" });
    return h("div", { class: "ask" }, hint, check, preview, h("div", { class: "row" }, clear, choose), this.curl.element);
  }

  listen() {
    const place = (event) => {
      const box = this.surface.getBoundingClientRect();
      return [((event.clientX - box.left) / box.width) * this.surface.width, ((event.clientY - box.top) / box.height) * this.surface.height];
    };
    this.surface.addEventListener("pointerdown", (event) => {
      this.surface.setPointerCapture(event.pointerId);
      this.cross.hidden = true;
      this.down(...place(event));
    });
    this.surface.addEventListener("pointermove", (event) => {
      if (!this.surface.hasPointerCapture(event.pointerId)) return;
      for (const one of event.getCoalescedEvents?.() ?? [event]) this.to(...place(one));
    });
    for (const end of ["pointerup", "pointercancel"]) this.surface.addEventListener(end, () => (this.pen.isDown = false));
    this.surface.addEventListener("keydown", (event) => this.key(event));
    this.surface.addEventListener("blur", () => {
      this.pen.isDown = false;
      this.cross.hidden = true;
    });
  }

  key(event) {
    const { pen, surface } = this;
    if (event.key in MOVES) {
      const [right, down] = MOVES[event.key];
      const step = STEP * surface.width * (event.shiftKey ? 3 : 1);
      const [x, y] = [pen.x + right * step, pen.y + down * step];
      const inside = [Math.min(surface.width, Math.max(0, x)), Math.min(surface.height, Math.max(0, y))];
      if (pen.isDown) this.to(...inside);
      else [pen.x, pen.y] = inside;
    } else if (event.key === " ") {
      if (pen.isDown) pen.isDown = false;
      else this.down(pen.x, pen.y);
      this.said.textContent = say(pen.isDown ? "penDown" : "penUp");
    } else if (event.key === "Delete" || event.key === "Backspace") {
      this.wipe();
    } else return;
    event.preventDefault();
    this.cross.hidden = false;
    this.cross.classList.toggle("down", pen.isDown);
    this.cross.style.setProperty("left", `${(pen.x / surface.width) * 100}%`);
    this.cross.style.setProperty("top", `${(pen.y / surface.height) * 100}%`);
  }

  down(x, y) {
    Object.assign(this.pen, { x, y, isDown: true });
    this.to(x, y);
  }

  /** Draw a line from where the pen is. */
  to(x, y) {
    const { pencil, pen } = this;
    pencil.strokeStyle = "#fff";
    pencil.lineWidth = Math.max(PEN, THINNEST / Math.min(this.seen.width, this.seen.height)) * this.surface.width;
    pencil.lineCap = pencil.lineJoin = "round";
    pencil.beginPath();
    pencil.moveTo(pen.x, pen.y);
    pencil.lineTo(x, y);
    pencil.stroke();
    [pen.x, pen.y] = [x, y];
    this.isEmpty = false;
    this.changed();
  }

  wipe() {
    this.pencil.fillStyle = "#000";
    this.pencil.fillRect(0, 0, this.surface.width, this.surface.height);
    this.seen.getContext("2d").clearRect(0, 0, this.seen.width, this.seen.height);
    this.isEmpty = true;
    this.file = null;
    this.asked += 1; // an answer that is under way is of what is gone
    this.results.removeAttribute("aria-busy");
    this.results.replaceChildren(h("p", { class: "empty", t: "say.drawing" }));
    if (this.said) this.said.textContent = "";
  }

  /** Take a picture from a file as if it had been drawn. */
  async take(file) {
    const picture = await createImageBitmap(file).catch(() => null);
    this.wipe();
    this.isEmpty = false;
    if (picture) {
      const scale = Math.min(this.surface.width / picture.width, this.surface.height / picture.height);
      const [width, height] = [picture.width * scale, picture.height * scale];
      this.pencil.drawImage(picture, (this.surface.width - width) / 2, (this.surface.height - height) / 2, width, height);
      this.seen.getContext("2d").drawImage(this.surface, 0, 0, this.seen.width, this.seen.height);
    }
    this.file = { content: file, name: file.name };
    await this.ask();
    this.tell();
  }

  /** Ask as soon as the last answer is there, and once more if something has changed since. */
  async changed() {
    if (this.isEmpty) return;
    this.isDirty = true;
    if (this.isBusy) return;
    this.isBusy = true;
    while (this.isDirty && !this.isEmpty) {
      this.isDirty = false;
      const content = await this.picture();
      if (this.isEmpty) break;
      this.file = { content, name: "drawing.png" };
      await this.ask();
      await new Promise((done) => setTimeout(done, PAUSE_MS));
    }
    this.isBusy = false;
    this.tell();
  }

  tell() {
    clearTimeout(this.telling);
    this.telling = setTimeout(() => {
      const found = this.results.querySelector(".verdict")?.textContent;
      if (found && !this.isEmpty) this.said.textContent = say("takenFor", { label: found });
    }, SAID_MS);
  }

  /** The drawing as a PNG of the model's size. */
  picture() {
    const { seen, surface } = this;
    const small = seen.getContext("2d");
    small.fillStyle = "#000";
    small.fillRect(0, 0, seen.width, seen.height);
    small.imageSmoothingQuality = "high";
    const box = this.centred.checked ? lit(this.pencil.getImageData(0, 0, surface.width, surface.height)) : null;
    if (box) {
      const side = Math.min(seen.width, seen.height);
      const isCoarse = side < COARSE_SIDE;
      const scale = ((isCoarse ? 1 : BOX) * side) / Math.max(box.width, box.height);
      const [x, y] = isCoarse ? [box.width / 2, box.height / 2] : [box.x - box.left, box.y - box.top];
      const [left, top] = [seen.width / 2 - x * scale, seen.height / 2 - y * scale];
      small.drawImage(surface, box.left, box.top, box.width, box.height, left, top, box.width * scale, box.height * scale);
    } else small.drawImage(surface, 0, 0, seen.width, seen.height);
    return new Promise((done) => seen.toBlob(done, "image/png"));
  }
}

/** Where the lit pixels of a picture are: their box, and the middle of their mass. */
function lit({ data, width, height }) {
  let [left, top, right, bottom, mass, x, y] = [width, height, 0, 0, 0, 0, 0];
  for (let place = 0; place < data.length; place += 4) {
    const value = data[place];
    if (value < DARK) continue;
    const [column, row] = [(place / 4) % width, Math.floor(place / 4 / width)];
    [left, right, top, bottom] = [Math.min(left, column), Math.max(right, column), Math.min(top, row), Math.max(bottom, row)];
    [mass, x, y] = [mass + value, x + value * column, y + value * row];
  }
  return mass ? { left, top, width: right - left + 1, height: bottom - top + 1, x: x / mass, y: y / mass } : null;
}
