"""R, the refinement network: the warped features of the source to the finished image."""

import torch
from torch import Tensor, nn

import pose_kernels


def _conv(width_in: int, width: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width_in, width, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


def _up(width_in: int, width: int) -> nn.Sequential:
    # A 4 x 4 transposed convolution contains "nearest, then 3 x 3" at less than half its cost.
    return nn.Sequential(
        nn.ConvTranspose2d(width_in, width, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm, added to their input."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            _conv(width, width),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class RefinementEncoder(nn.Module):
    """A stem and two convolutions with down-sampling: an image to features at a quarter."""

    def __init__(self, *, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            _conv(3, width, kernel=7),
            _conv(width, 2 * width, stride=2),
            _conv(2 * width, 4 * width, stride=2),
        )

    def forward(self, image: Tensor) -> Tensor:
        """`[B, 3, H, W]` -> `[B, 4 width, H/4, W/4]`."""
        return self.layers(image.contiguous(memory_format=torch.channels_last))


class RefinementDecoder(nn.Module):
    """Residual blocks, then two up-samplings with BatchNorm: warped features to an image."""

    def __init__(self, *, width: int, blocks: int):
        super().__init__()
        self.blocks = nn.Sequential(*(ResidualBlock(4 * width) for _ in range(blocks)))
        self.up = nn.Sequential(_up(4 * width, 2 * width), _up(2 * width, width))
        self.last = nn.Conv2d(width, 3, 7, padding=3)

    def forward(self, features: Tensor) -> Tensor:
        """`[B, 4 width, H/4, W/4]` -> `[B, 3, H, W]` in [-1, 1], float32."""
        x = self.blocks(features.contiguous(memory_format=torch.channels_last))
        return self.last(self.up(x)).float().tanh()


class RefinementNetwork(nn.Module):
    """Encoder, warp, decoder. The warped features are all that the decoder sees: what the flow
    does not bring, the image cannot have."""

    def __init__(self, *, encoder: RefinementEncoder, decoder: RefinementDecoder):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, source: Tensor, flow: Tensor) -> Tensor:
        """Image `[B, 3, H, W]` and flow `[B, 2, H/4, W/4]` -> image `[B, 3, H, W]`."""
        features = self.encoder(source)
        return self.decoder(pose_kernels.flow_sample(features, flow.to(features.dtype)))
