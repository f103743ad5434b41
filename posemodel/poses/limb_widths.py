"""How wide a person is around their limbs, and what that says of them in another pose."""

from typing import NamedTuple

import torch
from torch import Tensor

from posemodel.poses.joints import FLIP_PAIRS, LIMBS
from posemodel.poses.limb_maps import limb_distances

# In mean distances of a limb's pixels from it, half the radius of a long limb of even width:
# within the first is the person, beyond the second is nobody. Chosen on validation frames of films.
_CORE, _REACH = 0.8, 2.2
# A person is not nearer or further than this in the target.
_SCALES = 0.8, 1.25
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
    distance, length, joints = limb_distances(pose, tuple(person.shape[-2:]))
    present = joints.prod(-1)
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

    Where the target lacks one joint of a limb that the source shows, the limb may be anywhere as
    far as it is long from the other. Where it lacks both, and of a person without widths, nothing
    is known (0 and 1).

    Args:
        widths: of the person, in the source.
        pose: of the target, `[B, 18, 3]` as above.
        size: (H, W) of the target.

    Returns: twice `[B, 1, H, W]` float32, 0 to 1.
    """
    mean, length, present = widths
    distance, there, joints = limb_distances(pose, size)
    seen, lost = joints.prod(-1), present * (1 - joints.prod(-1))
    both = present * seen
    scale = (there * both).sum(1, keepdim=True) / (length * both).sum(1, keepdim=True).clamp_min(
        1e-3)
    scale = scale.clamp(*_SCALES)
    # One of a pair may be hidden by what is in front of it, and looks too narrow or too wide, or
    # point at the camera, and looks too short.
    twin = mean[:, _MIRRORED]
    longest = torch.maximum(length, length[:, _MIRRORED])
    narrow, wide = torch.minimum(mean, torch.where(twin > 0, twin, mean)), torch.maximum(mean, twin)
    wide = torch.where(wide > 0, wide, wide.amax(1, keepdim=True))
    pixel = 1 / size[0]

    def within(radius: Tensor, limbs: Tensor) -> Tensor:
        """How much of a pixel lies within the radius of any of the limbs."""
        inside = torch.where(limbs[..., None, None] > 0, radius[..., None, None] - distance,
                             -torch.inf)
        return (inside.amax(1, keepdim=True) / (2 * pixel) + 0.5).clamp(0, 1)

    least = within(_CORE * scale * narrow, both * (narrow > 0))
    reach = _REACH * scale * wide + pixel
    most = torch.maximum(within(reach, seen),
                         within(reach + scale * longest, lost * joints.amax(-1)))
    unknown = (mean.amax(1) == 0) | (lost > joints.amax(-1)).any(1)
    return least, torch.where(unknown[:, None, None, None], 1.0, most)
