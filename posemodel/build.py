"""From a `ModelConfig` to networks."""

import dataclasses
import math

import torch

from posemodel.baselines import at_stride, baseline_config, build_baseline
from posemodel.config.sections import ModelConfig
from posemodel.flow.estimator import FlowEstimator
from posemodel.model.detail import DetailDecoder, DetailEncoder, DetailRefinement
from posemodel.model.discriminator import Discriminator
from posemodel.model.flow_head import FlowHead
from posemodel.model.pose_encoder import PoseEncoder
from posemodel.model.pose_transfer import PoseTransfer, Refinement
from posemodel.model.refinement import (
    NoRefinement,
    RefinementDecoder,
    RefinementEncoder,
    RefinementNetwork,
)
from posemodel.model.warping import WarpingNetwork
from posemodel.poses.joints import JOINTS, LIMBS

#: Source positions from which on a C_l whose first layer has windows of 3 x 3 does not store the 4D
#: map when `model.stream` is "auto": a grid of 64 x 64. A smaller one costs less to keep than to
#: make again.
STREAM_POSITIONS = 64 * 64

#: Rows and columns from which on a method of Table 1 has the sizes of its own paper; its network is
#: too deep for smaller images.
PAPER_PIXELS = 256

#: D: Gaussian of a joint, in pixels of an image 256 pixels high, as in PATN's data.
DISCRIMINATOR_SIGMA = 6.0


def build_generator(config: ModelConfig, image_size: tuple[int, int]) -> PoseTransfer:
    """The networks of the paper's Fig. 1, but for the discriminator.

    Raises: `UserError` for images that a method of Table 1 cannot work on.
    """
    build = _build_warping if config.flow == "ours" else _build_baseline
    model = PoseTransfer(warping=build(config, image_size), refinement=_build_refinement(config))
    model.to(memory_format=torch.channels_last)
    return model


def _build_baseline(config: ModelConfig, image_size: tuple[int, int]) -> FlowEstimator:
    method = baseline_config(config.flow, paper=min(image_size) >= PAPER_PIXELS)
    method = at_stride(method, config.stride(image_size))
    return build_baseline(dataclasses.replace(method, motion_input=config.motion_input),
                          image_size=image_size)


def _build_warping(config: ModelConfig, image_size: tuple[int, int]) -> WarpingNetwork:
    stride = config.stride(image_size)
    positions = math.prod(image_size) // stride**2
    return WarpingNetwork(
        encoder=PoseEncoder(maps=len(JOINTS) + (3 * len(LIMBS) if config.limb_sigma else 0),
                            channels=config.encoder_channels, features=config.feature_channels,
                            halvings=stride.bit_length() - 1, norm=config.feature_norm),
        head=FlowHead(source_positions=positions, channels=config.flow_channels,
                      depth=config.flow_depth, first_kernel=config.head_kernel,
                      stream=config.stream == "always"
                      or (config.stream == "auto" and positions >= STREAM_POSITIONS)),
        image_size=image_size, pose_sigma=config.pose_sigma, limb_sigma=config.limb_sigma,
        parametrization=config.flow_parametrization)


def _build_refinement(config: ModelConfig) -> Refinement:
    sizes = {"width": config.refine_width, "downsamplings": config.refine_downsamplings}
    if config.refine == "none":
        return NoRefinement()
    if config.refine in ("detail", "posed"):
        decoder = DetailDecoder(**sizes, blocks=config.refine_blocks,
                                posed=config.refine == "posed")
        return DetailRefinement(encoder=DetailEncoder(**sizes), decoder=decoder)
    return RefinementNetwork(
        encoder=RefinementEncoder(**sizes),
        decoder=RefinementDecoder(**sizes, blocks=config.refine_blocks, skip=config.skip))


def build_discriminator(config: ModelConfig) -> Discriminator:
    """The pose-conditioned discriminator of Eq. 6."""
    return Discriminator(joints=len(JOINTS), width=config.discriminator_width,
                         layers=config.discriminator_layers, pose_sigma=DISCRIMINATOR_SIGMA)
