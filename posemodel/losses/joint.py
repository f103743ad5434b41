"""The joint loss: where a joint of the target is, the flow comes from that joint of the source."""

from torch import Tensor

import pose_kernels


def joint_loss(flow: Tensor, source_pose: Tensor, target_pose: Tensor) -> Tensor:
    """`|W(p_s, p_t)(p_t^k) - p_s^k|_1`, the mean over the joints k that both poses have, and then
    over the pairs; a pair without common joints counts as 0. Not in the paper.

    A limb's surface lies around its bone: it moves with its joints, and to one side or the other of
    them as the limb turns. So this is right in the mean and holds the flow where colours leave it
    open; a joint that is hidden says something wrong, which l1 bears.

    Args:
        flow: `[B, 2, h, w]`, W(p_s, p_t), normalised.
        source_pose, target_pose: `[B, J, 3]`, (x, y, presence), normalised.

    Returns: a scalar, in normalised [-1, 1] coordinates.
    """
    joints = target_pose.shape[1]
    moved = flow - pose_kernels.identity_flow(*flow.shape[-2:], device=flow.device)
    at = target_pose[..., :2]
    # The displacement is what is sampled: in the outermost half cell it stays as it is.
    sampled = pose_kernels.flow_sample(moved, at.mT[..., None], (joints, 1))       # [B, 2, J, 1]
    error = (at + sampled[..., 0].mT - source_pose[..., :2]).abs().mean(-1)        # [B, J]
    both = source_pose[..., 2] * target_pose[..., 2]
    return ((error * both).sum(1) / both.sum(1).clamp_min(1)).mean()
