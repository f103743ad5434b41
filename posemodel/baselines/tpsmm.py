"""TPSMM, the thin-plate spline motion model (Zhao and Zhang 2022), with the joints given.

Each group of five joints bends the plane by the thin-plate spline through them. The paper finds its
points in images; here they are joints, and some are missing.

Losses of the paper: the perceptual one is the common loss of training; the warp loss is
`Tpsmm.losses`. The equivariance loss teaches the key point detector, which the given joints
replace. The background loss asks that the background's motion there and back be the identity; it
is for videos, whose camera moves behind the person.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import pose_kernels
from posemodel.baselines.baseline import require
from posemodel.baselines.dense_motion import (
    Candidates,
    DenseMotionConfig,
    DenseMotionEstimator,
    gaussian_maps,
    similarity,
)
from posemodel.flow.estimator import Features, Motion
from posemodel.poses.joints import JOINTS

GROUPS = (
    (0, 14, 15, 16, 17),  # head
    (16, 17, 1, 2, 5),  # head and shoulders
    (1, 2, 5, 8, 11),  # torso
    (1, 2, 3, 4, 8), (1, 5, 6, 7, 11),  # arms
    (2, 8, 9, 10, 11), (5, 11, 12, 13, 8),  # legs
    (1, 8, 11, 9, 12),  # hips
    (0, 8, 11, 10, 13),  # from head to feet
    (1, 4, 7, 10, 13),  # outline
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TpsmmConfig(DenseMotionConfig):
    """TPSMM with given joints."""

    ridge: float = 0.01
    """how far a spline may miss its points in order to bend less, squared half image heights"""
    dropout: float = 0.5
    """largest chance that a spline is left out of the mixture in training; it grows over the first
    tenth of the training and is zero after 0.35 of it"""
    variance: float = 0.01
    """of a joint's Gaussian, in squared half image heights"""
    warp_weight: float = 1.0
    """of the warp loss"""

    def __post_init__(self):
        super().__post_init__()
        require(self, "positive", "ridge", "variance")
        require(self, "a share", "dropout")
        require(self, "not negative", "warp_weight")


class Tpsmm(DenseMotionEstimator):
    """Ten groups of five joints, ten splines; the network sees a Gaussian for each joint.

    As in `Fomm` the Gaussians of the two poses stay apart; a joint that several groups share is
    drawn once.
    """

    motions, maps = len(GROUPS), 2 * len(JOINTS)

    def candidates(self, source_pose: Tensor, target_pose: Tensor, grid: Tensor) -> Candidates:
        groups = list(GROUPS)
        common = (source_pose[..., 2] * target_pose[..., 2])[:, groups]               # [B, K, 5]
        source, target = (pose[..., :2][:, groups] for pose in (source_pose, target_pose))
        flows = spline_motions(source, target, common, self.config.ridge, grid)
        maps = [gaussian_maps(pose[..., :2], pose[..., 2], self.config.variance, grid)
                for pose in (target_pose, source_pose)]
        return Candidates(flows, common.sum(-1) > 0, torch.cat(maps, dim=1))

    def regularize(self, masks: Tensor) -> Tensor:
        """Leave splines out of the mixture, each with the chance that `progress` calls for; the
        background stays."""
        chance = self.config.dropout * min(1.0, 10 * self.progress)
        if not self.training or chance == 0 or self.progress >= 0.35:
            return masks
        kept = torch.rand(masks.shape[:2], device=masks.device) >= chance
        kept[:, 0] = True
        # A background of weight 0 must not lead to a division by 0 where all the rest is left out.
        masks = torch.cat([masks[:, :1] + 1e-6, masks[:, 1:]], dim=1) * kept[:, :, None, None]
        return masks / masks.sum(1, keepdim=True)

    def losses(self, motion: Motion, batch: dict[str, Tensor],
               features: Features) -> dict[str, Tensor]:
        """The warp loss: mean |E(target) - E(source) warped| for each map E of the features. Only
        the flow learns from it.

        In the paper E is the encoder of its inpainting network; here it is whatever `features` is.
        """
        with torch.no_grad():
            maps = zip(features(batch["source"]), features(batch["target"]), strict=True)
        loss = motion.flow.new_zeros(())
        for source, target in maps:
            warped = pose_kernels.flow_sample(source, motion.flow)
            loss = loss + (target - warped).abs().float().mean()
        return {"warp": self.config.warp_weight * loss}


def spline_motions(source: Tensor, target: Tensor, common: Tensor, ridge: float,
                   grid: Tensor) -> Tensor:
    """Thin-plate splines from target to source points, evaluated on a grid.

    `T(z) = a + B z + sum_i w_i U(|z - p_i|)`, `U(r) = r^2 log r^2`, which minimises the misses plus
    `ridge` times the bending. A similarity is fitted first and the spline corrects what it leaves;
    what the points do not determine therefore follows the similarity. So two points give a
    similarity, one a shift, collinear points stretch along their line and turn with it, and points
    that coincide in the target are averaged. With `ridge` towards 0 the spline goes through its
    points, and it is affine wherever the points are.

    Args:
        source, target: `[B, K, N, 2]`.
        common: `[B, K, N]`, 1 for points that both poses have.
        ridge: positive.
        grid: `[2, h, w]`.

    Returns: `[B, K, 2, h, w]`; the identity up to a shift where no point counts.
    """
    weight = common.unsqueeze(-1)
    count = weight.sum(-2, keepdim=True).clamp_min(1)
    mean_s, mean_t = ((weight * p).sum(-2, keepdim=True) / count for p in (source, target))
    source, target = (source - mean_s) * weight, (target - mean_t) * weight
    linear = similarity(source, target, common, ridge)
    left = source - target @ linear.mT                                          # [B, K, N, 2]

    # [[U + ridge I, P], [P^T, -ridge I]] [w; c] = [left; 0]; a missing point's row is ridge w = 0.
    gaps = (target.unsqueeze(-2) - target.unsqueeze(-3)).square().sum(-1)          # [B, K, N, N]
    bending = _kernel(gaps) * weight * weight.mT
    plane = torch.cat([weight, target], dim=-1)                                    # [B, K, N, 3]
    points = target.shape[-2]
    corner = target.new_zeros(*target.shape[:-2], 3, 3)
    system = torch.cat([
        torch.cat([bending, plane], dim=-1), torch.cat([plane.mT, corner], dim=-1)], dim=-2)
    diagonal = target.new_tensor([ridge] * points + [-ridge] * 3)
    solution = torch.linalg.solve(system + diagonal.diag(), F.pad(left, (0, 0, 0, 3)))
    weights, shift, slope = solution.split([points, 1, 2], dim=-2)

    offset = grid.flatten(1) - mean_t.mT                                           # [B, K, 2, h w]
    moved = (linear + slope.mT) @ offset + (mean_s + shift).mT
    distance = (offset.unsqueeze(-3) - target.unsqueeze(-1)).square().sum(-2)      # [B, K, N, h w]
    moved = moved + weights.mT @ _kernel(distance)
    return moved.unflatten(-1, grid.shape[1:])


def _kernel(square: Tensor) -> Tensor:
    # The constant keeps the logarithm and its derivative finite at a point itself.
    return square * (square + 1e-9).log()
