"""FOMM, the first order motion model (Siarohin et al. 2019), with the joints given.

Joint k moves the plane by `T_k(z) = p_s + J_k (z - p_t)`. The paper learns J from images together
with its own key points. Here J comes from the limbs: the rotation and scale that turn the limb of
the target into the limb of the source.

Losses of the paper: the perceptual and the adversarial one are the common losses of training. The
two equivariance losses teach the detector to find the same points in a deformed image; with the
joints given they have nothing to teach.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from posemodel.baselines.baseline import require
from posemodel.baselines.dense_motion import (
    Candidates,
    DenseMotionConfig,
    DenseMotionEstimator,
    affine_motions,
    gaussian_maps,
    similarity,
)
from posemodel.poses.joints import JOINTS, LIMBS

# Limbs lead away from the neck: every other joint is the far end of just one.
_NEAR_END, _FAR_END = (
    torch.tensor([[float(joint == end) for end in ends] for joint in range(len(JOINTS))])
    for ends in zip(*LIMBS, strict=True))


@dataclass(frozen=True, kw_only=True)
class FommConfig(DenseMotionConfig):
    """FOMM with given joints."""

    limb_ridge: float = 0.04
    """length, in half image heights, below which a limb's rotation and scale are not trusted"""
    variance: float = 0.01
    """of a joint's Gaussian, in squared half image heights"""

    def __post_init__(self):
        super().__post_init__()
        require(self, "positive", "limb_ridge", "variance")


class Fomm(DenseMotionEstimator):
    """18 joints, 18 motions; the network sees a Gaussian for each joint of each pose.

    The paper shows the network the difference of the two Gaussians, which erases a joint that does
    not move; without the image that would be all it knows of it, so the two stay apart.
    """

    motions, maps = len(JOINTS), 2 * len(JOINTS)
    moves_background = False

    def candidates(self, source_pose: Tensor, target_pose: Tensor, grid: Tensor) -> Candidates:
        source, target = source_pose[..., :2], target_pose[..., :2]
        common = source_pose[..., 2] * target_pose[..., 2]
        linear = limb_jacobians(source, target, common, self.config.limb_ridge**2)
        maps = [gaussian_maps(pose[..., :2], pose[..., 2], self.config.variance, grid)
                for pose in (target_pose, source_pose)]
        return Candidates(affine_motions(linear, source, target, grid), common > 0,
                          torch.cat(maps, dim=1))


def limb_jacobians(source: Tensor, target: Tensor, common: Tensor, ridge: float) -> Tensor:
    """J of each joint, from the limb that leads to it.

    The neck, and a joint whose limb has a missing end, take the limbs that lead away from them; a
    joint with none of these has the identity.

    Args:
        source, target: joints `[B, 18, 2]`.
        common: `[B, 18]`, 1 for joints that both poses have.
        ridge: see `similarity`.

    Returns: `[B, 18, 2, 2]`.
    """
    near, far = torch.tensor(LIMBS, device=source.device).unbind(1)
    whole = common[:, near] * common[:, far]                                       # [B, 17]
    leading, away = (
        whole.unsqueeze(1) * ends.to(whole) for ends in (_FAR_END, _NEAR_END))     # [B, 18, 17]
    weight = torch.where(leading.sum(-1, keepdim=True) > 0, leading, away)
    limbs = (joints[:, far] - joints[:, near] for joints in (source, target))
    return similarity(*(limb.unsqueeze(1) for limb in limbs), weight, ridge)
