"""The rigid parts that a mannequin is made of, and how large they are on each person.

A part is an elliptical tapered capsule in its own canonical coordinates q: the hull of a ball of
radius `r0` at the origin and a ball of radius `r1` at (0, -length, 0), with the far side of one
plane cut away, then stretched by `scale` along its axes, turned and moved. Its front is +z. Parts
keep their size in every view of a person, so a surface point q means the same piece of cloth
everywhere.

Lengths are fractions of the body's height unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from posemodel.mannequins.person import Person

_SIDED = ("upper_arm", "forearm", "hand", "thigh", "shin", "foot")
PART_NAMES = (
    "background", "head", "hair", "hair_back", "neck", "chest", "abdomen", "pelvis",
    *(f"right_{name}" for name in _SIDED), *(f"left_{name}" for name in _SIDED), "skirt",
)
PARTS = PART_NAMES[1:]
INDEX = {name: p for p, name in enumerate(PARTS)}

# Heights of the torso's levels above the hip joints.
WAIST, SKIRT_TOP, PELVIS_TOP, RIBS = 0.07, 0.018, 0.040, 0.12
ABDOMEN_TOP, CHEST_TOP, SHOULDER, NECK_TOP = RIBS + 0.01, 0.260, 0.254, 0.335
_ABDOMEN_END, _NECK_END = 0.03, 0.262
UPPER_ARM, FOREARM, THIGH, SHIN = 0.176, 0.146, 0.245, 0.246
HIP = 0.044  # from the middle

# Half axes (x, y, z) of the skull and of the hair around it, in head sizes.
_SKULL, _HAIR = (0.047, 0.066, 0.056), (0.0525, 0.0725, 0.0615)
# How the hair of each of `HAIR_STYLES` lies. A plane cuts it away in front and below, for the face:
# its tilt (radians) and distance. Radius and length of what hangs behind, in head sizes.
_HAIR_STYLES = np.array([
    [0.60, 0.30, 0.026, 0.012],  # bald
    [0.85, 0.10, 0.026, 0.012],  # short
    [0.42, 0.30, 0.050, 0.045],  # bob
    [0.42, 0.30, 0.048, 0.090],  # long
    [0.60, 0.30, 0.026, 0.012],  # bun
    [0.60, 0.30, 0.018, 0.110],  # ponytail
    [0.85, 0.10, 0.026, 0.012],  # cap
])
_RECEDING, _LONGER = 0.10, 0.11  # more of that distance and, of long hair, of that length

# Widths of the torso, to either side, and how it is stretched (x, y, z).
_CHEST_WIDTH, _WAIST_WIDTH, _HIP_WIDTH = 0.101, 0.072, 0.088
_CHEST, _ABDOMEN, _PELVIS, _SKIRT = (1.0, 0.29, 0.58), (1.0, 0.6, 0.66), (1.0, 0.6, 0.72), \
    (1.0, 0.8, 0.80)
_PELVIS_LENGTH = 0.045
# Radii at both ends.
_NECK = (0.029, 0.036)
_UPPER_ARM = (0.0310, 0.0270)
# Slightly thinner where it meets the upper arm: two coincident balls would fight for the elbow.
_FOREARM = (0.0260, 0.019)
_THIGH, _SHIN = (0.0500, 0.0375), (0.0360, 0.0235)
# Radii, length, stretch across.
_HAND, _FOOT = (0.020, 0.017, 0.055, 0.62), (0.0265, 0.0200, 0.092, 0.95)
_SOLE = 0.0150  # the plane that cuts the foot off below


@dataclass
class Shape:
    """Sizes of the parts: `scale` [B, P, 3], `r0, r1, length` [B, P], `clip` [B, P, 4], `exists`
    [B, P].

    A point is cut away where `clip[:3] . q > clip[3]`.
    """

    scale: np.ndarray
    r0: np.ndarray
    r1: np.ndarray
    length: np.ndarray
    clip: np.ndarray
    exists: np.ndarray

    @classmethod
    def empty(cls, batch: int) -> Shape:
        """Unit balls that nothing is cut from."""
        count = len(PARTS)
        return cls(scale=np.ones((batch, count, 3)), r0=np.ones((batch, count)),
                   r1=np.ones((batch, count)), length=np.full((batch, count), 1e-3),
                   clip=np.tile([0.0, 0.0, 0.0, 1.0], (batch, count, 1)),
                   exists=np.ones((batch, count), dtype=bool))

    def put(self, name: str, r0, r1=None, length=None, *, scale: Sequence = (),
            clip: Sequence = (), exists=True) -> None:
        """Set one part's sizes, each a number or [B]; `r1` is `r0` where it is not given."""
        p = INDEX[name]
        self.r0[:, p] = r0
        self.r1[:, p] = r0 if r1 is None else r1
        if length is not None:
            self.length[:, p] = length
        for axis, value in enumerate(scale):
            self.scale[:, p, axis] = value
        for column, value in enumerate(clip):
            self.clip[:, p, column] = value
        self.exists[:, p] = exists


def build_shape(person: Person) -> Shape:
    """Part sizes of each person."""
    shape = Shape.empty(len(person.height))
    _put_head(shape, person)
    _put_torso(shape, person)
    _put_skirt(shape, person)
    for side in ("right", "left"):
        _put_limbs(shape, person, side)
    return shape


def _put_head(shape: Shape, person: Person) -> None:
    size = person.height * person.head
    shape.put("head", 1.0, scale=[axis * size for axis in _SKULL])
    # The hair is a shell around the head with an opening for the face.
    tilt, opening, radius, reach = _HAIR_STYLES[person.hair_style].T
    shape.put("hair", 1.0, scale=[axis * size for axis in _HAIR], exists=~person.has_hair("bald"),
              clip=(0.0, -np.sin(tilt), np.cos(tilt), opening + _RECEDING * person.hair_length))
    width = radius * size
    longer = np.where(person.has_hair("long"), _LONGER * person.hair_length, 0.0)
    shape.put("hair_back", width, np.where(person.has_hair("ponytail"), 0.6, 0.92) * width,
              (reach + longer) * size,
              scale=(1.0, 1.0, np.where(person.has_hair("long", "bob"), 0.62, 1.0)),
              exists=person.has_hair("long", "bob", "ponytail", "bun"))


def _put_torso(shape: Shape, person: Person) -> None:
    h, g = person.height, person.height * person.girth
    shape.put("neck", _NECK[0] * g, _NECK[1] * g, (NECK_TOP - _NECK_END) * h)
    chest = _CHEST_WIDTH * person.shoulders * (0.55 + 0.45 * person.girth) * h
    waist, hips = _WAIST_WIDTH * person.waist * g, _HIP_WIDTH * person.hips * g
    shape.put("chest", chest, np.minimum(1.06 * waist, 1.1 * chest),
              (CHEST_TOP - RIBS) * h / _CHEST[1], scale=_CHEST)
    shape.put("abdomen", 1.02 * waist, 0.97 * hips,
              (ABDOMEN_TOP - _ABDOMEN_END) * h / _ABDOMEN[1], scale=_ABDOMEN)
    shape.put("pelvis", 0.99 * hips, hips, _PELVIS_LENGTH * h / _PELVIS[1], scale=_PELVIS)


def _put_skirt(shape: Shape, person: Person) -> None:
    # Wide enough at the hips to hold the thighs, open below.
    drop = SKIRT_TOP * person.height + person.skirt
    flare = np.where(person.has_top("coat"), 1.12, 1.16 + 0.6 * person.skirt)
    thigh = _THIGH[0] * np.sqrt(person.looseness)
    around = 1.05 * (HIP * person.hips + thigh) * (person.height * person.girth)
    length = drop / _SKIRT[1]
    shape.put("skirt", around, flare * around, length, scale=_SKIRT,
              clip=(0.0, -1.0, 0.0, length), exists=person.skirt > 0)


def _put_limbs(shape: Shape, person: Person, side: str) -> None:
    h, g = person.height, person.height * person.girth
    arm, leg = h * person.arms, h * person.legs
    sleeved = np.where(person.sleeve > 0.6, person.looseness, 1.0)
    wide = np.where((person.leg_end > 0.2) & ~person.has_bottom("leggings"), person.looseness, 1.0)
    shape.put(f"{side}_upper_arm", _UPPER_ARM[0] * g, _UPPER_ARM[1] * g * sleeved, UPPER_ARM * arm)
    shape.put(f"{side}_forearm", _FOREARM[0] * g * sleeved, _FOREARM[1] * g * np.sqrt(sleeved),
              FOREARM * arm)
    shape.put(f"{side}_thigh", _THIGH[0] * g * np.sqrt(wide), _THIGH[1] * g * wide, THIGH * leg)
    shape.put(f"{side}_shin", _SHIN[0] * g * wide, _SHIN[1] * g * wide, SHIN * leg)
    for name, (r0, r1, length, across), clip in (
            ("hand", _HAND, ()), ("foot", _FOOT, (0.0, 0.0, -1.0, _SOLE * h))):
        shape.put(f"{side}_{name}", r0 * h, r1 * h, length * h, scale=(across, 1.0, 1.0), clip=clip)
