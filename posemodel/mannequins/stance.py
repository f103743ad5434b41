"""How a mannequin stands: angles from an everyday vocabulary, and the skeleton that they make.

World: x to the image's right, y up, z towards the camera, metres; the person's own left is +x when
    facing the camera.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from posemodel.mannequins import body
from posemodel.mannequins.body import INDEX, PARTS
from posemodel.mannequins.person import Draws, Person

_SIDES = (("right", -1.0), ("left", 1.0))  # and the direction of x

# Arms as (abduction, flexion, inward twist, elbow) in degrees, with spreads: an everyday
# vocabulary, not a motion model.
_ARMS = np.array([
    # centre                      spread
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
], dtype=float)
_ARM_ODDS = (3.2, 1.5, 1.2, 1.7, 1.2, 1.0, 1.2, 1.0, 1.0, 1.0, 1.2)
_BOTH_ARMS = 0.25  # share of stances in which both do the same

# Legs of both sides as (abduction, flexion, knee) for the leading and the other leg.
_LEGS = np.array([
    [[[4, 0, 3], [4, 0, 3]],       [[3, 3, 3], [3, 3, 3]]],      # standing
    [[[10, 1, 4], [10, 1, 4]],     [[4, 4, 4], [4, 4, 4]]],      # standing wide
    [[[7, 14, 26], [3, -2, 2]],    [[4, 6, 8], [3, 3, 2]]],      # weight on one leg
    [[[2, 25, 8], [2, -18, 24]],   [[2, 8, 6], [2, 7, 14]]],     # walking
    [[[4, 55, 72], [3, -2, 5]],    [[4, 18, 20], [3, 4, 4]]],    # stepping up
    [[[-6, 6, 8], [-3, -4, 4]],    [[2, 4, 6], [2, 3, 3]]],      # legs crossed
], dtype=float)
_LEG_ODDS = (3.0, 1.6, 2.0, 2.4, 0.9, 0.8)
# A skirt is one rigid part: the legs under it spread less. Factor, flexion and knee, degrees.
_NARROWER, _NARROW_FLEXION, _NARROW_KNEE = 0.6, (-12.0, 15.0), 28.0

_BOWED = 0.12  # share of views in which the body is bowed far
_APART = 60.0  # degrees between two facings that show the same side
_ONE_SIDE = 2 / 3  # share of pairs that do, of bodies that may face further from the camera
_HALF_WAY = (0.4, 0.45)  # how much of the chest's twist and bending the abdomen follows
# In head sizes: the skull's centre from the top of the neck and, from there, the hair and the face.
_NECK_OVERLAP = 0.006  # of the body's height
_SKULL = (0.058, 0.010)  # y, z
_HAIR = (0.003, -0.003)
_HAIR_BEHIND, _BUN, _PONYTAIL = (0.0, -0.030), (0.062, -0.034), (0.030, -0.062)
_PONYTAIL_ANGLE = 14.0
_FACE = (
    # joint, x, y, z
    (0, 0.0, -0.010, 0.060), (14, -0.017, 0.009, 0.050), (15, 0.017, 0.009, 0.050),
    (16, -0.047, -0.002, 0.0), (17, 0.047, -0.002, 0.0),
)
# In heights of the body.
_NECK_FORWARD, _SHOULDER_WIDTH = 0.004, 0.103
_HAND_DOWN, _FOOT_DOWN, _FOOT_BACK = -0.010, -0.020, -0.012
_FOOT_LEVEL = (0.8, -35.0, 18.0)  # share of the leg's angle that the ankle takes back, and limits


@dataclass
class Stance:
    """Two views per sample: frames of the parts, and `joints` [B, 2, 18, 3].

    A part's frame is `rotation` [B, 2, P, 3, 3] and `origin` [B, 2, P, 3].
    """

    rotation: np.ndarray
    origin: np.ndarray
    joints: np.ndarray
    facing: np.ndarray  # [B, 2] degrees, 0 = towards the camera

    def put(self, name: str, frame: np.ndarray, point: np.ndarray) -> None:
        """Set one part's frame."""
        self.rotation[:, :, INDEX[name]], self.origin[:, :, INDEX[name]] = frame, point


@dataclass
class _Angles:
    """Degrees, [B, 2]; of arms and legs [B, 2, side, ...] as in their tables."""

    facing: np.ndarray
    bow: np.ndarray
    sway: np.ndarray
    twist: np.ndarray
    nod: np.ndarray
    look: np.ndarray
    tip: np.ndarray
    tilt: np.ndarray
    arms: np.ndarray
    legs: np.ndarray
    toes_out: np.ndarray
    toes_up: np.ndarray
    wrist: np.ndarray


def draw_stance(draws: Draws, person: Person, turn: float) -> Stance:
    """Two stances of each person, each facing within `turn` degrees of the camera; beyond 60, two
    of three pairs within 60 of each other."""
    angles = _draw_angles(draws, person, turn)
    batch, count = len(person.height), len(PARTS)
    stance = Stance(rotation=np.zeros((batch, 2, count, 3, 3)), facing=angles.facing,
                    origin=np.zeros((batch, 2, count, 3)), joints=np.zeros((batch, 2, 18, 3)))
    root = _rotation(1, angles.facing) @ _rotation(2, angles.tilt)
    chest, waist = _put_torso(stance, angles, person, root)
    _put_head(stance, angles, person, chest, waist)
    for side in range(2):
        _put_arm(stance, angles, person, chest, waist, side)
        _put_leg(stance, angles, person, root, side)
    return stance


def _draw_angles(draws: Draws, person: Person, turn: float) -> _Angles:
    facing = draws.uniform(-turn, turn, 2)
    if turn > _APART:
        # A film shows its person from one side: most people stay on the one they are seen from.
        near = draws.uniform(0.0, 1.0) < _ONE_SIDE
        beside = np.clip(facing[:, 0] + draws.uniform(-_APART, _APART), -turn, turn)
        facing[:, 1] = np.where(near, beside, facing[:, 1])
    lead = np.sign(draws.uniform(-1.0, 1.0, 2))
    bow = draws.uniform(-5.0, 9.0, 2) \
        + np.where(draws.uniform(0, 1, 2) < _BOWED, draws.uniform(5, 25, 2), 0.0)
    sway, twist = draws.uniform(-8.0, 8.0, 2), draws.uniform(-14.0, 14.0, 2)
    nod, look = draws.uniform(-12.0, 16.0, 2), draws.uniform(-32.0, 32.0, 2)
    tip, tilt = draws.uniform(-9.0, 9.0, 2), draws.uniform(-3.0, 3.0, 2)

    arms = _ARMS[draws.pick(_ARM_ODDS, 2, 2)]                            # [B, 2, side, 2, 4]
    arms = arms[..., 0, :] + arms[..., 1, :] * draws.uniform(-1.0, 1.0, 2, 2, 4)
    arms = np.where(draws.uniform(0.0, 1.0, 2, 1, 1) < _BOTH_ARMS, arms[:, :, :1], arms)
    legs = _LEGS[draws.pick(_LEG_ODDS, 2)]                                # [B, 2, 2, leg, 3]
    legs = legs[..., 0, :, :] + legs[..., 1, :, :] * draws.uniform(-1.0, 1.0, 2, 2, 3)
    legs = np.where(lead[..., None, None] > 0, legs, legs[..., ::-1, :])
    narrow = (person.skirt > 0)[:, None, None]
    legs[..., 0] *= np.where(narrow, _NARROWER, 1.0)
    legs[..., 1] = np.where(narrow, np.clip(_NARROWER * legs[..., 1], *_NARROW_FLEXION),
                            legs[..., 1])
    legs[..., 2] = np.where(narrow, np.minimum(legs[..., 2], _NARROW_KNEE), legs[..., 2])
    return _Angles(
        facing=facing, bow=bow, sway=sway, twist=twist, nod=nod, look=look, tip=tip, tilt=tilt,
        arms=arms, legs=legs, toes_out=draws.uniform(2.0, 22.0, 2, 2),
        toes_up=draws.uniform(-8.0, 8.0, 2, 2), wrist=draws.uniform(-18.0, 22.0, 2, 2))


def _put_torso(stance: Stance, angles: _Angles, person: Person,
               root: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The parts that hang on the hips; returns the chest's frame and the waist, [B, 2, 3]."""
    h = person.height[:, None]  # [B, 1] against [B, view]
    hips = np.zeros((len(h), 2, 3))
    twisting, bending = _HALF_WAY
    half = root @ _rotation(1, twisting * angles.twist) @ _rotation(2, bending * angles.sway) \
        @ _rotation(0, bending * angles.bow)
    chest = root @ _rotation(1, angles.twist) @ _rotation(2, angles.sway) \
        @ _rotation(0, angles.bow)
    waist = _at(root, hips, y=body.WAIST * h)
    stance.put("pelvis", root, _at(root, hips, y=body.PELVIS_TOP * h))
    stance.put("skirt", root, _at(root, hips, y=body.SKIRT_TOP * h))
    stance.put("abdomen", half, _at(half, waist, y=(body.ABDOMEN_TOP - body.WAIST) * h))
    stance.put("chest", chest, _at(chest, waist, y=(body.CHEST_TOP - body.WAIST) * h))
    stance.put("neck", chest,
               _at(chest, waist, y=(body.NECK_TOP - body.WAIST) * h, z=_NECK_FORWARD * h))
    stance.joints[:, :, 1] = _at(chest, waist, y=(body.SHOULDER - body.WAIST) * h)
    return chest, waist


def _put_head(stance: Stance, angles: _Angles, person: Person, chest: np.ndarray,
              waist: np.ndarray) -> None:
    h = person.height[:, None]
    size = h * person.head[:, None]
    head = chest @ _rotation(1, angles.look) @ _rotation(2, angles.tip) @ _rotation(0, angles.nod)
    neck = _at(chest, waist, y=(body.NECK_TOP - body.WAIST - _NECK_OVERLAP) * h)
    skull = _at(head, neck, y=_SKULL[0] * size, z=_SKULL[1] * size)
    stance.put("head", head, skull)
    stance.put("hair", head, _at(head, skull, y=_HAIR[0] * size, z=_HAIR[1] * size))
    tail, bun = person.has_hair("ponytail")[:, None], person.has_hair("bun")[:, None]
    lift, back = (np.where(tail, of_tail, np.where(bun, of_bun, of_others)) * size
                  for of_tail, of_bun, of_others in zip(_PONYTAIL, _BUN, _HAIR_BEHIND, strict=True))
    lean = np.broadcast_to(np.where(tail, _PONYTAIL_ANGLE, 0.0), angles.nod.shape)
    stance.put("hair_back", head @ _rotation(0, lean), _at(head, skull, y=lift, z=back))
    for joint, x, y, z in _FACE:
        stance.joints[:, :, joint] = _at(head, skull, x=x * size, y=y * size, z=z * size)


def _put_arm(stance: Stance, angles: _Angles, person: Person, chest: np.ndarray, waist: np.ndarray,
             s: int) -> None:
    side, sign = _SIDES[s]
    h = person.height[:, None]
    length = h * person.arms[:, None]
    abduction, flexion, inward, elbow = np.moveaxis(angles.arms[:, :, s], -1, 0)
    shoulder = _at(chest, waist, x=sign * _SHOULDER_WIDTH * h * person.shoulders[:, None],
                   y=(body.SHOULDER - body.WAIST) * h)
    upper = chest @ _rotation(2, sign * abduction) @ _rotation(0, -flexion) \
        @ _rotation(1, -sign * inward)
    bend = _at(upper, shoulder, y=-body.UPPER_ARM * length)
    fore = upper @ _rotation(0, -elbow)
    wrist = _at(fore, bend, y=-body.FOREARM * length)
    stance.put(f"{side}_upper_arm", upper, shoulder)
    stance.put(f"{side}_forearm", fore, bend)
    stance.put(f"{side}_hand", fore @ _rotation(0, -angles.wrist[:, :, s]),
               _at(fore, wrist, y=_HAND_DOWN * h))
    stance.joints[:, :, 2 + 3 * s : 5 + 3 * s] = np.stack([shoulder, bend, wrist], 2)


def _put_leg(stance: Stance, angles: _Angles, person: Person, root: np.ndarray, s: int) -> None:
    side, sign = _SIDES[s]
    h = person.height[:, None]
    length = h * person.legs[:, None]
    toes_out = angles.toes_out[:, :, s]
    abduction, flexion, knee = np.moveaxis(angles.legs[:, :, s], -1, 0)
    knee = np.maximum(knee, 0.0)
    hip = _at(root, np.zeros((len(h), 2, 3)),
              x=sign * body.HIP * h * person.hips[:, None] * person.girth[:, None])
    thigh = root @ _rotation(2, sign * abduction) @ _rotation(1, sign * 0.5 * toes_out)
    thigh = thigh @ _rotation(0, -flexion)
    bend = _at(thigh, hip, y=-body.THIGH * length)
    shin = thigh @ _rotation(0, knee)
    ankle = _at(shin, bend, y=-body.SHIN * length)
    # The ankle levels the foot as far as it can.
    share, *limits = _FOOT_LEVEL
    level = np.clip(share * (flexion - knee), *limits) + angles.toes_up[:, :, s]
    foot = shin @ _rotation(1, sign * 0.5 * toes_out) @ _rotation(0, level)
    stance.put(f"{side}_thigh", thigh, hip)
    stance.put(f"{side}_shin", shin, bend)
    stance.put(f"{side}_foot", foot @ _rotation(0, np.full_like(level, -90.0)),
               _at(foot, ankle, y=_FOOT_DOWN * h, z=_FOOT_BACK * h))
    stance.joints[:, :, 8 + 3 * s : 11 + 3 * s] = np.stack([hip, bend, ankle], 2)


def _at(frame: np.ndarray, base: np.ndarray, **local: np.ndarray) -> np.ndarray:
    """The point at these coordinates (x, y, z: [B, 2] or [B, 1]) of a frame at `base`."""
    for axis, value in local.items():
        base = base + frame[..., "xyz".index(axis)] * value[..., None]
    return base


def _rotation(axis: int, degrees: np.ndarray) -> np.ndarray:
    """`[..., 3, 3]` right-handed rotations about a coordinate axis."""
    angle = np.deg2rad(degrees)
    out = np.zeros((*angle.shape, 3, 3))
    a, b = (axis + 1) % 3, (axis + 2) % 3
    out[..., axis, axis] = 1.0
    out[..., a, a] = out[..., b, b] = np.cos(angle)
    out[..., b, a] = np.sin(angle)
    out[..., a, b] = -out[..., b, a]
    return out
