"""Flows as pictures."""

import numpy as np
from torch import Tensor

from posemodel.flow.units import displacement
from posemodel.pictures.flow_colors import flow_to_color

# As a share of the height: one maximum for all pictures, so that colours mean the same.
_MAX_FLOW = 0.25


def flow_picture(flow: Tensor, inside: Tensor | None = None) -> np.ndarray:
    """Where each position looks, seen from its own place, in the Middlebury colours.

    Args:
        flow: `[2, h, w]`, absolute, normalised.
        inside: `[1, h, w]`, where it is shown; None: everywhere.

    Returns: `[h, w, 3]` uint8, white for no motion and outside.
    """
    moved = displacement(flow)
    if inside is not None:
        moved = moved * inside
    return flow_to_color(moved, max_flow=_MAX_FLOW * flow.shape[-2])
