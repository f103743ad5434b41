"""What a model shows of a batch of pairs, for the measures and for the pictures."""

from dataclasses import dataclass

import torch
from torch import Tensor

import pose_kernels
from posemodel.flow import visibility
from posemodel.model.pose_transfer import PoseTransfer
from posemodel.model.scene import continued, scene_of_batch


@dataclass
class Inspection:
    """One batch seen through the model: what the metrics and the pictures are made from."""

    image: Tensor
    """refined, `[B, 3, H, W]` in [-1, 1]"""
    warped: Tensor
    """`[B, 3, H, W]`"""
    flow: Tensor
    """at image size, `[B, 2, H, W]`, normalised; the background of a scene comes from its place"""
    scores: dict[str, Tensor]
    """visibility by each measure, at image size, `[B, 1, H, W]`, higher is more visible; by
    "affine" alone where there is no truth to judge the others by, and without those that need a
    correlation where there is none"""


def has_truth(batch: dict[str, Tensor]) -> bool:
    """Whether the true flow and visibility of these pairs are known."""
    return "flow" in batch


@torch.no_grad()
def inspect(model: PoseTransfer, batch: dict[str, Tensor], dtype: torch.dtype) -> Inspection:
    """Run the model on a batch of pairs; both ways, with all scores, if their truth is known."""
    source, poses = batch["source"], (batch["source_pose"], batch["target_pose"])
    size = tuple(source.shape[-2:])
    coarse_scores = {}
    with torch.autocast(source.device.type, dtype, enabled=dtype != torch.float32):
        if has_truth(batch) and model.warping.has_correlation:
            features = model.warping.encode(*poses)
            guided = model.warping.match(*features)
            flow = model.warping.flow_from(*features)
            coarse_scores = {"peak": visibility.peak_score(guided),
                             "correlation": visibility.correlation_score(*features)}
        else:
            flow = model.flow(source, *poses)
        scene = scene_of_batch(batch)
        if scene is not None and not has_truth(batch):  # as with a photograph that is transferred
            scene = continued(scene)
        made = model.transfer(source, flow, poses[1], scene)
        if has_truth(batch):
            # The way back starts from the image that was made: the target is what nobody has.
            backward = model.flow(made.image, *reversed(poses))
    coarse_scores["affine"] = visibility.affine_score(flow)
    fine = pose_kernels.resize_flow(flow, size)
    at = pose_kernels.identity_flow(*size, device=flow.device).expand_as(fine)
    scores = {name: pose_kernels.flow_sample(score, at, size)
              for name, score in coarse_scores.items()}
    if has_truth(batch):
        scores["cycle"] = visibility.cycle_score(fine, pose_kernels.resize_flow(backward, size))
    if scene is not None:
        still = pose_kernels.identity_flow(*size, device=flow.device).to(fine.dtype)
        fine = torch.where(scene.cover(flow) > 0.5, fine, still)
    return Inspection(made.image.clamp(-1, 1), made.warped, fine, scores)
