// Poses: 18 rows [x, y, presence], x and y normalised to [-1, 1] over the picture from edge to edge.
// A missing joint keeps its place here, so that it can come back; the server takes presence at its
// word.

const NECK = 1, RIGHT_HIP = 8, LEFT_HIP = 11;
// What hangs from each joint.
const CHILDREN = {
  1: [0, 2, 5, 8, 11], 0: [14, 15], 14: [16], 15: [17],
  2: [3], 3: [4], 5: [6], 6: [7], 8: [9], 9: [10], 11: [12], 12: [13],
};

export const copy = (pose) => pose.map((row) => [...row]);
export const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
export const clamp = (value) => Math.min(0.995, Math.max(-0.995, value));

export function branch(joint) {
  return [joint, ...(CHILDREN[joint] || []).flatMap(branch)];
}

function middleOfHips(pose) {
  const hips = [pose[RIGHT_HIP], pose[LEFT_HIP]].filter((hip) => hip[2]);
  return hips.length && [0, 1].map((axis) => hips.reduce((sum, hip) => sum + hip[axis], 0) / hips.length);
}

export function torso(pose, aspect) {
  const hips = middleOfHips(pose);
  return hips && pose[NECK][2] && Math.hypot((pose[NECK][0] - hips[0]) * aspect, pose[NECK][1] - hips[1]);
}

// A pose of the gallery, which is drawn in a square, for a picture and the size of a body in it.
export function fitted(pose, like, aspect) {
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
export function completed(pose, template, aspect) {
  const standing = fitted(template, pose, aspect);
  return pose.map((row, joint) => (row[2] ? [...row] : [standing[joint][0], standing[joint][1], 0]));
}

// `partner`: for each joint the one on the other side.
export function mirrored(pose, partner) {
  return partner.map((joint) => [-pose[joint][0], pose[joint][1], pose[joint][2]]);
}
