"""R of our presets: details of the source, brought along by the flow, added to the warped image."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pose_kernels
from posemodel.model.refinement import conv, in_range
from posemodel.runtime.memory_format import channels_last


class DetailEncoder(nn.Module):
    """Features of the source at `downsamplings + 1` scales, from full size down by halves, each
    scale twice as wide as the one before."""

    def __init__(self, *, width: int, downsamplings: int):
        super().__init__()
        widths = [width * 2**level for level in range(downsamplings + 1)]
        self.scales = nn.ModuleList([
            conv(3, width, kernel=5),
            *(conv(before, after, stride=2) for before, after in itertools.pairwise(widths))])

    def forward(self, image: Tensor) -> list[Tensor]:
        """`[B, 3, H, W]` -> n of `[B, width 2^n, H / 2^n, W / 2^n]`."""
        x, features = channels_last(image), []
        for scale in self.scales:
            x = scale(x)
            features.append(x)
        return features


class DetailDecoder(nn.Module):
    """From the coarsest scale up, joined at each by what was sampled there: a correction of the
    warped image.

    The resolution is doubled by repeating pixels and then convolving: a transposed convolution has
    a pattern of its own, which shows in flat surfaces. The last layer starts at zero, so that an
    untrained network gives the warped image.
    """

    def __init__(self, *, width: int, downsamplings: int, blocks: int):
        super().__init__()
        widths = [width * 2**level for level in range(downsamplings + 1)]
        self.coarsest = nn.Sequential(*(conv(widths[-1], widths[-1]) for _ in range(blocks)))
        self.scales = nn.ModuleList(
            nn.Sequential(conv(coarse + fine + (3 if fine == width else 0), fine),
                          conv(fine, fine))
            for fine, coarse in reversed(list(itertools.pairwise(widths))))
        self.last = nn.Conv2d(width, 3, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, features: list[Tensor], warped: Tensor) -> Tensor:
        """The encoder's features and the source, all sampled at the flow -> what to add to the
        warped source, `[B, 3, H, W]` float32."""
        *finer, x = features
        x = self.coarsest(x)
        for scale, sampled in zip(self.scales, reversed(finer), strict=True):
            x = F.interpolate(x, sampled.shape[-2:], mode="nearest")
            joined = [x, sampled]
            if sampled is finer[0]:
                joined.append(warped.to(x.dtype))
            x = scale(channels_last(torch.cat(joined, dim=1)))
        return self.last(x).float()


class DetailRefinement(nn.Module):
    """Encoder, warp at every scale, decoder, added to the warped source.

    Like the paper's R it sees nothing that the flow did not bring; unlike it, it need not make
    the image anew, and what is sharp in the warped source stays so. Not in the paper.
    """

    def __init__(self, *, encoder: DetailEncoder, decoder: DetailDecoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, source: Tensor, flow: Tensor) -> Tensor:
        """Image `[B, 3, H, W]` and flow `[B, 2, h, w]` -> image `[B, 3, H, W]` float32, clamped to
        [-1, 1] (in training mode with a slope of 0.1 outside)."""
        warped = pose_kernels.flow_sample(source, flow).float()
        features = [pose_kernels.flow_sample(x, flow.to(x.dtype)) for x in self.encoder(source)]
        return in_range(warped + self.decoder(features, warped), leaking=self.training)
