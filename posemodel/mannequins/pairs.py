"""Generated people in pairs of views with exact flow and exact visibility."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from posemodel.mannequins.body import INDEX, PART_NAMES, PARTS, Shape, build_shape
from posemodel.mannequins.person import Draws, draw_person
from posemodel.mannequins.render import (
    Bodies,
    cast,
    cast_grid,
    extent,
    place,
    project,
    surface_points,
)
from posemodel.mannequins.stance import Stance, draw_stance
from posemodel.mannequins.texture import shade
from posemodel.mannequins.wardrobe import Wardrobe, build_wardrobe

__all__ = ["PART_NAMES", "Mannequins"]

BACKGROUNDS = ("white", "cluttered", "still")
HIDDEN_JOINTS = ("keep", "drop")
CLOSE_CROPS = 0.15  # share of views in which the legs leave the frame
_SAME_SURFACE = 0.004  # metres of depth within which two rays have met the same surface point
_BLOBS = 7
_PLAIN = 3  # a background that stays is plain white in one pair of so many
# A CPU is fastest on pieces whose memory its allocator keeps, a GPU on large ones.
_RAYS_AT_ONCE = {"cpu": 150_000, "cuda": 4_000_000}


@dataclass
class _People:
    """Two views of each person, and the camera of each view: `zoom` and `shift` [B, 2, 2]."""

    stance: Stance
    wardrobe: Wardrobe
    bodies: Bodies
    zoom: np.ndarray
    shift: np.ndarray


class Mannequins:
    """An endless set of pairs: one person, two poses, possibly turned so that other cloth appears.

    The same (seed, index) gives the same pair, whatever batch it is asked for in. Different seeds
    never share a pair, so a held-out set is a seed of its own.
    """

    def __init__(self, *, size: tuple[int, int] = (64, 64), turn: float = 60.0,
                 background: str = "white", hidden_joints: str = "keep", seed: int = 0,
                 device: torch.device | str = "cpu") -> None:
        """
        Args:
            size: (H, W) of the images.
            turn: each body faces within this many degrees of the camera; 180 is any direction.
                Beyond 60, two pairs of three stay within 60 degrees of each other.
            background: "white", "cluttered" (another one in each view) or "still" (the same
                clutter in both views of a pair, plain white in every third pair).
            hidden_joints: "keep", or "drop" joints that the body hides, as an estimator would.
                Joints outside the frame are missing either way.
            seed: 0 <= seed < 2^64.
        """
        if len(size) != 2 or not all(isinstance(n, int) and n >= 8 for n in size):
            raise ValueError("size must be (height, width), two integers of at least 8; got "
                             f"{size!r}")
        if not 0.0 <= turn <= 180.0:
            raise ValueError(f"turn must be between 0 and 180 degrees; got {turn!r}")
        for name, value, known in (("background", background, BACKGROUNDS),
                                   ("hidden_joints", hidden_joints, HIDDEN_JOINTS)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")
        _check_word("seed", seed)
        self.size, self.turn, self.seed = tuple(size), float(turn), int(seed)
        self.background, self.hidden_joints = background, hidden_joints
        self.device = torch.device(device)

    def pairs(self, indices: Sequence[int], *, persons: Sequence[int] | None = None,
              scenes: Sequence[int] | None = None) -> dict[str, torch.Tensor]:
        """The pairs with these indices (0 <= index < 2^64).

        Args:
            indices: B of them.
            persons: who stands there, B indices: the one whom a pair of that index shows. None:
                each pair has a person of its own.
            scenes: what is behind source, target, source, ..., 2 B indices: what is behind the
                source of a pair of that index. None: each view has a background of its own.

        Convention: flow is absolute sampling locations in the source, channels (x, y), normalised
        coordinates with pixel centres (`align_corners=False`); it maps target positions to source
        positions.

        Returns: B = len(indices), float32 unless said otherwise:

            - `source`, `target` [B, 3, H, W] in [-1, 1];
            - `source_pose`, `target_pose` [B, 18, 3] (x, y, presence), normalised, a missing
              joint is all zero;
            - `flow` [B, 2, H, W], the identity on the target's background;
            - `visible` [B, 1, H, W] bool, the target shows a surface point that the source shows
              too, a background that stays where it is included, but for plain white;
            - `source_foreground`, `target_foreground` [B, 1, H, W] bool;
            - `source_part`, `target_part` [B, 1, H, W] int64, indices into PART_NAMES (0
              background);
            - `turn` [B], degrees between the two facings, 0..180;
            - where the background is still, `source_mask` [B, 1, H, W], how much of each pixel of
              the source the person covers, 0 to 1; before plain white, where nobody needs a
              mask, 1 everywhere.
        """
        draws = Draws(self.seed, _words("index", indices))
        people = self._draw_people(draws, persons)
        clutter = self._draw_backgrounds(draws, scenes)
        plain = np.array([index % _PLAIN == 0 for index in indices], dtype=bool)
        if self.background == "still":
            clutter[0::2][plain] = _plain(clutter.shape[1])
            clutter[1::2] = clutter[0::2]
        canvas, part, flow, visible = self._paint(people.bodies, people.wardrobe)
        people_on_black = self._expose(canvas)
        images = self._before(people_on_black, clutter)
        if self.background == "still":
            seen = (part[0::2] == 0) & (part[1::2] == 0)
            visible |= seen & torch.from_numpy(~plain).to(self.device).view(-1, 1, 1, 1)

        facing = people.stance.facing
        apart = np.abs((facing[:, 0] - facing[:, 1] + 180.0) % 360.0 - 180.0).astype(np.float32)
        poses = _poses(people, drop_hidden=self.hidden_joints == "drop")
        batch = {"flow": flow, "visible": visible, "turn": torch.from_numpy(apart).to(self.device)}
        for view, name in enumerate(("source", "target")):
            batch |= {name: images[view::2].contiguous(),
                      f"{name}_pose": poses[view::2].contiguous(),
                      f"{name}_foreground": part[view::2] > 0,
                      f"{name}_part": part[view::2].contiguous()}
        if self.background == "still":
            mask = people_on_black[0::2, 3:].contiguous()
            mask[torch.from_numpy(plain).to(self.device)] = 1.0
            batch["source_mask"] = mask
        return batch

    def _draw_people(self, draws: Draws, persons: Sequence[int] | None) -> _People:
        # Every column of a row has one use, whoever the person is.
        own = draws if persons is None else Draws(self.seed, _words("person", persons))
        if len(own.values) != len(draws.values):
            raise ValueError(f"expected {len(draws.values)} persons; got {len(own.values)}")
        person = draw_person(own)
        shape = build_shape(person)
        draws.used = own.used
        stance = draw_stance(draws, person, self.turn)
        zoom, shift = _frame(draws, shape, stance, *self.size)
        own.used = draws.used
        wardrobe = build_wardrobe(person, shape, self.device)
        draws.used = own.used
        return _People(stance=stance, wardrobe=wardrobe, zoom=zoom, shift=shift,
                       bodies=place(shape, stance, zoom, shift, self.device))

    def _draw_backgrounds(self, draws: Draws, scenes: Sequence[int] | None) -> np.ndarray:
        """What `_draw_clutter` says of each view."""
        if scenes is None:
            return _draw_clutter(draws)
        behind = Draws(self.seed, _words("scene", scenes))
        behind.used = draws.used
        clutter = _draw_clutter(behind)[0::2]
        if len(clutter) != 2 * len(draws.values):
            raise ValueError(f"expected {2 * len(draws.values)} scenes; got {len(clutter)}")
        return clutter

    def _paint(self, bodies: Bodies, wardrobe: Wardrobe) -> tuple[torch.Tensor, ...]:
        """Casts every view; follows targets into sources.

        Returns:
            Colour times coverage, and coverage, `[4, V, R, C]`, sampled at half-pixel steps; part
            ids `[V, 1, H, W]` at the pixel centres; flow `[B, 2, H, W]`; visible `[B, 1, H, W]`.
        """
        height, width = self.size
        # The odd samples are pixel centres, and all of them make the picture.
        xs = torch.arange(2 * width + 1, device=self.device) / width - 1.0
        ys = torch.arange(2 * height + 1, device=self.device) / height - 1.0
        views, rows, columns = bodies.views, len(ys), len(xs)
        pixels = height * width
        canvas = torch.zeros(4, views, rows * columns, device=self.device)
        ids = torch.zeros(views * pixels, dtype=torch.int64, device=self.device)
        flow = torch.stack([xs[1::2].expand(height, width), ys[1::2, None].expand(height, width)])
        flow = flow.reshape(2, pixels).repeat(1, views // 2)
        visible = torch.zeros(views // 2 * pixels, dtype=torch.bool, device=self.device)
        step = max(1, _RAYS_AT_ONCE.get(self.device.type, 150_000) // (rows * columns))
        for start in range(0, views, step):
            some = bodies.narrow(start, min(start + step, views))
            met, hits = cast_grid(some, xs, ys)
            view = met.div(rows * columns, rounding_mode="floor")
            at = met - view * (rows * columns)
            row = at.div(columns, rounding_mode="floor")
            column = at - row * columns
            xy = torch.stack([xs.index_select(0, column), ys.index_select(0, row)])
            q = surface_points(some, view, hits.part, xy, hits.depth)
            view += start
            person = view.div(2, rounding_mode="floor")
            paint = torch.cat([shade(wardrobe, person, hits.part, q), torch.ones_like(xy[:1])])
            met += start * (rows * columns)
            canvas.view(4, -1).scatter_(1, met.expand(4, -1), paint)

            center = (row & column & 1).nonzero().squeeze(1)
            view, part = view[center], hits.part[center]
            # Rows and columns 1, 3, 5, ... of the grid are the pixels 0, 1, 2, ...
            pixel = (row[center] >> 1) * width + (column[center] >> 1)
            ids[view * pixels + pixel] = part + 1
            target = (view & 1).nonzero().squeeze(1)
            center, view, part, pixel = center[target], view[target], part[target], pixel[target]
            place_in_source, seen = _follow(bodies, view - 1, part,
                                            tuple(axis[center] for axis in q))
            pixel += (view >> 1) * pixels
            flow.scatter_(1, pixel.expand(2, -1), place_in_source)
            visible[pixel] = seen
        return (canvas.view(4, views, rows, columns), ids.view(views, 1, height, width),
                flow.view(2, views // 2, height, width).transpose(0, 1).contiguous(),
                visible.view(views // 2, 1, height, width))

    @staticmethod
    def _expose(canvas: torch.Tensor) -> torch.Tensor:
        """Colour times coverage, and coverage, of the pixels, `[V, 4, H, W]`.

        A pixel weighs its samples 1 2 1 across and 1 2 1 down: a tent as wide as two pixels.
        """
        down = canvas[..., 0:-1:2, :] + canvas[..., 2::2, :] + 2.0 * canvas[..., 1::2, :]
        pixels = (down[..., 0:-1:2] + down[..., 2::2] + 2.0 * down[..., 1::2]) / 16.0
        return pixels.transpose(0, 1)

    def _before(self, people: torch.Tensor, clutter: np.ndarray) -> torch.Tensor:
        """Images `[V, 3, H, W]` in [-1, 1] of people on black, as `_expose` gives them."""
        color, cover = people[:, :3], people[:, 3:]
        if self.background == "white":
            behind = 1.0
        else:
            behind = _paint_clutter(torch.from_numpy(clutter).to(self.device), *self.size)
        return (color + (1.0 - cover) * behind) * 2.0 - 1.0


def _words(name: str, values: Sequence[int]) -> list[int]:
    words = [int(value) for value in values]
    for word in words:
        _check_word(name, word)
    return words


def _check_word(name: str, value: int) -> None:
    if not 0 <= value < 2**64:
        raise ValueError(f"{name} must be an integer from 0 to 2^64 - 1; got {value!r}")


def _frame(draws: Draws, shape: Shape, stance: Stance, height: int,
           width: int) -> tuple[np.ndarray, np.ndarray]:
    """Camera of each view, `zoom` and `shift` [B, 2, 2]: the body fills the frame's height."""
    low, high = extent(shape, stance)
    tall, broad = (high - low)[..., 1], (high - low)[..., 0]
    fill = draws.uniform(0.80, 0.97, 2)
    zoom = 2.0 * fill / tall
    # A narrow frame may cut off wide arms, but only a little of them.
    aspect = height / width
    zoom = np.minimum(zoom, np.maximum(2.0 * 0.98 / (broad * aspect), 0.82 * zoom))
    close = draws.uniform(0.0, 1.0, 2) < CLOSE_CROPS
    zoom = np.where(close, zoom * draws.uniform(1.35, 1.9, 2), zoom)
    slide = draws.uniform(0.0, 1.0, 2, 2)
    extra = np.stack([broad * zoom * aspect, tall * zoom], -1)
    room = 2.0 - extra  # negative where the body is larger than the frame
    lowest = -1.0 + np.maximum(room, 0.0) * (0.25 + 0.5 * slide) \
        + np.minimum(room, 0.0) * (0.35 + 0.3 * slide)
    # A crop keeps the head: the top of the body stays near the top of the frame.
    top = np.where(room[..., 1] < 0, -0.95 + 0.12 * slide[..., 1], lowest[..., 1])
    zooms = np.stack([zoom * aspect, zoom], -1)
    shift = np.stack([lowest[..., 0] - low[..., 0] * zooms[..., 0], top + high[..., 1] * zoom], -1)
    return zooms, shift


def _follow(bodies: Bodies, view: torch.Tensor, part: torch.Tensor,
            q: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Where surface points lie in another view, `[2, N]`, and whether they are seen there."""
    xy, depth = project(bodies, view, part, q)
    hits = cast(bodies, view, xy)
    inside = (xy.abs() <= 1.0).all(0)
    return xy, inside & (hits.part == part) & ((hits.depth - depth).abs() <= _SAME_SURFACE)


def _joint_owners() -> tuple[np.ndarray, np.ndarray]:
    """Which parts may lie over a joint without hiding it, [18, P] bool, and how deep under them it
    lies, [18] metres."""
    owners = np.zeros((18, len(PARTS)), dtype=bool)
    depth = np.full(18, 0.16)

    def own(joint: int, *names: str) -> None:
        owners[joint, [INDEX[name] for name in names]] = True

    own(0, "head")
    own(1, "neck", "chest", "head")
    for s, side in enumerate(("right", "left")):
        upper, fore, hand = (f"{side}_{name}" for name in ("upper_arm", "forearm", "hand"))
        thigh, shin, foot = (f"{side}_{name}" for name in ("thigh", "shin", "foot"))
        own(2 + 3 * s, upper, "chest")
        own(3 + 3 * s, upper, fore)
        own(4 + 3 * s, fore, hand)
        own(8 + 3 * s, thigh, "pelvis", "abdomen", "skirt")
        own(9 + 3 * s, thigh, shin, "skirt")
        own(10 + 3 * s, shin, foot)
        own(14 + s, "head")
        own(16 + s, "head", "hair")
    depth[[0, 14, 15, 16, 17]] = 0.05  # these lie on the surface
    return owners, depth


_OWNERS, _BURIED = _joint_owners()


def _poses(people: _People, *, drop_hidden: bool) -> torch.Tensor:
    """`[V, 18, 3]` of the joints; those outside the frame are missing, hidden ones on demand."""
    bodies, joints = people.bodies, people.stance.joints
    device = bodies.rays.device
    xy = joints[..., :2] * people.zoom[:, :, None] * [1.0, -1.0] + people.shift[:, :, None]
    xy = torch.from_numpy(xy.reshape(-1, 18, 2).astype(np.float32)).to(device)
    present = (xy.abs() <= 1.0).all(-1)
    if drop_hidden:
        depth = torch.from_numpy(joints[..., 2].reshape(-1).astype(np.float32)).to(device)
        view = torch.arange(len(xy), device=device).repeat_interleave(18)
        hits = cast(bodies, view, xy.reshape(-1, 2).t().contiguous())
        joint = torch.arange(18, device=device).repeat(len(xy))
        owners = torch.from_numpy(_OWNERS).to(device)
        buried = torch.from_numpy(_BURIED.astype(np.float32)).to(device)
        seen = owners[joint, hits.part.clamp_min(0)] & (hits.depth - depth <= buried[joint])
        # A joint over the background (an ear beside a slim head) hides behind nothing.
        seen |= hits.part < 0
        present &= seen.view(-1, 18)
    xy = xy.masked_fill(~present[..., None], 0.0)
    return torch.cat([xy, present[..., None].to(xy.dtype)], dim=-1)


def _draw_clutter(draws: Draws) -> np.ndarray:
    """`[2 B, 3 + 9 * blobs]`: a base colour, then per blob centre, half sizes, kind, colour and
    strength."""
    base = draws.uniform(0.15, 0.95, 2, 1) + draws.uniform(-0.15, 0.15, 2, 3)
    blobs = draws.uniform(0.0, 1.0, 2, _BLOBS, 9)
    blobs[..., 0:2] = 2.4 * blobs[..., 0:2] - 1.2
    blobs[..., 2:4] = 0.12 + 0.75 * blobs[..., 2:4]
    # Rooms and streets are duller than clothes.
    blobs[..., 5:8] = 0.45 * blobs[..., 5:8] + 0.55 * blobs[..., 5:8].mean(-1, keepdims=True)
    blobs[..., 8] = 0.45 + 0.55 * blobs[..., 8]
    views = 2 * len(base)
    flat = [base.reshape(views, 3), blobs.reshape(views, 9 * _BLOBS)]
    return np.concatenate(flat, -1).astype(np.float32)


def _plain(columns: int) -> np.ndarray:
    """A row of `_draw_clutter`: white, and blobs of no strength."""
    row = np.zeros(columns, dtype=np.float32)
    row[:3] = 1.0
    row[3:].reshape(_BLOBS, 9)[:, 2:4] = 1.0
    return row


def _paint_clutter(table: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """`[V, 3, H, W]` in [0, 1]: soft blobs and soft-edged boxes laid over a base colour."""
    x = (torch.arange(width, device=table.device) * 2 + 1) / width - 1.0
    y = (torch.arange(height, device=table.device) * 2 + 1) / height - 1.0
    color = table[:, :3, None, None].expand(-1, -1, height, width)
    for k in range(_BLOBS):
        blob = table[:, 3 + 9 * k : 12 + 9 * k, None]
        box = blob[:, 4] < 0.5
        across = _profile((x - blob[:, 0]).abs() / blob[:, 2], box)
        down = _profile((y - blob[:, 1]).abs() / blob[:, 3], box)
        weight = blob[:, 8, :, None] * down[:, :, None] * across[:, None, :]
        color = color + weight[:, None] * (blob[:, 5:8, :, None] - color)
    return color


def _profile(distance: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    """Strength of a blob, or of a box with soft edges, by distance in half sizes."""
    bump = (1.0 - distance * distance).clamp_min(0.0)
    return torch.where(box, ((1.0 - distance) * 10.0).clamp(0.0, 1.0), bump * bump)
