// Questions to the server. What is still being computed is asked for again, with its progress on the page.
import { byId, later, toast } from "./dom.js";

let waiting = 0;

function progress(job) {
  byId("progress").hidden = false;
  const share = job.total ? `: ${job.count.toLocaleString("en")} of ${job.total.toLocaleString("en")}` : "";
  byId("progress-text").textContent = job.stage + share;
  const bar = byId("progress-bar");
  if (job.total && job.count) {
    bar.max = job.total;
    bar.value = job.count;
  } else {
    bar.removeAttribute("value");
  }
}

// `wanted` says whether the answer is still of use; without it null comes back.
async function untilReady(send, wanted = () => true) {
  let mine = false;
  try {
    for (let pause = 250; ; pause = Math.min(1000, pause * 1.4)) {
      let answer;
      try {
        answer = await send();
      } catch {
        throw new Error("The explorer does not answer: start `deepcluster explore` again.");
      }
      if (answer.status !== 202) {
        const binary = answer.headers.get("content-type") === "application/octet-stream";
        if (answer.ok) return binary ? await answer.arrayBuffer() : await answer.json();
        const said = await answer.json().catch(() => ({}));
        throw Object.assign(new Error(said.error || `The server answered ${answer.status}.`), { status: answer.status });
      }
      const { pending } = await answer.json();
      if (!mine) waiting += 1;
      mine = true;
      progress(pending);
      await later(pause);
      if (!wanted()) return null;
    }
  } finally {
    if (mine) waiting -= 1;
    if (!waiting) byId("progress").hidden = true;
  }
}

export const get = (path, wanted) => untilReady(() => fetch(path), wanted);

export function post(path, body, wanted) {
  const raw = body instanceof Blob;
  return untilReady(
    () =>
      fetch(path, {
        method: "POST",
        headers: raw ? {} : { "content-type": "application/json" },
        body: raw ? body : JSON.stringify(body ?? {}),
      }),
    wanted,
  );
}

// What went wrong is said in a toast; where it leaves a view empty, `place` says it too, and keeps it.
export async function telling(work, place = null) {
  try {
    return await work();
  } catch (error) {
    toast(error.message);
    if (place) place.textContent = error.message;
    return null;
  }
}

export { progress as showProgress };
export const hideProgress = () => {
  if (!waiting) byId("progress").hidden = true;
};
