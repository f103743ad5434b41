"""The affine preserving loss: the task that has an exact answer (Eq. 3, 4, 7)."""

from dataclasses import dataclass

import torch
from torch import Tensor

import pose_kernels


@dataclass(frozen=True, kw_only=True)
class AffineRange:
    """Bounds of the random maps; people stay upright."""

    rotation: float
    """degrees, less than 90"""
    scale: float
    """relative change of size per axis"""
    shear: float
    """shear per axis"""
    shift: float
    """normalised coordinates"""


def random_affine(
    count: int, bounds: AffineRange, *, aspect: float, generator: torch.Generator
) -> Tensor:
    """Random maps `A x + b` of the plane, `[count, 2, 3]`, in normalised coordinates.

    Five a's: a rotation, two shears, two scales; two b's: the shift. `aspect` is width / height:
    the map is drawn in pixels of equal sides, so that a rotation does not shear a narrow image.
    Drawn on the CPU from `generator`, the same on every device.
    """
    draws = 2 * torch.rand(count, 7, generator=generator) - 1                      # in [-1, 1)
    angle = torch.deg2rad(draws[:, 0] * bounds.rotation)
    cos, sin = angle.cos(), angle.sin()
    rotation = torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2)
    one = torch.ones(count)
    shear = torch.stack(
        [one, draws[:, 1] * bounds.shear, draws[:, 2] * bounds.shear, one], 1).view(-1, 2, 2)
    scale = torch.diag_embed(1 + draws[:, 3:5] * bounds.scale)
    to_pixels = torch.tensor([aspect, 1.0])
    linear = rotation @ shear @ scale
    linear = linear * to_pixels / to_pixels[:, None]        # columns in, rows out
    return torch.cat([linear, draws[:, 5:, None] * bounds.shift], dim=2)


def transform_pose(pose: Tensor, affine: Tensor) -> Tensor:
    """Move the joints of `[B, J, 3]` by `[B, 2, 3]`; a joint that leaves the frame is missing."""
    xy = pose[..., :2] @ affine[:, :, :2].mT + affine[:, None, :, 2]
    presence = pose[..., 2:] * (xy.abs() <= 1).all(-1, keepdim=True)
    return torch.cat([xy * presence, presence], dim=-1)


def affine_flow(affine: Tensor, height: int, width: int) -> Tensor:
    """s_f, the flow that undoes `A`: it samples at `A x + b`, `[B, 2, height, width]`.

    The person at p_t appears in the source at p_st = A p_t, so the target's position x has to be
    sampled at A x: in backward warping the inverse of a map is the map itself, evaluated.
    """
    grid = pose_kernels.identity_flow(height, width, device=affine.device)
    moved = affine[:, :, :2] @ grid.flatten(1) + affine[:, :, 2:]
    return moved.view(-1, 2, height, width)


def affine_loss(flow: Tensor, affine: Tensor, weight: Tensor | None = None, *, unit: str) -> Tensor:
    """Eq. 7, `|W(p_st, p_t) - s_f|_1`, the mean over the positions whose source is in the frame,
    and then over the pairs; a pair without such positions counts as 0.

    Args:
        flow: `[B, 2, h, w]`, W(p_st, p_t).
        affine: `[B, 2, 3]`.
        weight: `[B, 1, h, w]`, of each position in its pair's mean; None: all the same (the paper).
        unit: "normalized" measures in [-1, 1] coordinates, "pixel" in cells of the flow's grid.
    """
    truth = affine_flow(affine, *flow.shape[-2:])
    inside = (truth.abs() <= 1).all(dim=1, keepdim=True).to(truth.dtype)
    if weight is not None:
        inside = inside * weight
    error = (flow - truth).abs()
    if unit == "pixel":
        height, width = flow.shape[-2:]
        error = error * error.new_tensor([width / 2, height / 2]).view(1, 2, 1, 1)
    total = inside.sum((1, 2, 3))
    return ((error * inside).mean(1).sum((1, 2)) / total.clamp_min(1e-6)).mean()
