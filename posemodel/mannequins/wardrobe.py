"""What a mannequin wears: tables of materials, garments, prints and the face, drawn on the host.

Lengths are in metres. The garment coordinate v is measured down from `SHOULDER_V` above the hips
and is one coordinate from the shoulders to the feet, so that stripes and hems run on from part to
part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from posemodel.mannequins import body
from posemodel.mannequins.body import INDEX, PARTS, Shape
from posemodel.mannequins.person import CLOTH, HAIR, LOWER, PATTERNS, SHOES, SKIN, Draws, Person
from posemodel.mannequins.render import send

SKIN_M, TOP_M, BOTTOM_M, SHOE_M, HAIR_M, ACCENT_M, INNER_M, SOCK_M = range(8)
MATERIALS = 8


class Material:
    """Columns of a material: two colours; waves along and around; how the two waves are mixed;
    folds."""

    C1, C2, ALONG, AROUND, SLANT, PHASE_A, PHASE_B = 0, 3, 6, 7, 8, 9, 10
    WA, WB, WAB, BIAS, SHARP, FOLD = 11, 12, 13, 14, 15, 16
    COUNT = 17


class Surface:
    """Columns of a surface: the garment coordinate v as an affine function of q; girth; tone and
    shade; three bands of material in v, and where the second and third begin."""

    V, GIRTH, TONE, SHADE, BANDS, ENDS = 0, 4, 5, 6, 7, 10
    COUNT = 12


# Prints on the torso, per side: centre, half sizes, weights of three norms (diamond, disc, box),
# hole, colour, strength.
DECALS, DECAL_COLUMNS = 3, 12
_BOX = 2  # the last of the norms

SHOULDER_V = 0.290  # of the body's height
_ARM, _LEG = 0.322, 0.491  # shoulder to wrist and hip to ankle, of the height
_FAR = 9.0  # an end that no part reaches
_BELT = _CUFF = 0.035
_TUCKED = 0.25  # hems above are tucked in, under a belt
_EDGE = 0.015  # over which the edges of a stripe blend, so that a finer image resolves them

_MIX = np.array([
    # along around both bias
    [0.0, 0.0, 0.0, -1.0],   # plain
    [1.0, 0.0, 0.0, 0.0],    # stripes
    [0.0, 1.0, 0.0, 0.0],    # vertical
    [0.0, 0.0, 1.0, 0.0],    # checker
    [0.5, 0.5, 0.0, 0.0],    # gingham
    [0.5, 0.5, 0.0, -0.42],  # dots
    [1.0, 0.0, 0.0, 0.0],    # diagonal
    [1.0, 0.0, 0.0, 0.0],    # block
])
_IRIS = np.array([[0.10, 0.07, 0.05], [0.12, 0.25, 0.42], [0.16, 0.30, 0.18], [0.24, 0.14, 0.07]])
_SOCKS, _LIPS = np.array([0.85, 0.84, 0.82]), np.array([0.62, 0.20, 0.22])


@dataclass
class Wardrobe:
    """Tables with one column per material of a person (8 each), part, side of the torso, face.

    `materials` [17, B*8], `surfaces` [12, B*P], `decals` [36, B*2], `face` [16, B].
    """

    materials: torch.Tensor
    surfaces: torch.Tensor
    decals: torch.Tensor
    face: torch.Tensor


def build_wardrobe(person: Person, shape: Shape, device: torch.device) -> Wardrobe:
    """Tables of one person per sample, made on the host and sent to `device`."""
    draws = person.draws
    batch = len(person.height)
    materials = _materials(person, draws)
    tables = (materials.reshape(batch * MATERIALS, Material.COUNT),
              _surfaces(person, shape).reshape(batch * len(PARTS), Surface.COUNT),
              _decals(person, draws, materials).reshape(batch * 2, DECALS * DECAL_COLUMNS),
              _face(person, draws, materials))
    return Wardrobe(*(send(table.T, device) for table in tables))


# --- materials ----------------------------------------------------------------------------------


def _materials(person: Person, draws: Draws) -> np.ndarray:
    table = np.zeros((len(person.height), MATERIALS, Material.COUNT))
    table[:, :, Material.BIAS], table[:, :, Material.SHARP] = -1.0, 1.0  # plain
    skin = draws.color(SKIN, 0.025)
    hair = draws.color(HAIR, 0.03)
    first = draws.color(CLOTH)
    second = _apart(draws.color(CLOTH), first)
    lower = _apart(draws.color(LOWER, 0.03), first, 0.25)
    lower_second = _apart(draws.color(CLOTH), lower)
    _paint(table, SKIN_M, skin)
    _paint(table, TOP_M, first, second, fold=0.10)
    _paint(table, BOTTOM_M, lower, lower_second, fold=0.12)
    _paint(table, SHOE_M, draws.color(SHOES))
    _paint(table, HAIR_M, hair, 0.62 * hair, fold=0.12)
    _paint(table, ACCENT_M, _apart(draws.color(CLOTH), lower, 0.4))
    _paint(table, INNER_M, _apart(draws.color(CLOTH), first), fold=0.06)
    _paint(table, SOCK_M, np.where(draws.uniform(0, 1, 1) < 0.5, _SOCKS, second))
    _weave(table, TOP_M, draws, (1.6, 2.0, 1.0, 1.0, 0.9, 0.9, 0.8, 0.9), (0.14, 0.24))
    _weave(table, BOTTOM_M, draws, (5.0, 0.5, 0.8, 0.5, 0.7, 0.4, 0.4, 0.0), (0.13, 0.22))
    _weave(table, HAIR_M, draws, (0.0, 0.0, 1.0), (0.2, 0.21))
    table[:, HAIR_M, Material.AROUND], table[:, HAIR_M, Material.SHARP] = 9.0, 0.5
    return table


def _apart(color: np.ndarray, other: np.ndarray, least: float = 0.45) -> np.ndarray:
    """`color`, made light or dark where it could hardly be told from `other`."""
    distance = np.abs(color - other).sum(-1, keepdims=True)
    dark = other.mean(-1, keepdims=True) < 0.45
    changed = np.where(dark, 0.35 * color + 0.60, 0.30 * color + 0.03)
    return np.where(distance < least, changed, color)


def _paint(table: np.ndarray, m: int, first: np.ndarray, second: np.ndarray | None = None, *,
           fold: float = 0.0) -> None:
    """Give a material its two colours, or one, and its folds."""
    table[:, m, Material.C1 : Material.C1 + 3] = first
    table[:, m, Material.C2 : Material.C2 + 3] = first if second is None else second
    table[:, m, Material.FOLD] = fold


def _weave(table: np.ndarray, m: int, draws: Draws, odds: Sequence[float],
           period: tuple[float, float]) -> None:
    """Give a material a pattern, drawn with these odds."""
    kind = draws.pick(odds)
    is_kind = {name: kind == number for number, name in enumerate(PATTERNS)}
    length = draws.uniform(*period) * np.where(is_kind["block"], 4.6, 1.0)
    turns = np.floor(draws.uniform(3.0, 6.0)) * np.where(is_kind["vertical"], 1.34, 1.0)
    table[:, m, Material.ALONG] = 1.0 / length
    table[:, m, Material.AROUND] = np.floor(turns + 0.5)
    slant = np.where(draws.uniform(0, 1) < 0.5, -1.0, 1.0) * np.floor(draws.uniform(2.0, 4.0))
    table[:, m, Material.SLANT] = np.where(is_kind["diagonal"], slant, 0.0)
    table[:, m, Material.PHASE_A] = draws.uniform(0, 1)
    table[:, m, Material.PHASE_B] = draws.uniform(0, 1)
    table[:, m, Material.WA : Material.BIAS + 1] = _MIX[kind]
    sharp = length / (4 * _EDGE)
    # Gingham keeps its half tone.
    table[:, m, Material.SHARP] = np.where(is_kind["gingham"], np.minimum(sharp, 1.6), sharp)


# --- surfaces -----------------------------------------------------------------------------------


class _Surfaces:
    """The table of surfaces in the making, `[B, P, 12]`."""

    def __init__(self, person: Person, shape: Shape):
        self.table = np.zeros((len(person.height), len(PARTS), Surface.COUNT))
        self.table[:, :, Surface.V + 1] = -shape.scale[:, :, 1]  # v grows downwards, in metres
        self.table[:, :, Surface.SHADE] = 0.20

    def dress(self, name: str, bands: Sequence, ends: Sequence = (_FAR, _FAR), *, start=0.0,
              girth=1.0, tone=1.0) -> None:
        """Three bands of material on a part, of which the second and the third begin at `ends`;
        v is `start` at the part's origin."""
        p = INDEX[name]
        self.table[:, p, Surface.V + 3] = start
        self.table[:, p, Surface.GIRTH], self.table[:, p, Surface.TONE] = girth, tone
        for k, band in enumerate(bands):
            self.table[:, p, Surface.BANDS + k] = band
        for k, end in enumerate(ends):
            self.table[:, p, Surface.ENDS + k] = end


def _surfaces(person: Person, shape: Shape) -> np.ndarray:
    surfaces = _Surfaces(person, shape)
    h = person.height
    # v of each part's origin.
    start = {name: (SHOULDER_V - level) * h for name, level in (
        ("chest", body.CHEST_TOP), ("abdomen", body.ABDOMEN_TOP), ("pelvis", body.PELVIS_TOP),
        ("skirt", body.SKIRT_TOP), ("thigh", 0.0))}
    _dress_head(surfaces, person)
    _dress_torso(surfaces, person, start)
    for side in ("right", "left"):
        _dress_arm(surfaces, person, side, start["chest"])
        _dress_leg(surfaces, person, side, start["thigh"])
    surfaces.table[:, INDEX["head"], Surface.SHADE] = 0.10
    surfaces.table[:, INDEX["hair"], Surface.SHADE] = 0.12
    return surfaces.table


def _dress_head(surfaces: _Surfaces, person: Person) -> None:
    surfaces.dress("head", (SKIN_M,) * 3)
    cap = np.where(person.has_hair("cap"), ACCENT_M, HAIR_M)
    surfaces.dress("hair", (cap,) * 3)
    surfaces.dress("hair_back", (HAIR_M,) * 3, tone=0.94)
    collar = np.where(person.has_top("shirt", "sweater", "coat"), 0.030 * person.height, _FAR)
    surfaces.dress("neck", (SKIN_M, ACCENT_M, ACCENT_M), (collar, _FAR), tone=0.93)


def _bottom(person: Person) -> np.ndarray:
    """The material below the hem of the top."""
    return np.where(person.has_top("dress"), TOP_M, BOTTOM_M)


def _dress_torso(surfaces: _Surfaces, person: Person, start: dict[str, np.ndarray]) -> None:
    h = person.height
    surfaces.dress("chest", (TOP_M,) * 3, start=start["chest"])
    hem, belt = person.hem * h, np.where(person.hem < _TUCKED, _BELT, 0.0)
    for name in ("abdomen", "pelvis"):
        surfaces.dress(name, (TOP_M, ACCENT_M, _bottom(person)),
                       (hem - 0.5 * belt, hem + 0.5 * belt), start=start[name])
    skirt = np.where(person.has_top("coat", "dress"), TOP_M, BOTTOM_M)
    edge = start["skirt"] + body.SKIRT_TOP * h + person.skirt - _BELT
    surfaces.dress("skirt", (skirt, ACCENT_M, ACCENT_M), (edge, _FAR), start=start["skirt"],
                   girth=1.15, tone=0.97)


def _dress_arm(surfaces: _Surfaces, person: Person, side: str, shoulder: np.ndarray) -> None:
    length = person.height * person.arms
    sleeve = person.sleeve * _ARM * length + shoulder
    cuff = np.where(person.has_top("sweater", "jacket", "coat", "tee"), _CUFF, 0.0)
    for name, start, girth, tone in (("upper_arm", 0.0, 0.30, 0.95),
                                     ("forearm", body.UPPER_ARM * length, 0.25, 0.97)):
        surfaces.dress(f"{side}_{name}", (TOP_M, ACCENT_M, SKIN_M), (sleeve - cuff, sleeve),
                       start=start + shoulder, girth=girth, tone=tone)
    surfaces.dress(f"{side}_hand", (SKIN_M,) * 3, tone=0.98)


def _dress_leg(surfaces: _Surfaces, person: Person, side: str, hip: np.ndarray) -> None:
    h = person.height
    length = h * person.legs
    legs = np.where(person.leg_end > 0, _bottom(person), SKIN_M)
    trouser = person.leg_end * _LEG * length + hip
    booted = person.boot_top < 1
    boot = np.where(booted, person.boot_top * _LEG * length, 0.465 * length) + hip
    surfaces.dress(f"{side}_thigh", (TOP_M, legs, SKIN_M), (person.hem * h, trouser), start=hip,
                   girth=0.50)
    surfaces.dress(f"{side}_shin", (legs, SKIN_M, np.where(booted, SHOE_M, SOCK_M)),
                   (trouser, np.maximum(boot, trouser)), start=hip + body.THIGH * length,
                   girth=0.40)
    surfaces.dress(f"{side}_foot", (SHOE_M, SOCK_M, SOCK_M), (0.008 * h, _FAR))
    foot = surfaces.table[:, INDEX[f"{side}_foot"]]
    foot[:, Surface.V + 1], foot[:, Surface.V + 2] = 0.0, -1.0  # a foot lies: down is its -z
    foot[:, Surface.SHADE] = 0.08


# --- prints and face ----------------------------------------------------------------------------


def _decals(person: Person, draws: Draws, materials: np.ndarray) -> np.ndarray:
    """`[B, 2, 3, 12]`, x and v in metres.

    Front: neckline, opening, print or pocket. Back: yoke or print, a bar, nothing.
    """
    table = np.zeros((len(person.height), 2, DECALS, DECAL_COLUMNS))
    table[..., 2:4] = 1.0
    color = {m: materials[:, m, Material.C1 : Material.C1 + 3] for m in range(MATERIALS)}
    _decorate_front(table[:, 0], person, draws, color)
    _decorate_back(table[:, 1], person, draws, color)
    return table


def _put(decal: np.ndarray, center, half, norm, tint, strength, hole=-1.0) -> None:
    """Set one print, `[B, 12]`; `norm` is 0 diamond, 1 disc, 2 box."""
    decal[:, 0], decal[:, 1] = center
    decal[:, 2], decal[:, 3] = half
    decal[:, 4:7] = np.eye(3)[norm]
    decal[:, 7] = hole
    decal[:, 8:11] = tint
    decal[:, 11] = strength


def _decorate_front(side: np.ndarray, person: Person, draws: Draws,
                    color: dict[int, np.ndarray]) -> None:
    h = person.height
    open_front = person.has_top("jacket", "coat")
    inner = np.where(open_front[:, None], color[INNER_M], color[SKIN_M])
    width = draws.uniform(0.030, 0.048) * h
    depth = draws.uniform(0.035, 0.065) * h
    _put(side[:, 0], (0.0, 0.004 * h), (np.where(open_front, 1.3, 1.0) * width, depth),
         draws.pick([1.2, 1.0]), inner, 1.0 - person.has_top("shirt", "sweater"))
    # A jacket is open down to the hem; a shirt has a strip of buttons.
    wide = np.where(open_front, draws.uniform(0.020, 0.036) * h, 0.011)
    end = np.where(person.has_top("coat"), 0.30 * h, person.hem * h)
    tint = np.where(open_front[:, None], color[INNER_M], 0.55 * color[TOP_M])
    _put(side[:, 1], (0.0, 0.5 * end), (wide, 0.5 * end), _BOX, tint,
         open_front | person.has_top("shirt"))
    logo = person.has_top("tank", "tee", "sweater", "dress")
    pocket = person.has_top("shirt", "jacket")
    some = draws.uniform(0, 1) < 0.6
    tint = _apart(draws.color(CLOTH), color[TOP_M], 0.6)
    half = draws.uniform(0.045, 0.085, 2)
    where = draws.uniform(0.095, 0.135) * h
    hole = np.where(draws.uniform(0, 1) < 0.35, 0.42, -1.0)
    _put(side[:, 2], (np.where(pocket, 0.045 * h, 0.0), np.where(pocket, 0.09 * h, where)),
         np.where(pocket, 0.036, half.T), np.where(pocket, _BOX, draws.pick([1.0, 1.4, 1.2])),
         np.where(pocket[:, None], 0.62 * color[TOP_M], tint), (logo | pocket) & some,
         np.where(pocket, -1.0, hole))


def _decorate_back(side: np.ndarray, person: Person, draws: Draws,
                   color: dict[int, np.ndarray]) -> None:
    h = person.height
    back = draws.uniform(0, 1)
    tint = _apart(draws.color(CLOTH), color[TOP_M], 0.6)
    yoke = back < 0.25
    half = draws.uniform(0.05, 0.10, 2)
    _put(side[:, 0], (0.0, np.where(yoke, 0.055, 0.105) * h),
         (np.where(yoke, 0.30, half[:, 0]), np.where(yoke, 0.050, half[:, 1])),
         np.where(yoke, _BOX, draws.pick([1.0, 1.4, 1.2])), tint, back < 0.75,
         np.where((draws.uniform(0, 1) < 0.4) & ~yoke, 0.45, -1.0))
    _put(side[:, 1], (0.0, 0.19 * h), (draws.uniform(0.06, 0.12), 0.024), _BOX, tint,
         draws.uniform(0, 1) < 0.4)


def _face(person: Person, draws: Draws, materials: np.ndarray) -> np.ndarray:
    """Columns: skin, hair, iris and lip colours (3 each), beard, glasses, eye size, brow
    strength."""
    skin, hair = materials[:, SKIN_M, :3], materials[:, HAIR_M, :3]
    bearded = person.has_hair("bald", "short", "cap") & (person.skirt == 0)
    extras = [(bearded & (draws.uniform(0, 1) < 0.5)) * 0.75, (draws.uniform(0, 1) < 0.16) * 1.0,
              draws.uniform(0.9, 1.15), draws.uniform(0.6, 1.0)]
    iris = _IRIS[draws.pick([2, 1, 0.7, 1])]
    return np.concatenate([skin, hair, iris, 0.6 * _LIPS + 0.3 * skin, np.stack(extras, 1)], axis=1)
