// All clusters as a table, a page of rows at a time, sorted by a click on a heading.
import { get, telling } from "./api.js";
import { byId, button, count, el, fixed, percent, thumb } from "./dom.js";

const PAGE = 50;
const COLUMNS = [
  ["number", "Cluster", false],
  ["name", "Name", false],
  ["size", "Images", true],
  ["distance", "Distance", false],
  ["label", "Class", false],
  ["purity", "Purity", true],
];
const HINTS = { distance: "mean distance to the center: smaller is tighter", purity: "share of the most frequent class" };

export class TableView {
  constructor(view) {
    Object.assign(this, { view, sort: "size", descending: true, offset: 0 });
    this.searched = () => {
      this.offset = 0;
      this.load();
    };
  }

  async start() {
    this.words = el("p", { class: "quiet", role: "status" });
    this.body = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "table of clusters" });
    this.pages = el("div", { class: "pages" });
    this.view.replaceChildren(el("div", { class: "head" }, el("div", { class: "grow" }, el("h2", { text: "Clusters" }), this.words)), this.body, this.pages);
    byId("search").addEventListener("input", this.searched);
    byId("show-hidden").addEventListener("change", this.searched);
    await this.load();
  }

  async load() {
    const round = (this.round = (this.round ?? 0) + 1);
    const words = new URLSearchParams({ sort: this.sort, descending: this.descending ? 1 : 0, search: byId("search").value, offset: this.offset, limit: PAGE, nearest: 3 });
    if (byId("show-hidden").checked) words.set("hidden", "1");
    const found = await telling(() => get(`/api/clusters?${words}`));
    if (!found || this.closed || round !== this.round) return;
    if (!found.rows.length && this.offset) {
      this.offset = 0;
      await this.load();
      return;
    }
    const labelled = found.rows.some((row) => row.label);
    const columns = COLUMNS.filter(([name]) => labelled || (name !== "label" && name !== "purity"));
    const head = columns.map(([name, title, falling]) => {
      const sorted = this.sort === name ? (this.descending ? "descending" : "ascending") : null;
      const arrow = sorted ? (this.descending ? " ↓" : " ↑") : "";
      return el("th", { scope: "col", "aria-sort": sorted, class: ["size", "distance", "purity", "number"].includes(name) ? "number" : "" }, button(title + arrow, () => this.by(name, falling), { title: HINTS[name] }));
    });
    const rows = found.rows.map((row) => this.row(row, labelled));
    this.body.replaceChildren(el("table", {}, el("thead", {}, el("tr", {}, el("td"), ...head, el("th", { scope: "col", text: "Nearest clusters" }))), el("tbody", {}, ...rows)));
    const last = Math.min(this.offset + PAGE, found.total);
    this.words.textContent = found.total ? `${(this.offset + 1).toLocaleString("en")} to ${last.toLocaleString("en")} of ${count(found.total, "cluster")}; distance is smaller in tighter ones.` : "No cluster of that kind.";
    this.pages.replaceChildren(
      button("Before", () => this.turn(-PAGE), { disabled: this.offset === 0 }),
      button("Next", () => this.turn(PAGE), { disabled: last >= found.total }));
  }

  row(row, labelled) {
    const link = (one, text) => el("a", { href: `#/cluster/${one.id}`, text });
    const near = row.nearest.flatMap((one, k) => [k ? ", " : "", link(one, one.named ? one.name : String(one.id))]);
    return el("tr", {},
      el("td", {}, thumb(row.cover, "")),
      el("td", { class: "number" }, link(row, String(row.id))),
      el("td", { class: "wide", text: (row.named ? row.name : "") + (row.hidden ? " (hidden)" : "") }),
      el("td", { class: "number", text: row.size.toLocaleString("en") }),
      el("td", { class: "number", text: row.distance === null ? "" : fixed(row.distance) }),
      ...(labelled ? [el("td", { text: row.label ?? "" }), el("td", { class: "number", text: percent(row.purity) })] : []),
      el("td", {}, ...near));
  }

  async by(name, falling) {
    this.descending = this.sort === name ? !this.descending : falling;
    this.sort = name;
    this.offset = 0;
    await this.load();
    this.view.querySelector("th[aria-sort] button")?.focus();
  }

  async turn(by) {
    this.offset = Math.max(0, this.offset + by);
    await this.load();
    this.view.scrollTop = 0;
  }

  async changed(why) {
    if (why !== "select") await this.load();
  }

  async reselected() {}
  key() {
    return false;
  }

  close() {
    this.closed = true;
    byId("search").removeEventListener("input", this.searched);
    byId("show-hidden").removeEventListener("change", this.searched);
  }
}
