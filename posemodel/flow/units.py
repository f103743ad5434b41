"""From normalised coordinates to cells of a flow's grid (pixels, for one of image size) and back.

Convention: a flow holds absolute sampling locations (x, y), normalised, pixel centres; a
displacement is a location minus the position that it is sampled for.
"""

from torch import Tensor

import pose_kernels


def to_cells(vectors: Tensor) -> Tensor:
    """Normalised vectors `[..., 2, h, w]` in cells of their own grid."""
    height, width = vectors.shape[-2:]
    return vectors * vectors.new_tensor([width / 2, height / 2]).view(2, 1, 1)


def displacement(flow: Tensor) -> Tensor:
    """How far from its own place each position samples, `[..., 2, h, w]` in cells of the grid."""
    return to_cells(flow - _own_place(flow))


def from_displacement(cells: Tensor) -> Tensor:
    """The flow `[..., 2, h, w]` that samples so many cells from each position's own place."""
    height, width = cells.shape[-2:]
    return _own_place(cells) + cells * cells.new_tensor([2 / width, 2 / height]).view(2, 1, 1)


def _own_place(like: Tensor) -> Tensor:
    return pose_kernels.identity_flow(*like.shape[-2:], device=like.device)
