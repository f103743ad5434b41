"""The affine preserving loss: the task that has an exact answer (Eq. 3, 4, 7)."""

from torch import Tensor

from posemodel.flow.affine import affine_flow
from posemodel.flow.units import to_cells


def affine_loss(flow: Tensor, affine: Tensor, weight: Tensor | None = None, *,
                cells: bool = False) -> Tensor:
    """Eq. 7, `|W(p_st, p_t) - s_f|_1` over the positions whose source is in the frame, and then the
    mean over the pairs; a pair without such positions counts as 0.

    Args:
        flow: `[B, 2, h, w]`, W(p_st, p_t).
        affine: `[B, 2, 3]`.
        weight: `[B, 1, h, w]`, of each position in its pair's mean; None: all the same (the paper).
        cells: the norm as it is printed, the sum of x and y over the positions, in cells of the
            flow's grid; else their mean in normalised [-1, 1] coordinates.

    Returns: a scalar.
    """
    truth = affine_flow(affine, *flow.shape[-2:])
    inside = (truth.abs() <= 1).all(dim=1, keepdim=True).to(truth.dtype)
    if weight is not None:
        inside = inside * weight
    error = flow - truth
    error = (to_cells(error) if cells else error).abs()
    if cells:
        return (error * inside).sum((1, 2, 3)).mean()
    total = inside.sum((1, 2, 3))
    return ((error * inside).mean(1).sum((1, 2)) / total.clamp_min(1e-6)).mean()
