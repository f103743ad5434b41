// Two skeletons, a picture that follows them, and a probe into it. No library, no other machine.

import { $, ask, report } from "/server.js";
import { drawn, Editor, svg } from "/editor.js";
import { clamp, completed, copy, fitted, mirrored, same, torso } from "/poses.js";
import { adjust, endProbe } from "/probe.js";
import { showView, transfer } from "/results.js";
import { aspectOf, state } from "/state.js";

const HISTORY = 200;

// --- the page ----------------------------------------------------------------------------------

const sourceEditor = new Editor($("source-editor"), (pose, finished) => {
  state.source = copy(pose);
  change(finished);
});
const targetEditor = new Editor($("target-editor"), (pose, finished) => {
  state.target = copy(pose);
  showMissing();
  change(finished);
});

const past = [], future = [];
let settled = null; // what undo returns to

export function change(finished) {
  state.changedAt = performance.now();
  if (finished) remember();
  transfer.request();
}

function remember() {
  const now = { person: state.person.id, source: copy(state.source), target: copy(state.target) };
  if (settled && !same(now, settled)) {
    past.push(settled);
    if (past.length > HISTORY) past.shift();
    future.length = 0;
  }
  settled = now;
  $("undo").disabled = !past.length;
  $("redo").disabled = !future.length;
}

function travel(from, to) {
  if (!from.length) return;
  to.push(settled);
  settled = from.pop();
  const who = state.people.find(({ id }) => id === settled.person);
  if (who !== state.person) showPerson(who);
  [state.source, state.target] = [copy(settled.source), copy(settled.target)];
  showPoses();
  change(true);
  // A button that has just been disabled would lose the focus.
  if (document.activeElement === document.body) (past.length ? $("undo") : $("redo")).focus();
}

function showPoses() {
  sourceEditor.show(state.source);
  targetEditor.show(state.target);
  showMissing();
}

function showMissing() {
  const missing = state.target.map((row, joint) => (row[2] ? -1 : joint)).filter((joint) => joint >= 0);
  const key = missing.join();
  if ($("missing").dataset.key === key) return;
  $("missing").dataset.key = key;
  $("missing").replaceChildren(...missing.map((joint) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = `+ ${state.skeleton.joints[joint]}`;
    button.setAttribute("aria-label", `Bring back the ${state.skeleton.joints[joint]}`);
    button.addEventListener("click", () => bringBack(joint));
    return button;
  }));
  if (missing.length) $("missing").prepend("Missing:");
}

function bringBack(joint) {
  const [x, y] = state.target[joint];
  state.target[joint] = [clamp(x), clamp(y), 1];
  showPoses();
  targetEditor.joints[joint].focus();
  change(true);
}

// --- people ------------------------------------------------------------------------------------

function showPerson(who) {
  state.person = who;
  const aspect = aspectOf(who);
  for (const id of ["person-frame", "pose-frame", "result-frame", "views"]) {
    $(id).style.setProperty("--shape", aspect);
  }
  $("source").src = who.image;
  $("source").alt = `The person as given: ${who.name}`;
  $("person-note").textContent = who.note || "Pictures stay on this machine.";
  sourceEditor.shape(aspect, state.skeleton);
  targetEditor.shape(aspect, state.skeleton);
  for (const tile of $("people").children) tile.setAttribute("aria-pressed", tile.dataset.person === who.id);
  endProbe();
}

function choose(who) {
  const before = state.person && aspectOf(state.person), aspect = aspectOf(who);
  showPerson(who);
  state.source = who.pose ? completed(who.pose, state.gallery[0].pose, aspect) : fitted(state.gallery[0].pose, null, aspect);
  // The pose stays when the person changes, in the new one's size and place.
  const kept = before && torso(state.target, before) && state.target.map(([x, y, here]) => [x * before, y, here]);
  state.target = kept && who.pose ? fitted(kept, state.source, aspect) : copy(state.source);
  adjust(!who.pose);
  showPoses();
  change(true);
}

function tile(label, press) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "tile";
  button.setAttribute("aria-label", label);
  button.title = label;
  button.addEventListener("click", press);
  return button;
}

function addTile(who) {
  const button = tile(who.name, () => choose(who));
  button.dataset.person = who.id;
  const image = document.createElement("img");
  image.src = who.image;
  image.alt = "";
  button.append(image);
  $("people").append(button);
}

function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error(`${file.name} cannot be read`));
    reader.readAsDataURL(file);
  });
}

async function upload(file) {
  if (file.size > state.limits.imageBytes) throw new Error(`${file.name}: larger than ${state.limits.imageBytes >> 20} MB`);
  const who = await ask("/api/upload", { name: file.name, image: await base64(file) });
  const how = who.pose ? "Correct them by dragging, if need be." : "Now drag the joints onto the person, or load them from a file.";
  who.note = [...who.notes, how].join(" ");
  state.people.push(who);
  addTile(who);
  choose(who);
}

async function readJoints(file) {
  if (file.size > state.limits.jointBytes) throw new Error(`${file.name}: larger than ${state.limits.jointBytes >> 20} MB`);
  const who = state.person;
  const answer = await ask("/api/joints", { person: who.id, name: file.name, joints: await base64(file) });
  const count = answer.pose.filter((row) => row[2]).length;
  who.pose = answer.pose;
  who.note = [`${count} joints from ${file.name}.`, ...answer.notes].join(" ");
  if (state.person !== who) return;
  $("person-note").textContent = who.note;
  state.source = completed(answer.pose, state.gallery[0].pose, aspectOf(who));
  state.target = copy(state.source);
  showPoses();
  adjust(true);
  change(true);
}

function fileInput(id, use) {
  $(id).addEventListener("change", async (event) => {
    const [file] = event.target.files;
    event.target.value = ""; // so that the same file can be chosen again
    if (!file) return;
    try {
      report(null);
      await use(file);
    } catch (error) {
      report(error);
    }
  });
}

// --- buttons -----------------------------------------------------------------------------------

function save(url, name) {
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
}

$("undo").addEventListener("click", () => travel(past, future));
$("redo").addEventListener("click", () => travel(future, past));
$("reset").addEventListener("click", () => setTarget(state.source));
$("mirror").addEventListener("click", () => setTarget(mirrored(state.target, state.skeleton.mirrored)));
$("adjust").addEventListener("click", () => adjust($("adjust").getAttribute("aria-pressed") !== "true"));
$("save-picture").addEventListener("click", () => state.pictures[state.view] && save(state.pictures[state.view], `${state.view}.png`));
$("save-pose").addEventListener("click", async () => {
  try {
    const { openpose } = await ask("/api/pose", { person: state.person.id, pose: state.target });
    const url = URL.createObjectURL(new Blob([openpose], { type: "application/json" }));
    save(url, "pose.json");
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  } catch (error) {
    report(error);
  }
});
document.addEventListener("keydown", (event) => {
  if (!(event.ctrlKey || event.metaKey) || event.altKey) return;
  const key = event.key.toLowerCase();
  if (key !== "z" && key !== "y") return;
  event.preventDefault();
  if (key === "y" || event.shiftKey) travel(future, past);
  else travel(past, future);
});

function setTarget(pose) {
  state.target = copy(pose);
  showPoses();
  change(true);
}

async function start() {
  const { model, ...told } = await ask("/api/start", {});
  Object.assign(state, told);
  $("model").textContent = `${model.name}, ${model.width} × ${model.height} px, on ${model.device}`;
  $("about").textContent = model.about;
  state.people.forEach(addTile);
  for (const { name, pose } of state.gallery) {
    const button = tile(name, () => setTarget(fitted(pose, state.source, aspectOf(state.person))));
    const picture = svg("svg", { viewBox: "11 0 78 100", class: "thumbnail", "aria-hidden": "true" }, button);
    drawn(picture, state.skeleton, 100, 3.6)(pose);
    $("gallery").append(button);
  }
  fileInput("image-file", upload);
  fileInput("joints-file", readJoints);
  showView("refined");
  choose(state.people[0]);
  document.documentElement.dataset.ready = "true";
}

start().catch(report);
