"""C_l, the flow head: from the rasterised guided correlation map to a flow."""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn

import pose_kernels
from posemodel.model.convolution import network_dtype, normalized


class Match(NamedTuple):
    """Where the map says that a target position comes from."""

    place: Tensor
    """`sum_s x_s Qhat(s, t)^2`, `[B, 2, ht, wt]` float32, (x, y), normalised, pixel centres"""
    variance: Tensor
    """how far around it the places lie, `sum_s |x_s|^2 Qhat(s, t)^2 - |place|^2`,
    `[B, 1, ht, wt]`"""

    @classmethod
    def of_moments(cls, moments: Tensor) -> "Match":
        """From the means of x, y and x² + y², `[B, 3, ht, wt]`."""
        place, square = moments.split([2, 1], dim=1)
        return cls(place, (square - place.square().sum(1, keepdim=True)).clamp_min(0))


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
        self.first_kernel, self.stream = first_kernel, stream or first_kernel == 1
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
        first = self.layers[0]
        return self._rest(pose_kernels.guided_correlation_conv2d(
            source, target, first.weight, first.bias, eps))

    def with_match(self, source: Tensor, target: Tensor, eps: float) -> tuple[Tensor, Match]:
        """As forward, and the `expected_match`, for which a first layer of 1 x 1 has made most
        already."""
        if self.first_kernel != 1:
            return self(source, target, eps), expected_match(source, target, eps)
        first = self.layers[0]
        # So that the gradient comes back with the strides of the weight, for distributed training.
        weight = (first.weight.permute(0, 2, 3, 1) if first.weight.stride(2) != 1
                  else first.weight).flatten(1)
        # Autocast would round the places to half precision, too.
        with torch.autocast(source.device.type, enabled=False):
            x, moments = pose_kernels.guided_readout(
                source, target, (weight.to(source.dtype), _places(source)), power=(1, 2), eps=eps)
        x = x if first.bias is None else x + first.bias[:, None, None]
        return self._rest(x), Match.of_moments(moments)

    def _rest(self, x: Tensor) -> Tensor:
        """What the first layer gives -> the flow."""
        for layer in self.layers[1:]:
            x = layer(x)
        return x.float()


def expected_match(source: Tensor, target: Tensor, eps: float) -> Match:
    """Mean and variance of the source position under the squared guided correlation, whose squares
    sum to one over the sources (Eq. 2), but where the norm is at its floor eps.

    Args:
        source: M's features `[B, m, hs, ws]`.
        target: `[B, m, ht, wt]`.
        eps: floor of the row maxima and of the column norms.
    """
    # Autocast would round the places to half precision.
    with torch.autocast(source.device.type, enabled=False):
        return Match.of_moments(
            pose_kernels.guided_readout(source, target, _places(source), power=2, eps=eps))


def _places(source: Tensor) -> Tensor:
    """Where the positions of a feature map lie, (x, y, x² + y²), `[3, S]` float32."""
    xy = pose_kernels.identity_flow(*source.shape[2:], device=source.device).flatten(1)
    return torch.cat([xy, xy.square().sum(0, keepdim=True)])


def guided_map(source: Tensor, target: Tensor, eps: float) -> Tensor:
    """Qhat, `[B, S, h, w]`: channel s of pixel t says how well source position s fits."""
    # C_l reads the map in this type; made in float32 it would have to be moved twice more.
    dtype = network_dtype(source.device)
    return pose_kernels.guided_correlation(source.to(dtype), target.to(dtype), eps,
                                           memory_format=torch.channels_last)
