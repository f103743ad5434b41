"""D, the discriminator, conditioned on the target pose by concatenation (Eq. 6)."""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from posemodel.model.pose_maps import pose_maps


class Discriminator(nn.Module):
    """Judges patches: each output looks at part of the image and of the pose maps.

    Strided 4 x 4 convolutions with LeakyReLU; InstanceNorm in all layers but the first, so that
    real and generated batches do not share statistics. `spectral` divides each convolution's weight
    by its spectral norm, as one step of power iteration per pass estimates it.
    """

    def __init__(self, *, joints: int, width: int, layers: int, pose_sigma: float,
                 spectral: bool = False):
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
        if spectral:
            for layer in stack:
                if isinstance(layer, nn.Conv2d):
                    spectral_norm(layer)
        self.layers = nn.Sequential(*stack)

    def forward(
        self, image: Tensor, pose: Tensor, features: bool = False
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Image `[B, 3, H, W]`, its pose `[B, J, 3]` -> scores `[B, 1, h, w]`, float32; with
        `features` also what each hidden layer gives, `[B, width 2^k, H / 2^k, W / 2^k]`."""
        maps = pose_maps(pose, tuple(image.shape[-2:]), self.pose_sigma)
        x = torch.cat([image, maps], dim=1)
        found = []
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, nn.LeakyReLU):
                found.append(x)
        return (x.float(), found) if features else x.float()
