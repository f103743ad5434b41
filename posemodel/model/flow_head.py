"""C_l, the flow head: from the rasterised guided correlation map to a flow."""

import itertools

import torch
from torch import Tensor, nn

import pose_kernels
from posemodel.model.convolution import normalized


class FlowHead(nn.Module):
    """`depth` conv layers (Table 2 of the paper: 1 to 6) on a map whose channels are the source
    positions and whose pixels are the target positions.

    The hidden widths are the last `depth - 1` of `channels`, as the paper removes layers from the
    front. The last layer starts at zero, so an untrained head says "no displacement".
    """

    def __init__(self, *, source_positions: int, channels: tuple[int, ...], depth: int):
        super().__init__()
        widths = (source_positions, *channels[len(channels) - (depth - 1):])
        layers = [layer for before, after in itertools.pairwise(widths)
                  for layer in normalized(nn.Conv2d(before, after, 3, padding=1, bias=False))]
        last = nn.Conv2d(widths[-1], 2, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, guided: Tensor) -> Tensor:
        """`[B, hs*ws, ht, wt]` -> `[B, 2, ht, wt]` float32, normalised coordinates (x, y)."""
        return self.layers(guided.contiguous(memory_format=torch.channels_last)).float()

    def stream(self, source: Tensor, target: Tensor, eps: float) -> Tensor:
        """The same from M's features `[B, m, hs, ws]` and `[B, m, ht, wt]`: the first layer reads
        the map while it is made, so that it is never stored."""
        first, *rest = self.layers
        x = pose_kernels.guided_correlation_conv2d(source, target, first.weight, first.bias, eps)
        for layer in rest:
            x = layer(x)
        return x.float()
