"""What FOMM, MRAA and TPSMM share: candidate motions, and a network that picks among them.

Each method turns two poses into K candidate motions of the whole plane. A network sees where the
joints are and gives each target position a softmax over the candidates and the background; the flow
is the weighted mean of the candidates. Nothing but these weights is learnt: the joints are given.

Convention: inside, coordinates are isotropic (x times width / height, y as it is; the image is 2
high), so that a rotation is one in narrow images too. The flow that comes out is normalised.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pose_kernels
from posemodel.baselines.baseline import Baseline, require
from posemodel.baselines.hourglass import Hourglass, HourglassEncoder
from posemodel.flow.estimator import Motion


@dataclass(frozen=True, kw_only=True)
class DenseMotionConfig:
    """The network that picks; defaults for 64 pixels."""

    stride: int = 4
    """image pixels in a row of a cell of the flow's grid (4 in the papers)"""
    motion_input: Literal["keypoints", "keypoints+image"] = "keypoints"
    """what it sees: maps of both poses, or also the source image moved by each candidate"""
    width: int = 32
    """hourglass: channels at full resolution (64 in the papers)"""
    blocks: int = 3
    """hourglass: how often the resolution is halved (5 in the papers)"""
    max_width: int = 256
    """hourglass: most channels of a level (1024 in the papers)"""

    def __post_init__(self):
        require(self, "positive", "stride", "width", "blocks", "max_width")


@dataclass(frozen=True, kw_only=True)
class DenseMotion(Motion):
    """A flow and what it is mixed from."""

    masks: Tensor
    """`[B, K + 1, h, w]`, sum 1 at each position; the background comes first"""
    candidates: Tensor
    """`[B, K + 1, 2, h, w]`, the flows that are mixed"""


class Candidates(NamedTuple):
    """The motions that a method proposes, in isotropic coordinates."""

    flows: Tensor
    """`[B, K, 2, h, w]`, target -> source; any finite value where the motion is not known"""
    known: Tensor
    """`[B, K]` bool, False where missing joints leave no motion"""
    maps: Tensor
    """`[B, M, h, w]`, where the joints or parts are: what the network sees"""


class DenseMotionEstimator(Baseline):
    """The network that picks; a method adds its candidates."""

    motions: int
    """K, the number of candidates"""
    maps: int
    """M, the number of maps that the network sees"""
    moves_background = True
    """whether the background has an affine motion"""

    def __init__(self, *, config: DenseMotionConfig, image_size: tuple[int, int]):
        super().__init__(config=config, image_size=image_size)
        width_in = self.maps + 3 * (self.motions + 1) * self.uses_image
        self.hourglass = Hourglass(width_in=width_in, width=config.width, blocks=config.blocks,
                                   max_width=config.max_width)
        self.mask = nn.Conv2d(self.hourglass.width_out, self.motions + 1, 7, padding=3)
        self.background = (
            BackgroundAffine(maps=self.maps, config=config) if self.moves_background else None)

    @abstractmethod
    def candidates(self, source_pose: Tensor, target_pose: Tensor, grid: Tensor) -> Candidates:
        """The method itself: two poses `[B, 18, 3]`, missing joints zero, and the positions `[2, h,
        w]`, all isotropic."""

    def estimate(self, source_pose: Tensor, target_pose: Tensor,
                 source_image: Tensor | None) -> DenseMotion:
        height, width = self.image_size
        cells = (height // self.config.stride, width // self.config.stride)
        stretch = source_pose.new_tensor([width / height, 1.0])
        identity = pose_kernels.identity_flow(*cells, device=source_pose.device)
        grid = identity * stretch.view(2, 1, 1)
        # Positions need more than the eight bits of bfloat16.
        with torch.autocast(source_pose.device.type, enabled=False):
            flows, known, maps = self.candidates(
                _stretched(source_pose, stretch), _stretched(target_pose, stretch), grid)
            flows = torch.where(known[:, :, None, None, None], flows, grid)
        background = grid.expand(flows.shape[0], 1, -1, -1, -1)
        if self.background is not None:
            background = background + self.background(maps, grid).unsqueeze(1)
        flows = torch.cat([background, flows], dim=1) / stretch.view(2, 1, 1)  # [B, K + 1, 2, h, w]
        seen = maps
        if source_image is not None:
            seen = torch.cat([maps, _moved_images(source_image, flows)], dim=1)
        scores = self.mask(self.hourglass(seen)).float()
        unknown = F.pad(~known, (1, 0))[:, :, None, None]       # the background is always known
        masks = self.regularize(scores.masked_fill(unknown, float("-inf")).softmax(dim=1))
        return DenseMotion(flow=(masks.unsqueeze(2) * flows).sum(1), masks=masks, candidates=flows)

    def regularize(self, masks: Tensor) -> Tensor:
        """What a method does to the masks while it is trained; they still sum to 1 after it."""
        return masks


class BackgroundAffine(nn.Module):
    """An affine motion of the background, from the maps of both poses; starts as the identity.

    MRAA and TPSMM estimate it from both images; here the flow comes from the poses alone.
    """

    def __init__(self, *, maps: int, config: DenseMotionConfig):
        super().__init__()
        self.encoder = HourglassEncoder(width_in=maps, width=config.width // 2,
                                        blocks=config.blocks, max_width=config.max_width)
        self.last = nn.Linear(self.encoder.widths[-1], 6)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, maps: Tensor, grid: Tensor) -> Tensor:
        """`[B, M, h, w]`, `[2, h, w]` -> displacement `[B, 2, h, w]`."""
        affine = self.last(self.encoder(maps)[-1].mean((2, 3))).float().view(-1, 2, 3, 1, 1)
        return affine[:, :, 0] * grid[0] + affine[:, :, 1] * grid[1] + affine[:, :, 2]


def _stretched(pose: Tensor, stretch: Tensor) -> Tensor:
    present = pose[..., 2:] > 0
    return torch.cat([(pose[..., :2] * stretch).masked_fill(~present, 0), present.to(pose.dtype)],
                     dim=-1)


def _moved_images(image: Tensor, flows: Tensor) -> Tensor:
    """The image reduced to the grid and moved by each of N flows, `[B, 3 N, h, w]`."""
    batch, count, _, height, width = flows.shape
    small = F.interpolate(image, size=(height, width), mode="area")
    moved = pose_kernels.flow_sample(small.repeat_interleave(count, 0), flows.flatten(0, 1))
    return moved.view(batch, 3 * count, height, width)


def gaussian_maps(points: Tensor, present: Tensor, variance: float, grid: Tensor) -> Tensor:
    """`exp(-|z - p|^2 / (2 variance))` for points `[B, K, 2]` on `[2, h, w]`: `[B, K, h, w]`, empty
    where `present` `[B, K]` is 0."""
    square = (grid - points[..., None, None]).square().sum(2)
    return (square / (-2 * variance)).exp() * present[..., None, None]


def affine_motions(linear: Tensor, source: Tensor, target: Tensor, grid: Tensor) -> Tensor:
    """`T(z) = source + linear (z - target)`.

    Args:
        linear: `[B, K, 2, 2]`.
        source, target: `[B, K, 2]`.
        grid: `[2, h, w]`.

    Returns: `[B, K, 2, h, w]`.
    """
    offset = grid - target[..., None, None]                                    # [B, K, 2, h, w]
    return torch.einsum("bkij,bkjhw->bkihw", linear, offset) + source[..., None, None]


def similarity(source: Tensor, target: Tensor, weight: Tensor, ridge: float) -> Tensor:
    """The rotation times scale that best maps target vectors to source vectors.

    Minimises `sum weight |source - J target|^2 + ridge |J - I|^2 / 2` over J = (c, -s; s, c): no or
    short vectors give the identity, never a division by zero.

    Args:
        source, target: `[..., N, 2]`.
        weight: `[..., N]`.
        ridge: positive, in squared units of the vectors.

    Returns: `[..., 2, 2]`.
    """
    (sx, sy), (tx, ty) = source.unbind(-1), target.unbind(-1)
    norm = (weight * (tx * tx + ty * ty)).sum(-1) + ridge
    cosine = ((weight * (tx * sx + ty * sy)).sum(-1) + ridge) / norm
    sine = (weight * (tx * sy - ty * sx)).sum(-1) / norm
    return torch.stack([cosine, -sine, sine, cosine], dim=-1).unflatten(-1, (2, 2))
