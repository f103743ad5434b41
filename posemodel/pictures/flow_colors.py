"""Colours for flows and for maps of one value."""

from functools import cache

import numpy as np
import torch
from torch import Tensor


def flow_to_color(flow: Tensor, max_flow: float) -> np.ndarray:
    """The Middlebury colour wheel: direction is hue, length is saturation, white is no motion.

    Args:
        flow: displacements in pixels, `[2, h, w]`, (x, y); NaN counts as no motion.
        max_flow: length that gets the full colour; longer ones are drawn like it.

    Returns: `[h, w, 3]`, uint8.
    """
    from torchvision.utils import flow_to_image

    flow = torch.nan_to_num(flow.detach().float().cpu(), nan=0.0, posinf=max_flow, neginf=-max_flow)
    length = flow.norm(dim=0, keepdim=True)
    flow = flow * (max_flow / length.clamp(min=max_flow))
    # torchvision scales by the longest flow that it finds. One row that has the given length makes
    # the colours comparable between pictures.
    ruler = torch.zeros(2, 1, flow.shape[2])
    ruler[0] = max_flow
    colors = flow_to_image(torch.cat([flow, ruler], dim=1))[:, :-1]
    return colors.permute(1, 2, 0).contiguous().numpy()


def heat(values: Tensor) -> np.ndarray:
    """Values in [0, 1], `[h, w]`, in the colours of viridis, `[h, w, 3]` uint8; NaN is grey."""
    values = values.detach().float().cpu()
    index = (torch.nan_to_num(values).clamp(0, 1) * 255).round().long()
    colors = _viridis()[index.numpy()]
    colors[values.isnan().numpy()] = 128
    return colors


@cache
def _viridis() -> np.ndarray:
    from matplotlib import colormaps

    return colormaps["viridis"](range(256), bytes=True)[:, :3]
