"""A flow at another resolution: what `flow_sample` interpolates on the fly, as a tensor.

Plain PyTorch on every device: for pictures, metrics and files. Sampling itself never needs it.
"""

import torch

from . import _checks
from .identity_flow import identity_flow


def interpolate_linearly(displacement: torch.Tensor, size: int, dim: int) -> torch.Tensor:
    """Linear interpolation along ``dim`` at ``size`` pixel centres; extrapolated at the ends."""
    coarse = displacement.shape[dim]
    if coarse == size:
        return displacement
    if coarse == 1:
        return displacement.expand(*(size if d == dim else -1 for d in range(4)))
    j = torch.arange(size, dtype=displacement.dtype, device=displacement.device)
    position = (j + 0.5) * (coarse / size) - 0.5
    low = position.floor().clamp(0, coarse - 2)
    weight = position - low  # below 0 or above 1: extrapolation
    weight = weight.view([size if d == dim else 1 for d in range(4)])
    low = low.long()
    return (displacement.index_select(dim, low) * (1 - weight)
            + displacement.index_select(dim, low + 1) * weight)


def resize_flow(flow: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The flow that ``flow_sample(image, flow, size)`` samples at.

    Args:
        flow: ``[B, 2, h, w]``, any floating dtype.
        size: (H, W) of the result.

    Returns: ``[B, 2, H, W]``.

    Convention:
        Absolute sampling locations (x, y), normalised, pixel centres. The displacement ``flow -
        identity`` is interpolated bilinearly and continued linearly beyond the outermost centres,
        so identity and affine flows stay exact up to the border.
    Raises: TypeError, ValueError: an argument of the wrong type, dtype or shape.
    """
    _checks.check_flow(flow)
    size = _checks.check_size(size)
    options = {"dtype": flow.dtype, "device": flow.device}
    displacement = flow - identity_flow(*flow.shape[2:], **options)
    fine = interpolate_linearly(interpolate_linearly(displacement, size[0], 2), size[1], 3)
    return fine + identity_flow(*size, **options)
