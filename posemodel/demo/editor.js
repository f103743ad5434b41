// The skeleton as a drawing, and as one that can be dragged.

import { $ } from "/server.js";
import { branch, clamp, copy } from "/poses.js";

const STEP = 0.0125; // of an arrow key; five times that with Shift

export function svg(name, attributes, parent) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (parent) parent.append(element);
  return element;
}

const color = ([r, g, b], dark) => `rgb(${[r, g, b].map((v) => Math.round(v * dark)).join(" ")})`;

// Limbs in a box of `width` x 100; returns a function that puts them in place.
export function drawn(parent, skeleton, width, thick) {
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

export class Editor {
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

  shape(aspect, skeleton) {
    this.aspect = aspect;
    this.names = skeleton.joints;
    this.root.setAttribute("viewBox", `0 0 ${100 * aspect} 100`);
    this.root.replaceChildren();
    this.limbs = drawn(this.root, skeleton, 100 * aspect, 1.5);
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
      group.setAttribute("aria-label", `${this.names[joint]}, ${across} % across, ${down} % down`);
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
    for (const moved of $("limbs").checked ? branch(joint) : [joint]) {
      pose[moved][0] += dx;
      pose[moved][1] += dy;
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
