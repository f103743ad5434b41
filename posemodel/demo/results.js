// The pictures of the result.

import { $, ask } from "/server.js";
import { correspondence } from "/probe.js";
import { Newest, state } from "/state.js";

const VIEWS = ["refined", "warped", "flow", "visibility"];
const LEGENDS = {
  refined: ["", "What the refinement network makes of the warped features."],
  warped: ["", "The person’s own pixels, moved by the flow and nothing else."],
  flow: ["wheel", "The direction in which a pixel looks for its source; white: it stays."],
  visibility: ["ramp", "Invented to visible in the source, by how affine the flow is locally."],
};

export const transfer = new Newest($("result-frame"), async () => {
  const { person: who, changedAt: since, source, target } = state;
  const made = await ask("/api/transfer", { person: who.id, source, target });
  if (who !== state.person) return;
  for (const name of VIEWS) {
    state.pictures[name] = made[name];
    $(name).src = made[name];
  }
  $("ghost").src = made.refined;
  $("shown").src = made[state.view];
  await Promise.all([$("shown").decode(), $("ghost").decode()]);
  await new Promise(requestAnimationFrame);
  const milliseconds = Math.round(performance.now() - since);
  $("latency").textContent = `${milliseconds} ms`;
  $("latency").title = `of which the model ${made.milliseconds} ms`;
  $("latency").dataset.milliseconds = milliseconds;
  $("latency").dataset.pictures = Number($("latency").dataset.pictures || 0) + 1;
  if (state.probe) correspondence.request();
});

export function showView(name) {
  state.view = name;
  for (const button of $("views").children) {
    const chosen = button.dataset.view === name;
    button.setAttribute("aria-checked", chosen);
    button.tabIndex = chosen ? 0 : -1;
  }
  if (state.pictures[name]) $("shown").src = state.pictures[name];
  $("shown").alt = `${name} picture of the person in the new pose`;
  const [mark, text] = LEGENDS[name], sign = document.createElement("span");
  sign.className = mark;
  $("legend").replaceChildren(...(mark ? [sign] : []), text);
}

$("views").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) showView(button.dataset.view);
});
$("views").addEventListener("keydown", (event) => {
  const turn = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!turn) return;
  event.preventDefault();
  const next = VIEWS[(VIEWS.indexOf(state.view) + turn + VIEWS.length) % VIEWS.length];
  showView(next);
  document.querySelector(`[data-view=${next}]`).focus();
});
