"""A flow where it is known, continued to where it is not."""

import torch.nn.functional as F
from torch import Tensor

import pose_kernels

#: Standard deviation of a match that is half certain, normalised coordinates: a tenth of the frame.
SPREAD = 0.2

# What lies around counts this much where nothing is certain: a place of half as much certainty is
# its own to nine tenths.
_SURROUNDINGS = 0.1
_LEAST = 1e-4  # of certainty in the whole frame, from which on it is divided by


def fill_flow(flow: Tensor, certainty: Tensor) -> Tensor:
    """Take a flow over where it is certain, and its surroundings' displacement where it is not.

    Means weighted by certainty over ever coarser cells, and back again, at each scale a mixture of
    what is known there and of the coarser one: normalised convolution (Knutsson and Westin 1993) by
    pull and push (Gortler et al., The Lumigraph, 1996). Where the certainty is 1 the flow stays as
    it is, and so does a displacement that is everywhere the same; where nothing is certain in the
    whole frame, nothing moves.

    Args:
        flow: `[B, 2, h, w]`, absolute, normalised coordinates.
        certainty: `[B, 1, h, w]`, 0 to 1.

    Returns: `[B, 2, h, w]`. Gradients go to both.
    """
    still = pose_kernels.identity_flow(*flow.shape[-2:], device=flow.device, dtype=flow.dtype)
    levels = [((flow - still) * certainty, certainty)]
    while max(levels[-1][0].shape[-2:]) > 1:
        levels.append(tuple(F.avg_pool2d(part, 2, ceil_mode=True) for part in levels[-1]))
    total, weight = levels.pop()
    moved = total / weight.clamp_min(_LEAST)
    for total, weight in reversed(levels):
        around = F.interpolate(moved, total.shape[-2:], mode="bilinear", align_corners=False)
        more = _SURROUNDINGS * (1 - weight)
        moved = (total + more * around) / (weight + more)
    return still + moved


def certainty_of_spread(variance: Tensor) -> Tensor:
    """How sure a match is, from its variance over the source, in squared normalised coordinates:
    1 for a single place, a half where places lie `SPREAD` around their mean, and falling with the
    square of the variance."""
    return 1 / (1 + (variance / SPREAD**2).square())
