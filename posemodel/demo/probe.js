// The probe: where a pixel of the result was sampled from.

import { $, ask } from "/server.js";
import { svg } from "/editor.js";
import { aspectOf, Newest, state } from "/state.js";

export const correspondence = new Newest($("person-frame"), async () => {
  if (!state.probe) return;
  const { probe: at, person: who, source, target } = state;
  const answer = await ask("/api/correspondence", { person: who.id, source, target, at });
  if (!state.probe || who !== state.person) return;
  const [left, top, right, bottom] = answer.rectangle, row = $("row");
  row.style.left = `${50 * (left + 1)}%`;
  row.style.top = `${50 * (top + 1)}%`;
  row.style.width = `${50 * (right - left)}%`;
  row.style.height = `${50 * (bottom - top)}%`;
  row.src = answer.row;
  await row.decode();
  if (!state.probe) return;
  row.hidden = false;
  $("person-frame").classList.add("probed");
  mark($("sampled"), answer.sampled);
  const percent = (value) => `${Math.round(50 * (value + 1))} %`;
  $("probe-note").textContent = `The pixel at ${at.map(percent).join(", ")} (across, down) was sampled ` +
    `from ${answer.sampled.map(percent).join(", ")} of the person’s picture. Colours there: how well each place fits.`;
});

function mark(root, [x, y]) {
  const width = 100 * aspectOf(state.person), [cx, cy] = [(x + 1) / 2 * width, (y + 1) * 50];
  root.setAttribute("viewBox", `0 0 ${width} 100`);
  root.replaceChildren();
  const cross = `M${cx - 5} ${cy}h3.2m3.6 0h3.2M${cx} ${cy - 5}v3.2m0 3.6v3.2`;
  for (const name of ["under", "over"]) {
    svg("circle", { class: name, cx, cy, r: 2.6 }, root);
    svg("path", { class: name, d: cross }, root);
  }
}

function setProbe(x, y) {
  state.probe = [Math.min(0.999, Math.max(-0.999, x)), Math.min(0.999, Math.max(-0.999, y))];
  mark($("probe"), state.probe);
  adjust(false);
  correspondence.request();
}

// Joints of the person are adjusted, or a pixel is probed.
export function adjust(on) {
  $("adjust").setAttribute("aria-pressed", on);
  $("source-editor").toggleAttribute("hidden", !on);
  if (on) endProbe();
}

export function endProbe() {
  state.probe = null;
  $("row").hidden = true;
  $("person-frame").classList.remove("probed");
  $("probe").replaceChildren();
  $("sampled").replaceChildren();
  $("probe-note").textContent = "Click the result to see where a pixel comes from.";
}

function probePointer(event) {
  const box = $("result-frame").getBoundingClientRect();
  setProbe(2 * (event.clientX - box.left) / box.width - 1, 2 * (event.clientY - box.top) / box.height - 1);
}

$("result-frame").addEventListener("pointerdown", (event) => {
  if (event.button) return;
  $("result-frame").setPointerCapture(event.pointerId);
  probePointer(event);
});
$("result-frame").addEventListener("pointermove", (event) => {
  if ($("result-frame").hasPointerCapture(event.pointerId)) probePointer(event);
});
$("result-frame").addEventListener("keydown", (event) => {
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], Enter: [0, 0], " ": [0, 0] };
  if (event.key === "Escape") return endProbe();
  if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  const step = 0.03 * (event.shiftKey ? 5 : 1), [x, y] = state.probe || [0, 0], [dx, dy] = moves[event.key];
  setProbe(x + dx * step, y + dy * step);
});
