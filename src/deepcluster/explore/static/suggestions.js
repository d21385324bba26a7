// Suggestions, one at a time: y accepts, n goes on to the next.
import { get, telling } from "./api.js";
import { button, count, el, thumb } from "./dom.js";
import { edit, View } from "./store.js";

const passed = new Set(); // those that were declined, until the page is loaded again
const mark = (one) => `${one.op} ${one.clusters.map((cluster) => cluster.id)}`;

export class SuggestionView extends View {
  async start() {
    this.words = el("p", { class: "quiet", role: "status", text: "Looking for clusters to merge or split …" });
    this.body = el("div");
    this.view.replaceChildren(el("h2", { text: "Suggestions" }), this.words, this.body);
    await this.look();
  }

  async look() {
    const round = (this.round = (this.round ?? 0) + 1);
    const found = await telling(() => get("/api/suggestions", () => !this.closed), this.words);
    if (!found || this.closed || round !== this.round) return;
    this.found = found;
    this.draw();
  }

  draw() {
    const left = this.found.suggestions.filter((one) => !passed.has(mark(one)));
    const { groups, images } = this.found.duplicates;
    [this.one] = left;
    this.words.textContent = left.length ? `${count(left.length, "suggestion")}. Every edit can be undone with u.` : "Nothing is left to merge or to split.";
    const more = groups ? [el("p", {}, `${count(images, "image")} in ${count(groups, "group")} look like duplicates: `, el("a", { href: "#/duplicates", text: "look at them" }), ".")] : [];
    this.body.replaceChildren(...(this.one ? [this.card(this.one)] : []), ...more);
  }

  card(one) {
    const names = one.clusters.map((cluster) => (cluster.name === `cluster ${cluster.id}` ? cluster.name : `${cluster.name} (${cluster.id})`));
    const merge = one.op === "merge";
    const parts = one.parts.map((part, k) => el("div", { class: "part" }, el("h3", { text: `${merge ? names[k] : `part ${k + 1}`}: ${count(part.size, "image")}` }), el("div", { class: "flow" }, ...part.images.map((image) => el("a", { class: "cell", href: `#/image/${image}`, "aria-label": `image ${image}` }, thumb(image, ""))))));
    return el("article", { class: "card suggestion" },
      el("header", {}, el("span", { text: merge ? `Merge ${names.join(" and ")}? They look like one cluster.` : `Split ${names[0]}? It looks like two.` }),
        button(merge ? "Merge (y)" : "Split (y)", () => this.accept(), { class: "primary" }), button("Leave it (n)", () => this.pass())),
      ...parts);
  }

  async accept() {
    const { op, clusters } = this.one;
    if (op === "merge") await edit({ op, clusters: clusters.map((cluster) => cluster.id) }, "Merged.");
    else await edit({ op, cluster: clusters[0].id, into: 2 }, "Split.");
  }

  pass() {
    passed.add(mark(this.one));
    this.draw();
  }

  async changed(why) {
    if (why !== "select") await this.look();
  }

  key(key) {
    if (!this.one || (key !== "y" && key !== "n")) return false;
    if (key === "y") this.accept();
    else this.pass();
    return true;
  }
}
