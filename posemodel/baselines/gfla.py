"""GFLA, global flow local attention (Ren et al. 2020): a network regresses the flow directly.

This is the first of its two stages, which makes the flows of the paper's table: a U-Net sees the
maps of both poses and gives a flow at an eighth and one at a quarter of the image (32 and 64 at 256
pixels: GFLA32 and GFLA64). Masks and local attention belong to the second stage, an image generator
of its own.

Losses of the paper: sampling correctness and affine regularisation, both here. The others are those
of its second stage, whose place the common losses take.
"""

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pose_kernels
from posemodel.baselines.baseline import Baseline, require
from posemodel.flow.estimator import Features, Motion
from posemodel.flow.units import from_displacement, to_cells
from posemodel.poses.joints import JOINTS
from posemodel.poses.maps import pose_maps
from posemodel.runtime.errors import UserError
from posemodel.runtime.memory_format import channels_last

# Sampling correctness: the sampled features are a Gaussian mean of 4 x 4 positions.
_TAPS = 4
_SIGMA = 2.0


@dataclass(frozen=True, kw_only=True)
class GflaConfig:
    """GFLA's first stage; defaults for 64 pixels."""

    motion_input: Literal["keypoints", "keypoints+image"] = "keypoints"
    """what the network sees: maps of both poses, or also the source image (the paper)"""
    scale: Literal[32, 64] = 64
    """which flow is the result: 32 of an eighth, 64 of a quarter of the image's resolution"""
    width: int = 32
    """channels of the first level; each level doubles them"""
    max_width: int = 128
    """most channels of a level (256 in the paper)"""
    levels: int = 5
    """how often the resolution is halved, at least 4"""
    pose_sigma: float = 6.0
    """Gaussian of a joint, in pixels of an image 256 pixels high"""
    correctness_weight: float = 1.0
    """of the sampling correctness loss (20 in the paper's first stage)"""
    regularization_weight: float = 0.0005
    """of the affine regularisation (0.01 in the paper's first stage)"""

    def __post_init__(self):
        require(self, "positive", "width", "max_width", "pose_sigma")
        require(self, "not negative", "correctness_weight", "regularization_weight")


@dataclass(frozen=True, kw_only=True)
class PyramidMotion(Motion):
    """Flows at two resolutions."""

    flows: tuple[Tensor, Tensor]
    """`[B, 2, H/8, W/8]` and `[B, 2, H/4, W/4]`; `flow` is the one that the config chose"""


class Gfla(Baseline):
    """The U-Net. The two choices of `scale` have the same weights."""

    def __init__(self, *, config: GflaConfig, image_size: tuple[int, int]):
        super().__init__(config=config, image_size=image_size)
        step = 2**config.levels
        if config.levels < 4 or any(side % step or side < 2 * step for side in image_size):
            raise UserError(
                f"gfla: levels is {config.levels} for images of {image_size}, expected at least 4 "
                "and sides that are a multiple of 2^levels, at least twice it")
        widths = [min(config.max_width, config.width * 2**n) for n in range(config.levels)]
        width_in = 2 * len(JOINTS) + 3 * self.uses_image
        self.encoder = nn.ModuleList(
            _down(before, after) for before, after in itertools.pairwise([width_in, *widths]))
        # The decoder climbs back from the last level to the second, a quarter of the image.
        climb = list(reversed(range(1, config.levels - 1)))
        self.decoder = nn.ModuleList(_UpBlock(widths[n + 1], widths[n]) for n in climb)
        self.jumps = nn.ModuleList(nn.Conv2d(widths[n], widths[n], 3, padding=1) for n in climb)
        self.heads = nn.ModuleList(_head(widths[n]) for n in (2, 1))

    def estimate(self, source_pose: Tensor, target_pose: Tensor,
                 source_image: Tensor | None) -> PyramidMotion:
        seen = [pose_maps(pose, self.image_size, self.config.pose_sigma)
                for pose in (source_pose, target_pose)]
        if source_image is not None:
            seen.append(source_image)
        x = channels_last(torch.cat(seen, dim=1))
        maps = []
        for block in self.encoder:
            x = block(x)
            maps.append(x)
        decoded = []
        for block, jump, skip in zip(self.decoder, self.jumps, maps[-2:0:-1], strict=True):
            x = block(x) + jump(skip)
            decoded.append(x)
        flows = tuple(from_displacement(head(x).float())
                      for head, x in zip(self.heads, decoded[-2:], strict=True))
        return PyramidMotion(flow=flows[(32, 64).index(self.config.scale)], flows=flows)

    def losses(self, motion: PyramidMotion, batch: dict[str, Tensor],
               features: Features) -> dict[str, Tensor]:
        """Sampling correctness and affine regularisation, each summed over both flows."""
        with torch.no_grad():
            maps = zip(features(batch["source"]), features(batch["target"]), strict=True)
        by_size = {source.shape[-2:]: (source, target) for source, target in maps}
        # What is left of a fit is small beside what went in: not a matter for bfloat16.
        with torch.autocast(motion.flow.device.type, enabled=False):
            correctness = torch.stack([
                sampling_correctness(flow, *by_size[flow.shape[-2:]])
                for flow in motion.flows]).sum()
            # Patches of 3 x 3 on the coarse flow and 5 x 5 on the fine one see about the same area.
            coarse, fine = motion.flows
            bend = affine_regularization(coarse, 3) + affine_regularization(fine, 5)
        return {"correctness": self.config.correctness_weight * correctness,
                "regularization": self.config.regularization_weight * bend}


def sampling_correctness(flow: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """How much worse the flow's sample matches than the best of all source positions would.

    `mean exp(-c / c_max) - exp(-1)`, with c the cosine between the source features sampled at the
    flow and the target's features, c_max the largest cosine that the position has with any source
    position. Zero where every sample is as good as the best match. Only the flow learns from it.

    Args:
        flow: `[B, 2, h, w]`, absolute, normalised.
        source, target: features `[B, c, h, w]`, none negative.
    """
    source, target = source.detach().float(), F.normalize(target.detach().float(), dim=1)
    with torch.no_grad():
        unit = F.normalize(source, dim=1).flatten(2)
        # One sample at a time: all pairs of positions are 64 MiB at 64 x 64.
        best = torch.stack([
            (a.T @ b).amax(0) for a, b in zip(unit, target.flatten(2), strict=True)])
    sampled = F.normalize(_gaussian_sample(source, flow), dim=1)
    cosine = (sampled * target).sum(1).flatten(1)
    return ((-cosine / (best + 1e-8)).exp() - torch.tensor(-1.0).exp()).mean()


def affine_regularization(flow: Tensor, size: int) -> Tensor:
    """How far the flow is from an affine map in each `size` x `size` patch.

    The squared residual, in cells of the flow's grid, of the affine map that fits a patch best;
    summed over the patch and (x, y), averaged over the patches. Zero for any globally affine flow.

    Args:
        flow: `[B, 2, h, w]`, absolute, normalised; h and w at least `size`.
    """
    height, width = flow.shape[-2:]
    # The identity is affine: its residual is zero, and displacements round less than positions.
    identity = pose_kernels.identity_flow(height, width, dtype=flow.dtype, device=flow.device)
    cells = to_cells(flow - identity)
    ticks = torch.arange(size, dtype=flow.dtype, device=flow.device) - (size - 1) / 2
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    plane = torch.stack([x, y, torch.ones_like(x)], dim=-1).flatten(0, 1)          # [n n, 3]
    rest = torch.eye(size * size, dtype=flow.dtype, device=flow.device) - (
        plane @ torch.linalg.solve(plane.T @ plane, plane.T))
    # The projection on what no affine map explains, as a convolution.
    kernel = rest.view(-1, 1, size, size)
    residual = F.conv2d(cells.flatten(0, 1).unsqueeze(1), kernel)
    return residual.square().sum(1).mean() * 2


def _gaussian_sample(source: Tensor, flow: Tensor) -> Tensor:
    """Features at the flow, as a Gaussian mean of the 4 x 4 positions around each place.

    Bilinear sampling feels only the next position; this one has a gradient towards what lies two
    positions away. Beyond the border its values repeat.
    """
    batch, channels, height, width = source.shape
    x, y = (to_cells(flow + 1) - 0.5).unbind(1)                                      # [B, h, w]
    x0, y0 = x.detach().floor(), y.detach().floor()
    total, norm = 0.0, 0.0
    for row in range(1 - _TAPS // 2, 1 + _TAPS // 2):
        for column in range(1 - _TAPS // 2, 1 + _TAPS // 2):
            square = (x0 + column - x).square() + (y0 + row - y).square()
            weight = (square / (-2 * _SIGMA**2)).exp()
            at = ((y0 + row).clamp(0, height - 1) * width
                  + (x0 + column).clamp(0, width - 1)).long()
            index = at.flatten(1).unsqueeze(1).expand(-1, channels, -1)
            value = source.flatten(2).gather(2, index).unflatten(2, at.shape[1:])
            total = total + weight.unsqueeze(1) * value
            norm = norm + weight
    return total / norm.unsqueeze(1)


def _norm(width: int) -> nn.Sequential:
    return nn.Sequential(nn.InstanceNorm2d(width, affine=True), nn.LeakyReLU(0.1))


def _down(width_in: int, width: int) -> nn.Sequential:
    return nn.Sequential(_norm(width_in), nn.Conv2d(width_in, width, 4, stride=2, padding=1),
                         _norm(width), nn.Conv2d(width, width, 3, padding=1))


class _UpBlock(nn.Module):
    """A residual block that doubles the resolution."""

    def __init__(self, width_in: int, width: int):
        super().__init__()
        self.layers = nn.Sequential(_norm(width_in), nn.Conv2d(width_in, width, 3, padding=1),
                                    _norm(width),
                                    nn.ConvTranspose2d(width, width, 4, stride=2, padding=1))
        self.shortcut = nn.Sequential(
            _norm(width_in), nn.ConvTranspose2d(width_in, width, 4, stride=2, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + self.shortcut(x)


def _head(width: int) -> nn.Sequential:
    last = nn.Conv2d(width, 2, 3, padding=1)
    # An untrained head says "no displacement".
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(_norm(width), last)
