// A grid of images: any number of them, of which only those in view exist as elements.
import { byId, el, file, fixed, once, thumb } from "./dom.js";
import { Paged } from "./paged.js";
import { edit } from "./store.js";

const PAGE = 200;
const GAP = 8;
const HIGHEST = 8_000_000;
let made = 0;

export class ImageGrid extends Paged {
  // load(offset, limit) gives {total, images}; tag(image) the words under an image; open(image) is for a click.
  constructor({ load, tag, open, label, side = 112 }) {
    super(PAGE);
    Object.assign(this, { load, tag, go: open, side });
    this.name = `grid-${(made += 1)}`;
    this.anchor = null;
    this.gone = false;
    this.node = el("div", { class: "grid", role: "listbox", "aria-multiselectable": "true", "aria-label": label, tabindex: "0" });
    this.node.addEventListener("keydown", (event) => {
      const { columns } = this;
      const many = columns * Math.max(1, Math.floor(byId("view").clientHeight / (this.cell + GAP)) - 1);
      this.key(event, { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, PageDown: many, PageUp: -many });
    });
    this.node.addEventListener("click", (event) => this.click(event));
    this.redraw = once(() => this.draw());
    byId("view").addEventListener("scroll", this.redraw);
    this.watcher = new ResizeObserver(this.redraw);
    this.watcher.observe(this.node);
  }

  close() {
    this.gone = true;
    byId("view").removeEventListener("scroll", this.redraw);
    this.watcher.disconnect();
  }

  async start() {
    await this.fetch(0);
    return this;
  }

  // Looks at the images again, without moving.
  again() {
    return this.fetch(Math.floor((this.firstRow() * this.columns) / PAGE) || 0, true);
  }

  get columns() {
    return Math.max(2, Math.floor((this.node.clientWidth + GAP) / (this.side + GAP)));
  }

  // Cells grow a little so that they fill the width.
  get cell() {
    return (this.node.clientWidth - GAP * (this.columns - 1)) / this.columns;
  }

  get tall() {
    return Math.ceil(this.total / this.columns) * (this.cell + GAP);
  }

  get ratio() {
    return this.tall <= HIGHEST ? 1 : this.tall / HIGHEST;
  }

  seen() {
    const view = byId("view");
    const top = this.node.getBoundingClientRect().top - view.getBoundingClientRect().top;
    return { above: Math.max(0, -top), height: view.clientHeight - Math.max(0, top) };
  }

  firstRow() {
    return Math.floor((this.seen().above * this.ratio) / (this.cell + GAP));
  }

  draw() {
    if (this.gone || !this.node.isConnected || !this.node.clientWidth) return;
    const { columns, cell, ratio } = this;
    const step = cell + GAP;
    this.node.style.height = `${Math.min(this.tall, HIGHEST)}px`;
    const { above, height } = this.seen();
    const shift = above * ratio - above;
    const first = Math.max(0, this.firstRow() - 1) * columns;
    const last = Math.min(this.total, first + (Math.ceil(Math.max(height, 0) / step) + 3) * columns);
    const cells = [];
    for (let position = first; position < last; position += 1) {
      const image = this.at(position);
      if (!image) {
        this.fetch(Math.floor(position / PAGE));
        continue;
      }
      const node = this.made(image, position);
      node.style.cssText = `left:${(position % columns) * step}px;top:${Math.floor(position / columns) * step - shift}px;width:${cell}px;height:${cell}px`;
      cells.push(node);
    }
    const kept = new Map([...this.node.children].map((node) => [node.dataset.key, node]));
    // Elements that stay keep their pictures: no flicker while scrolling.
    const wanted = new Set(cells.map((node) => node.dataset.key));
    for (const [key, node] of kept) if (!wanted.has(key)) node.remove();
    // In the order they are seen in, which is the order they are read out in.
    let next = this.node.firstChild;
    for (const node of cells) {
      const old = kept.get(node.dataset.key);
      if (old) old.style.cssText = node.style.cssText;
      if (old && old === next) next = next.nextSibling;
      else this.node.insertBefore(old ?? node, next);
    }
    if (byId(`${this.name}-${this.active}`)) this.node.setAttribute("aria-activedescendant", `${this.name}-${this.active}`);
    else this.node.removeAttribute("aria-activedescendant");
  }

  made(image, position) {
    const words = this.tag ? this.tag(image) : "";
    const node = el(
      "div",
      {
        id: `${this.name}-${position}`,
        class: `cell${position === this.active ? " active" : ""}`,
        role: "option",
        "aria-selected": String(image.selected),
        "aria-setsize": this.total,
        "aria-posinset": position + 1,
        "aria-label": `${file(image.path)}${words ? `, ${words}` : ""}`,
        title: `${image.path}${image.label ? ` (${image.label})` : ""}`,
        data: { position, key: `${position} ${image.id} ${image.selected} ${words} ${position === this.active} ${this.total}` },
      },
      thumb(image.id, "", this.cell || this.side),
      el("span", { class: "tick", text: "✓", "aria-hidden": "true" }),
      words ? el("span", { class: "tag", text: words, "aria-hidden": "true" }) : null,
    );
    return node;
  }

  click(event) {
    const node = event.target.closest(".cell");
    if (!node) return;
    const position = Number(node.dataset.position);
    if (event.shiftKey && this.anchor !== null) this.range(this.anchor, position);
    else if (event.target.closest(".tick") || event.ctrlKey || event.metaKey) {
      this.anchor = position;
      this.toggle(position);
    } else {
      this.active = position;
      this.go(this.at(position));
      return;
    }
    this.active = position;
    this.draw();
  }

  async toggle(position) {
    const image = this.at(position);
    if (!image) return;
    if (await edit({ op: "select", images: [image.id], on: !image.selected })) {
      image.selected = !image.selected;
      this.draw();
    }
  }

  async range(from, to) {
    const images = [];
    for (let position = Math.min(from, to); position <= Math.max(from, to); position += 1) {
      if (!this.at(position)) await this.fetch(Math.floor(position / PAGE));
      const image = this.at(position);
      if (image && !image.selected) images.push(image);
    }
    if (images.length && (await edit({ op: "select", images: images.map((image) => image.id), on: true }))) {
      for (const image of images) image.selected = true;
      this.draw();
    }
  }

  pick() {
    this.anchor = this.active;
    this.toggle(this.active);
  }

  step(by) {
    this.active = Math.max(0, Math.min(this.total - 1, this.active + by));
    const view = byId("view");
    const top = this.node.offsetTop + (Math.floor(this.active / this.columns) * (this.cell + GAP)) / this.ratio;
    if (top < view.scrollTop + 4) view.scrollTop = top - 8;
    else if (top + this.cell > view.scrollTop + view.clientHeight) view.scrollTop = top + this.cell + 10 - view.clientHeight;
    this.draw();
  }
}

export const bySimilarity = (image) => `${fixed(image.similarity, 3)}`;
