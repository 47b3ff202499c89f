// What pages have in common whose models read a file: a picture or a recording, made here or chosen.

import { asCurlForm, postFile } from "./api.js";
import { Workspace } from "./asking.js";
import { example } from "./curl.js";
import { h, newId } from "./dom.js";
import { took, verdict } from "./rows.js";

const PATH = "v1/classify";

/** A workspace of one file in, a class or a number out. `file` is {content, name}, or null while there is none. */
export class FileSpace extends Workspace {
  constructor(model, empty) {
    super(model, empty);
    this.file = null;
    this.curl = example(() => [PATH, { model: this.model.id }, this.file?.name ?? "file"], asCurlForm);
  }

  get given() {
    return this.file;
  }

  async show(model, file) {
    const started = performance.now();
    const reply = await postFile(PATH, { model: model.id }, file);
    return [...verdict(reply.data[0]), took(started)];
  }

  /** A button that lets a file be chosen; `take` is called with it. */
  chooser(accept, label, take) {
    const control = h("input", { type: "file", id: newId("file"), accept, class: "unseen" });
    control.addEventListener("change", () => {
      if (control.files.length) take(control.files[0]);
      control.value = ""; // the same file may be chosen again
    });
    return h("span", { class: "choose" }, control, h("label", { for: control.id, class: "button", t: label }));
  }
}
