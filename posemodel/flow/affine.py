"""Affine flows: the random maps of the affine task and what they do (Eq. 3, 4)."""

from dataclasses import dataclass

import torch
from torch import Tensor

import pose_kernels


@dataclass(frozen=True, kw_only=True)
class AffineRange:
    """Bounds of the random maps; people stay upright."""

    rotation: float = 30.0
    """degrees, less than 90"""
    scale: float = 0.25
    """relative change of size per axis"""
    shear: float = 0.15
    """shear per axis"""
    shift: float = 0.25
    """normalised coordinates"""


def random_affine(count: int, bounds: AffineRange = AffineRange(), *, aspect: float,
                  generator: torch.Generator) -> Tensor:
    """Random maps `A x + b` of the plane, `[count, 2, 3]`, in normalised coordinates.

    Five a's: a rotation, two shears, two scales; two b's: the shift. `aspect` is width / height:
    the map is drawn in pixels of equal sides, so that a rotation does not shear a narrow image.
    Drawn on the CPU from `generator`, the same on every device.
    """
    draws = 2 * torch.rand(count, 7, generator=generator) - 1                      # in [-1, 1)
    angle = torch.deg2rad(draws[:, 0] * bounds.rotation)
    cos, sin = angle.cos(), angle.sin()
    rotation = torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2)
    unit = torch.ones(count)
    shear = torch.stack(
        [unit, draws[:, 1] * bounds.shear, draws[:, 2] * bounds.shear, unit], 1).view(-1, 2, 2)
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
