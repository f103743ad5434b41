"""D, the discriminator, conditioned on the target pose by concatenation (Eq. 6)."""

import torch
from torch import Tensor, nn

from posemodel.model.pose_maps import pose_maps


class Discriminator(nn.Module):
    """Judges patches: each output looks at part of the image and of the pose maps.

    Strided 4 x 4 convolutions with LeakyReLU; InstanceNorm in all layers but the first, so that
    real and generated batches do not share statistics.
    """

    def __init__(self, *, joints: int, width: int, layers: int, pose_sigma: float):
        super().__init__()
        self.pose_sigma = pose_sigma
        stack = []
        width_in = 3 + joints
        for index in range(layers):
            width_out = width * min(2**index, 8)
            stack.append(nn.Conv2d(width_in, width_out, 4, stride=2, padding=1))
            if index:
                stack.append(nn.InstanceNorm2d(width_out, affine=True))
            stack.append(nn.LeakyReLU(0.2, inplace=True))
            width_in = width_out
        stack.append(nn.Conv2d(width_in, 1, 3, padding=1))
        self.layers = nn.Sequential(*stack)

    def forward(self, image: Tensor, pose: Tensor) -> Tensor:
        """Image `[B, 3, H, W]`, its pose `[B, J, 3]` -> scores `[B, 1, h, w]`, float32."""
        maps = pose_maps(pose, tuple(image.shape[-2:]), self.pose_sigma)
        return self.layers(torch.cat([image, maps], dim=1)).float()
