"""MRAA, motion representations for articulated animation (Siarohin et al. 2021), parts given.

A part is a set of joints. Its mean and covariance in both poses give an affine motion that takes
the covariance of the target to that of the source. The paper finds its regions in images and takes
`A = U sqrt(S)` of the singular value decomposition, whose axes have no sign and no order; here the
joints have names, which settles both.

Losses of the paper: the perceptual one is the common loss of training. The two equivariance losses
teach the region detector, which the given joints replace. The disentangled animation with an
autoencoder of shapes belongs to videos.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from posemodel.baselines.baseline import require
from posemodel.baselines.dense_motion import (
    Candidates,
    DenseMotionConfig,
    DenseMotionEstimator,
    affine_motions,
    similarity,
)
from posemodel.poses.joints import JOINTS

PARTS = (
    (0, 14, 15, 16, 17),  # head
    (1, 2, 5, 8, 11),  # torso
    (2, 3), (3, 4), (5, 6), (6, 7),  # upper arms and forearms
    (8, 9), (9, 10), (11, 12), (12, 13),  # thighs and shanks
)  # fmt: skip

_MEMBERS = torch.tensor([[float(j in part) for j in range(len(JOINTS))] for part in PARTS])
# Of whitened coordinates, whose squares sum to about the number of joints.
_ROTATION_RIDGE = 1e-3


@dataclass(frozen=True, kw_only=True)
class MraaConfig(DenseMotionConfig):
    """MRAA with given joints."""

    thickness: float = 0.05
    """half width of a straight part, in half image heights: added to each covariance"""

    def __post_init__(self):
        super().__post_init__()
        require(self, "positive", "thickness")


class Regions(NamedTuple):
    """Parts of a pose."""

    mean: Tensor
    """`[B, K, 2]`"""
    spread: Tensor
    """`[B, K, 2, 2]`, covariance of the joints alone, without the thickness"""
    present: Tensor
    """`[B, K]` bool, at least one joint"""


class Mraa(DenseMotionEstimator):
    """Ten parts, ten affine motions; the network sees each part as a Gaussian, in both poses."""

    motions, maps = len(PARTS), 2 * len(PARTS)

    def candidates(self, source_pose: Tensor, target_pose: Tensor, grid: Tensor) -> Candidates:
        floor = self.config.thickness**2
        common = source_pose[..., 2] * target_pose[..., 2]
        source, target = (regions(pose[..., :2], common) for pose in (source_pose, target_pose))
        linear = region_affine(source_pose[..., :2], target_pose[..., :2], common, floor)
        # A part is drawn from all the joints that its own pose has.
        maps = [region_maps(regions(pose[..., :2], pose[..., 2]), floor, grid)
                for pose in (target_pose, source_pose)]
        return Candidates(affine_motions(linear, source.mean, target.mean, grid), source.present,
                          torch.cat(maps, dim=1))


def regions(joints: Tensor, present: Tensor) -> Regions:
    """Mean and covariance of each part of `[B, 18, 2]`, over the joints that `[B, 18]` counts.

    A part without joints has zeros.
    """
    weight = _weights(present)
    share = weight / weight.sum(-1, keepdim=True).clamp_min(1)
    mean = share @ joints
    offset = joints.unsqueeze(1) - mean.unsqueeze(2)                               # [B, K, 18, 2]
    spread = torch.einsum("bkj,bkjx,bkjy->bkxy", share, offset, offset)
    return Regions(mean, spread, weight.sum(-1) > 0)


def region_affine(source: Tensor, target: Tensor, common: Tensor, floor: float) -> Tensor:
    """A with `A (S_t + floor I) A^T = S_s + floor I`, S the covariances of each part.

    All such A are `sqrt(S_s) R sqrt(S_t)^-1` with a rotation (or reflection) R. R is the rotation
    that brings the joints together best, measured in units of the spread; so a limb turns with its
    joints and a part is never mirrored. `floor` gives a straight part its width, the same in both
    poses: it stretches along the limb alone. One joint gives the identity, a shift.

    Args:
        source, target: joints `[B, 18, 2]`.
        common: `[B, 18]`, 1 for joints that both poses have.
        floor: positive, squared units of the joints.

    Returns: `[B, K, 2, 2]`.
    """
    roots, white = [], []
    for joints in (source, target):
        parts = regions(joints, common)
        roots.append(symmetric_root(parts.spread, floor))
        # Roots are symmetric: rows of coordinates may be multiplied from the right.
        white.append((joints.unsqueeze(1) - parts.mean.unsqueeze(2)) @ _inverse(roots[-1]))
    turn = similarity(*white, _weights(common), _ROTATION_RIDGE)
    determinant = turn[..., 0, 0].square() + turn[..., 1, 0].square()
    rotation = turn * (determinant + 1e-12).rsqrt()[..., None, None]
    root_s, root_t = roots
    return root_s @ rotation @ _inverse(root_t)


def symmetric_root(spread: Tensor, floor: float) -> Tensor:
    """Square root of `S + floor I` for covariances S `[..., 2, 2]`, in closed form.

    `sqrt(M) = (M + sqrt(det M) I) / sqrt(tr M + 2 sqrt(det M))` (Cayley and Hamilton). Both inner
    roots are of positive numbers: a covariance of rank one or zero has finite gradients, which a
    singular value decomposition does not give it.
    """
    identity = torch.eye(2, dtype=spread.dtype, device=spread.device)
    (xx, xy), (_, yy) = (row.unbind(-1) for row in spread.unbind(-2))
    trace = xx + yy
    # det(S + floor I), written so that rounding cannot make it negative.
    determinant = (xx * yy - xy * xy).clamp_min(0) + floor * trace + floor**2
    root = determinant.sqrt()[..., None, None]
    return (spread + (floor + root) * identity) / (
        trace[..., None, None] + 2 * floor + 2 * root).sqrt()


def region_maps(parts: Regions, floor: float, grid: Tensor) -> Tensor:
    """`exp(-(z - mean)^T (S + floor I)^-1 (z - mean) / 2)` of each part on `[2, h, w]`, `[B, K, h,
    w]`; a part without joints is an empty map."""
    white = _inverse(symmetric_root(parts.spread, floor))
    origin = torch.zeros_like(parts.mean)
    distance = affine_motions(white, origin, parts.mean, grid).square().sum(2)
    return (-distance / 2).exp() * parts.present[..., None, None]


def _weights(present: Tensor) -> Tensor:
    """`[B, 18]` -> `[B, K, 18]`, the joints that count in each part."""
    return present.unsqueeze(1) * _MEMBERS.to(present)


def _inverse(matrix: Tensor) -> Tensor:
    (a, b), (c, d) = (row.unbind(-1) for row in matrix.unbind(-2))
    adjugate = torch.stack([d, -b, -c, a], dim=-1).unflatten(-1, (2, 2))
    return adjugate / (a * d - b * c)[..., None, None]
