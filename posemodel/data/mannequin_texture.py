"""What a mannequin's surface looks like: garments, prints and face by surface point.

Nothing here depends on the view: light and folds are part of the cloth, so a surface point has one
colour for ever. The device side uses only + - * /, comparisons and rounding down, which give the
same bits in a batch of any size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from posemodel.data.mannequin_body import (
    CHEST_TOP,
    INDEX,
    PARTS,
    RIBS,
    SKIRT_TOP,
    THIGH,
    UPPER_ARM,
    Shape,
)
from posemodel.data.mannequin_person import CLOTH, HAIR, LOWER, PATTERNS, SHOES, SKIN, Draws, Person
from posemodel.data.mannequin_render import columns, send

SKIN_M, TOP_M, BOTTOM_M, SHOE_M, HAIR_M, ACCENT_M, INNER_M, SOCK_M = range(8)
MATERIALS = 8
# Columns of a material: two colours; waves along and around; how the two waves are mixed; folds.
_C1, _C2, _ALONG, _AROUND, _SLANT, _PHASE_A, _PHASE_B, _WA, _WB, _WAB, _BIAS, _SHARP, _FOLD = (
    0, 3, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
)  # fmt: skip
_MATERIAL_COLUMNS = 17
# Columns of a surface: the garment coordinate v as an affine function of q; girth; tone; three
# bands of material in v.
_V, _GIRTH, _TONE, _SHADE, _BANDS, _ENDS = 0, 4, 5, 6, 7, 10
_SURFACE_COLUMNS = 12
# Prints on the torso, per side: centre, half sizes, weights of three norms (diamond, disc, box),
# hole, colour, strength.
_DECALS, _DECAL_COLUMNS = 3, 12
SHOULDER_V = 0.290  # the garment coordinate v is measured down from this height above the hips
_TORSO = ("chest", "abdomen", "pelvis")

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
])  # fmt: skip


@dataclass
class Wardrobe:
    """Tables with one column per material of a person (8 each), part, side of the torso, face.

    ``materials`` [17, B*8], ``surfaces`` [12, B*P], ``decals`` [36, B*2], ``face`` [16, B].
    """

    materials: torch.Tensor
    surfaces: torch.Tensor
    decals: torch.Tensor
    face: torch.Tensor


def build_wardrobe(person: Person, shape: Shape, device: torch.device) -> Wardrobe:
    """Tables of one person per sample, made on the host and sent to ``device``."""
    draws = person.draws
    batch = len(person.height)
    materials = _materials(person, draws)
    tables = (
        materials.reshape(batch * MATERIALS, _MATERIAL_COLUMNS),
        _surfaces(person, shape).reshape(batch * len(PARTS), _SURFACE_COLUMNS),
        _decals(person, draws, materials).reshape(batch * 2, _DECALS * _DECAL_COLUMNS),
        _face(person, draws, materials),
    )
    return Wardrobe(*(send(table.T, device) for table in tables))


def _apart(color: np.ndarray, other: np.ndarray, least: float = 0.45) -> np.ndarray:
    """``color``, made light or dark where it could hardly be told from ``other``."""
    distance = np.abs(color - other).sum(-1, keepdims=True)
    dark = other.mean(-1, keepdims=True) < 0.45
    return np.where(
        distance < least, np.where(dark, 0.35 * color + 0.60, 0.30 * color + 0.03), color
    )


def _materials(person: Person, draws: Draws) -> np.ndarray:
    batch = len(person.height)
    table = np.zeros((batch, MATERIALS, _MATERIAL_COLUMNS))
    table[:, :, _BIAS], table[:, :, _SHARP] = -1.0, 1.0  # plain

    def paint(
        m: int, first: np.ndarray, second: np.ndarray | None = None, fold: float = 0.0
    ) -> None:
        table[:, m, _C1 : _C1 + 3] = first
        table[:, m, _C2 : _C2 + 3] = first if second is None else second
        table[:, m, _FOLD] = fold

    def weave(m: int, odds: tuple[float, ...], period: tuple[float, float]) -> None:
        kind = draws.pick(odds)
        length = draws.uniform(*period) * np.where(kind == PATTERNS.index("block"), 4.6, 1.0)
        turns = np.floor(draws.uniform(3.0, 6.0)) * np.where(
            kind == PATTERNS.index("vertical"), 1.34, 1.0
        )
        mix = _MIX[kind]
        table[:, m, _ALONG] = 1.0 / length
        table[:, m, _AROUND] = np.floor(turns + 0.5)
        slant = np.where(draws.uniform(0, 1) < 0.5, -1.0, 1.0) * np.floor(draws.uniform(2.0, 4.0))
        table[:, m, _SLANT] = np.where(kind == PATTERNS.index("diagonal"), slant, 0.0)
        table[:, m, _PHASE_A], table[:, m, _PHASE_B] = draws.uniform(0, 1), draws.uniform(0, 1)
        table[:, m, _WA : _BIAS + 1] = mix
        # Edges of a stripe blend over about 15 mm, so that a finer image resolves them. Gingham
        # keeps its half tone.
        sharp = length / (4 * 0.015)
        table[:, m, _SHARP] = np.where(
            kind == PATTERNS.index("gingham"), np.minimum(sharp, 1.6), sharp
        )

    skin = draws.color(SKIN, 0.025)
    hair = draws.color(HAIR, 0.03)
    first = draws.color(CLOTH)
    second = _apart(draws.color(CLOTH), first)
    lower = _apart(draws.color(LOWER, 0.03), first, 0.25)
    lower_second = _apart(draws.color(CLOTH), lower)
    paint(SKIN_M, skin)
    paint(TOP_M, first, second, 0.10)
    paint(BOTTOM_M, lower, lower_second, 0.12)
    paint(SHOE_M, draws.color(SHOES))
    paint(HAIR_M, hair, 0.62 * hair + 0.0, 0.12)
    accent = _apart(draws.color(CLOTH), lower, 0.4)
    paint(ACCENT_M, accent)
    paint(INNER_M, _apart(draws.color(CLOTH), first), None, 0.06)
    sock = np.where(draws.uniform(0, 1, 1) < 0.5, [[0.85, 0.84, 0.82]], second)
    paint(SOCK_M, sock)
    weave(TOP_M, (1.6, 2.0, 1.0, 1.0, 0.9, 0.9, 0.8, 0.9), (0.14, 0.24))
    weave(BOTTOM_M, (5.0, 0.5, 0.8, 0.5, 0.7, 0.4, 0.4, 0.0), (0.13, 0.22))
    weave(HAIR_M, (0.0, 0.0, 1.0), (0.2, 0.21))
    table[:, HAIR_M, _AROUND], table[:, HAIR_M, _SHARP] = 9.0, 0.5
    return table


def _surfaces(person: Person, shape: Shape) -> np.ndarray:
    batch = len(person.height)
    table = np.zeros((batch, len(PARTS), _SURFACE_COLUMNS))
    table[:, :, _V + 1] = -shape.scale[:, :, 1]  # v grows downwards, in metres
    table[:, :, _GIRTH] = 1.0
    table[:, :, _TONE] = 1.0
    table[:, :, _SHADE] = 0.20
    far = 9.0

    def dress(
        name: str, bands: tuple[int, int, int], ends: tuple, start=0.0, girth=1.0, tone=1.0
    ) -> None:
        p = INDEX[name]
        table[:, p, _V + 3] = start
        table[:, p, _GIRTH], table[:, p, _TONE] = girth, tone
        for k in range(3):
            table[:, p, _BANDS + k] = bands[k]
        for k in range(2):
            table[:, p, _ENDS + k] = ends[k]

    h = person.height
    dressed = person.has_top("dress")
    bottom = np.where(dressed, TOP_M, BOTTOM_M)
    legs = np.where(person.leg_end > 0, bottom, SKIN_M)
    dress("head", (SKIN_M,) * 3, (far, far), tone=1.0)
    cap = np.where(person.has_hair("cap"), ACCENT_M, HAIR_M)
    dress("hair", (cap, cap, cap), (far, far))
    dress("hair_back", (HAIR_M,) * 3, (far, far), tone=0.94)
    collar = person.has_top("shirt", "sweater", "coat")
    dress("neck", (SKIN_M, ACCENT_M, ACCENT_M), (np.where(collar, 0.030 * h, far), far), tone=0.93)
    # From the shoulders to the thighs v is one coordinate, so that stripes and hems run on from
    # part to part.
    hem, belt = person.hem * h, np.where(person.hem < 0.25, 0.035, 0.0)
    torso = (TOP_M, ACCENT_M, bottom)
    below = {
        name: (SHOULDER_V - level) * h
        for name, level in (
            ("chest", CHEST_TOP),
            ("abdomen", RIBS + 0.01),
            ("pelvis", 0.040),
            ("skirt", SKIRT_TOP),
            ("thigh", 0.0),
        )
    }
    dress("chest", (TOP_M,) * 3, (far, far), start=below["chest"])
    for name in ("abdomen", "pelvis"):
        dress(name, torso, (hem - 0.5 * belt, hem + 0.5 * belt), start=below[name])
    coat = person.has_top("coat", "dress")
    edge = below["skirt"] + SKIRT_TOP * h + person.skirt - 0.035
    dress("skirt", (np.where(coat, TOP_M, BOTTOM_M), ACCENT_M, ACCENT_M), (edge, far),
          start=below["skirt"], girth=1.15, tone=0.97)  # fmt: skip
    arm, leg = h * person.arms, h * person.legs
    sleeve = person.sleeve * 0.322 * arm + below["chest"]
    cuff = np.where(person.has_top("sweater", "jacket", "coat", "tee"), 0.035, 0.0)
    trouser = person.leg_end * 0.491 * leg + below["thigh"]
    boot = (
        np.where(person.boot_top < 1, person.boot_top * 0.491 * leg, 0.465 * leg) + below["thigh"]
    )
    boot_material = np.where(person.boot_top < 1, SHOE_M, SOCK_M)
    boot = np.maximum(boot, trouser)
    for side in ("right", "left"):
        for name, start, girth, tone in (
            ("upper_arm", 0.0, 0.30, 0.95),
            ("forearm", UPPER_ARM * arm, 0.25, 0.97),
        ):
            dress(f"{side}_{name}", (TOP_M, ACCENT_M, SKIN_M), (sleeve - cuff, sleeve),
                  start=start + below["chest"], girth=girth, tone=tone)  # fmt: skip
        dress(f"{side}_hand", (SKIN_M,) * 3, (far, far), tone=0.98)
        dress(
            f"{side}_thigh", (TOP_M, legs, SKIN_M), (hem, trouser), start=below["thigh"], girth=0.50
        )
        dress(f"{side}_shin", (legs, SKIN_M, boot_material), (trouser, boot),
              start=below["thigh"] + THIGH * leg, girth=0.40)  # fmt: skip
        foot = INDEX[f"{side}_foot"]
        dress(f"{side}_foot", (SHOE_M, SOCK_M, SOCK_M), (0.008 * h, far))
        table[:, foot, _V + 1], table[:, foot, _V + 2] = 0.0, -1.0  # a foot lies: down is its -z
        table[:, foot, _SHADE] = 0.08
    table[:, INDEX["head"], _SHADE] = 0.10
    table[:, INDEX["hair"], _SHADE] = 0.12
    return table


def _decals(person: Person, draws: Draws, materials: np.ndarray) -> np.ndarray:
    """``[B, 2, 3, 12]``, x and v in metres.

    Front: neckline, opening, print or pocket. Back: yoke or print, a bar, nothing.
    """
    batch = len(person.height)
    table = np.zeros((batch, 2, _DECALS, _DECAL_COLUMNS))
    table[..., 2:4] = 1.0
    h = person.height
    color = {m: materials[:, m, _C1 : _C1 + 3] for m in range(MATERIALS)}
    norms = np.eye(3)

    def put(side, k, center, half, norm, tint, strength, hole=-1.0):
        slot = table[:, side, k]
        slot[:, 0], slot[:, 1] = center
        slot[:, 2], slot[:, 3] = half
        slot[:, 4:7] = norms[norm]
        slot[:, 7] = hole
        slot[:, 8:11] = tint
        slot[:, 11] = strength

    box = np.full(batch, 2)
    open_front = person.has_top("jacket", "coat")
    inner = np.where(open_front[:, None], color[INNER_M], color[SKIN_M])
    width = draws.uniform(0.030, 0.048) * h
    collared = person.has_top("shirt", "sweater")
    depth = draws.uniform(0.035, 0.065) * h
    put(
        0,
        0,
        (0.0, 0.004 * h),
        (np.where(open_front, 1.3, 1.0) * width, depth),
        draws.pick([1.2, 1.0]),
        inner,
        1.0 - collared,
    )
    # A jacket is open down to the hem; a shirt has a strip of buttons.
    strip = person.has_top("shirt")
    wide = np.where(open_front, draws.uniform(0.020, 0.036) * h, 0.011)
    end = np.where(person.has_top("coat"), 0.30 * h, person.hem * h)
    tint = np.where(open_front[:, None], color[INNER_M], 0.55 * color[TOP_M])
    put(0, 1, (0.0, 0.5 * end), (wide, 0.5 * end), box, tint, open_front | strip)
    logo = person.has_top("tank", "tee", "sweater", "dress")
    pocket = person.has_top("shirt", "jacket")
    some = draws.uniform(0, 1) < 0.6
    tint = _apart(draws.color(CLOTH), color[TOP_M], 0.6)
    half = draws.uniform(0.045, 0.085, 2)
    where = draws.uniform(0.095, 0.135) * h
    hole = np.where(draws.uniform(0, 1) < 0.35, 0.42, -1.0)
    put(0, 2, (np.where(pocket, 0.045 * h, 0.0), np.where(pocket, 0.09 * h, where)),
        np.where(pocket, 0.036, half.T), np.where(pocket, 2, draws.pick([1.0, 1.4, 1.2])),
        np.where(pocket[:, None], 0.62 * color[TOP_M], tint), (logo | pocket) & some,
        np.where(pocket, -1.0, hole))  # fmt: skip
    back = draws.uniform(0, 1)
    tint = _apart(draws.color(CLOTH), color[TOP_M], 0.6)
    yoke = back < 0.25
    half = draws.uniform(0.05, 0.10, 2)
    put(1, 0, (0.0, np.where(yoke, 0.055, 0.105) * h),
        (np.where(yoke, 0.30, half[:, 0]), np.where(yoke, 0.050, half[:, 1])),
        np.where(yoke, 2, draws.pick([1.0, 1.4, 1.2])), tint, back < 0.75,
        np.where((draws.uniform(0, 1) < 0.4) & ~yoke, 0.45, -1.0))  # fmt: skip
    put(
        1,
        1,
        (0.0, 0.19 * h),
        (draws.uniform(0.06, 0.12), 0.024),
        box,
        tint,
        draws.uniform(0, 1) < 0.4,
    )
    return table


def _face(person: Person, draws: Draws, materials: np.ndarray) -> np.ndarray:
    """Columns: skin, hair, iris and lip colours (3 each), beard, glasses, eye size, brow
    strength."""
    skin, hair = materials[:, SKIN_M, :3], materials[:, HAIR_M, :3]
    iris = np.array(
        [[0.10, 0.07, 0.05], [0.12, 0.25, 0.42], [0.16, 0.30, 0.18], [0.24, 0.14, 0.07]]
    )
    lips = np.array([0.62, 0.20, 0.22]) * 0.6 + 0.3 * skin
    bearded = person.has_hair("bald", "short", "cap") & (person.skirt == 0)
    extras = [
        (bearded & (draws.uniform(0, 1) < 0.5)) * 0.75,
        (draws.uniform(0, 1) < 0.16) * 1.0,
        draws.uniform(0.9, 1.15),
        draws.uniform(0.6, 1.0),
    ]
    return np.concatenate(
        [skin, hair, iris[draws.pick([2, 1, 0.7, 1])], lips, np.stack(extras, 1)], axis=1
    )


def shade(
    wardrobe: Wardrobe, person: torch.Tensor, part: torch.Tensor, q: tuple[torch.Tensor, ...]
) -> torch.Tensor:
    """Colours of surface points.

    Args:
        person, part: ``[N]`` int64, indices into the batch and into ``PARTS``.
        q: canonical coordinates, three ``[N]``.

    Returns:
        ``[3, N]`` in [0, 1].
    """
    qx, qy, qz = q
    surface = columns(wardrobe.surfaces, person * len(PARTS) + part)
    v = surface[_V] * qx + surface[_V + 1] * qy + surface[_V + 2] * qz + surface[_V + 3]
    # Angle around the part without a transcendental: 0 front, +-1 sides, +-2 back.
    angle = 1.0 - qz / (qx.abs() + qz.abs()).clamp_min(1e-9)
    angle = torch.where(qx < 0, -angle, angle)
    first, second = v >= surface[_ENDS], v >= surface[_ENDS + 1]
    band = torch.where(
        second, surface[_BANDS + 2], torch.where(first, surface[_BANDS + 1], surface[_BANDS])
    )
    row = person * MATERIALS + band.long()
    m = columns(wardrobe.materials, row)

    turns = (m[_AROUND] * surface[_GIRTH] + 0.5).floor().clamp_min(1.0)
    slant = (m[_SLANT] * surface[_GIRTH] + 0.5).floor()
    wave_a = _wave(m[_ALONG] * v + 0.25 * slant * angle + m[_PHASE_A])
    wave_b = _wave(0.25 * turns * angle + m[_PHASE_B])
    mixed = m[_WA] * wave_a + m[_WB] * wave_b + m[_WAB] * wave_a * wave_b + m[_BIAS]
    weight = (0.5 + m[_SHARP] * mixed).clamp(0.0, 1.0)
    color = m[_C1 : _C1 + 3] + weight * (m[_C2 : _C2 + 3] - m[_C1 : _C1 + 3])

    torso = ((part >= INDEX[_TORSO[0]]) & (part <= INDEX[_TORSO[-1]])).nonzero().squeeze(1)
    color[:, torso] = _print(
        wardrobe, person[torso], color[:, torso], qx[torso], v[torso], qz[torso]
    )
    head = (part == INDEX["head"]).nonzero().squeeze(1)
    color[:, head] = _draw_face(
        wardrobe, person[head], color[:, head], qx[head], qy[head], qz[head]
    )

    # Baked light: front and back are bright, the flanks darker; folds wander around the part.
    flank = 0.5 - 0.5 * _wave(0.5 * angle + 0.25)
    folds = m[_FOLD] * (0.5 + 0.5 * _wave(4.1 * v + 0.75 * angle * angle + m[_PHASE_B]))
    light = surface[_TONE] * (1.06 - surface[_SHADE] * flank - folds)
    return (color * light).clamp_(0.0, 1.0)


def _wave(x: torch.Tensor) -> torch.Tensor:
    """A sine in all but name: period 1, range [-1, 1], zero at 0, made of a cubic per half
    period."""
    x = x - 0.25
    t = ((x - x.floor()) - 0.5).abs() * 4.0 - 1.0
    return t * (1.5 - 0.5 * t * t)


def _soft(x: torch.Tensor) -> torch.Tensor:
    return (0.5 + x).clamp(0.0, 1.0)


def _over(color: torch.Tensor, weight: torch.Tensor, tint: torch.Tensor) -> torch.Tensor:
    return color + weight * (tint - color)


def _print(wardrobe, person, color, x, v, z):
    """Necklines, openings and prints on the torso."""
    table = columns(wardrobe.decals, 2 * person + (z < 0)).view(_DECALS, _DECAL_COLUMNS, -1)
    for d in table:
        dx, dv = ((x - d[0]) / d[2]).abs(), ((v - d[1]) / d[3]).abs()
        reach = d[4] * (dx + dv) + d[5] * (dx * dx + dv * dv) + d[6] * torch.maximum(dx, dv)
        weight = _soft((1.0 - reach) * 4.0) * (1.0 - _soft((d[7] - reach) * 4.0))
        color = _over(color, weight * d[11], d[8:11])
    return color


def _draw_face(wardrobe, person, color, x, y, z):
    """Eyes, brows, nose, mouth, ears, beard and glasses; only on the front half of the head."""
    f = columns(wardrobe.face, person)
    skin, hair, iris, lips = f[0:3], f[3:6], f[6:9], f[9:12]
    front = (z > 0).to(color.dtype)
    ax = x.abs()

    def blob(cx: float, cy: float, rx: float, ry: float, sharp: float = 3.0) -> torch.Tensor:
        dx, dy = (ax - cx) / rx, (y - cy) / ry
        return _soft((1.0 - dx * dx - dy * dy) * sharp) * front

    color = _over(color, f[12] * _soft((-0.28 - y + 0.25 * ax) * 8.0) * front, hair)
    color = _over(color, 0.35 * blob(0.48, -0.28, 0.24, 0.18, 1.0), lips)
    color = _over(color, 0.30 * blob(0.0, -0.20, 0.13, 0.20, 1.5), 0.55 * skin)
    color = _over(color, blob(0.0, -0.56, 0.32, 0.10), lips)
    color = _over(color, blob(0.40, 0.08, 0.23, 0.135), torch.full_like(skin, 0.96))
    color = _over(color, blob(0.39, 0.08, 0.125, 0.135), iris)
    color = _over(color, f[15] * blob(0.41, 0.30, 0.25, 0.065), 0.8 * hair)
    rim = blob(0.41, 0.07, 0.36, 0.27, 4.0) * (1.0 - blob(0.41, 0.07, 0.27, 0.19, 4.0))
    color = _over(color, f[13] * rim, torch.full_like(skin, 0.08))
    dz, dy = z / 0.22, (y + 0.05) / 0.26
    ear = _soft((1.0 - dz * dz - dy * dy) * 2.0) * (ax > 0.6)
    return _over(color, 0.35 * ear, 0.5 * skin)
