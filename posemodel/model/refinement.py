"""R, the refinement network: the warped features of the source to the finished image."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pose_kernels
from posemodel.model.convolution import Conv2d, ConvTranspose2d, normalized
from posemodel.model.scene import Scene, moved
from posemodel.runtime.memory_format import channels_last


def conv(width_in: int, width: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """A layer of R: convolution, BatchNorm, ReLU."""
    return nn.Sequential(*normalized(
        Conv2d(width_in, width, kernel, stride=stride, padding=kernel // 2, bias=False)))


def _up(width_in: int, width: int) -> nn.Sequential:
    # A 4 x 4 transposed convolution contains "nearest, then 3 x 3" at less than half its cost.
    return nn.Sequential(*normalized(
        ConvTranspose2d(width_in, width, 4, stride=2, padding=1, bias=False)))


def in_range(image: Tensor, *, leaking: bool,
             bounds: tuple[float, float] | tuple[Tensor, Tensor] = (-1.0, 1.0)) -> Tensor:
    """Clamped to the bounds; leaking, as in training, with a slope of 0.1 outside, so that a pixel
    that is too bright can still be darkened."""
    clamped = image.clamp(*bounds)
    return clamped.lerp(image, 0.1) if leaking else clamped


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm, added to their input."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(conv(width, width),
                                    Conv2d(width, width, 3, padding=1, bias=False),
                                    nn.BatchNorm2d(width))
        # The block starts as the identity and grows from there.
        nn.init.zeros_(self.layers[-1].weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class RefinementEncoder(nn.Module):
    """Convolutions that halve the resolution each; the n-th has `width 2^n` channels."""

    def __init__(self, *, width: int, downsamplings: int):
        super().__init__()
        widths = [3, *(width * 2**level for level in range(1, downsamplings + 1))]
        self.layers = nn.Sequential(
            *(conv(before, after, stride=2) for before, after in itertools.pairwise(widths)))

    def forward(self, image: Tensor) -> Tensor:
        """`[B, 3, H, W]` -> `[B, width 2^n, H / 2^n, W / 2^n]` with n down-samplings."""
        return self.layers(channels_last(image))


class RefinementDecoder(nn.Module):
    """Residual blocks, then up-samplings with BatchNorm: warped features to an image.

    With `skip` the warped image is concatenated to the features of every scale (Appendix E).
    """

    def __init__(self, *, width: int, downsamplings: int, blocks: int, skip: bool):
        super().__init__()
        widths = [width * 2**level for level in reversed(range(downsamplings + 1))]
        extra = 3 if skip else 0
        self.skip = skip
        self.blocks = nn.Sequential(*(ResidualBlock(widths[0]) for _ in range(blocks)))
        self.up = nn.Sequential(
            *(_up(before + extra, after) for before, after in itertools.pairwise(widths)))
        self.last = nn.Conv2d(width + extra, 3, 7, padding=3)

    def forward(self, features: Tensor, warped: Tensor | None = None) -> Tensor:
        """The encoder's output, warped, and for `skip` the warped image -> `[B, 3, H, W]`, float32,
        clamped to [-1, 1] (in training mode with a slope of 0.1 outside)."""
        x = self.blocks(channels_last(features))
        for up in self.up:
            x = up(self._joined(x, warped))
        return in_range(self.last(self._joined(x, warped)).float(), leaking=self.training)

    def _joined(self, x: Tensor, warped: Tensor | None) -> Tensor:
        if not self.skip:
            return x
        return torch.cat([x, F.adaptive_avg_pool2d(warped, x.shape[-2:]).to(x.dtype)], dim=1)


class Refinement(nn.Module):
    """R: what is warped to the finished image. Each form of it says what `person` is."""

    def person(self, source: Tensor, flow: Tensor, target_pose: Tensor, scene: Scene | None
               ) -> tuple[Tensor, Tensor | None]:
        """The finished image before it is laid over a background, `[B, 3, H, W]`, and, where there
        is a scene, how much of each pixel the person covers, `[B, 1, H, W]`, 0 to 1."""
        raise NotImplementedError

    def forward(self, source: Tensor, flow: Tensor, target_pose: Tensor,
                scene: Scene | None = None) -> Tensor:
        """Image `[B, 3, H, W]`, flow `[B, 2, h, w]` and pose `[B, 18, 3]` -> image `[B, 3, H, W]`
        float32, clamped to [-1, 1] (in training mode with a slope of 0.1 outside); in the scene
        where there is one."""
        image, cover = self.person(source, flow, target_pose, scene)
        return image if scene is None else scene.covered(image, cover)


class RefinementNetwork(Refinement):
    """Encoder, warp, decoder. What was warped is all that the decoder sees: what the flow does not
    bring, the image cannot have."""

    def __init__(self, *, encoder: RefinementEncoder, decoder: RefinementDecoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        carry_colours(encoder, decoder)

    def person(self, source: Tensor, flow: Tensor, target_pose: Tensor, scene: Scene | None
               ) -> tuple[Tensor, Tensor | None]:
        """See `Refinement`. The pose is not looked at."""
        features = self.encoder(source)
        features = pose_kernels.flow_sample(features, flow.to(features.dtype))
        warped = moved(source, flow, scene) if self.decoder.skip else None
        return self.decoder(features, warped), None if scene is None else scene.cover(flow)


class NoRefinement(Refinement):
    """Table 3's "without refinement": the warped source is the image. No weights."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Identity(), nn.Identity()

    def person(self, source: Tensor, flow: Tensor, target_pose: Tensor, scene: Scene | None
               ) -> tuple[Tensor, Tensor | None]:
        """See `Refinement`. The pose is not looked at."""
        return moved(source, flow, scene), None if scene is None else scene.cover(flow)


@torch.no_grad()
def carry_colours(encoder: RefinementEncoder, decoder: RefinementDecoder) -> None:
    """Initial weights with which R hands colours through, so that it learns from there.

    A random network of this kind needs thousands of steps before it has colours at all. Pairs of
    mirrored channels (relu(x), relu(-x)) carry a signal x through BatchNorm and ReLU as if they
    were linear ("looks-linear", Balduzzi et al. 2017); a down-sampling puts the four pixels of a
    cell into four signals, the up-sampling takes them out again. As many signals as the widths have
    room for; the other channels start random, as usual.
    """
    downs = [block[0].weight for block in encoder.layers]             # [out, in, 3, 3]
    ups = [block[0].weight for block in decoder.up][::-1]             # [in, out, 4, 4]
    signals = colours = min(3, ups[0].shape[1] // 2)
    for level, (down, up) in enumerate(zip(downs, ups, strict=True)):
        finer, signals = signals, min(4 * signals, down.shape[0] // 2)
        down[: 2 * signals] = 0
        up[:, : 2 * finer] = 0
        for signal in range(signals):
            corner, origin = divmod(signal, finer)
            row, column = divmod(corner, 2)
            for sign, out in ((1, 2 * signal), (-1, 2 * signal + 1)):
                up[out, 2 * origin, 1 + row, 1 + column] = sign
                up[out, 2 * origin + 1, 1 + row, 1 + column] = -sign
                if level == 0:      # the image itself, which has no mirrored channels
                    down[out, origin, 1 + row, 1 + column] = sign
                else:
                    down[out, 2 * origin, 1 + row, 1 + column] = sign
                    down[out, 2 * origin + 1, 1 + row, 1 + column] = -sign
    last = decoder.last.weight
    last *= 0.1
    for colour in range(colours):
        last[colour, : 2 * colours] = 0
        last[colour, 2 * colour, 3, 3] = 0.5
        last[colour, 2 * colour + 1, 3, 3] = -0.5
