"""Pose maps: 18 joints as Gaussian envelopes, the only input of the flow estimator."""

import torch
from torch import Tensor

#: Least exponent of an envelope. Further down lie numbers that are not normal, with which a CPU
#: takes many times as long, and nothing that could be told from zero.
LEAST = -40.0


def pose_maps(pose: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    """Draw each joint as a Gaussian of height 1, or as a dot; a missing joint is an empty map.

    Args:
        pose: `[B, J, 3]`, (x, y, presence) with x and y in normalised [-1, 1] coordinates.
        size: (H, W) of the maps.
        sigma: standard deviation, in pixels of an image 256 pixels high (6 in PATN); 0 draws a
            dot, the one pixel nearest to the joint (what PATN's 8-bit maps came to).

    Returns: `[B, J, H, W]` float32.

    Convention: pixel centres, `x_j = (2 j + 1) / W - 1`; a joint between pixels stays there (peers
    truncate it to an integer).
    """
    height, width = size
    pixels = sigma * height / 256
    x, y, presence = pose.float().unbind(-1)                                       # [B, J] each
    columns = torch.arange(width, device=pose.device, dtype=torch.float32)
    rows = torch.arange(height, device=pose.device, dtype=torch.float32)
    column = ((x + 1) * width / 2 - 0.5).unsqueeze(-1)                             # [B, J, 1]
    row = ((y + 1) * height / 2 - 0.5).unsqueeze(-1)
    if sigma == 0:
        across = (columns == column.round().clamp(0, width - 1)).float()
        along = (rows == row.round().clamp(0, height - 1)).float()
    else:
        across = _gaussian(columns - column, pixels)                               # [B, J, W]
        along = _gaussian(rows - row, pixels)                                      # [B, J, H]
    across = across * presence.unsqueeze(-1)
    return along.unsqueeze(-1) * across.unsqueeze(-2)                              # [B, J, H, W]


def _gaussian(distance: Tensor, sigma: float) -> Tensor:
    return torch.exp((distance.square() / (-2 * sigma**2)).clamp_min(LEAST))
