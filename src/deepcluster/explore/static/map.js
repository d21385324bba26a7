// The map: up to millions of points, drawn pixel by pixel, with a lasso.
import { get, telling } from "./api.js";
import { button, count, el, once, thumb, thumbAddress, touch } from "./dom.js";
import { edit, View } from "./store.js";

// Colors that stay apart on light and on dark.
function colors(many) {
  const table = new Uint32Array(many);
  for (let group = 0; group < many; group += 1) {
    const hue = (group * 137.508) % 360;
    const light = 0.48 + 0.1 * ((group % 3) - 1);
    const part = (n) => {
      const k = (n + hue / 30) % 12;
      return Math.round(255 * (light - 0.65 * Math.min(light, 1 - light) * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
    };
    table[group] = (255 << 24) | (part(4) << 16) | (part(8) << 8) | part(0);
  }
  return table;
}

const apart = ([x0, y0], [x1, y1]) => Math.hypot(x1 - x0, y1 - y0);

export class MapView extends View {
  async start() {
    Object.assign(this, { zoom: 1, x: 0, y: 0, drawing: false, path: [] });
    this.lassoButton = button("Lasso", () => this.setLasso(!this.drawing), { "aria-pressed": "false" });
    const tools = el("div", { class: "actions" }, this.lassoButton, button("+", () => this.scale(1.5), { "aria-label": "nearer" }), button("−", () => this.scale(1 / 1.5), { "aria-label": "farther" }), button("All", () => this.all()));
    this.words = el("p", { class: "quiet", role: "status", text: "The map is being made …" });
    this.canvas = el("canvas", { role: "img", "aria-label": "map of all images; colors are clusters", tabindex: "0" });
    this.box = el("div", { class: "mapbox" }, this.canvas);
    this.view.replaceChildren(el("div", { class: "head" }, el("div", { class: "grow" }, el("h2", { text: "Map" }), this.words), tools), this.box);
    this.redraw = once(() => this.draw());
    this.watcher = new ResizeObserver(this.redraw);
    this.watcher.observe(this.box);
    this.listen();
    await this.load();
  }

  async load() {
    for (const name of ["axes", "neighborhoods"]) {
      const place = await telling(() => get(`/api/map/${name}`, () => !this.closed), this.words);
      if (!place || this.closed) return;
      this.place = new Int16Array(place);
      this.reach = [1, 1]; // the farthest coordinates, so that a wide layout fills a wide page
      this.place.forEach((value, k) => (this.reach[k % 2] = Math.max(this.reach[k % 2], Math.abs(value))));
      // The layout may have taken minutes, and clusters may have been edited meanwhile.
      if (!(await this.paint(this.words))) return;
      this.words.textContent = "A first view by the main directions (PCA), until neighbors are laid out beside each other (t-SNE) …";
    }
    this.words.textContent = `${count(this.place.length / 2, "image")}, by color of their cluster. Drag to move, ${touch ? "pinch to zoom, tap" : "wheel to zoom, click"} an image to open it, draw around images with the lasso to select them.`;
  }

  // Asks for the clusters and draws them; true if the map shows some. Of several answers under way the last counts.
  async paint(words = null) {
    const round = (this.round = (this.round ?? 0) + 1);
    const [groups, covers] = await telling(() => Promise.all([get("/api/map/groups"), get("/api/clusters?sort=size&limit=60")]), words) ?? [];
    if (this.closed) return false;
    if (covers && round === this.round) this.clusters = covers.rows.filter((row) => row.id >= 0).map((row) => ({ ...row, face: this.face(row.cover) }));
    if (groups && round === this.round) this.color(groups);
    this.draw();
    return Boolean(this.groups);
  }

  // The picture of a cluster, drawn as soon as it is there.
  face(cover) {
    const face = new Image();
    face.onload = this.redraw;
    face.src = thumbAddress(cover);
    return face;
  }

  // Clusters by a picture and a name, the largest first, each where its most typical image is and where there is room.
  labels(context, ratio) {
    const { scale, left, top } = this.frame();
    const [side, ink] = [36 * ratio, getComputedStyle(this.box)];
    const taken = [];
    context.font = `600 ${12 * ratio}px ${ink.fontFamily}`;
    context.textAlign = "center";
    for (const { id, name, cover, face } of this.clusters ?? []) {
      const x = left + this.place[2 * cover] * scale;
      const y = top - this.place[2 * cover + 1] * scale;
      const text = name === `cluster ${id}` ? String(id) : name.length > 22 ? `${name.slice(0, 21)}…` : name;
      const half = Math.max(side, context.measureText(text).width) / 2 + 3 * ratio;
      const box = [x - half, y - side / 2, x + half, y + side / 2 + 17 * ratio];
      if (taken.some((other) => box[0] < other[2] && other[0] < box[2] && box[1] < other[3] && other[1] < box[3])) continue;
      taken.push(box);
      if (face.complete && face.naturalWidth) context.drawImage(face, x - side / 2, y - side / 2, side, side);
      context.lineWidth = 4 * ratio;
      context.strokeStyle = ink.backgroundColor;
      context.strokeText(text, x, y + side / 2 + 13 * ratio);
      context.fillStyle = ink.color;
      context.fillText(text, x, y + side / 2 + 13 * ratio);
    }
  }

  color(groups) {
    this.groups = new Int32Array(groups);
    let most = 0;
    for (const group of this.groups) if (group > most) most = group;
    this.table = colors(most + 1);
  }

  // From the map's numbers to pixels of the canvas.
  frame() {
    const { width, height } = this.canvas;
    const scale = this.zoom * 0.46 * Math.min(width / this.reach[0], height / this.reach[1]);
    return { scale, left: width / 2 + this.x * scale, top: height / 2 + this.y * scale };
  }

  draw() {
    if (this.closed || !this.place || !this.groups) return;
    const ratio = window.devicePixelRatio || 1;
    const width = Math.max(1, Math.round(this.box.clientWidth * ratio));
    const height = Math.max(1, Math.round(this.box.clientHeight * ratio));
    if (this.canvas.width !== width || this.canvas.height !== height) {
      this.canvas.width = width;
      this.canvas.height = height;
    }
    const context = this.canvas.getContext("2d");
    const page = context.createImageData(width, height);
    const pixels = new Uint32Array(page.data.buffer);
    const { scale, left, top } = this.frame();
    const { place, groups, table } = this;
    const many = groups.length;
    const dot = Math.max(1, Math.round(ratio * Math.min(6, Math.max(1, Math.min(4, 300 / Math.sqrt(many))) * Math.sqrt(this.zoom))));
    for (let k = 0; k < many; k += 1) {
      const group = groups[k];
      if (group < 0) continue;
      const x = Math.round(left + place[2 * k] * scale - dot / 2);
      const y = Math.round(top - place[2 * k + 1] * scale - dot / 2);
      if (x < 0 || y < 0 || x + dot > width || y + dot > height) continue;
      for (let row = y; row < y + dot; row += 1) pixels.fill(table[group], row * width + x, row * width + x + dot);
    }
    context.putImageData(page, 0, 0);
    this.labels(context, ratio);
    if (this.path.length) {
      context.beginPath();
      for (const [x, y] of this.path) context.lineTo(x * ratio, y * ratio);
      context.closePath();
      context.lineWidth = 2 * ratio;
      context.strokeStyle = getComputedStyle(this.box).color;
      context.setLineDash([5 * ratio, 4 * ratio]);
      context.stroke();
    }
  }

  setLasso(on) {
    this.drawing = on;
    this.lassoButton.setAttribute("aria-pressed", String(on));
    this.lassoButton.classList.toggle("primary", on);
    this.box.classList.toggle("lasso", on);
  }

  scale(by, at) {
    const before = this.frame();
    const ratio = window.devicePixelRatio || 1;
    const [x, y] = at ? [at[0] * ratio, at[1] * ratio] : [this.canvas.width / 2, this.canvas.height / 2];
    const point = [(x - before.left) / before.scale, (y - before.top) / before.scale];
    this.zoom = Math.max(0.5, Math.min(400, this.zoom * by));
    const after = this.frame();
    this.x += (x - after.left) / after.scale - point[0];
    this.y += (y - after.top) / after.scale - point[1];
    this.redraw();
  }

  // What was at one place of the canvas is at another then.
  shift([x0, y0], [x1, y1]) {
    const step = (window.devicePixelRatio || 1) / this.frame().scale;
    this.x += (x1 - x0) * step;
    this.y += (y1 - y0) * step;
    this.redraw();
  }

  all() {
    Object.assign(this, { zoom: 1, x: 0, y: 0 });
    this.redraw();
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  listen() {
    const { canvas } = this;
    const down = new Map(); // where the mouse or each finger is
    let moved = false;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      down.set(event.pointerId, this.at(event));
      moved = down.size > 1;
      this.path = !moved && (this.drawing || event.shiftKey) ? [this.at(event)] : [];
      this.tip(null);
    });
    canvas.addEventListener("pointermove", (event) => {
      const [now, from] = [this.at(event), down.get(event.pointerId)];
      if (!from) return this.hover(now);
      if (apart(now, from) > 3) moved = true;
      if (this.path.length) this.path.push(now);
      else if (moved) {
        const [, other] = [...down].find(([id]) => id !== event.pointerId) ?? [];
        const middle = ([x, y]) => (other ? [(x + other[0]) / 2, (y + other[1]) / 2] : [x, y]);
        this.shift(middle(from), middle(now));
        if (other) this.scale(apart(now, other) / Math.max(1, apart(from, other)), middle(now));
        down.set(event.pointerId, now);
      }
      this.redraw();
    });
    const up = (event) => {
      if (!down.delete(event.pointerId)) return;
      if (this.path.length > 2 && moved) this.lasso();
      else if (!moved && event.type === "pointerup") {
        const index = this.nearest(this.at(event));
        if (index !== null) location.hash = `#/image/${index}`;
      }
      this.path = [];
      this.redraw();
    };
    canvas.addEventListener("pointerup", up);
    canvas.addEventListener("pointercancel", up);
    canvas.addEventListener("pointerleave", () => this.tip(null));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.scale(Math.exp(-event.deltaY / 400), this.at(event));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: [80, 0], ArrowRight: [-80, 0], ArrowUp: [0, 80], ArrowDown: [0, -80] };
      if (event.key in moves) this.shift([0, 0], moves[event.key]);
      else if (event.key === "+" || event.key === "=") this.scale(1.5);
      else if (event.key === "-") this.scale(1 / 1.5);
      else if (event.key === "0") this.all();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
  }

  nearest([x, y]) {
    if (!this.place || !this.groups) return null;
    const ratio = window.devicePixelRatio || 1;
    const { scale, left, top } = this.frame();
    const px = (x * ratio - left) / scale;
    const py = (top - y * ratio) / scale;
    let best = null;
    let least = ((10 * ratio) / scale) ** 2;
    for (let k = 0; k < this.groups.length; k += 1) {
      if (this.groups[k] < 0) continue;
      const distance = (this.place[2 * k] - px) ** 2 + (this.place[2 * k + 1] - py) ** 2;
      if (distance < least) {
        least = distance;
        best = k;
      }
    }
    return best;
  }

  hover(now) {
    clearTimeout(this.hovering);
    this.hovering = setTimeout(() => !this.closed && this.tip(this.nearest(now), now), 60);
  }

  tip(index, [x, y] = [0, 0]) {
    this.shown?.remove();
    this.shown = null;
    if (index === null || index === undefined) return;
    this.shown = el("div", { class: "tip" }, thumb(index, ""), el("span", { text: this.clusters?.find((row) => row.id === this.groups[index])?.name ?? `cluster ${this.groups[index]}` }));
    this.shown.style.left = `${Math.min(x + 14, this.box.clientWidth - 116)}px`;
    this.shown.style.top = `${Math.min(y + 14, this.box.clientHeight - 136)}px`;
    this.box.append(this.shown);
  }

  // Images inside the drawn line, by the even-odd rule.
  async lasso() {
    if (!this.place || !this.groups) return;
    const ratio = window.devicePixelRatio || 1;
    const { scale, left, top } = this.frame();
    const path = this.path.map(([x, y]) => [(x * ratio - left) / scale, (top - y * ratio) / scale]);
    const xs = path.map((point) => point[0]);
    const ys = path.map((point) => point[1]);
    const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    const images = [];
    for (let k = 0; k < this.groups.length; k += 1) {
      const x = this.place[2 * k];
      const y = this.place[2 * k + 1];
      if (this.groups[k] < 0 || x < x0 || x > x1 || y < y0 || y > y1) continue;
      let inside = false;
      for (let i = 0, j = path.length - 1; i < path.length; j = i, i += 1) {
        if (path[i][1] > y !== path[j][1] > y && x < ((path[j][0] - path[i][0]) * (y - path[i][1])) / (path[j][1] - path[i][1]) + path[i][0]) inside = !inside;
      }
      if (inside) images.push(k);
    }
    this.setLasso(false);
    if (!images.length) return;
    if (await edit({ op: "select", images, on: true }, `Selected ${count(images.length, "image")}.`)) location.hash = "#/selection";
  }

  async changed(why) {
    if (why === "select" || !this.place) return;
    await this.paint();
  }

  close() {
    super.close();
    this.watcher?.disconnect();
  }
}
