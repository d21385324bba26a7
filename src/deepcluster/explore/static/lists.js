// Outliers, near-duplicates, and the selection.
import { get, telling } from "./api.js";
import { button, count, el, file, fixed, thumb, touch } from "./dom.js";
import { ImageGrid } from "./grid.js";
import { move, selected } from "./images.js";
import { edit, View } from "./store.js";

const openImage = (image) => {
  location.hash = `#/image/${image.id}`;
};

class GridView extends View {
  async build(title, grid, actions = []) {
    this.grid = grid;
    this.words = el("p", { class: "quiet" });
    this.actions = el("div", { class: "actions" }, ...actions);
    this.view.replaceChildren(el("div", { class: "head" }, el("div", { class: "grow" }, el("h2", { text: title }), this.words), this.actions), grid.node);
    await grid.start();
    this.tell();
  }

  async changed() {
    await this.grid?.again();
    if (this.words) this.tell();
  }
}

export class OutlierView extends GridView {
  async start() {
    const grid = new ImageGrid({
      load: (offset, limit) => get(`/api/outliers?offset=${offset}&limit=${limit}`),
      tag: (image) => (image.score === undefined ? "" : `${fixed(image.score, 1)} × as far`),
      open: openImage,
      label: "outliers, the strangest first",
    });
    await this.build("Outliers", grid);
  }

  tell() {
    const none = this.grid.total ? "" : " No image does.";
    this.words.textContent = `Images that stand out in their cluster: farther from its center than its images are on average, by more than two standard deviations.${none}`;
  }
}

export class SelectionView extends GridView {
  async start() {
    const grid = new ImageGrid({ load: (offset, limit) => get(`/api/selection?offset=${offset}&limit=${limit}`), tag: (image) => `cluster ${image.cluster}`, open: openImage, label: "selected images" });
    await this.build("Selection", grid, [
      button("Move…", () => move("selection")),
      button("New cluster", () => edit({ op: "move", images: "selection", to: null }, "Moved to a new cluster.")),
      button("Clear", () => edit({ op: "select", all: true, on: false }, "Selection cleared.")),
    ]);
  }

  tell() {
    this.actions.hidden = !selected();
    const how = touch ? "Tap an image's tick" : "Click an image's tick, use Space or x";
    this.words.textContent = selected() ? `${count(selected(), "image")} selected, kept with the edits.` : `No image is selected. ${how}, or draw around images on the map.`;
  }
}

export class DuplicateView extends View {
  async start() {
    Object.assign(this, { least: 0.98, shown: 0 });
    const slider = el("input", { type: "range", id: "least", min: 0.8, max: 1, step: 0.005, value: this.least });
    const value = el("output", { for: "least", text: this.least.toFixed(3) });
    let moving = 0;
    slider.addEventListener("input", () => {
      this.least = Number(slider.value);
      value.textContent = this.least.toFixed(3);
      clearTimeout(moving);
      moving = setTimeout(() => this.look(), 150);
    });
    this.words = el("p", { class: "quiet", role: "status", text: "Looking for near-duplicates …" });
    this.body = el("div");
    this.view.replaceChildren(el("h2", { text: "Near-duplicates" }), el("p", { class: "quiet", text: "Images of one cluster that look almost the same to the network; at a similarity of 1 they are the same." }), el("div", { class: "slider" }, el("label", { for: "least", text: "Similarity at least" }), slider, value), this.words, this.body);
    await this.look();
  }

  async look() {
    this.round = (this.round ?? 0) + 1;
    this.shown = 0;
    await this.more(this.round, true);
  }

  async more(round, first = false) {
    const found = await telling(() => get(`/api/duplicates?similarity=${this.least}&offset=${this.shown}&limit=20`, () => !this.closed), this.words);
    if (!found || this.closed || round !== this.round) return;
    this.shown += found.groups.length;
    this.words.textContent = found.total ? `${count(found.total, "group")} of ${count(found.images, "image")} in all.` : "No images are that alike.";
    const cards = found.groups.map((group) => this.card(group));
    if (this.shown < found.total) cards.push(button("More groups", (event) => {
      event.target.remove();
      this.more(round);
    }, { class: "more" }));
    if (first) this.body.replaceChildren(...cards);
    else this.body.append(...cards);
  }

  card(group) {
    const cells = group.images.map((image) => el("button", { type: "button", class: "cell", "aria-label": file(image.path), title: image.path, onclick: () => openImage(image) }, thumb(image.id, "")));
    const rest = group.ids.slice(1);
    return el("article", { class: "card" },
      el("header", {}, el("span", { text: `${count(group.total, "image")}, similarity up to ${fixed(group.similarity, 3)}` }), button("Select all but the first", () => edit({ op: "select", images: rest, on: true }, `Selected ${count(rest.length, "image")}.`))),
      el("div", { class: "flow" }, ...cells));
  }
}
