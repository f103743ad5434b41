"""The generator as a whole, and how a `ModelConfig` becomes networks."""

import dataclasses
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

import pose_kernels
from posemodel.baselines import at_stride, baseline_config, build_baseline
from posemodel.baselines.estimator import FlowEstimator
from posemodel.config import ModelConfig
from posemodel.data.keypoints import JOINTS, LIMBS
from posemodel.model.discriminator import Discriminator
from posemodel.model.flow_head import FlowHead
from posemodel.model.pose_encoder import PoseEncoder
from posemodel.model.refinement import (
    NoRefinement,
    RefinementDecoder,
    RefinementEncoder,
    RefinementNetwork,
)
from posemodel.model.warping import WarpingNetwork

#: Source positions from which on the 4D map is not stored when `model.stream` is "auto": a grid of
#: 64 x 64. A smaller map costs less to keep than to make again.
STREAM_POSITIONS = 64 * 64
#: Pixels of an image up to which `model.flow_stride` 0 means 2, a grid of 32 x 32.
FINE_PIXELS = 64 * 64
#: Rows and columns from which on a method of Table 1 has the sizes of its own paper; its network is
#: too deep for smaller images.
PAPER_PIXELS = 256


class Transfer(NamedTuple):
    """What `PoseTransfer` returns."""

    image: Tensor
    """the refined image, `[B, 3, H, W]` in [-1, 1]"""
    flow: Tensor
    """target -> source, `[B, 2, h, w]`, absolute, normalised"""
    warped: Tensor
    """the source sampled at the flow, nothing refined, `[B, 3, H, W]`"""


class PoseTransfer(nn.Module):
    """W estimates one flow from two poses; it warps the source, and R finishes the image.

    A method of Table 1 may stand in the place of W.
    """

    def __init__(self, *, warping: WarpingNetwork | FlowEstimator,
                 refinement: RefinementNetwork | NoRefinement):
        super().__init__()
        self.warping = warping
        self.refinement = refinement

    def forward(self, source: Tensor, source_pose: Tensor, target_pose: Tensor) -> Transfer:
        """A person in a new pose.

        Args:
            source: image `[B, 3, H, W]` in [-1, 1].
            source_pose, target_pose: `[B, 18, 3]`, (x, y, presence), normalised coordinates.
        """
        return self.transfer(source, self.flow(source, source_pose, target_pose))

    def flow(self, source: Tensor, source_pose: Tensor, target_pose: Tensor) -> Tensor:
        """W's flow, target -> source, `[B, 2, h, w]`; W itself does not look at the image."""
        seen = (source,) if self.warping.uses_image else ()
        return self.warping(source_pose, target_pose, *seen)

    def transfer(self, source: Tensor, flow: Tensor) -> Transfer:
        """What R makes of an image and a flow, and the image sampled at it."""
        return Transfer(self.refinement(source, flow), flow, pose_kernels.flow_sample(source, flow))


def build_generator(config: ModelConfig, image_size: tuple[int, int]) -> PoseTransfer:
    """The networks of the paper's Fig. 1, but for the discriminator.

    Raises: `UserError` for images that a method of Table 1 cannot work on.
    """
    build = _build_warping if config.flow == "ours" else _build_baseline
    model = PoseTransfer(warping=build(config, image_size), refinement=_build_refinement(config))
    model.to(memory_format=torch.channels_last)
    return model


def flow_stride(config: ModelConfig, image_size: tuple[int, int]) -> int:
    """Image pixels in a row of a cell of the flow's grid, 2 or 4."""
    return config.flow_stride or (2 if math.prod(image_size) <= FINE_PIXELS else 4)


def _build_baseline(config: ModelConfig, image_size: tuple[int, int]) -> FlowEstimator:
    method = baseline_config(config.flow, paper=min(image_size) >= PAPER_PIXELS)
    method = at_stride(method, flow_stride(config, image_size))
    return build_baseline(dataclasses.replace(method, motion_input=config.motion_input),
                          image_size=image_size)


def _build_warping(config: ModelConfig, image_size: tuple[int, int]) -> WarpingNetwork:
    stride = flow_stride(config, image_size)
    positions = math.prod(image_size) // stride**2
    return WarpingNetwork(
        encoder=PoseEncoder(
            maps=len(JOINTS) + (3 * len(LIMBS) if config.limb_sigma else 0),
            channels=config.encoder_channels,
            features=config.feature_channels,
            halvings=stride.bit_length() - 1,
            norm=config.feature_norm,
        ),
        head=FlowHead(
            source_positions=positions,
            channels=config.flow_channels,
            depth=config.flow_depth,
        ),
        image_size=image_size,
        pose_sigma=config.pose_sigma,
        limb_sigma=config.limb_sigma,
        parametrization=config.flow_parametrization,
        eps=config.correlation_eps,
        stream=config.stream == "always"
        or (config.stream == "auto" and positions >= STREAM_POSITIONS),
    )


def _build_refinement(config: ModelConfig) -> RefinementNetwork | NoRefinement:
    if not config.refine:
        return NoRefinement()
    return RefinementNetwork(
        encoder=RefinementEncoder(
            width=config.refine_width, downsamplings=config.refine_downsamplings),
        decoder=RefinementDecoder(
            width=config.refine_width,
            downsamplings=config.refine_downsamplings,
            blocks=config.refine_blocks,
            skip=config.skip,
        ),
    )


def build_discriminator(config: ModelConfig) -> Discriminator:
    """The pose-conditioned discriminator of Eq. 6."""
    return Discriminator(
        joints=len(JOINTS),
        width=config.discriminator_width,
        layers=config.discriminator_layers,
        pose_sigma=config.discriminator_sigma,
        spectral=config.discriminator_spectral_norm,
    )
