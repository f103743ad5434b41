"""D, the discriminator, conditioned on the target pose by concatenation (Eq. 6)."""

import itertools

import torch
from torch import Tensor, nn

from posemodel.poses.maps import pose_maps


class Discriminator(nn.Module):
    """Judges patches: each output looks at part of the image and of the pose maps.

    Strided 4 x 4 convolutions with LeakyReLU; InstanceNorm in all layers but the first, so that
    real and generated batches do not share statistics.
    """

    def __init__(self, *, joints: int, width: int, layers: int, pose_sigma: float):
        super().__init__()
        self.pose_sigma = pose_sigma
        widths = [3 + joints, *(width * min(2**index, 8) for index in range(layers))]
        stack = []
        for index, (before, after) in enumerate(itertools.pairwise(widths)):
            stack.append(nn.Conv2d(before, after, 4, stride=2, padding=1))
            if index:
                stack.append(nn.InstanceNorm2d(after, affine=True))
            stack.append(nn.LeakyReLU(0.2, inplace=True))
        self.layers = nn.Sequential(*stack, nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, image: Tensor, pose: Tensor,
                features: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Image `[B, 3, H, W]`, its pose `[B, J, 3]` -> scores `[B, 1, h, w]`, float32; with
        `features` also what each hidden layer gives, `[B, width 2^k, H / 2^k, W / 2^k]`."""
        maps = pose_maps(pose, tuple(image.shape[-2:]), self.pose_sigma)
        x = torch.cat([image, maps], dim=1)
        hidden = []
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, nn.LeakyReLU):
                hidden.append(x)
        return (x.float(), hidden) if features else x.float()
