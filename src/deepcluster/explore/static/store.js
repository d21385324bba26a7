// What all parts of the page share: the server's state, edits, and who wants to know of changes.
import { get, post, telling } from "./api.js";
import { toast } from "./dom.js";

export const store = { state: null };
const listeners = [];
export const onChange = (listener) => listeners.push(listener);

export function take(state, why = "") {
  store.state = state;
  for (const listener of listeners) listener(state, why);
}

export const refresh = async (why) => take(await get("/api/state"), why);

// Makes an edit; true if it was made.
export async function edit(change, said) {
  const state = await telling(() => post("/api/edits", change));
  if (!state) return false;
  take(state, change.op);
  if (said) toast(`${said} Undo with u.`);
  return true;
}

export async function turn(direction) {
  const what = store.state?.[direction];
  if (!what) return toast(`There is nothing to ${direction}.`);
  const state = await telling(() => post(`/api/${direction}`));
  if (!state) return;
  take(state, direction);
  toast(`${direction === "undo" ? "Undone" : "Done again"}: ${what}.`);
}
