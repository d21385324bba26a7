// Puts the page together: addresses, keys, tools, and who is told of changes.
import { get, hideProgress, post, showProgress, telling } from "./api.js";
import { ask, help } from "./dialogs.js";
import { byId, count, el, later, toast } from "./dom.js";
import { HistoryView } from "./history.js";
import { ClusterView, ImageView, PhotoView } from "./images.js";
import { ClusterList } from "./list.js";
import { DuplicateView, OutlierView, SelectionView } from "./lists.js";
import { MapView } from "./map.js";
import { keep, onChange, refresh, store, turn } from "./store.js";
import { SuggestionView } from "./suggestions.js";

const view = byId("view");
const VIEWS = { map: MapView, suggestions: SuggestionView, outliers: OutlierView, duplicates: DuplicateView, selection: SelectionView, history: HistoryView };
const TABS = ["clusters", ...Object.keys(VIEWS)];
let current = null;
let lastCluster = null;

const list = new ClusterList((id) => {
  location.hash = `#/cluster/${id}`;
});

async function show(next, tab, title) {
  current?.close();
  current = next;
  view.scrollTop = 0;
  for (const link of byId("tabs").children) {
    if (link.dataset.view === tab) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${title} · deepcluster`;
  await next.start();
}

async function route() {
  const [, name, number] = location.hash.match(/^#\/([a-z]+)(?:\/(-?\d+))?$/) ?? [];
  if (name === "image" && number !== undefined) return show(new ImageView(view, Number(number)), "clusters", `image ${number}`);
  if (name === "photo" && dropped) return show(new PhotoView(view, dropped), "clusters", "photo");
  if (name in VIEWS) return show(new VIEWS[name](view), name, name);
  let id = name === "cluster" && number !== undefined ? Number(number) : lastCluster;
  if (id === null) id = list.at(0)?.id ?? null;
  if (id === null) {
    view.replaceChildren(el("p", { class: "empty", text: "There are no clusters to show." }));
    return null;
  }
  lastCluster = id;
  list.show(id);
  return show(new ClusterView(view, id), "clusters", `cluster ${id}`);
}

function surroundings(state) {
  byId("undo").disabled = !state.undo;
  byId("undo").title = state.undo ? `undo: ${state.undo}` : "";
  byId("redo").disabled = !state.redo;
  byId("redo").title = state.redo ? `redo: ${state.redo}` : "";
  byId("selected-count").textContent = state.selected.toLocaleString("en");
  for (const option of document.querySelectorAll("option.labelled")) option.hidden = option.disabled = !state.labelled;
  byId("notices").replaceChildren(...state.notices.map((text) => el("p", { text })));
}

onChange((state, why) => {
  surroundings(state);
  if (why === "start") return;
  if (why !== "select") list.reload();
  if (["merge", "undo", "redo", "move", "split"].includes(why)) list.forget();
  current?.changed(why);
});

// Labels and paths come with the images, which may take a while to open.
async function follow() {
  let pause = 300;
  while (store.state.jobs.images.state === "running") {
    showProgress(store.state.jobs.images);
    await later(pause);
    pause = Math.min(1500, pause * 1.3);
    const state = await telling(() => get("/api/state"));
    if (!state) return;
    surroundings(keep(state)); // what undo says and what it takes back are of the same state
  }
  hideProgress();
  await refresh("images");
}

// A photo has an address of its own, so that the link to its cluster leads away from it, and Back returns to it.
let dropped = null;
function photo(file) {
  if (!file) return;
  dropped = file;
  history.pushState(null, "", "#/photo");
  route();
}

const pickPhoto = () => byId("file").click();
byId("file").addEventListener("change", () => {
  photo(byId("file").files[0]);
  byId("file").value = "";
});

let inside = 0;
const carriesFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
addEventListener("dragenter", (event) => {
  if (!carriesFile(event)) return;
  inside += 1;
  byId("drop").hidden = false;
});
addEventListener("dragleave", (event) => {
  if (!carriesFile(event)) return;
  inside -= 1;
  if (inside <= 0) byId("drop").hidden = true;
});
addEventListener("dragover", (event) => carriesFile(event) && event.preventDefault());
addEventListener("drop", (event) => {
  if (!carriesFile(event)) return;
  event.preventDefault();
  inside = 0;
  byId("drop").hidden = true;
  photo(event.dataTransfer.files[0]);
});

async function exportClusters() {
  const kind = el("select", { id: "export-kind" }, el("option", { value: "csv", text: "table (.csv)" }), el("option", { value: "coco", text: "COCO-style labels (.json)" }), el("option", { value: "folders", text: "folders of links" }));
  const only = el("input", { type: "checkbox", id: "export-only" });
  only.disabled = !store.state.selected;
  const chosen = await ask("Export clusters", [
    el("label", { for: "export-kind", text: "Form" }), kind,
    el("label", { class: "check", for: "export-only" }, only, ` the selection only (${count(store.state.selected, "image")})`),
    el("p", { class: "quiet", text: "Hidden clusters are left out. Written to the run's folder explore/exports; images are not touched." }),
  ], "Export", () => ({ kind: kind.value, selection: only.checked }));
  if (!chosen) return;
  const begun = await telling(() => post("/api/export", chosen));
  if (!begun) return;
  let job = begun.job;
  for (let pause = 150; job.state === "running" || job.state === "waiting"; pause = Math.min(1000, pause * 1.4)) {
    showProgress(job);
    await later(pause);
    const state = await telling(() => get("/api/state"));
    if (!state) return;
    job = state.jobs.export;
  }
  hideProgress();
  if (job.state === "failed") {
    toast(job.error);
    return;
  }
  const link = chosen.kind === "folders" ? [] : [el("p", {}, el("a", { href: `/api/exports/${chosen.kind}`, download: "", text: "Download" }))];
  await ask("Exported", [el("p", { text: "Written to" }), el("p", {}, el("code", { text: begun.path })), ...link], "");
}

byId("undo").addEventListener("click", () => turn("undo"));
byId("redo").addEventListener("click", () => turn("redo"));
byId("photo").addEventListener("click", pickPhoto);
byId("export").addEventListener("click", exportClusters);
byId("help").addEventListener("click", help);

const KEYS = {
  "/": () => byId("search").focus(),
  "?": help,
  l: () => byId("rows").focus(),
  g: () => (view.querySelector(".grid") ?? view).focus(),
  m: () => list.merge(),
  u: () => turn("undo"),
  U: () => turn("redo"),
  p: pickPhoto,
  e: exportClusters,
  j: () => (byId("rows").focus(), list.step(1)),
  k: () => (byId("rows").focus(), list.step(-1)),
  Escape: () => (byId("list").classList.contains("on") ? list.drawer(false) : location.hash.startsWith("#/image") && history.back()),
};
addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  const typing = event.target.matches("input:not([type=checkbox]):not([type=range]), select, textarea");
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z" && !typing) {
    event.preventDefault();
    turn(event.shiftKey ? "redo" : "undo");
    return;
  }
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (current?.key(event.key)) return event.preventDefault();
  if (/^[1-7]$/.test(event.key)) location.hash = `#/${TABS[Number(event.key) - 1]}`;
  else if (event.key in KEYS) KEYS[event.key]();
  else return;
  event.preventDefault();
});

addEventListener("hashchange", route);
await Promise.all([telling(() => refresh("start")), list.reload(true)]);
await route();
if (store.state) await follow();
