"""Limb maps: beside which limb a position lies, and where along and across it."""

import torch
from torch import Tensor

from posemodel.poses.joints import LIMBS
from posemodel.poses.maps import LEAST

# In half image heights: a limb that points at the camera, as long as this or less, has no direction
# worth telling its ends apart.
_SHORT = 0.1


def limb_maps(pose: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    """Draw each limb as an envelope and, under it, as two coordinates; all empty where a joint of
    it is missing.

    The envelope is a Gaussian of the distance from the limb. The coordinates are the position along
    it, -1 at its first joint and 1 at its second (nearer to 0 in a short limb), and the distance to
    its side, in sigmas, both times the envelope. They move with the limb: what M needs to know a
    place of the body again in another pose. Not in the paper, whose M sees the joints alone.

    Args:
        pose: `[B, J, 3]`, (x, y, presence) with x and y in normalised [-1, 1] coordinates.
        size: (H, W) of the maps.
        sigma: standard deviation, in pixels of an image 256 pixels high.

    Returns: `[B, 3 L, H, W]` float32: L envelopes, L times along, L times across.
    """
    along, across, length, present = _frames(pose, size, sigma)
    envelope = _envelope(along, across, length, present)
    centred = (2 * along - length) / (length + _SHORT * 128 / sigma)
    return torch.cat([envelope, envelope * centred, envelope * across], dim=1)


def body_map(pose: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    """The largest of the limbs' envelopes, `[B, 1, H, W]`: 1 on the bones, falling to 0 away from
    the person; arguments as in `limb_maps`."""
    return _envelope(*_frames(pose, size, sigma)).amax(dim=1, keepdim=True)


def limb_distances(pose: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """How far each pixel is from each limb, in image heights.

    Returns: the distances `[B, L, H, W]`, those of missing limbs without meaning; the lengths of
        the limbs and their presence, `[B, L]`.
    """
    along, across, length, present = _frames(pose, size, 256.0)
    return _squares(along, across, length).sqrt(), length[..., 0, 0], present[..., 0, 0]


def _frames(pose: Tensor, size: tuple[int, int], sigma: float,
            ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Positions in the frame of each limb: along and across it `[B, L, H, W]`, its length and its
    presence `[B, L, 1, 1]`; lengths in sigmas."""
    height, width = size
    unit = sigma * height / 256                                                    # pixels
    scale = pose.new_tensor([width, height]) / (2 * unit)
    first, second = (pose[:, list(ends)].float() for ends in zip(*LIMBS, strict=True))
    begin, end = first[..., :2] * scale, second[..., :2] * scale                   # [B, L, 2]
    bone = end - begin
    length = bone.norm(dim=-1, keepdim=True)
    # A limb of no length is a point, and any direction is as good.
    down = torch.tensor([0.0, 1.0], device=pose.device)
    direction = torch.where(length > 1e-6, bone / length.clamp_min(1e-6), down)
    columns, rows = (
        (2 * torch.arange(count, device=pose.device, dtype=torch.float32) + 1 - count) / (2 * unit)
        for count in (width, height))
    x, y = columns - begin[..., :1], rows - begin[..., 1:]                         # [B, L, W], ...
    dx, dy = direction.split(1, dim=-1)
    along = (x * dx).unsqueeze(-2) + (y * dy).unsqueeze(-1)
    across = (y * dx).unsqueeze(-1) - (x * dy).unsqueeze(-2)
    present = first[..., 2:] * second[..., 2:]
    return along, across, length.unsqueeze(-1), present.unsqueeze(-1)


def _envelope(along: Tensor, across: Tensor, length: Tensor, present: Tensor) -> Tensor:
    return torch.exp((_squares(along, across, length) / -2).clamp_min(LEAST)) * present


def _squares(along: Tensor, across: Tensor, length: Tensor) -> Tensor:
    """Of the distances from the limbs."""
    beyond = along - torch.minimum(along.clamp_min(0), length)                     # off the ends
    return beyond.square() + across.square()
