import { byId, button, el } from "./dom.js";

// A modal question; resolves to what `read` gives when it is accepted, else to null.
export function ask(title, content, accept, read = () => true) {
  return new Promise((resolve) => {
    let result = null;
    const yes = el("button", { type: "submit", class: "primary", text: accept });
    const form = el("form", { method: "dialog" }, el("h2", { text: title, id: "dialog-title" }), ...content);
    const box = el("dialog", { "aria-labelledby": "dialog-title" }, form);
    form.append(el("div", { class: "end" }, accept ? button("Cancel", () => box.close()) : null, accept ? yes : button("Close", () => box.close(), { class: "primary" })));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      result = read();
      box.close();
    });
    box.addEventListener("close", () => {
      box.remove();
      resolve(result);
    });
    byId("dialogs").append(box);
    box.showModal();
    const first = box.querySelector("input, select");
    if (first) {
      first.focus();
      if (first.select) first.select();
    }
  });
}

export function askText(title, label, value, accept) {
  const field = el("input", { type: "text", id: "dialog-text", maxlength: 200, autocomplete: "off" });
  field.value = value;
  return ask(title, [el("label", { for: "dialog-text", text: label }), field], accept, () => field.value);
}

export function askNumber(title, label, value, least, most, accept) {
  const field = el("input", { type: "number", id: "dialog-number", min: least, max: most, value });
  return ask(title, [el("label", { for: "dialog-number", text: label }), field], accept, () => Number(field.value));
}

const KEYS = [
  ["j k, arrows", "next, previous cluster in the list; next, previous image in a grid"],
  ["Enter", "open the cluster or the image"],
  ["x, Space", "mark the cluster, or select the image, under the frame"],
  ["Shift + click", "select all images between"],
  ["/", "search clusters"],
  ["l", "go to the list"],
  ["g", "go to the images"],
  ["r", "rename the open cluster"],
  ["s", "split it"],
  ["h", "hide it, or show it again"],
  ["m", "merge the marked clusters"],
  ["y, n", "accept a suggestion, or leave it"],
  ["u, Ctrl + Z", "undo"],
  ["Shift + U, Ctrl + Shift + Z", "redo"],
  ["p", "find the cluster of a photo"],
  ["e", "export"],
  ["1 … 7", "images, map, suggestions, outliers, duplicates, selection, history"],
  ["+ − 0", "on the map: nearer, farther, all; arrows move it"],
  ["Esc", "back, or close"],
  ["?", "this help"],
];

export function help() {
  const keys = el("div", { class: "keys" }, ...KEYS.flatMap(([key, does]) => [el("kbd", { text: key }), el("span", { text: does })]));
  const about = el("p", { class: "quiet", text: "Images are never touched. Edits are kept in the run folder, one after another, and all of them can be undone, also after a restart." });
  return ask("Keyboard and help", [about, keys], "");
}
