// The list of clusters: any number of them, of which only those in view exist as elements.
import { get } from "./api.js";
import { byId, button, CLEAR, count, el, once, percent, thumb } from "./dom.js";
import { Paged } from "./paged.js";
import { edit, store } from "./store.js";

const HEIGHT = 58;
const PAGE = 100;
const HIGHEST = 8_000_000; // browsers end somewhere beyond

export class ClusterList extends Paged {
  constructor(open) {
    super(PAGE);
    this.open = open;
    this.box = byId("rows");
    this.space = el("div", { class: "space" });
    this.box.append(this.space);
    this.marked = new Map();
    this.current = null;
    this.box.addEventListener("scroll", once(() => this.draw()));
    new ResizeObserver(once(() => this.draw())).observe(this.box);
    this.box.addEventListener("keydown", (event) => {
      const many = Math.max(1, Math.floor(this.box.clientHeight / HEIGHT) - 1);
      this.key(event, { ArrowDown: 1, ArrowUp: -1, PageDown: many, PageUp: -many });
    });
    this.box.addEventListener("click", (event) => this.click(event));
    let typing = 0;
    byId("search").addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(() => this.reload(true), 120);
    });
    byId("search").addEventListener("keydown", (event) => {
      if (event.key === "ArrowDown" || event.key === "Enter") {
        event.preventDefault();
        this.box.focus();
        if (event.key === "Enter" && this.at(0)) this.open(this.at(0).id);
      } else if (event.key === "Escape" && byId("search").value) {
        event.stopPropagation();
        byId("search").value = "";
        this.reload(true);
      }
    });
    for (const id of ["sort", "show-hidden"]) byId(id).addEventListener("change", () => this.reload(true));
    byId("merge").addEventListener("click", () => this.merge());
    byId("unmark").addEventListener("click", () => this.unmark());
    byId("hide-marked").addEventListener("click", () => this.hideMarked());
    byId("list").prepend(button("Close", () => this.drawer(false), { class: "close" }));
    byId("open-list").addEventListener("click", () => this.drawer(true));
  }

  drawer(on) {
    byId("list").classList.toggle("on", on);
    byId("open-list").setAttribute("aria-expanded", String(on));
    if (on) this.box.focus();
  }

  load(offset, limit) {
    const [sort, descending] = byId("sort").value.split("-");
    const words = new URLSearchParams({ sort, descending, search: byId("search").value, offset, limit });
    if (byId("show-hidden").checked) words.set("hidden", "1");
    return get(`/api/clusters?${words}`);
  }

  async reload(top = false) {
    const page = top ? 0 : Math.floor(this.first() / PAGE);
    if (top) this.active = 0;
    const found = await this.fetch(page, true);
    if (!found) return;
    if (top) this.box.scrollTop = 0;
    const of = found.total === found.all ? "" : ` of ${found.all_clusters.toLocaleString("en")}`;
    byId("list-count").textContent = of ? `${found.clusters.toLocaleString("en")}${of} clusters` : count(found.clusters, "cluster");
    this.draw();
  }

  // With very many clusters the bar's way is shorter than the list's.
  get ratio() {
    const whole = this.total * HEIGHT;
    return whole <= HIGHEST ? 1 : (whole - this.box.clientHeight) / (HIGHEST - this.box.clientHeight);
  }

  first() {
    return Math.floor((this.box.scrollTop * this.ratio) / HEIGHT);
  }

  draw() {
    const { box } = this;
    this.space.style.height = `${Math.min(this.total * HEIGHT, HIGHEST)}px`;
    const shift = box.scrollTop * this.ratio - box.scrollTop;
    const first = Math.max(0, this.first() - 4);
    const last = Math.min(this.total, first + Math.ceil(box.clientHeight / HEIGHT) + 9);
    const rows = [];
    for (let position = first; position < last; position += 1) {
      const row = this.at(position);
      if (row) rows.push(this.row(row, position, position * HEIGHT - shift));
      else this.fetch(Math.floor(position / PAGE));
    }
    if (!this.total) rows.push(el("div", { class: "empty", role: "option", "aria-selected": "false", text: "No cluster of that kind." }));
    box.replaceChildren(this.space, ...rows);
    const active = byId(`row-${this.active}`);
    if (active) box.setAttribute("aria-activedescendant", active.id);
    else box.removeAttribute("aria-activedescendant");
  }

  row(row, position, top) {
    const kind = [row.name !== `cluster ${row.id}` && `cluster ${row.id}`, row.label && (row.name.endsWith(row.label) ? `${percent(row.purity)} of it` : `${percent(row.purity)} ${row.label}`)].filter(Boolean).join(" · ");
    const mark = this.marked.has(row.id);
    const node = el(
      "div",
      {
        id: `row-${position}`,
        class: `row${position === this.active ? " active" : ""}${row.hidden ? " put-aside" : ""}`,
        role: "option",
        "aria-selected": String(mark),
        "aria-current": row.id === this.current ? "true" : null,
        "aria-setsize": this.total,
        "aria-posinset": position + 1,
        "aria-label": `${row.name}, ${count(row.size, "image")}${kind ? `, ${kind}` : ""}${row.hidden ? ", hidden" : ""}${mark ? ", marked" : ""}`,
        data: { position, id: row.id },
      },
      el("span", { class: "tick", text: "✓", "aria-hidden": "true" }),
      row.cover === undefined ? el("span", { class: "blank" }) : thumb(row.cover, ""),
      el("span", { class: "what" }, el("span", { class: "name", text: row.name, title: row.name }), el("span", { class: "sub", text: (row.hidden ? "hidden · " : "") + kind || "\u00a0" })),
      el("span", { class: "numbers", title: CLEAR }, row.size.toLocaleString("en"), el("span", { text: row.clear })),
    );
    node.style.top = `${top}px`;
    return node;
  }

  click(event) {
    const node = event.target.closest(".row");
    if (!node) return;
    this.active = Number(node.dataset.position);
    const row = this.at(this.active);
    if (event.target.closest(".tick") || event.ctrlKey || event.metaKey) this.pick(row);
    else this.go(row);
  }

  go(row) {
    if (!row) return;
    this.drawer(false);
    this.open(row.id);
  }

  show(id) {
    this.current = id;
    for (let position = 0; position < this.total; position += 1) {
      const row = this.at(position);
      if (!row && position > 3000) break;
      if (row?.id === id) {
        this.active = position;
        break;
      }
    }
    this.draw();
  }

  step(by) {
    this.active = Math.max(0, Math.min(this.total - 1, this.active + by));
    const top = this.active * HEIGHT;
    const seen = this.box.scrollTop * this.ratio;
    if (top < seen) this.box.scrollTop = top / this.ratio;
    else if (top + HEIGHT > seen + this.box.clientHeight) this.box.scrollTop = (top + HEIGHT - this.box.clientHeight) / this.ratio + 1;
    this.draw();
  }

  pick(row) {
    if (!row || row.id < 0) return;
    if (!this.marked.delete(row.id)) this.marked.set(row.id, row.name);
    this.tellMarked();
  }

  unmark() {
    this.marked.clear();
    this.tellMarked();
  }

  tellMarked() {
    byId("marked").hidden = !this.marked.size;
    byId("marked-text").textContent = `${this.marked.size} marked`;
    byId("merge").disabled = this.marked.size < 2;
    this.draw();
  }

  async merge() {
    const clusters = [...this.marked.keys()];
    if (clusters.length < 2) return;
    if (await edit({ op: "merge", clusters }, `Merged ${clusters.length} clusters.`)) this.unmark();
  }

  async hideMarked() {
    const clusters = [...this.marked.keys()];
    if (await edit({ op: "hide", clusters, hidden: true }, `Hid ${count(clusters.length, "cluster")}.`)) this.unmark();
  }

  // Marked clusters that are gone after an edit are no longer marked.
  forget() {
    if (store.state && this.marked.size) this.unmark();
  }
}
