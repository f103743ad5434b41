"""What a mannequin's surface looks like: garments, prints and face by surface point.

Nothing here depends on the view: light and folds are part of the cloth, so a surface point has one
colour for ever. The device uses only + - * /, comparisons and rounding down, which give the same
bits in a batch of any size.
"""

from __future__ import annotations

import torch

from posemodel.mannequins.body import INDEX, PARTS
from posemodel.mannequins.render import columns
from posemodel.mannequins.wardrobe import DECAL_COLUMNS, DECALS, MATERIALS, Wardrobe
from posemodel.mannequins.wardrobe import Material as M
from posemodel.mannequins.wardrobe import Surface as S

_TORSO = ("chest", "abdomen", "pelvis")


def shade(wardrobe: Wardrobe, person: torch.Tensor, part: torch.Tensor,
          q: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Colours of surface points.

    Args:
        person, part: `[N]` int64, indices into the batch and into `PARTS`.
        q: canonical coordinates, three `[N]`.

    Returns: `[3, N]` in [0, 1].
    """
    qx, qy, qz = q
    surface = columns(wardrobe.surfaces, person * len(PARTS) + part)
    v = surface[S.V] * qx + surface[S.V + 1] * qy + surface[S.V + 2] * qz + surface[S.V + 3]
    # Angle around the part without a transcendental: 0 front, +-1 sides, +-2 back.
    angle = 1.0 - qz / (qx.abs() + qz.abs()).clamp_min(1e-9)
    angle = torch.where(qx < 0, -angle, angle)
    first, second = v >= surface[S.ENDS], v >= surface[S.ENDS + 1]
    band = torch.where(second, surface[S.BANDS + 2],
                       torch.where(first, surface[S.BANDS + 1], surface[S.BANDS]))
    row = person * MATERIALS + band.long()
    m = columns(wardrobe.materials, row)

    turns = (m[M.AROUND] * surface[S.GIRTH] + 0.5).floor().clamp_min(1.0)
    slant = (m[M.SLANT] * surface[S.GIRTH] + 0.5).floor()
    wave_a = _wave(m[M.ALONG] * v + 0.25 * slant * angle + m[M.PHASE_A])
    wave_b = _wave(0.25 * turns * angle + m[M.PHASE_B])
    mixed = m[M.WA] * wave_a + m[M.WB] * wave_b + m[M.WAB] * wave_a * wave_b + m[M.BIAS]
    weight = (0.5 + m[M.SHARP] * mixed).clamp(0.0, 1.0)
    color = m[M.C1 : M.C1 + 3] + weight * (m[M.C2 : M.C2 + 3] - m[M.C1 : M.C1 + 3])

    torso = ((part >= INDEX[_TORSO[0]]) & (part <= INDEX[_TORSO[-1]])).nonzero().squeeze(1)
    color[:, torso] = _print(wardrobe, person[torso], color[:, torso], qx[torso], v[torso],
                             qz[torso])
    head = (part == INDEX["head"]).nonzero().squeeze(1)
    color[:, head] = _draw_face(wardrobe, person[head], color[:, head], qx[head], qy[head],
                                qz[head])

    # Baked light: front and back are bright, the flanks darker; folds wander around the part.
    flank = 0.5 - 0.5 * _wave(0.5 * angle + 0.25)
    folds = m[M.FOLD] * (0.5 + 0.5 * _wave(4.1 * v + 0.75 * angle * angle + m[M.PHASE_B]))
    light = surface[S.TONE] * (1.06 - surface[S.SHADE] * flank - folds)
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
    table = columns(wardrobe.decals, 2 * person + (z < 0)).view(DECALS, DECAL_COLUMNS, -1)
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
