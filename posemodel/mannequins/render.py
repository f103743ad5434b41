"""Orthographic ray casting of rigid parts, batched over views, in plain tensor operations.

A part's surface is the hull of two balls in its canonical coordinates (`body`). Along a
viewing ray `q(t) = q0 + t d` (t: depth in metres towards the camera) the hull is met first, seen
from the camera, at the largest of three roots: either ball, or the cone between them where the root
lies on that stretch.

Only the candidates are tried: for every part and row of the sampling grid the span of columns that
the part can cover. Only + - * / sqrt, comparisons and rounding are used, so a ray gives the same
bits in a batch of any size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from posemodel.mannequins.body import PARTS, Shape
from posemodel.mannequins.stance import Stance

_DEPTH_STEPS = 2.0**20  # per metre
_DEPTH_RANGE = 8.0  # metres either side of the origin
_PART_BITS = 5
assert len(PARTS) < 2**_PART_BITS

# Columns of a part's ray table.
_Q0, _QX, _QY, _D, _R0, _R1, _LENGTH = 0, 3, 6, 9, 12, 13, 14
_K, _M, _LOW, _HIGH, _BALL, _CONE, _CLIP = range(15, 22)


@dataclass
class Bodies:
    """Parts of V views, ready to be cast.

    rays: `[25, V*P]` what a ray needs to meet a part.
    bounds: `[8, V, P]` box (x low, x high, y low, y high) and slab (normal x, normal y, middle,
        half width) around the part's picture, normalised coordinates; an absent part has an empty
        box.
    places: `[12, V*P]` rows of the affine map from canonical q to (x, y normalised, depth).
    """

    rays: torch.Tensor
    bounds: torch.Tensor
    places: torch.Tensor

    @property
    def views(self) -> int:
        return self.bounds.shape[1]

    def narrow(self, first: int, last: int) -> Bodies:
        """Views `first` to `last - 1`."""
        flat = slice(first * len(PARTS), last * len(PARTS))
        return Bodies(
            rays=self.rays[:, flat], bounds=self.bounds[:, first:last], places=self.places[:, flat])


@dataclass
class Hits:
    """First surface met by N rays.

    `part` [N] int64, an index into PARTS or -1 for nothing; `depth` [N] in metres.
    """

    part: torch.Tensor
    depth: torch.Tensor


def send(table: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(table, dtype=np.float32)).to(device)


def columns(table: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """`table[:, which]`, [K, M] and [N] to [K, N]: every sample's parameters, row by row."""
    # gather over an expanded index: several times faster on the CPU than index_select along the
    # last dimension.
    return table.gather(1, which.expand(len(table), -1))


def place(shape: Shape, stance: Stance, zoom: np.ndarray, shift: np.ndarray,
          device: torch.device) -> Bodies:
    """Bodies as seen by a camera: `x = zoom_x X + shift_x`, `y = -zoom_y Y + shift_y` for world
    X, Y in metres.

    Args:
        zoom, shift: `[B, 2, 2]` per sample and view, (x, y).
    """
    batch, views, parts = stance.rotation.shape[:3]
    camera = np.concatenate([zoom * [1.0, -1.0], np.ones((batch, views, 1))], axis=-1)  # [B, 2, 3]
    forward = camera[:, :, None, :, None] * stance.rotation * shape.scale[:, None, :, None, :]
    center = camera[:, :, None] * stance.origin
    center[..., :2] += shift[:, :, None]
    places = np.concatenate([forward, center[..., None]], axis=-1)  # [B, 2, P, 3, 4]

    inverse = (stance.rotation / shape.scale[:, None, :, None, :]).swapaxes(-1, -2)
    inverse = inverse / camera[:, :, None, None, :]
    start = -(inverse @ center[..., None])[..., 0]
    d = inverse[..., 2]
    r0, r1, length = (
        np.broadcast_to(a[:, None], (batch, views, parts))
        for a in (shape.r0, shape.r1, shape.length))
    sine = (r0 - r1) / length
    cosine = np.sqrt(1.0 - sine**2)
    m = sine / cosine
    ball = (d**2).sum(-1)
    cone = d[..., 0] ** 2 + d[..., 2] ** 2 - (m * d[..., 1]) ** 2
    # Looking exactly along the cone's side leaves a linear equation; a nudge keeps the quadratic
    # formula.
    cone = np.where(np.abs(cone) < 1e-4 * ball, 1e-4 * ball, cone)
    clip = np.broadcast_to(shape.clip[:, None], (batch, views, parts, 4))
    scalars = np.stack(
        [r0, r1, length, r0 / cosine, m, r0 * sine, length + r1 * sine, ball, cone], -1)
    rays = np.concatenate([start, inverse[..., 0], inverse[..., 1], d, scalars, clip], axis=-1)

    low, high = _boxes(forward, center, shape)
    other = center - forward[..., 1] * length[..., None]
    axis = (other - center)[..., :2]
    normal = np.stack([axis[..., 1], -axis[..., 0]], -1)
    norm = np.sqrt((normal**2).sum(-1, keepdims=True))
    normal = np.where(norm > 1e-6, normal / np.maximum(norm, 1e-6), [1.0, 0.0])
    normal = np.where(normal[..., :1] < 0, -normal, normal)
    width = np.sqrt(((normal[..., None, :] @ forward[..., :2, :]) ** 2).sum((-1, -2)))
    width = width * np.maximum(r0, r1)
    middle = (normal * center[..., :2]).sum(-1)
    exists = np.broadcast_to(shape.exists[:, None], (batch, views, parts))
    box = [low[..., 0], np.where(exists, high[..., 0], -np.inf), low[..., 1], high[..., 1]]
    bounds = np.stack([*box, np.maximum(normal[..., 0], 1e-6), normal[..., 1], middle, width])

    flat = batch * views * parts
    return Bodies(rays=send(rays.reshape(flat, rays.shape[-1]).T, device),
                  bounds=send(bounds.reshape(8, batch * views, parts), device),
                  places=send(places.reshape(flat, 12).T, device))


def extent(shape: Shape, stance: Stance) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest world X, Y of each view's body, both `[B, 2, 2]`."""
    forward = stance.rotation * shape.scale[:, None, :, None, :]
    low, high = _boxes(forward, stance.origin, shape)
    absent = ~shape.exists[:, None, :, None]
    return np.where(absent, np.inf, low).min(2), np.where(absent, -np.inf, high).max(2)


def _boxes(forward: np.ndarray, center: np.ndarray, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Box around each part's picture, low and high corner `[B, 2, P, 2]`."""
    # The picture of a ball of radius r reaches r |row of forward| from its centre.
    reach = np.sqrt((forward[..., :2, :] ** 2).sum(-1))
    r0, r1 = shape.r0[:, None, :, None] * reach, shape.r1[:, None, :, None] * reach
    first = center[..., :2]
    second = first - forward[..., :2, 1] * shape.length[:, None, :, None]
    return np.minimum(first - r0, second - r1), np.maximum(first + r0, second + r1)


def cast(bodies: Bodies, view: torch.Tensor, xy: torch.Tensor) -> Hits:
    """Orthographic ray casting at arbitrary image positions.

    Args:
        view: `[N]` int64, the view each ray belongs to.
        xy: `[2, N]` normalised positions (pixel centres at `(2 j + 1) / W - 1`).
    """
    x, y = xy
    box = bodies.bounds[:4].index_select(1, view)  # [4, N, P]
    inside = ((x[:, None] >= box[0]) & (x[:, None] <= box[1])
              & (y[:, None] >= box[2]) & (y[:, None] <= box[3]))
    ray, part = inside.nonzero(as_tuple=True)
    depth = _depths(bodies, view[ray] * len(PARTS) + part, x[ray], y[ray])
    best = _nearest(ray, part, depth, len(x))
    part, depth = _decode(best)
    found = best >= 0
    return Hits(part=torch.where(found, part, -1), depth=torch.where(found, depth, -torch.inf))


def cast_grid(bodies: Bodies, xs: torch.Tensor, ys: torch.Tensor) -> tuple[torch.Tensor, Hits]:
    """`cast` at every point of a regular grid in every view, trying only the spans that a part can
    cover.

    Args:
        xs, ys: `[C]`, `[R]` evenly spaced, increasing.

    Returns:
        The rays that meet something, `[N]` int64 into the flattened `V x R x C` grid,
        ascending, and their hits.
    """
    columns, rows = len(xs), len(ys)
    low_x, high_x, low_y, high_y, nx, ny, middle, width = bodies.bounds.unsqueeze(-1)
    slant = middle - ny * ys
    left = torch.maximum((slant - width) / nx, low_x)
    right = torch.minimum((slant + width) / nx, high_x)
    step = (xs[-1] - xs[0]) / max(columns - 1, 1)
    first = ((left - xs[0]) / step).ceil().clamp(0, columns)
    last = ((right - xs[0]) / step).floor().clamp(-1, columns - 1)
    count = (last - first + 1).clamp_min(0) * ((ys >= low_y) & (ys <= high_y))
    count, first = count.long().flatten(), first.long().flatten()  # [V * P * R]
    spans = count.nonzero().squeeze(1)
    count = count[spans]
    start = count.cumsum(0) - count
    total = int(count.sum())
    view_part = spans.div(rows, rounding_mode="floor")
    row = spans - view_part * rows
    view = view_part.div(len(PARTS), rounding_mode="floor")
    part = view_part - view * len(PARTS)
    # Candidate n of a span is ray `ray_shift + n` in column `column_shift + n`.
    column_shift = first.index_select(0, spans) - start
    ray_shift = (view * rows + row) * columns + column_shift
    each = torch.repeat_interleave(count, output_size=total)
    n = torch.arange(total, device=xs.device)
    x = xs.index_select(0, n + column_shift.index_select(0, each))
    y = ys.index_select(0, row).index_select(0, each)
    depth = _depths(bodies, view_part.index_select(0, each), x, y)
    ray = n + ray_shift.index_select(0, each)
    best = _nearest(ray, part.index_select(0, each), depth, bodies.views * rows * columns)
    met = (best >= 0).nonzero().squeeze(1)
    return met, Hits(*_decode(best.index_select(0, met)))


def _depths(bodies: Bodies, view_part: torch.Tensor, x: torch.Tensor,
            y: torch.Tensor) -> torch.Tensor:
    """Depth at which each ray first meets its part, `-inf` where it misses; all `[N]`."""
    p = columns(bodies.rays, view_part)
    qx, qy, qz = (p[_Q0 + k] + x * p[_QX + k] + y * p[_QY + k] for k in range(3))
    dx, dy, dz = p[_D], p[_D + 1], p[_D + 2]
    flat_b = qx * dx + qz * dz
    flat_c = qx * qx + qz * qz
    nothing = torch.full_like(x, -torch.inf)

    def root(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """The root of a t^2 + 2 b t + c where a ray from the camera enters the negative side."""
        square = b * b - a * c
        return torch.where(square >= 0, (square.clamp_min(0).sqrt() - b) / a, nothing)

    top = root(p[_BALL], flat_b + qy * dy, flat_c + qy * qy - p[_R0] * p[_R0])
    low_y = qy + p[_LENGTH]
    low = root(p[_BALL], flat_b + low_y * dy, flat_c + low_y * low_y - p[_R1] * p[_R1])
    # The cone's radius at q is K + M q_y, because q_y runs from 0 down to -length.
    radius = p[_K] + p[_M] * qy
    side = root(p[_CONE], flat_b - p[_M] * dy * radius, flat_c - radius * radius)
    along = -(qy + side * dy)
    side = torch.where((along >= p[_LOW]) & (along <= p[_HIGH]), side, nothing)
    t = torch.maximum(torch.maximum(top, low), side)
    cut = p[_CLIP] * (qx + t * dx) + p[_CLIP + 1] * (qy + t * dy) + p[_CLIP + 2] * (qz + t * dz)
    return torch.where(cut <= p[_CLIP + 3], t, nothing)


def _nearest(ray: torch.Tensor, part: torch.Tensor, depth: torch.Tensor, rays: int) -> torch.Tensor:
    """The candidate nearest to the camera per ray, `[rays]` int64 for `_decode`, -1 for none."""
    # Depth and part in one integer: its maximum does not depend on the order of the candidates.
    steps = ((depth.clamp_min(-_DEPTH_RANGE) + _DEPTH_RANGE) * _DEPTH_STEPS).long()
    key = torch.where(depth > -_DEPTH_RANGE, (steps << _PART_BITS) + part, -1)
    best = torch.full((rays,), -1, dtype=torch.int64, device=ray.device)
    return best.scatter_reduce_(0, ray, key, "amax")


def _decode(best: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Part and depth of `_nearest`'s integers."""
    depth = (best >> _PART_BITS).to(torch.float32) / _DEPTH_STEPS - _DEPTH_RANGE
    return best & (2**_PART_BITS - 1), depth


def surface_points(bodies: Bodies, view: torch.Tensor, part: torch.Tensor, xy: torch.Tensor,
                   depth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Canonical coordinates, three `[N]`, of what rays at `xy` [2, N] met at `depth` [N]."""
    p = columns(bodies.rays[: _D + 3], view * len(PARTS) + part)
    return tuple(
        p[_Q0 + k] + xy[0] * p[_QX + k] + xy[1] * p[_QY + k] + depth * p[_D + k] for k in range(3))


def project(bodies: Bodies, view: torch.Tensor, part: torch.Tensor,
            q: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Where canonical points appear: normalised positions `[2, N]` and depth `[N]`."""
    p = columns(bodies.places, view * len(PARTS) + part)
    x, y, depth = (p[4 * k] * q[0] + p[4 * k + 1] * q[1] + p[4 * k + 2] * q[2] + p[4 * k + 3]
                   for k in range(3))
    return torch.stack([x, y]), depth
