"""Where a person stands, told from the joints alone: limbs and torso as soft capsules.

All widths are in lengths of the body's long bones: the longest of torso (middle of the shoulders to
middle of the hips), thighs and shins that are seen whole. These three are about equal (0.25 of the
body's height), and the longest one is the least foreshortened. The widths are those of clothed
people, found on the mannequins, where the true foreground is known (`docs/reid.md`).
"""

import torch
from torch import Tensor

from posemodel.poses.joints import JOINTS, normalized_to_pixels

_NECK = JOINTS.index("neck")
_FRONT, _EARS = (0, 14, 15), (16, 17)  # nose and eyes
_SHOULDERS, _HIPS = (2, 5), (8, 11)
_BONES = ((8, 9), (9, 10), (11, 12), (12, 13))  # thighs and shins

# Capsules between two joints: radius at the first and at the second.
_LIMBS = (
    (2, 3, 0.15, 0.13), (3, 4, 0.13, 0.10), (5, 6, 0.15, 0.13), (6, 7, 0.13, 0.10),
    (8, 9, 0.24, 0.18), (9, 10, 0.17, 0.13), (11, 12, 0.24, 0.18), (12, 13, 0.17, 0.13),
)
# Ends that no joint marks, as an extension of a limb: length beyond it, radius.
_HANDS = ((3, 4), (6, 7))
_HAND = (0.28, 0.09)
_ANKLES = (10, 13)
_FOOT = (0.16, 0.12)  # straight down
# The torso is filled by lines from the shoulders to the hips.
_TORSO_LINES = 5
_TORSO = (0.17, 0.22)
_HEAD_ABOVE_NECK = 0.54  # centre of the head, where no point of the face is seen
_HEAD = (0.11, 0.25)  # half length and radius
_THROAT = 0.14


def foreground(pose: Tensor, size: tuple[int, int]) -> Tensor:
    """How much of each pixel belongs to the person.

    An arm of which one end is missing is left out, a leg goes on straight down: most are missing
    because the image ends. One shoulder or hip stands for both. Where no bone tells the size
    nothing is foreground.

    Args:
        pose: `[B, 18, 3]` (x, y, presence), normalised.
        size: (H, W). The edge is soft over 1/64 of the height: two pixels of 128.

    Returns: `[B, 1, H, W]` float32 in [0, 1].
    """
    height, width = size
    points = normalized_to_pixels(pose.float(), size)
    xy, present = points[..., :2], points[..., 2] > 0                              # [B, 18, ...]
    # A missing shoulder or hip takes the place of the other one: in a view from the side they lie
    # behind each other. Missing knees and ankles under a hip are one bone's length further down.
    for one, other in (_SHOULDERS, _SHOULDERS[::-1], _HIPS, _HIPS[::-1]):
        _fill_in(xy, present, other, one)
    unit = _unit(xy, present)                                                      # [B]
    down = torch.stack([torch.zeros_like(unit), unit], 1)
    for upper, lower in _BONES:
        _fill_in(xy, present, upper, lower, down)
    columns = torch.arange(width, device=pose.device, dtype=torch.float32)
    rows = torch.arange(height, device=pose.device, dtype=torch.float32)
    outside = torch.full((len(pose), height, width), torch.inf, device=pose.device)
    for start, end, first, second, there in _capsules(xy, present, unit):
        distance = _distance(columns, rows, start, end, first * unit, second * unit)
        outside = torch.minimum(outside, distance.where(_column(there & (unit > 0)), torch.inf))
    return (0.5 - outside * (64 / height)).clamp(0, 1).unsqueeze(1)


def _fill_in(xy: Tensor, present: Tensor, known: int, missing: int,
             offset: Tensor | float = 0.0) -> None:
    """Where only one of two joints is there, the other one is put beside it, in place."""
    lost = present[:, known] & ~present[:, missing]
    xy[:, missing] = (xy[:, known] + offset).where(lost.unsqueeze(1), xy[:, missing])
    present[:, missing] |= lost


def _unit(xy: Tensor, present: Tensor) -> Tensor:
    shoulders, hips = xy[:, _SHOULDERS].mean(1), xy[:, _HIPS].mean(1)
    torso = (shoulders - hips).norm(dim=-1) * present[:, _SHOULDERS + _HIPS].all(1)
    bones = [(xy[:, a] - xy[:, b]).norm(dim=-1) * (present[:, a] & present[:, b])
             for a, b in _BONES]
    return torch.stack([torso, *bones]).amax(0)


def _capsules(xy: Tensor, present: Tensor, unit: Tensor):
    """Start and end `[B, 2]`, radii at both, and where it exists `[B]`, of one after the other."""
    for a, b, first, second in _LIMBS:
        yield xy[:, a], xy[:, b], first, second, present[:, a] & present[:, b]
    scale = unit.unsqueeze(1)
    for elbow, wrist in _HANDS:
        along = torch.nn.functional.normalize(xy[:, wrist] - xy[:, elbow], dim=-1)
        yield (xy[:, wrist], xy[:, wrist] + _HAND[0] * scale * along, _HAND[1], _HAND[1],
               present[:, elbow] & present[:, wrist])
    down = xy.new_tensor([0.0, 1.0])
    for ankle in _ANKLES:
        yield (xy[:, ankle], xy[:, ankle] + _FOOT[0] * scale * down, _FOOT[1], _FOOT[1],
               present[:, ankle])
    torso = present[:, _SHOULDERS + _HIPS].all(1)
    for share in torch.linspace(0, 1, _TORSO_LINES).tolist():
        yield (torch.lerp(xy[:, _SHOULDERS[0]], xy[:, _SHOULDERS[1]], share),
               torch.lerp(xy[:, _HIPS[0]], xy[:, _HIPS[1]], share), *_TORSO, torso)
    head, above, there = _head(xy, present, torso, unit)
    yield xy[:, _NECK], head, _THROAT, _THROAT, there & present[:, _NECK]
    half = _HEAD[0] * scale * above
    yield head - half, head + half, _HEAD[1], _HEAD[1], there


def _head(xy: Tensor, present: Tensor, torso: Tensor,
          unit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centre of the head and its direction up, `[B, 2]`, and where it is known, `[B]`."""
    # Ears lie in the middle of a head seen from the side, nose and eyes of one seen from the front.
    groups = [(xy[:, joints], present[:, joints].unsqueeze(-1)) for joints in (_FRONT, _EARS)]
    means = torch.stack([(at * here).sum(1) / here.sum(1).clamp_min(1) for at, here in groups], 1)
    known = torch.stack([here.any(1) for _, here in groups], 1)                    # [B, 2, 1]
    center, seen = means.sum(1) / known.sum(1).clamp_min(1), known.any(1)
    spine = xy[:, _SHOULDERS].mean(1) - xy[:, _HIPS].mean(1)
    upright = xy.new_tensor([0.0, -1.0]).expand_as(center)
    spine = torch.nn.functional.normalize(spine, dim=-1).where(torso.unsqueeze(1), upright)
    neck = present[:, _NECK].unsqueeze(1)
    guess = xy[:, _NECK] + _HEAD_ABOVE_NECK * unit.unsqueeze(1) * spine
    above = torch.nn.functional.normalize(center - xy[:, _NECK], dim=-1)
    return center.where(seen, guess), above.where(seen & neck, spine), (seen | neck).squeeze(1)


def _distance(columns: Tensor, rows: Tensor, start: Tensor, end: Tensor, first: Tensor,
              second: Tensor) -> Tensor:
    """`[B, H, W]` pixels outside of the hull of two discs (negative inside), but for its flanks,
    where the radius is that of the nearest point on the line between the centres."""
    along = end - start
    x, y = columns - start[:, :1], rows - start[:, 1:]                             # [B, W], [B, H]
    share = _column(along[:, 1]) * y.unsqueeze(2) + _column(along[:, 0]) * x.unsqueeze(1)
    share = (share / _column(along.square().sum(1).clamp_min(1e-6))).clamp_(0, 1)
    dx = x.unsqueeze(1) - share * _column(along[:, 0])
    dy = y.unsqueeze(2) - share * _column(along[:, 1])
    return torch.hypot(dx, dy) - torch.lerp(_column(first), _column(second), share)


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1)
