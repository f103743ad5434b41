"""C_l, the flow head: from the rasterised guided correlation map to a flow."""

import itertools

import torch
from torch import Tensor, nn

import pose_kernels
from posemodel.model.convolution import network_dtype, normalized


class FlowHead(nn.Module):
    """`depth` conv layers (Table 2 of the paper: 1 to 6) on a map whose channels are the source
    positions and whose pixels are the target positions.

    The first layer, of `[n, hs*ws, first_kernel, first_kernel]` weights, has most of the arithmetic
    of all networks; the others have windows of 3 x 3. The hidden widths are the last `depth - 1` of
    `channels`: layers are left out from the front (which ones the paper leaves out is not known).
    The last layer starts at zero: an untrained head adds nothing to what its flow starts from.
    `stream`: the first layer reads the map while it is made, so that it is never stored; one of
    1 x 1 always does.
    """

    def __init__(self, *, source_positions: int, channels: tuple[int, ...], depth: int,
                 first_kernel: int, stream: bool):
        super().__init__()
        self.stream = stream or first_kernel == 1
        widths = (source_positions, *channels[len(channels) - (depth - 1):])
        kernels = (first_kernel, *[3] * (depth - 1))
        layers = [layer for (before, after), kernel in zip(itertools.pairwise(widths), kernels,
                                                           strict=False)
                  for layer in normalized(nn.Conv2d(before, after, kernel, padding=kernel // 2,
                                                    bias=False))]
        last = nn.Conv2d(widths[-1], 2, kernels[-1], padding=kernels[-1] // 2)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, source: Tensor, target: Tensor, eps: float) -> Tensor:
        """M's features `[B, m, hs, ws]` and `[B, m, ht, wt]` -> `[B, 2, ht, wt]` float32,
        normalised coordinates (x, y); `eps` is the map's (Eq. 9, 2)."""
        if not self.stream:
            return self.layers(guided_map(source, target, eps)).float()
        first, *rest = self.layers
        x = pose_kernels.guided_correlation_conv2d(source, target, first.weight, first.bias, eps)
        for layer in rest:
            x = layer(x)
        return x.float()


def guided_map(source: Tensor, target: Tensor, eps: float) -> Tensor:
    """Qhat, `[B, S, h, w]`: channel s of pixel t says how well source position s fits."""
    # C_l reads the map in this type; made in float32 it would have to be moved twice more.
    dtype = network_dtype(source.device)
    return pose_kernels.guided_correlation(source.to(dtype), target.to(dtype), eps,
                                           memory_format=torch.channels_last)
