// A photo that is dropped, pasted or chosen, and what it shows.

import { FileSpace } from "./files.js";
import { h } from "./dom.js";

const PREVIEW_PX = 460;

/** The workspace of a model of pictures. */
export class Photo extends FileSpace {
  constructor(model) {
    super(model, "say.photo");
    this.preview = h("canvas", { class: "preview", hidden: true, role: "img" });
    this.name = h("p", { class: "note" });
    const choose = this.chooser("image/*", "chooseImage", (file) => this.take(file));
    this.zone = h("div", { class: "drop" }, this.preview, this.name, h("p", { t: "dropHint" }), choose);
    this.element = h("div", { class: "rows level" }, h("div", { class: "ask" }, this.zone, this.curl.element), this.results);
    this.listen();
  }

  listen() {
    for (const name of ["dragenter", "dragover"]) {
      this.zone.addEventListener(name, (event) => {
        event.preventDefault();
        this.zone.classList.add("over");
      });
    }
    this.zone.addEventListener("dragleave", () => this.zone.classList.remove("over"));
    this.zone.addEventListener("drop", (event) => {
      event.preventDefault();
      this.zone.classList.remove("over");
      if (event.dataTransfer.files.length) this.take(event.dataTransfer.files[0]);
    });
    this.element.addEventListener("paste", (event) => {
      if (event.clipboardData.files.length) this.take(event.clipboardData.files[0]);
    });
  }

  async take(file) {
    this.file = { content: file, name: file.name };
    this.name.textContent = file.name;
    await Promise.all([this.ask(), this.look(file)]);
  }

  /** Show the picture, where the browser can read it; the server reads more kinds. */
  async look(file) {
    const picture = await createImageBitmap(file).catch(() => null);
    this.preview.hidden = !picture;
    if (!picture) return;
    const scale = Math.min(1, PREVIEW_PX / Math.max(picture.width, picture.height));
    this.preview.width = Math.max(1, Math.round(picture.width * scale));
    this.preview.height = Math.max(1, Math.round(picture.height * scale));
    this.preview.ariaLabel = file.name;
    this.preview.getContext("2d").drawImage(picture, 0, 0, this.preview.width, this.preview.height);
  }
}
