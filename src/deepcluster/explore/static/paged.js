// A list of any length, of which pages are fetched when they come into view, and one entry is under the frame.
import { telling } from "./api.js";

export class Paged {
  // Whoever extends it has load(offset, limit), draw(), step(by), go(entry) and pick(entry).
  constructor(size) {
    Object.assign(this, { size, pages: new Map(), asked: new Set(), total: 0, active: 0, round: 0 });
  }

  at(position) {
    return this.pages.get(Math.floor(position / this.size))?.[position % this.size] ?? null;
  }

  // Asks for a page that was not asked for; or for it anew, and what is there stays until the answer is.
  async fetch(page, anew = false) {
    if (!anew && this.asked.has(page)) return null;
    if (anew) this.round += 1;
    else this.asked.add(page);
    const { pages, round } = this;
    const found = await telling(() => this.load(page * this.size, this.size));
    if (!found || this.gone || (anew ? round !== this.round : pages !== this.pages)) return null;
    if (anew) {
      this.pages = new Map();
      this.asked = new Set([page]);
    }
    this.pages.set(page, found.rows ?? found.images);
    this.total = found.total;
    this.active = Math.max(0, Math.min(this.active, this.total - 1));
    this.draw();
    return found;
  }

  // Keys move the frame, by so many entries, and open or mark what is under it.
  key(event, ways) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const steps = { j: 1, k: -1, Home: -this.total, End: this.total, ...ways };
    const entry = this.at(this.active);
    if (event.key in steps) this.step(steps[event.key]);
    else if (event.key === "Enter" && entry) this.go(entry);
    else if ((event.key === "x" || event.key === " ") && entry) this.pick(entry);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}
