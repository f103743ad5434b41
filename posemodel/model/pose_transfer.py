"""The generator as a whole, and how a `ModelConfig` becomes networks."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

import pose_kernels
from posemodel.config import ModelConfig
from posemodel.data.keypoints import JOINTS
from posemodel.model.discriminator import Discriminator
from posemodel.model.flow_head import FlowHead
from posemodel.model.pose_encoder import PoseEncoder
from posemodel.model.refinement import RefinementDecoder, RefinementEncoder, RefinementNetwork
from posemodel.model.warping import WarpingNetwork


class Transfer(NamedTuple):
    """What `PoseTransfer` returns."""

    image: Tensor
    """the refined image, `[B, 3, H, W]` in [-1, 1]"""
    flow: Tensor
    """target -> source, `[B, 2, H/4, W/4]`, absolute, normalised"""
    warped: Tensor
    """the source sampled at the flow, nothing refined, `[B, 3, H, W]`"""


class PoseTransfer(nn.Module):
    """W estimates one flow from two poses; it warps the source, and R finishes the image."""

    def __init__(self, *, warping: WarpingNetwork, refinement: RefinementNetwork):
        super().__init__()
        self.warping = warping
        self.refinement = refinement

    def forward(self, source: Tensor, source_pose: Tensor, target_pose: Tensor) -> Transfer:
        """A person in a new pose.

        Args:
            source: image `[B, 3, H, W]` in [-1, 1].
            source_pose, target_pose: `[B, 18, 3]`, (x, y, presence), normalised coordinates.
        """
        return self.transfer(source, self.warping(source_pose, target_pose))

    def transfer(self, source: Tensor, flow: Tensor) -> Transfer:
        """What R makes of an image and a flow, and the image sampled at it."""
        return Transfer(self.refinement(source, flow), flow, pose_kernels.flow_sample(source, flow))


def build_generator(config: ModelConfig, image_size: tuple[int, int]) -> PoseTransfer:
    """The networks of the paper's Fig. 1, but for the discriminator."""
    height, width = image_size
    warping = WarpingNetwork(
        encoder=PoseEncoder(
            joints=len(JOINTS),
            channels=config.encoder_channels,
            features=config.feature_channels,
            norm=config.feature_norm,
        ),
        head=FlowHead(
            source_positions=(height // 4) * (width // 4),
            channels=config.flow_channels,
            depth=config.flow_depth,
        ),
        image_size=image_size,
        pose_sigma=config.pose_sigma,
        parametrization=config.flow_parametrization,
        eps=config.correlation_eps,
    )
    refinement = RefinementNetwork(
        encoder=RefinementEncoder(
            width=config.refine_width, downsamplings=config.refine_downsamplings),
        decoder=RefinementDecoder(
            width=config.refine_width,
            downsamplings=config.refine_downsamplings,
            blocks=config.refine_blocks,
        ),
    )
    model = PoseTransfer(warping=warping, refinement=refinement)
    return model.to(memory_format=torch.channels_last)


def build_discriminator(config: ModelConfig) -> Discriminator:
    """The pose-conditioned discriminator of Eq. 6."""
    return Discriminator(
        joints=len(JOINTS),
        width=config.discriminator_width,
        layers=config.discriminator_layers,
        pose_sigma=config.pose_sigma,
    )
