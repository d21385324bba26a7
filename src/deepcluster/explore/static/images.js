// The view of a cluster, of an image with its neighbors, and of a photo.
import { get, post, telling } from "./api.js";
import { askNumber, askText } from "./dialogs.js";
import { button, CLEAR, count, el, file, fixed, imageAddress, percent, picture, thumb, toast } from "./dom.js";
import { bySimilarity, ImageGrid } from "./grid.js";
import { edit, store, View } from "./store.js";

const openImage = (image) => {
  location.hash = `#/image/${image.id}`;
};

export function clusterButton(row) {
  return el(
    "button",
    { type: "button", class: "near", onclick: () => (location.hash = `#/cluster/${row.id}`), "aria-label": `${row.name}, ${count(row.size, "image")}${row.label ? `, ${row.label}` : ""}` },
    thumb(row.cover, ""),
    el("span", { text: row.name }),
    el("span", { class: "quiet", text: count(row.size, "image") }),
  );
}

export async function rename(row) {
  const name = await askText(`Rename cluster ${row.id}`, "Name; empty takes it away", row.given, "Rename");
  if (name !== null) await edit({ op: "rename", cluster: row.id, name }, "Renamed.");
}

export async function split(row) {
  const into = await askNumber(`Split ${row.name}`, "Parts, found by k-means; the largest keeps the name", 2, 2, 100, "Split");
  if (into !== null) await edit({ op: "split", cluster: row.id, into }, `Split in ${into}.`);
}

export const hide = (row) => edit({ op: "hide", clusters: [row.id], hidden: !row.hidden }, row.hidden ? "Shown again." : "Hidden.");

export class ClusterView extends View {
  constructor(view, id) {
    super(view);
    Object.assign(this, { id, farthest: false });
  }

  async start() {
    this.row = await get(`/api/clusters/${this.id}`).catch(() => null);
    if (this.closed) return;
    if (!this.row) {
      this.view.replaceChildren(el("p", { class: "empty", text: `Cluster ${this.id} has no images now. Choose one of the list.` }));
      return;
    }
    this.head = el("div");
    this.grid = new ImageGrid({
      load: (offset, limit) => get(`/api/clusters/${this.id}/members?offset=${offset}&limit=${limit}&order=${this.farthest ? "far" : "near"}`),
      tag: (image) => (image.label === this.row.label ? "" : image.label ?? "no class"), // those of another class stand out
      open: openImage,
      label: `images of ${this.row.name} by distance to the center`,
    });
    this.order = el("select", { "aria-label": "order of the images", onchange: () => this.turn() }, el("option", { value: "near", text: "nearest to the center first" }), el("option", { value: "far", text: "farthest from it first" }));
    this.view.replaceChildren(this.head, el("div", { class: "head" }, el("h3", { class: "grow", text: "Images" }), this.order), this.grid.node);
    this.draw();
    await this.grid.start();
    await this.near();
  }

  draw() {
    const { row } = this;
    const actions = row.id < 0 ? [] : [
      button("Rename", () => rename(row)),
      button("Split", () => split(row)),
      button(row.hidden ? "Show" : "Hide", () => hide(row)),
      button("Select all", () => edit({ op: "select", cluster: row.id, on: true }, `Selected ${count(row.size, "image")}.`)),
    ];
    const facts = [
      [row.size.toLocaleString("en"), row.size === 1 ? "image" : "images"],
      ...(row.clear ? [[row.clear, ""]] : []),
      ...row.classes.slice(0, 3).map((one) => [percent(one.share), one.label]),
      ...(row.hidden ? [["hidden", ""]] : []),
    ];
    this.head.replaceChildren(
      el("div", { class: "head" },
        el("div", { class: "grow" },
          el("h2", { text: row.name }),
          el("p", { class: "facts" }, ...(row.name === `cluster ${row.id}` ? [] : [el("span", { text: `cluster ${row.id}` })]), ...facts.map(([value, name]) => el("span", { title: value === row.clear ? CLEAR : null }, el("b", { text: value }), ` ${name}`)))),
        el("div", { class: "actions" }, ...actions)),
      (this.title ??= el("h3", { text: "Nearest clusters" })),
      (this.strip ??= el("div", { class: "strip", role: "group", "aria-label": "nearest clusters" })),
    );
  }

  async near() {
    const found = (await telling(() => get(`/api/clusters/${this.id}/nearest`)))?.clusters ?? [];
    if (this.closed || !this.strip) return;
    this.strip.replaceChildren(...found.map(clusterButton));
    this.title.hidden = this.strip.hidden = !found.length;
  }

  turn() {
    this.farthest = this.order.value === "far";
    this.grid.again();
  }

  async changed(why) {
    if (why === "select") return this.grid?.again();
    const row = await get(`/api/clusters/${this.id}`).catch(() => null); // it may be gone by an edit
    if (this.closed) return null;
    if (!row || !this.head) {
      this.grid?.close();
      Object.assign(this, { head: null, strip: null, title: null });
      return this.start();
    }
    this.row = row;
    this.draw();
    return Promise.all([this.grid.again(), this.near()]);
  }

  key(key) {
    if (!this.row || this.row.id < 0) return false;
    if (key === "r") rename(this.row);
    else if (key === "s") split(this.row);
    else if (key === "h") hide(this.row);
    else return false;
    return true;
  }
}

export class ImageView extends View {
  constructor(view, id) {
    super(view);
    this.id = id;
  }

  async start() {
    const image = await telling(() => get(`/api/images/${this.id}`));
    if (!image || this.closed) return;
    this.image = image;
    this.about = el("div", { class: "about" });
    this.below = el("div", {}, el("p", { class: "quiet", text: "Looking for neighbors …" }));
    this.view.replaceChildren(el("div", { class: "one" }, el("figure", {}, picture(imageAddress(image.id), image.path)), this.about), el("h3", { text: "Most like it" }), this.below);
    this.draw();
    await this.look();
  }

  draw() {
    const { image } = this;
    const facts = [
      ["index", String(image.id)],
      ["path", image.path],
      ...(image.label ? [["class", image.label]] : []),
      ["distance", image.distance === null ? "unknown" : `${fixed(image.distance)} to the center`],
      ...(image.reason ? [["cannot be read", image.reason]] : []),
    ];
    const home = image.cluster < 0 ? el("dd", { text: "none" }) : el("dd", {}, el("a", { href: `#/cluster/${image.cluster}`, text: image.name }));
    this.about.replaceChildren(
      el("h2", { text: file(image.path) }),
      el("dl", {}, el("dt", { text: "cluster" }), home, ...facts.flatMap(([name, value]) => [el("dt", { text: name }), el("dd", { text: value })])),
      el("div", { class: "actions" },
        button(image.selected ? "Deselect" : "Select", () => this.select()),
        button("Move…", () => move([image.id]), { disabled: image.cluster < 0 && Boolean(image.reason) })),
    );
  }

  async look() {
    const load = async () => (await get(`/api/images/${this.id}/neighbors?limit=60`, () => !this.closed)) ?? { total: 0, images: [] };
    this.grid = new ImageGrid({ load, tag: bySimilarity, open: openImage, label: "images most like it, by cosine similarity" });
    const first = await telling(load);
    if (this.closed) return;
    if (!first?.total) {
      this.below.replaceChildren(el("p", { class: "quiet", text: "No neighbors are known." }));
      return;
    }
    this.below.replaceChildren(this.grid.node);
    await this.grid.start();
  }

  async select() {
    await edit({ op: "select", images: [this.id], on: !this.image.selected });
  }

  async changed() {
    const image = await telling(() => get(`/api/images/${this.id}`));
    if (!image || this.closed || !this.about) return;
    this.image = image;
    this.draw();
    await this.grid?.again();
  }
}

// Where images are to go: an existing cluster by its number, or a new one.
export async function move(images) {
  const to = await askText("Move to a cluster", "Number of the cluster; empty makes a new one", "", "Move");
  if (to === null) return;
  const number = to.trim();
  if (number && !/^\d+$/.test(number)) return toast("A cluster is chosen by its number.");
  await edit({ op: "move", images, to: number ? Number(number) : null }, number ? `Moved to cluster ${number}.` : "Moved to a new cluster.");
}

export class PhotoView extends View {
  constructor(view, photo) {
    super(view);
    this.photo = photo;
    this.address = URL.createObjectURL(photo);
  }

  async start() {
    this.about = el("div", { class: "about" }, el("h2", { text: this.photo.name || "photo" }), el("p", { class: "quiet", text: "Looking for its cluster …" }));
    this.below = el("div");
    this.view.replaceChildren(el("div", { class: "one" }, el("figure", {}, picture(this.address, `the photo ${this.photo.name}`)), this.about), el("h3", { text: "Most like it" }), this.below);
    await this.look();
  }

  async look() {
    let found = await telling(() => post("/api/photo", this.photo));
    if (this.closed) return;
    if (!found) {
      this.about.replaceChildren(el("h2", { text: this.photo.name }), el("p", { text: "This file cannot be read as a picture." }));
      return;
    }
    this.about.replaceChildren(
      el("h2", { text: this.photo.name || "photo" }),
      el("p", {}, "It belongs to"),
      ...(found.cluster ? [el("p", {}, el("a", { href: `#/cluster/${found.cluster.id}`, id: "photo-cluster", text: found.cluster.name })), el("p", { class: "facts" }, el("span", {}, el("b", { text: found.cluster.size.toLocaleString("en") }), found.cluster.size === 1 ? " image" : " images"), ...(found.cluster.label ? [el("span", {}, el("b", { text: percent(found.cluster.purity) }), ` ${found.cluster.label}`)] : []))] : [el("p", { text: `cluster ${found.found}, which has no images` })]),
      el("p", { class: "quiet", text: `distance ${fixed(found.distance)} to the center` }),
      el("p", { class: "quiet", text: "The photo is not kept." }),
    );
    if (!found.neighbors) {
      this.below.replaceChildren(el("p", { class: "quiet", text: "Neighbors follow once the images are described." }));
      const words = this.below.firstChild;
      // waits, with the progress on the page
      const ready = await telling(() => get("/api/images/0/neighbors?limit=1", () => !this.closed), words);
      if (this.closed || !ready) return;
      found = await telling(() => post("/api/photo", this.photo), words);
    }
    if (this.closed || !found?.neighbors) return;
    this.grid = new ImageGrid({ load: async (offset, limit) => ({ total: found.neighbors.total, images: found.neighbors.images.slice(offset, offset + limit) }), tag: bySimilarity, open: openImage, label: "images most like the photo" });
    this.below.replaceChildren(this.grid.node);
    await this.grid.start();
  }

  close() {
    super.close();
    URL.revokeObjectURL(this.address);
  }
}

export const selected = () => store.state?.selected ?? 0;
