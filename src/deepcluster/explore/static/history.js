// The curves of training, and a slider over its epochs.
import { get, telling } from "./api.js";
import { count, el, svg } from "./dom.js";
import { View } from "./store.js";

const CURVES = [
  ["loss", "Loss", 3],
  ["nmi_previous", "Agreement with the clustering before, NMI", 3],
  ["nmi_labels", "Agreement with the labels, NMI", 3],
  ["purity", "Purity", 3],
  ["watched", "Watched score", 3],
  ["reassigned", "Share of images that changed their cluster", 3],
  ["clusters_used", "Clusters in use", 0],
  ["size_max", "Largest cluster", 0],
  ["size_min", "Smallest cluster", 0],
  ["size_entropy", "Evenness of sizes", 3],
  ["lr", "Learning rate", 5],
  ["images_per_second", "Images a second", 0],
];
const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [340, 150, 46, 8, 8, 20];

const short = (value) => (Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3))));

// One curve; `at` moves its marker.
function chart(title, xs, ys, places, series, xName) {
  const known = ys.map((y, k) => [xs[k], y]).filter(([, y]) => typeof y === "number" && Number.isFinite(y));
  if (!known.length) return null;
  let low = Math.min(...known.map((point) => point[1]));
  let high = Math.max(...known.map((point) => point[1]));
  if (low === high) [low, high] = [low - 0.5 * (Math.abs(low) || 1), high + 0.5 * (Math.abs(high) || 1)];
  const [first, last] = [xs[0], xs[xs.length - 1]];
  const x = (value) => LEFT + ((value - first) / (last - first || 1)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const now = svg("line", { class: "now", y1: TOP, y2: HEIGHT - BOTTOM, x1: x(last), x2: x(last) });
  const dot = svg("circle", { r: 4, fill: `var(--series-${series})`, cx: -10, cy: -10 });
  const value = el("b");
  const plot = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}: from ${short(known[0][1])} to ${short(known[known.length - 1][1])}` },
    svg("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM }),
    svg("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: TOP, y2: TOP }),
    svg("text", { x: LEFT - 6, y: HEIGHT - BOTTOM + 3, "text-anchor": "end", text: short(low) }),
    svg("text", { x: LEFT - 6, y: TOP + 6, "text-anchor": "end", text: short(high) }),
    svg("text", { x: LEFT, y: HEIGHT - 5, text: `${xName} ${first}` }),
    svg("text", { x: WIDTH - RIGHT, y: HEIGHT - 5, "text-anchor": "end", text: String(last) }),
    now,
    known.length > 1 ? svg("polyline", { class: "curve", stroke: `var(--series-${series})`, points: known.map(([px, py]) => `${x(px).toFixed(1)},${y(py).toFixed(1)}`).join(" ") }) : svg("circle", { r: 3, cx: x(known[0][0]), cy: y(known[0][1]), fill: `var(--series-${series})` }),
    dot);
  const node = el("div", { class: "chart" }, el("h3", {}, title, value), plot);
  return {
    node,
    at(place) {
      now.setAttribute("x1", x(place));
      now.setAttribute("x2", x(place));
      const here = known.find(([px]) => px === place);
      value.textContent = here ? here[1].toFixed(places) : "";
      dot.setAttribute("cx", here ? x(place) : -10);
      dot.setAttribute("cy", here ? y(here[1]) : -10);
    },
  };
}

export class HistoryView extends View {
  async start() {
    const found = await telling(() => get("/api/history"));
    if (!found || this.closed) return;
    const { rows, kept } = found;
    if (!rows.length) {
      this.view.replaceChildren(el("h2", { text: "History" }), el("p", { class: "empty", text: "Nothing was trained here, or no epoch is finished yet. `deepcluster train` leaves its curves in this place." }));
      return;
    }
    this.rows = rows;
    const epochs = rows.map((row) => row.epoch + 1);
    this.charts = CURVES.map(([name, title, places], k) => chart(title, epochs, rows.map((row) => row[name]), places, (k % 6) + 1, "epoch")).filter(Boolean);
    this.slider = el("input", { type: "range", id: "epoch", min: 0, max: rows.length - 1, step: 1, value: rows.length - 1 });
    this.output = el("output", { for: "epoch" });
    let moving = 0;
    this.slider.addEventListener("input", () => {
      this.move();
      clearTimeout(moving);
      moving = setTimeout(() => this.sizes(), 120);
    });
    this.below = el("div", { role: "status" });
    const known = kept.length > 1 ? `Clusters were kept of ${kept.length} epochs: ${kept.map((epoch) => epoch + 1).join(", ")}.` : "Clusters were kept of the last epoch alone; --keep-every keeps more.";
    this.view.replaceChildren(el("h2", { text: "History" }), el("div", { class: "slider" }, el("label", { for: "epoch", text: "Epoch" }), this.slider, this.output), el("p", { class: "quiet", text: known }), this.below, el("h3", { text: "Curves" }), el("div", { class: "charts" }, ...this.charts.map((one) => one.node)));
    this.move();
    await this.sizes();
  }

  move() {
    const row = this.rows[Number(this.slider.value)];
    this.output.textContent = `${row.epoch + 1} of ${this.rows[this.rows.length - 1].epoch + 1}`;
    this.slider.setAttribute("aria-valuetext", `epoch ${row.epoch + 1}`);
    for (const one of this.charts) one.at(row.epoch + 1);
  }

  async sizes() {
    const row = this.rows[Number(this.slider.value)];
    const found = await telling(() => get(`/api/history/${row.epoch}`));
    if (!found || this.closed || row !== this.rows[Number(this.slider.value)]) return;
    const title = el("h3", { text: `Cluster sizes at epoch ${row.epoch + 1}` });
    if (!found.known) {
      const words = row.clusters_used === undefined ? "Nothing is known of them." : `${count(row.clusters_used, "cluster")} of ${row.size_min} to ${row.size_max} images. Single clusters of this epoch were not kept.`;
      this.below.replaceChildren(title, el("p", { text: words }));
      return;
    }
    const plot = chart("Images in the cluster, by rank", found.ranks.map((rank) => rank + 1), found.sizes, 0, 1, "rank");
    plot.at(1);
    const agree = found.nmi_last === null ? "" : ` Agreement with the final clusters, made after the last epoch: NMI ${found.nmi_last.toFixed(3)}.`;
    this.below.replaceChildren(title, el("p", { text: `${count(found.clusters, "cluster")} of ${found.smallest} to ${found.largest} images, half of them of ${found.median} or more.${agree}` }), el("div", { class: "charts" }, plot.node));
  }
}
