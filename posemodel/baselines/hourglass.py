"""The hourglass of the dense motion networks (FOMM, MRAA, TPSMM)."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posemodel.runtime.memory_format import channels_last


def _block(width_in: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width_in, width, 3, padding=1, bias=False),
                         nn.BatchNorm2d(width), nn.ReLU(inplace=True))


class HourglassEncoder(nn.Module):
    """Blocks that halve the resolution and double the width, up to `max_width`."""

    def __init__(self, *, width_in: int, width: int, blocks: int, max_width: int):
        super().__init__()
        self.widths = [width_in, *(min(max_width, width * 2**n) for n in range(1, blocks + 1))]
        self.blocks = nn.ModuleList(
            _block(before, after) for before, after in itertools.pairwise(self.widths))

    def forward(self, x: Tensor) -> list[Tensor]:
        """`[B, width_in, h, w]` -> it and the output of each block, fine to coarse."""
        maps = [channels_last(x)]
        for block in self.blocks:
            # An odd size is rounded up: every grid has as many levels as wanted.
            maps.append(F.avg_pool2d(block(maps[-1]), 2, ceil_mode=True))
        return maps


class Hourglass(nn.Module):
    """Down and up again; each level's input joins what comes back up to it.

    The output has `width` channels and, after them, the input itself: `width_out` in all.
    """

    def __init__(self, *, width_in: int, width: int, blocks: int, max_width: int):
        super().__init__()
        self.encoder = HourglassEncoder(
            width_in=width_in, width=width, blocks=blocks, max_width=max_width)
        self.width_out, self.up = self.encoder.widths[-1], nn.ModuleList()
        for level in reversed(range(blocks)):
            going = min(max_width, width * 2**level)
            self.up.append(_block(self.width_out, going))
            self.width_out = going + self.encoder.widths[level]

    def forward(self, x: Tensor) -> Tensor:
        """`[B, width_in, h, w]` -> `[B, width_out, h, w]`."""
        *skips, x = self.encoder(x)
        for block, skip in zip(self.up, reversed(skips), strict=True):
            x = F.interpolate(x, size=skip.shape[-2:], mode="nearest")
            x = torch.cat([block(x), skip], dim=1)
        return x
