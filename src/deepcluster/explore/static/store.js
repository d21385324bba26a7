// What all parts of the page share: the server's state, edits, and who wants to know of changes.
import { get, post, telling } from "./api.js";
import { toast, touch } from "./dom.js";

export const store = { state: null };
const listeners = [];
export const onChange = (listener) => listeners.push(listener);

// An answer that was on its way while an edit was made is older than that of the edit.
export const keep = (state) => (store.state = state.revision < store.state?.revision ? store.state : state);

export function take(state, why = "") {
  keep(state);
  for (const listener of listeners) listener(store.state, why);
}

export const refresh = async (why) => take(await get("/api/state"), why);

// Makes an edit; true if it was made.
export async function edit(change, said) {
  const state = await telling(() => post("/api/edits", change));
  if (!state) return false;
  take(state, change.op);
  if (said) toast(touch ? said : `${said} Undo with u.`);
  return true;
}

// One after the other, so that a key held down does not ask for what it has just taken back.
let last = Promise.resolve();
export const turn = (direction) => (last = last.then(() => turnNow(direction)));

// Says which edits this page knows of: after an edit in another window the last one is not what the button says.
async function turnNow(direction) {
  if (!store.state?.[direction]) return toast(`There is nothing to ${direction}.`);
  try {
    const state = await post(`/api/${direction}`, { revision: store.state.revision });
    take(state, direction);
    toast(`${direction === "undo" ? "Undone" : "Done again"}: ${state.turned}.`);
  } catch (error) {
    if (error.status === 409) await telling(() => refresh(direction));
    toast(error.message);
  }
}

// A view of the page: what each has unless it says otherwise.
export class View {
  constructor(view) {
    this.view = view;
  }

  // After an edit, of which `why` is the kind.
  async changed() {}

  key() {
    return false;
  }

  close() {
    this.closed = true;
    this.grid?.close();
  }
}
