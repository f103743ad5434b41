"""How a mannequin stands: pose, skeleton, and the rigid parts that hang on it.

World: x to the image's right, y up, z towards the camera, metres; the person's own left is +x when
    facing the camera.
A part is an elliptical tapered capsule in its own canonical coordinates q: the hull of a ball of
radius ``r0`` at the origin and a ball of radius ``r1`` at (0, -length, 0), with the far side of one
plane cut away, then stretched by ``scale`` along its axes, turned and moved. Its front is +z. Parts
keep their size in every view of a person, so a surface point q means the same piece of cloth
everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from posemodel.data.mannequin_person import Draws, Person

_SIDED = ("upper_arm", "forearm", "hand", "thigh", "shin", "foot")
PART_NAMES = (
    "background", "head", "hair", "hair_back", "neck", "chest", "abdomen", "pelvis",
    *(f"right_{name}" for name in _SIDED), *(f"left_{name}" for name in _SIDED), "skirt",
)  # fmt: skip
PARTS = PART_NAMES[1:]
INDEX = {name: p for p, name in enumerate(PARTS)}

# Heights of the torso's levels above the hip joints, as fractions of the body's height.
WAIST, SKIRT_TOP, RIBS, CHEST_TOP, SHOULDER, NECK_TOP = 0.07, 0.018, 0.12, 0.260, 0.254, 0.335
UPPER_ARM, FOREARM, THIGH, SHIN, HIP = 0.176, 0.146, 0.245, 0.246, 0.044


@dataclass
class Shape:
    """Sizes of the parts: ``scale`` [B, P, 3], ``r0, r1, length`` [B, P], ``clip`` [B, P, 4],
    ``exists`` [B, P].

    A point is cut away where ``clip[:3] . q > clip[3]``.
    """

    scale: np.ndarray
    r0: np.ndarray
    r1: np.ndarray
    length: np.ndarray
    clip: np.ndarray
    exists: np.ndarray


@dataclass
class Stance:
    """Two views per sample: frames of the parts, and ``joints`` [B, 2, 18, 3].

    A part's frame is ``rotation`` [B, 2, P, 3, 3] and ``origin`` [B, 2, P, 3].
    """

    rotation: np.ndarray
    origin: np.ndarray
    joints: np.ndarray
    facing: np.ndarray  # [B, 2] degrees, 0 = towards the camera


def build_shape(person: Person) -> Shape:
    """Part sizes of each person."""
    batch, count = len(person.height), len(PARTS)
    shape = Shape(
        scale=np.ones((batch, count, 3)),
        r0=np.ones((batch, count)),
        r1=np.ones((batch, count)),
        length=np.full((batch, count), 1e-3),
        clip=np.tile([0.0, 0.0, 0.0, 1.0], (batch, count, 1)),
        exists=np.ones((batch, count), dtype=bool),
    )
    h, g = person.height, person.height * person.girth

    def put(name, r0, r1=None, length=None, scale=None, clip=None, exists=None):
        p = INDEX[name]
        shape.r0[:, p] = r0
        shape.r1[:, p] = r0 if r1 is None else r1
        if length is not None:
            shape.length[:, p] = length
        for axis, value in enumerate(scale or ()):
            shape.scale[:, p, axis] = value
        for column, value in enumerate(clip or ()):
            shape.clip[:, p, column] = value
        if exists is not None:
            shape.exists[:, p] = exists

    head = h * person.head
    put("head", 1.0, scale=(0.047 * head, 0.066 * head, 0.056 * head))
    # The hair is a shell around the head with an opening for the face: a plane cuts it away in
    # front and below.
    tilt = np.where(
        person.has_hair("short", "cap"), 0.85, np.where(person.has_hair("bob", "long"), 0.42, 0.6)
    )
    opening = np.where(person.has_hair("short", "cap"), 0.10, 0.30) + 0.10 * person.hair_length
    put(
        "hair",
        1.0,
        scale=(0.0525 * head, 0.0725 * head, 0.0615 * head),
        clip=(0.0, -np.sin(tilt), np.cos(tilt), opening),
        exists=~person.has_hair("bald"),
    )
    long, bob = person.has_hair("long"), person.has_hair("bob")
    tail, bun = person.has_hair("ponytail"), person.has_hair("bun")
    width = np.select([long, bob, tail], [0.048, 0.050, 0.018], 0.026) * head
    reach = (
        np.select([long, bob, tail], [0.09 + 0.11 * person.hair_length, 0.045, 0.11], 0.012) * head
    )
    put(
        "hair_back",
        width,
        np.where(tail, 0.6, 0.92) * width,
        reach,
        scale=(1.0, 1.0, np.where(long | bob, 0.62, 1.0)),
        exists=long | bob | tail | bun,
    )

    put("neck", 0.029 * g, 0.036 * g, (NECK_TOP - 0.262) * h)
    chest = 0.101 * person.shoulders * (0.55 + 0.45 * person.girth) * h
    waist, hips = 0.072 * person.waist * g, 0.088 * person.hips * g
    put(
        "chest",
        chest,
        np.minimum(1.06 * waist, 1.1 * chest),
        (CHEST_TOP - RIBS) * h / 0.29,
        scale=(1.0, 0.29, 0.58),
    )
    put(
        "abdomen", 1.02 * waist, 0.97 * hips, (RIBS + 0.01 - 0.03) * h / 0.6, scale=(1.0, 0.6, 0.66)
    )
    put("pelvis", 0.99 * hips, 1.0 * hips, 0.045 * h / 0.6, scale=(1.0, 0.6, 0.72))
    # Wide enough at the hips to hold the thighs, open below.
    drop = SKIRT_TOP * h + person.skirt
    flare = np.where(person.has_top("coat"), 1.12, 1.16 + 0.6 * person.skirt)
    around = 1.05 * (HIP * person.hips + 0.0500 * np.sqrt(person.looseness)) * g
    put("skirt", around, flare * around, drop / 0.8, scale=(1.0, 0.8, 0.80),
        clip=(0.0, -1.0, 0.0, drop / 0.8), exists=person.skirt > 0)  # fmt: skip

    sleeved = np.where(person.sleeve > 0.6, person.looseness, 1.0)
    wide = np.where((person.leg_end > 0.2) & ~person.has_bottom("leggings"), person.looseness, 1.0)
    arm, leg = h * person.arms, h * person.legs
    for side in ("right", "left"):
        put(f"{side}_upper_arm", 0.0310 * g, 0.0270 * g * sleeved, UPPER_ARM * arm)
        # Slightly thinner where it meets the upper arm: two coincident balls would fight for the
        # elbow.
        put(f"{side}_forearm", 0.0260 * g * sleeved, 0.019 * g * np.sqrt(sleeved), FOREARM * arm)
        put(f"{side}_hand", 0.020 * h, 0.017 * h, 0.055 * h, scale=(0.62, 1.0, 1.0))
        put(f"{side}_thigh", 0.0500 * g * np.sqrt(wide), 0.0375 * g * wide, THIGH * leg)
        put(f"{side}_shin", 0.0360 * g * wide, 0.0235 * g * wide, SHIN * leg)
        put(f"{side}_foot", 0.0265 * h, 0.0200 * h, 0.092 * h, scale=(0.95, 1.0, 1.0),
            clip=(0.0, 0.0, -1.0, 0.0150 * h))  # fmt: skip
    return shape


def _rotation(axis: int, degrees: np.ndarray) -> np.ndarray:
    """``[..., 3, 3]`` right-handed rotations about a coordinate axis."""
    angle = np.deg2rad(degrees)
    out = np.zeros((*angle.shape, 3, 3))
    a, b = (axis + 1) % 3, (axis + 2) % 3
    out[..., axis, axis] = 1.0
    out[..., a, a] = out[..., b, b] = np.cos(angle)
    out[..., b, a] = np.sin(angle)
    out[..., a, b] = -out[..., b, a]
    return out


# Arms as (abduction, flexion, inward twist, elbow) in degrees, with spreads: an everyday
# vocabulary, not a motion model.
_ARMS = np.array([
    # centre                      spread                 odds
    [[9, 2, 10, 16],     [5, 10, 20, 13]],    # hanging
    [[12, 24, 5, 32],    [5, 12, 15, 18]],    # swinging forward
    [[12, -22, 0, 18],   [5, 10, 15, 12]],    # swinging back
    [[47, -8, 62, 92],   [7, 8, 9, 10]],      # akimbo
    [[8, 40, 72, 84],    [5, 7, 10, 14]],     # across the belly
    [[2, 52, 78, 112],   [5, 9, 8, 14]],      # across the chest
    [[15, 75, 10, 35],   [12, 25, 20, 30]],   # reaching forward
    [[85, 10, 0, 25],    [22, 15, 30, 25]],   # out to the side
    [[148, 5, 0, 28],    [16, 15, 25, 25]],   # raised
    [[75, 35, -20, 122], [20, 20, 20, 14]],   # hand to the head
    [[16, -14, 28, 62],  [5, 6, 12, 10]],     # hand in a pocket
], dtype=float)  # fmt: skip
_ARM_ODDS = (3.2, 1.5, 1.2, 1.7, 1.2, 1.0, 1.2, 1.0, 1.0, 1.0, 1.2)

# Legs of both sides as (abduction, flexion, knee) for the leading and the other leg.
_LEGS = np.array([
    [[[4, 0, 3], [4, 0, 3]],       [[3, 3, 3], [3, 3, 3]]],      # standing
    [[[10, 1, 4], [10, 1, 4]],     [[4, 4, 4], [4, 4, 4]]],      # standing wide
    [[[7, 14, 26], [3, -2, 2]],    [[4, 6, 8], [3, 3, 2]]],      # weight on one leg
    [[[2, 25, 8], [2, -18, 24]],   [[2, 8, 6], [2, 7, 14]]],     # walking
    [[[4, 55, 72], [3, -2, 5]],    [[4, 18, 20], [3, 4, 4]]],    # stepping up
    [[[-6, 6, 8], [-3, -4, 4]],    [[2, 4, 6], [2, 3, 3]]],      # legs crossed
], dtype=float)  # fmt: skip
_LEG_ODDS = (3.0, 1.6, 2.0, 2.4, 0.9, 0.8)


def draw_stance(draws: Draws, person: Person, shape: Shape, turn: float) -> Stance:
    """Two stances of each person, each facing within ``turn`` degrees of the camera."""
    facing = draws.uniform(-turn, turn, 2)
    lead = np.sign(draws.uniform(-1.0, 1.0, 2))
    bow = draws.uniform(-5.0, 9.0, 2) + np.where(
        draws.uniform(0, 1, 2) < 0.12, draws.uniform(5, 25, 2), 0.0
    )
    sway, twist = draws.uniform(-8.0, 8.0, 2), draws.uniform(-14.0, 14.0, 2)
    nod, look, tip = (
        draws.uniform(-12.0, 16.0, 2),
        draws.uniform(-32.0, 32.0, 2),
        draws.uniform(-9.0, 9.0, 2),
    )
    tilt = draws.uniform(-3.0, 3.0, 2)

    arms = _ARMS[draws.pick(_ARM_ODDS, 2, 2)]  # [B, view, side, 2, 4]
    arms = arms[..., 0, :] + arms[..., 1, :] * draws.uniform(-1.0, 1.0, 2, 2, 4)
    # Now and then both arms do the same.
    arms = np.where(draws.uniform(0.0, 1.0, 2, 1, 1) < 0.25, arms[:, :, :1], arms)
    legs = _LEGS[draws.pick(_LEG_ODDS, 2)]  # [B, view, 2, leg, 3]
    legs = legs[..., 0, :, :] + legs[..., 1, :, :] * draws.uniform(-1.0, 1.0, 2, 2, 3)
    legs = np.where(lead[..., None, None] > 0, legs, legs[..., ::-1, :])
    # A skirt is one rigid part: the legs under it spread less.
    narrow = (person.skirt > 0)[:, None, None]
    legs[..., 0] *= np.where(narrow, 0.6, 1.0)
    legs[..., 1] = np.where(narrow, np.clip(0.6 * legs[..., 1], -12.0, 15.0), legs[..., 1])
    legs[..., 2] = np.where(narrow, np.minimum(legs[..., 2], 28.0), legs[..., 2])
    toes_out, toes_up = draws.uniform(2.0, 22.0, 2, 2), draws.uniform(-8.0, 8.0, 2, 2)
    wrist = draws.uniform(-18.0, 22.0, 2, 2)

    h = person.height[:, None]  # [B, 1] against [B, view]
    arm, leg, head_size = (
        h * person.arms[:, None],
        h * person.legs[:, None],
        h * person.head[:, None],
    )
    batch = len(person.height)
    rotation = np.zeros((batch, 2, len(PARTS), 3, 3))
    origin = np.zeros((batch, 2, len(PARTS), 3))
    joints = np.zeros((batch, 2, 18, 3))

    def at(frame, base, **local):
        """The point at these coordinates (x, y, z: [B, view] or [B, 1]) of a frame at base."""
        for axis, value in local.items():
            base = base + frame[..., "xyz".index(axis)] * value[..., None]
        return base

    def put(name, frame, point):
        rotation[:, :, INDEX[name]], origin[:, :, INDEX[name]] = frame, point

    root = _rotation(1, facing) @ _rotation(2, tilt)
    zero = np.zeros((batch, 2, 3))
    half = root @ _rotation(1, 0.4 * twist) @ _rotation(2, 0.45 * sway) @ _rotation(0, 0.45 * bow)
    chest = root @ _rotation(1, twist) @ _rotation(2, sway) @ _rotation(0, bow)
    waist = at(root, zero, y=WAIST * h)
    put("pelvis", root, at(root, zero, y=0.040 * h))
    put("skirt", root, at(root, zero, y=SKIRT_TOP * h))
    put("abdomen", half, at(half, waist, y=(RIBS + 0.01 - WAIST) * h))
    put("chest", chest, at(chest, waist, y=(CHEST_TOP - WAIST) * h))
    put("neck", chest, at(chest, waist, y=(NECK_TOP - WAIST) * h, z=0.004 * h))
    shoulder_y = (SHOULDER - WAIST) * h
    joints[:, :, 1] = at(chest, waist, y=shoulder_y)

    head = chest @ _rotation(1, look) @ _rotation(2, tip) @ _rotation(0, nod)
    skull = at(
        head,
        at(chest, waist, y=(NECK_TOP - WAIST - 0.006) * h),
        y=0.058 * head_size,
        z=0.010 * head_size,
    )
    put("head", head, skull)
    put("hair", head, at(head, skull, y=0.003 * head_size, z=-0.003 * head_size))
    tail = person.has_hair("ponytail")[:, None]
    bun = person.has_hair("bun")[:, None]
    lift = np.where(tail, 0.030, np.where(bun, 0.062, 0.0)) * head_size
    back = np.where(tail, -0.062, np.where(bun, -0.034, -0.030)) * head_size
    put(
        "hair_back",
        head @ _rotation(0, np.where(tail, 14.0, 0.0) + 0 * nod),
        at(head, skull, y=lift, z=back),
    )
    face = ((0, 0.0, -0.010, 0.060), (14, -0.017, 0.009, 0.050), (15, 0.017, 0.009, 0.050),
            (16, -0.047, -0.002, 0.0), (17, 0.047, -0.002, 0.0))  # fmt: skip
    for joint, x, y, z in face:
        joints[:, :, joint] = at(head, skull, x=x * head_size, y=y * head_size, z=z * head_size)

    for s, (side, sign) in enumerate((("right", -1.0), ("left", 1.0))):
        abduction, flexion, inward, elbow = np.moveaxis(arms[:, :, s], -1, 0)
        shoulder = at(chest, waist, x=sign * 0.103 * h * person.shoulders[:, None], y=shoulder_y)
        upper = (
            chest
            @ _rotation(2, sign * abduction)
            @ _rotation(0, -flexion)
            @ _rotation(1, -sign * inward)
        )
        bend = at(upper, shoulder, y=-UPPER_ARM * arm)
        fore = upper @ _rotation(0, -elbow)
        end = at(fore, bend, y=-FOREARM * arm)
        put(f"{side}_upper_arm", upper, shoulder)
        put(f"{side}_forearm", fore, bend)
        put(f"{side}_hand", fore @ _rotation(0, -wrist[:, :, s]), at(fore, end, y=-0.010 * h))
        joints[:, :, 2 + 3 * s], joints[:, :, 3 + 3 * s], joints[:, :, 4 + 3 * s] = (
            shoulder,
            bend,
            end,
        )

        abduction, flexion, knee = np.moveaxis(legs[:, :, s], -1, 0)
        knee = np.maximum(knee, 0.0)
        hip = at(root, zero, x=sign * HIP * h * person.hips[:, None] * person.girth[:, None])
        thigh = root @ _rotation(2, sign * abduction) @ _rotation(1, sign * 0.5 * toes_out[:, :, s])
        thigh = thigh @ _rotation(0, -flexion)
        bend = at(thigh, hip, y=-THIGH * leg)
        shin = thigh @ _rotation(0, knee)
        end = at(shin, bend, y=-SHIN * leg)
        # The ankle levels the foot as far as it can.
        level = np.clip(0.8 * (flexion - knee), -35.0, 18.0) + toes_up[:, :, s]
        foot = shin @ _rotation(1, sign * 0.5 * toes_out[:, :, s]) @ _rotation(0, level)
        put(f"{side}_thigh", thigh, hip)
        put(f"{side}_shin", shin, bend)
        put(
            f"{side}_foot",
            foot @ _rotation(0, np.full_like(level, -90.0)),
            at(foot, end, y=-0.020 * h, z=-0.012 * h),
        )
        joints[:, :, 8 + 3 * s], joints[:, :, 9 + 3 * s], joints[:, :, 10 + 3 * s] = hip, bend, end
    return Stance(rotation=rotation, origin=origin, joints=joints, facing=facing)
