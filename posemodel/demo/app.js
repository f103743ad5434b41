// Two skeletons, a picture that follows them, and a probe into it. No library, no other machine.
//
// Convention: a pose is 18 rows [x, y, presence], x and y normalised to [-1, 1] over the picture
// from edge to edge. A missing joint keeps its place here, so that it can come back; the server
// takes presence at its word.
"use strict";

const $ = (id) => document.getElementById(id);
const TOKEN = document.querySelector("meta[name=token]").content;
const VIEWS = ["refined", "warped", "flow", "visibility"];
const STEP = 0.0125; // of an arrow key; five times that with Shift
const HISTORY = 200;
const NECK = 1, RIGHT_HIP = 8, LEFT_HIP = 11;
// What hangs from each joint.
const CHILDREN = {
  1: [0, 2, 5, 8, 11], 0: [14, 15], 14: [16], 15: [17],
  2: [3], 3: [4], 5: [6], 6: [7], 8: [9], 9: [10], 11: [12], 12: [13],
};
const LEGENDS = {
  refined: ["", "What the refinement network makes of the warped features."],
  warped: ["", "The person’s own pixels, moved by the flow and nothing else."],
  flow: ["wheel", "The direction in which a pixel looks for its source; white: it stays."],
  visibility: ["ramp", "Invented to visible in the source, by how affine the flow is locally."],
};

// --- talking to the server ---------------------------------------------------------------------

async function ask(path, values) {
  let answer;
  try {
    answer = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Token": TOKEN },
      body: JSON.stringify(values),
    });
  } catch {
    throw new Error("The server does not answer; is it still running?");
  }
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error);
  return content;
}

function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error(`${file.name} cannot be read`));
    reader.readAsDataURL(file);
  });
}

function report(error) {
  $("problem").textContent = error ? error.message : "";
  $("problem").hidden = !error;
}

// Does one piece of work at a time. Wishes that come meanwhile become one: the newest.
class Newest {
  constructor(work) {
    this.work = work;
    this.wanted = this.busy = false;
  }

  async request() {
    this.wanted = true;
    if (this.busy) return;
    this.busy = true;
    while (this.wanted) {
      this.wanted = false;
      try {
        await this.work();
        if (!this.wanted) report(null);
      } catch (error) {
        report(error);
      }
    }
    this.busy = false;
  }
}

// --- poses -------------------------------------------------------------------------------------

const copy = (pose) => pose.map((row) => [...row]);
const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
const clamp = (value) => Math.min(0.995, Math.max(-0.995, value));

function branch(joint) {
  return [joint, ...(CHILDREN[joint] || []).flatMap(branch)];
}

function middleOfHips(pose) {
  const hips = [pose[RIGHT_HIP], pose[LEFT_HIP]].filter((hip) => hip[2]);
  return hips.length && [0, 1].map((axis) => hips.reduce((sum, hip) => sum + hip[axis], 0) / hips.length);
}

function torso(pose, aspect) {
  const hips = middleOfHips(pose);
  return hips && pose[NECK][2] && Math.hypot((pose[NECK][0] - hips[0]) * aspect, pose[NECK][1] - hips[1]);
}

// A pose of the gallery, which is drawn in a square, for a picture and the size of a body in it.
function fitted(pose, like, aspect) {
  const wide = pose.map(([x, y, here]) => [x / aspect, y, here]);
  const own = torso(wide, aspect), wanted = like && torso(like, aspect);
  if (!wanted || wanted < 0.02) return wide;
  const [x0, y0] = wide[NECK], [x1, y1] = like[NECK], scale = wanted / own;
  const moved = wide.map(([x, y, here]) => [x1 + (x - x0) * scale, y1 + (y - y0) * scale, here]);
  // Arms that would leave the picture on one side only: a step to the other side.
  const xs = moved.map((row) => row[0]);
  const over = Math.max(0, Math.max(...xs) - 0.97) - Math.max(0, -0.97 - Math.min(...xs));
  return moved.map(([x, y, here]) => [x - over, y, here]);
}

// Missing joints get the place where they would be in somebody who stands, to come back to.
function completed(pose, aspect) {
  const standing = fitted(gallery[0].pose, pose, aspect);
  return pose.map((row, joint) => (row[2] ? [...row] : [standing[joint][0], standing[joint][1], 0]));
}

function mirrored(pose) {
  return skeleton.mirrored.map((joint) => [-pose[joint][0], pose[joint][1], pose[joint][2]]);
}

// --- the skeleton editor -----------------------------------------------------------------------

function svg(name, attributes, parent) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (parent) parent.append(element);
  return element;
}

const color = ([r, g, b], dark) => `rgb(${[r, g, b].map((v) => Math.round(v * dark)).join(" ")})`;

// Limbs and joints in a box of `width` x 100; returns functions that put them in place.
function drawn(parent, width, thick) {
  const place = ([x, y]) => [(x + 1) / 2 * width, (y + 1) * 50];
  const edges = skeleton.limbs.map(() => svg("line", { class: "limb-edge", "stroke-width": thick * 1.7 }, parent));
  const lines = skeleton.limbs.map((_, limb) => svg("line", {
    stroke: color(skeleton.limbColors[limb], 0.8), "stroke-width": thick }, parent));
  return (pose) => {
    skeleton.limbs.forEach(([from, to], limb) => {
      const [[x1, y1], [x2, y2]] = [place(pose[from]), place(pose[to])];
      for (const line of [edges[limb], lines[limb]]) {
        line.toggleAttribute("hidden", !(pose[from][2] && pose[to][2]));
        for (const [key, value] of Object.entries({ x1, y1, x2, y2 })) line.setAttribute(key, value);
      }
    });
    return place;
  };
}

class Editor {
  // `changed(pose, finished)` is called while a joint moves, and once more when it is let go.
  constructor(root, changed) {
    this.root = root;
    this.changed = changed;
    this.held = null;
    root.addEventListener("pointerdown", (event) => this.take(event));
    root.addEventListener("pointermove", (event) => this.drag(event));
    for (const name of ["pointerup", "pointercancel"]) root.addEventListener(name, (event) => this.drop(event));
    // A finger that has taken a joint does not scroll the page; elsewhere it does.
    root.addEventListener("touchstart", (event) => this.held !== null && event.preventDefault(), { passive: false });
    root.addEventListener("keydown", (event) => this.key(event));
    root.addEventListener("keyup", (event) => this.keyUp(event));
  }

  shape(aspect) {
    this.aspect = aspect;
    this.root.setAttribute("viewBox", `0 0 ${100 * aspect} 100`);
    this.root.replaceChildren();
    this.limbs = drawn(this.root, 100 * aspect, 1.5);
    this.joints = skeleton.joints.map((name, joint) => {
      const group = svg("g", { class: "joint", tabindex: 0, role: "button", "aria-roledescription": "joint", "data-joint": joint }, this.root);
      svg("circle", { class: "ring", r: 3, "stroke-width": 0.8 }, group);
      svg("circle", { class: "dot", r: joint > 13 ? 1.25 : 1.7, "stroke-width": 0.5, fill: color(skeleton.jointColors[joint], 0.95) }, group);
      return group;
    });
  }

  show(pose) {
    this.pose = copy(pose);
    const place = this.limbs(this.pose);
    this.joints.forEach((group, joint) => {
      const [x, y] = place(pose[joint]);
      group.toggleAttribute("hidden", !pose[joint][2]);
      group.setAttribute("transform", `translate(${x} ${y})`);
      const [across, down] = pose[joint].map((value) => Math.round(50 * (value + 1)));
      group.setAttribute("aria-label", `${skeleton.joints[joint]}, ${across} % across, ${down} % down`);
    });
  }

  at(event) {
    const box = this.root.getBoundingClientRect();
    return [2 * (event.clientX - box.left) / box.width - 1, 2 * (event.clientY - box.top) / box.height - 1];
  }

  take(event) {
    if (event.button || this.held !== null) return;
    const [x, y] = this.at(event);
    // Fingers are wide and joints are small: the nearest one within reach.
    const reach = event.pointerType === "mouse" ? 16 : 30, height = this.root.getBoundingClientRect().height;
    let best = 2 * reach / height;
    this.pose.forEach((row, joint) => {
      const far = Math.hypot((row[0] - x) * this.aspect, row[1] - y);
      if (row[2] && far < best) [best, this.held] = [far, joint];
    });
    if (this.held === null) return;
    event.preventDefault();
    this.pointer = event.pointerId;
    this.offset = [this.pose[this.held][0] - x, this.pose[this.held][1] - y];
    this.root.setPointerCapture(event.pointerId);
    this.root.classList.add("dragging");
    this.joints[this.held].classList.add("held");
    this.joints[this.held].focus({ preventScroll: true });
  }

  drag(event) {
    if (this.held === null || event.pointerId !== this.pointer) return;
    const [x, y] = this.at(event);
    this.move(this.held, clamp(x + this.offset[0]), clamp(y + this.offset[1]));
    this.changed(this.pose, false);
  }

  drop(event) {
    if (this.held === null || event.pointerId !== this.pointer) return;
    this.root.classList.remove("dragging");
    this.joints[this.held].classList.remove("held");
    this.held = null;
    this.changed(this.pose, true);
  }

  move(joint, x, y) {
    const pose = copy(this.pose), [dx, dy] = [x - pose[joint][0], y - pose[joint][1]];
    for (const one of $("limbs").checked ? branch(joint) : [joint]) {
      pose[one][0] += dx;
      pose[one][1] += dy;
    }
    this.show(pose);
  }

  key(event) {
    const joint = this.joints.indexOf(event.target.closest(".joint"));
    if (joint < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = STEP * (event.shiftKey ? 5 : 1), [x, y] = this.pose[joint];
    const moves = { ArrowLeft: [-step / this.aspect, 0], ArrowRight: [step / this.aspect, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (event.key in moves) {
      const [dx, dy] = moves[event.key];
      this.move(joint, clamp(x + dx), clamp(y + dy));
      this.changed(this.pose, false);
      this.moving = true;
    } else if (event.key === "Delete" || event.key === "Backspace") {
      const pose = copy(this.pose);
      pose[joint][2] = 0;
      // The focus goes on to a joint that is still there.
      const next = [...this.joints.keys()].map((k) => (joint + k) % pose.length).find((k) => pose[k][2]);
      this.show(pose);
      if (next !== undefined) this.joints[next].focus();
      this.changed(this.pose, true);
    } else return;
    event.preventDefault();
  }

  // A key that is held down moves a joint in one step of the history.
  keyUp(event) {
    if (!this.moving || !event.key.startsWith("Arrow")) return;
    this.moving = false;
    this.changed(this.pose, true);
  }
}

// --- the page ----------------------------------------------------------------------------------

let skeleton, gallery, limits;
let people = [];
let person = null; // the one that is shown
let source = null, target = null; // poses
let probe = null; // [x, y] in the result
let view = "refined";
let changedAt = 0; // when the last change was made
const past = [], future = [];
const pictures = {};

const sourceEditor = new Editor($("source-editor"), (pose, finished) => {
  source = copy(pose);
  change(finished);
});
const targetEditor = new Editor($("target-editor"), (pose, finished) => {
  target = copy(pose);
  showMissing();
  change(finished);
});

const state = () => ({ person: person.id, source: copy(source), target: copy(target) });
let settled = null; // the state that undo returns to

function change(finished) {
  changedAt = performance.now();
  if (finished) remember();
  transfer.request();
}

function remember() {
  const now = state();
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
  const who = people.find((one) => one.id === settled.person);
  if (who !== person) showPerson(who);
  [source, target] = [copy(settled.source), copy(settled.target)];
  showPoses();
  change(true);
  // A button that has just been disabled would lose the focus.
  if (document.activeElement === document.body) (past.length ? $("undo") : $("redo")).focus();
}

function showPoses() {
  sourceEditor.show(source);
  targetEditor.show(target);
  showMissing();
}

function showMissing() {
  const missing = target.map((row, joint) => (row[2] ? -1 : joint)).filter((joint) => joint >= 0);
  const key = missing.join();
  if ($("missing").dataset.key === key) return;
  $("missing").dataset.key = key;
  $("missing").replaceChildren(...missing.map((joint) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = `+ ${skeleton.joints[joint]}`;
    button.setAttribute("aria-label", `Bring back the ${skeleton.joints[joint]}`);
    button.addEventListener("click", () => bringBack(joint));
    return button;
  }));
  if (missing.length) $("missing").prepend("Missing:");
}

function bringBack(joint) {
  const [x, y] = target[joint];
  target[joint] = [clamp(x), clamp(y), 1];
  showPoses();
  targetEditor.joints[joint].focus();
  change(true);
}

// --- people ------------------------------------------------------------------------------------

const aspectOf = (who) => who.width / who.height;

function showPerson(who) {
  person = who;
  const aspect = aspectOf(who);
  for (const id of ["person-frame", "pose-frame", "result-frame", "views"]) {
    $(id).style.setProperty("--shape", aspect);
  }
  $("source").src = who.image;
  $("source").alt = `The person as given: ${who.name}`;
  $("person-note").textContent = who.note || "Pictures stay on this machine.";
  sourceEditor.shape(aspect);
  targetEditor.shape(aspect);
  for (const tile of $("people").children) tile.setAttribute("aria-pressed", tile.dataset.person === who.id);
  endProbe();
}

function choose(who) {
  const before = person && aspectOf(person), aspect = aspectOf(who);
  showPerson(who);
  source = who.pose ? completed(who.pose, aspect) : fitted(gallery[0].pose, null, aspect);
  // The pose stays when the person changes, in the new one's size and place.
  const kept = before && torso(target, before) && target.map(([x, y, here]) => [x * before, y, here]);
  target = kept && who.pose ? fitted(kept, source, aspect) : copy(source);
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

function adjust(on) {
  $("adjust").setAttribute("aria-pressed", on);
  $("source-editor").toggleAttribute("hidden", !on);
  if (on) endProbe();
}

async function upload(file) {
  if (file.size > limits.imageBytes) throw new Error(`${file.name}: larger than ${limits.imageBytes >> 20} MB`);
  const who = await ask("/api/upload", { name: file.name, image: await base64(file) });
  who.note = "Now drag the joints onto the person, or load them from a file.";
  people.push(who);
  addTile(who);
  choose(who);
}

async function readJoints(file) {
  if (file.size > limits.jointBytes) throw new Error(`${file.name}: larger than ${limits.jointBytes >> 20} MB`);
  const who = person;
  const found = await ask("/api/joints", { person: who.id, name: file.name, joints: await base64(file) });
  const count = found.pose.filter((row) => row[2]).length;
  who.pose = found.pose;
  who.note = [`${count} joints from ${file.name}.`, ...found.notes].join(" ");
  if (person !== who) return;
  $("person-note").textContent = who.note;
  source = completed(found.pose, aspectOf(who));
  target = copy(source);
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

// --- results -----------------------------------------------------------------------------------

const transfer = new Newest(async () => {
  const [who, since] = [person, changedAt];
  const made = await ask("/api/transfer", { person: who.id, source, target });
  if (who !== person) return;
  for (const name of VIEWS) {
    pictures[name] = made[name];
    $(name).src = made[name];
  }
  $("ghost").src = made.refined;
  $("shown").src = made[view];
  await Promise.all([$("shown").decode(), $("ghost").decode()]);
  await new Promise(requestAnimationFrame);
  const milliseconds = Math.round(performance.now() - since);
  $("latency").textContent = `${milliseconds} ms`;
  $("latency").title = `of which the model ${made.milliseconds} ms`;
  $("latency").dataset.milliseconds = milliseconds;
  $("latency").dataset.pictures = Number($("latency").dataset.pictures || 0) + 1;
  if (probe) correspondence.request();
});

function showView(name) {
  view = name;
  for (const button of $("views").children) {
    const chosen = button.dataset.view === name;
    button.setAttribute("aria-checked", chosen);
    button.tabIndex = chosen ? 0 : -1;
  }
  if (pictures[name]) $("shown").src = pictures[name];
  $("shown").alt = `${name} picture of the person in the new pose`;
  const [mark, text] = LEGENDS[name], sign = document.createElement("span");
  sign.className = mark;
  $("legend").replaceChildren(...(mark ? [sign] : []), text);
}

// --- the probe ---------------------------------------------------------------------------------

const correspondence = new Newest(async () => {
  if (!probe) return;
  const at = probe, who = person;
  const found = await ask("/api/correspondence", { person: who.id, source, target, at });
  if (!probe || who !== person) return;
  const [left, top, right, bottom] = found.rectangle, row = $("row");
  row.style.left = `${50 * (left + 1)}%`;
  row.style.top = `${50 * (top + 1)}%`;
  row.style.width = `${50 * (right - left)}%`;
  row.style.height = `${50 * (bottom - top)}%`;
  row.src = found.row;
  await row.decode();
  if (!probe) return;
  row.hidden = false;
  $("person-frame").classList.add("probed");
  mark($("sampled"), found.sampled);
  const percent = (value) => `${Math.round(50 * (value + 1))} %`;
  $("probe-note").textContent = `The pixel at ${at.map(percent).join(", ")} (across, down) was sampled ` +
    `from ${found.sampled.map(percent).join(", ")} of the person’s picture. Colours there: how well each place fits.`;
});

function mark(root, [x, y]) {
  const width = 100 * aspectOf(person), [cx, cy] = [(x + 1) / 2 * width, (y + 1) * 50];
  root.setAttribute("viewBox", `0 0 ${width} 100`);
  root.replaceChildren();
  const cross = `M${cx - 5} ${cy}h3.2m3.6 0h3.2M${cx} ${cy - 5}v3.2m0 3.6v3.2`;
  for (const name of ["under", "over"]) {
    svg("circle", { class: name, cx, cy, r: 2.6 }, root);
    svg("path", { class: name, d: cross }, root);
  }
}

function setProbe(x, y) {
  probe = [Math.min(0.999, Math.max(-0.999, x)), Math.min(0.999, Math.max(-0.999, y))];
  mark($("probe"), probe);
  adjust(false);
  correspondence.request();
}

function endProbe() {
  probe = null;
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
  const step = 0.03 * (event.shiftKey ? 5 : 1), [x, y] = probe || [0, 0], [dx, dy] = moves[event.key];
  setProbe(x + dx * step, y + dy * step);
});

// --- buttons -----------------------------------------------------------------------------------

function save(url, name) {
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
}

$("undo").addEventListener("click", () => travel(past, future));
$("redo").addEventListener("click", () => travel(future, past));
$("reset").addEventListener("click", () => setTarget(source));
$("mirror").addEventListener("click", () => setTarget(mirrored(target)));
$("adjust").addEventListener("click", () => adjust($("adjust").getAttribute("aria-pressed") !== "true"));
$("save-picture").addEventListener("click", () => pictures[view] && save(pictures[view], `${view}.png`));
$("save-pose").addEventListener("click", async () => {
  try {
    const { openpose } = await ask("/api/pose", { person: person.id, pose: target });
    const url = URL.createObjectURL(new Blob([openpose], { type: "application/json" }));
    save(url, "pose.json");
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  } catch (error) {
    report(error);
  }
});
$("views").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) showView(button.dataset.view);
});
$("views").addEventListener("keydown", (event) => {
  const turn = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!turn) return;
  event.preventDefault();
  const next = VIEWS[(VIEWS.indexOf(view) + turn + VIEWS.length) % VIEWS.length];
  showView(next);
  document.querySelector(`[data-view=${next}]`).focus();
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
  target = copy(pose);
  showPoses();
  change(true);
}

async function start() {
  const told = await ask("/api/start", {});
  ({ skeleton, gallery, limits, people } = told);
  $("model").textContent = `${told.model.name}, ${told.model.width} × ${told.model.height} px, on ${told.model.device}`;
  $("about").textContent = told.model.about;
  people.forEach(addTile);
  for (const { name, pose } of gallery) {
    const button = tile(name, () => setTarget(fitted(pose, source, aspectOf(person))));
    const picture = svg("svg", { viewBox: "11 0 78 100", class: "thumbnail", "aria-hidden": "true" }, button);
    drawn(picture, 100, 3.6)(pose);
    $("gallery").append(button);
  }
  fileInput("image-file", upload);
  fileInput("joints-file", readJoints);
  showView("refined");
  choose(people[0]);
  document.documentElement.dataset.ready = "true";
}

start().catch(report);
