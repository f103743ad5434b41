"""Which target pixels does the flow move, and which does it invent? Four measures, no labels.

Each returns a score `[B, 1, h, w]` that is higher where the source position is believed visible.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

import pose_kernels
from posemodel.flow.units import to_cells


def affine_score(flow: Tensor, window: int = 3) -> Tensor:
    """Minus the distance of the flow from locally affine, in cells of the flow's grid.

    After the paper's claim that the network learns to be affine where things are visible, of which
    it measures nothing. Per window, the residual of the least-squares affine fit, `|K g|` with
    `K = I - A (A^T A)^-1 A^T`.

    Args:
        flow: `[B, 2, h, w]`, normalised.
        window: side of the window in cells, at least 3.
    """
    height, width = flow.shape[-2:]
    cells = to_cells(flow)
    # Windows at the border use what there is: linear continuation would hide a bend.
    pad = window // 2
    patches = F.unfold(F.pad(cells, (pad,) * 4, mode="replicate"), window)         # [B, 2 n, hw]
    patches = patches.view(flow.shape[0], 2, window * window, height * width)
    axis = torch.arange(window, dtype=torch.float32, device=flow.device) - pad
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    design = torch.stack([x.flatten(), y.flatten(), torch.ones_like(x).flatten()], 1)
    complement = torch.eye(len(design), device=flow.device) - design @ torch.linalg.pinv(design)
    residual = torch.einsum("ij,bcjp->bcip", complement, patches).square().mean((1, 2)).sqrt()
    return -residual.view(-1, 1, height, width)


def cycle_score(flow: Tensor, backward_flow: Tensor) -> Tensor:
    """Minus the forward-backward error `|backward(flow(x)) - x|`, in cells of the flow's grid.

    Args:
        flow: `[B, 2, h, w]`, target -> source.
        backward_flow: `[B, 2, h, w]`, source -> target (the estimate with the poses exchanged).
    """
    height, width = flow.shape[-2:]
    identity = pose_kernels.identity_flow(height, width, device=flow.device)
    # Sampling the displacement, not the position, keeps the border honest.
    returned = pose_kernels.flow_sample(backward_flow - identity, flow) + flow
    return -to_cells(returned - identity).norm(dim=1, keepdim=True)


def peak_score(guided: Tensor) -> Tensor:
    """The largest value of Qhat over the source positions: how decided the match is.

    Args:
        guided: `[B, S, h, w]`, the guided correlation map.
    """
    return guided.float().amax(dim=1, keepdim=True)


def correlation_score(source: Tensor, target: Tensor) -> Tensor:
    """The largest value of the plain correlation (Eq. 1) over the source positions.

    Eq. 2 gives every target position a vector of length one, and so forgets how good its best
    match is; this score does not.

    Args:
        source, target: M's features, `[B, m, hs, ws]` and `[B, m, h, w]`.
    """
    # Sample by sample, so that memory stays that of one correlation map.
    return torch.stack([
        pose_kernels.correlation_4d(a[None].float(), b[None].float()).amax(dim=1)
        for a, b in zip(source, target, strict=True)])
