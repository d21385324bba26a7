// Elements are made of text and attributes; nothing is ever parsed as HTML.

export function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "text") node.textContent = value;
    else if (key === "class") node.className = value;
    else if (key === "data") Object.assign(node.dataset, value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export function svg(name, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "text") node.textContent = value;
    else if (value !== undefined && value !== null) node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

export const touch = matchMedia("(pointer: coarse)").matches;
export const byId = (id) => document.getElementById(id);
export const button = (text, onclick, more = {}) => el("button", { type: "button", text, onclick, ...more });
export const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
export const percent = (share) => (share === null || share === undefined ? "" : `${Math.round(100 * share)} %`);
export const fixed = (value, places = 2) => (value === null || value === undefined ? "unknown" : value.toFixed(places));

export const CLEAR = "clear: to the network its images are nearly twice as far from the next cluster's center as from their own, or farther; near another: less than one and a half times as far";

// The tail of a path says more than its beginning.
export const file = (path) => path.split("/").pop() || path;

const mark = document.querySelector('meta[name="mark"]').content;
export const thumbAddress = (index, side = 96) => `/thumb/${index}?side=${side}&of=${encodeURIComponent(mark)}`;
export const imageAddress = (index) => `/image/${index}?of=${encodeURIComponent(mark)}`;

// An image that is shown at once when it is in view; very small ones are enlarged without smoothing.
export function thumb(index, alt, side = 96) {
  const dense = window.devicePixelRatio > 1.3 || side > 96 ? 192 : 96;
  return picture(thumbAddress(index, dense), alt);
}

export function picture(address, alt) {
  const image = el("img", { src: address, alt, decoding: "async", draggable: "false" });
  image.addEventListener("load", () => {
    if (Math.min(image.naturalWidth, image.naturalHeight) <= 64) image.classList.add("tiny");
  });
  return image;
}

let hiding = 0;
export function toast(text) {
  const box = byId("toast");
  box.textContent = text;
  box.classList.add("on");
  clearTimeout(hiding);
  hiding = setTimeout(() => box.classList.remove("on"), 4500);
}

export const later = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

export function once(work) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      work();
    });
  };
}
