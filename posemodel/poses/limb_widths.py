"""How wide a person is around their limbs, and what that says of them in another pose."""

from typing import NamedTuple

import torch
from torch import Tensor

from posemodel.poses.joints import FLIP_PAIRS, JOINTS, LIMBS
from posemodel.poses.limb_maps import limb_distances

# In mean distances of a limb's pixels from it, half the radius of a long limb of even width:
# within the first is the person, beyond the second is nobody. Chosen on validation frames of films.
_CORE, _REACH = 0.8, 2.2
# A person is not nearer or further than this in the target.
_SCALES = 0.8, 1.25
# Limbs between any two joints, at most: from wrist to ankle.
_CHAIN = 6
_MIRRORED = [{frozenset(limb): index for index, limb in enumerate(LIMBS)}[
    frozenset(FLIP_PAIRS[joint] for joint in limb)] for limb in LIMBS]


class LimbWidths(NamedTuple):
    """Of each limb of a person, in image heights, `[B, L]`."""

    mean: Tensor
    """mean distance from the limb of those pixels of the person that it is the nearest to; 0 where
    there are none, and of somebody who fills the picture"""
    length: Tensor
    """0 where a joint of it is missing"""
    present: Tensor
    """1 where both joints are there, else 0"""


def limb_widths(pose: Tensor, person: Tensor) -> LimbWidths:
    """The widths of a person.

    Args:
        pose: `[B, 18, 3]`, (x, y, presence) with x and y in normalised [-1, 1] coordinates.
        person: `[B, 1, H, W]`, 1 where the person is, else 0.
    """
    distance, length, present = limb_distances(pose, tuple(person.shape[-2:]))
    distance = torch.where(present[..., None, None] > 0, distance, torch.inf)
    least, nearest = (part.flatten(1) for part in distance.min(dim=1))
    person = person.flatten(1) > 0
    # Somebody who fills the picture has no width.
    counted = (person & ~person.all(1, keepdim=True) & least.isfinite()).float()
    # A sum for each limb, and no scatter, whose order on a GPU is another each time.
    owned = nearest[:, None] == torch.arange(len(LIMBS), device=pose.device)[:, None]
    count, total = ((owned * values[:, None]).sum(-1)
                    for values in (counted, torch.where(counted > 0, least, 0.0)))
    return LimbWidths(total / count.clamp_min(1), length * present, present)


def cover_bounds(widths: LimbWidths, pose: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """How much of each pixel a person covers in another pose: at least, and at most.

    A limb that lacks a joint may be wherever it comes to from the joints that are there, in any
    direction. Nothing is known (0 and 1) of a person without widths, and in a pose without joints.

    Args:
        widths: of the person, in the source.
        pose: of the target, `[B, 18, 3]` as above.
        size: (H, W) of the target.

    Returns: twice `[B, 1, H, W]` float32, 0 to 1.
    """
    mean, length, present = widths
    distance, there, seen = limb_distances(pose, size)
    both = present * seen
    scale = (there * both).sum(1, keepdim=True) / (length * both).sum(1, keepdim=True).clamp_min(
        1e-3)
    scale = scale.clamp(*_SCALES)
    # One of a pair may be hidden by what is in front of it, and looks too narrow or too wide.
    twin = mean[:, _MIRRORED]
    narrow, wide = torch.minimum(mean, torch.where(twin > 0, twin, mean)), _at_most(mean)
    pixel = 1 / size[0]

    def within(radius: Tensor, distance: Tensor, limbs: Tensor) -> Tensor:
        """How much of a pixel lies within the radius of any of the limbs."""
        inside = torch.where(limbs[..., None, None] > 0, radius[..., None, None] - distance,
                             -torch.inf)
        return (inside.amax(1, keepdim=True) / (2 * pixel) + 0.5).clamp(0, 1)

    least = within(_CORE * scale * narrow, distance, both * (narrow > 0))
    reach = _REACH * scale * wide + pixel
    around, radius = _places(pose, length, size)
    most = torch.maximum(within(reach, distance, seen),
                         within(reach + scale * radius, around, 1 - seen))
    unknown = mean.amax(1) == 0
    return least, torch.where(unknown[:, None, None, None], 1.0, most)


def _at_most(values: Tensor) -> Tensor:
    """Of each limb and its twin the larger value, `[B, L]`; where neither is known (0), the largest
    of all limbs."""
    values = torch.maximum(values, values[:, _MIRRORED])
    return torch.where(values > 0, values, values.amax(1, keepdim=True))


def _places(pose: Tensor, length: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Where each limb can be whatever its direction: no further from a joint that is there than the
    limbs in between and itself are long.

    Args:
        pose: `[B, 18, 3]`.
        length: of the limbs in the source, `[B, L]`, 0 where it is not known. Of a pair the longer
            counts, for the other may point at the camera.

    Returns: how far each pixel is from that joint `[B, L, H, W]`, and how far the limb comes
        `[B, L]`, infinite in a pose without joints; in image heights.
    """
    length = _at_most(length)
    first, second = (torch.tensor(ends, device=pose.device) for ends in zip(*LIMBS, strict=True))
    steps = pose.new_full((len(pose), len(JOINTS), len(JOINTS)), torch.inf)
    steps[:, first, second] = steps[:, second, first] = length
    far = torch.where(pose[..., 2] > 0, 0.0, torch.inf)                            # [B, J]
    nearest = torch.arange(len(JOINTS), device=pose.device).expand(far.shape)
    for _ in range(_CHAIN):
        through, over = (far[:, None] + steps).min(-1)
        nearest = torch.where(through < far, nearest.gather(1, over), nearest)
        far = torch.minimum(far, through)
    near = torch.where(far[:, first] <= far[:, second], first, second)             # end of the limb
    joint = nearest.gather(1, near)
    x, y, _ = pose.gather(1, joint[..., None].expand(-1, -1, 3)).float().split(1, dim=-1)
    height, width = size
    columns, rows = ((2 * torch.arange(count, device=pose.device) + 1 - count) / (2 * height)
                     for count in (width, height))
    distance = torch.hypot((columns - x * width / (2 * height)).unsqueeze(-2),
                           (rows - y / 2).unsqueeze(-1))
    return distance, far.gather(1, near) + length
