"""R of our presets: details of the source, brought along by the flow, added to the warped image."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pose_kernels
from posemodel.model.refinement import Refinement, conv, in_range
from posemodel.model.scene import Scene, moved
from posemodel.poses.joints import LIMBS
from posemodel.poses.limb_maps import body_map, limb_maps
from posemodel.runtime.memory_format import channels_last

# Of the limbs that R sees, in pixels of an image 256 pixels high.
_SIGMA = 10.0


class DetailEncoder(nn.Module):
    """Features of the source at `downsamplings + 1` scales, from full size down by halves, each
    scale twice as wide as the one before."""

    def __init__(self, *, width: int, downsamplings: int):
        super().__init__()
        widths = [width * 2**level for level in range(downsamplings + 1)]
        self.scales = nn.ModuleList([
            conv(3, width, kernel=5),
            *(conv(before, after, stride=2) for before, after in itertools.pairwise(widths))])

    def forward(self, image: Tensor) -> list[Tensor]:
        """`[B, 3, H, W]` -> n of `[B, width 2^n, H / 2^n, W / 2^n]`."""
        x, features = channels_last(image), []
        for scale in self.scales:
            x = scale(x)
            features.append(x)
        return features


class DetailDecoder(nn.Module):
    """From the coarsest scale up, joined at each by what was sampled there: a correction of the
    warped image.

    `posed`: it also sees the target pose, of every limb the `limb_maps` at the coarsest scale and
    of all of them the `body_map` at the finer ones. What the flow brings to a place where nobody
    stands it can then take away, and what it tears, mend, before a background that stays as well.

    The resolution is doubled by repeating pixels and then convolving: a transposed convolution has
    a pattern of its own, which shows in flat surfaces. The last layer starts at zero, so that an
    untrained network gives the warped image.
    """

    def __init__(self, *, width: int, downsamplings: int, blocks: int, posed: bool):
        super().__init__()
        self.posed = posed
        widths = [width * 2**level for level in range(downsamplings + 1)]
        limbs, body, cover = (3 * len(LIMBS), 1, 1) if posed else (0, 0, 0)
        self.coarsest = nn.Sequential(*(
            conv(widths[-1] + (0 if block else limbs), widths[-1]) for block in range(blocks)))
        self.scales = nn.ModuleList(
            nn.Sequential(conv(coarse + fine + body + (3 + cover if fine == width else 0), fine),
                          conv(fine, fine))
            for fine, coarse in reversed(list(itertools.pairwise(widths))))
        self.last = nn.Conv2d(width, 3 + cover, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def of_the_blind(self) -> dict[str, tuple[slice | list[int], ...]]:
        """Where in this decoder's weights those of one lie that is not `posed`, by name and index,
        of the weights whose shapes differ. With zeros elsewhere both give the same image."""
        if not self.posed:
            return {}
        every, colour = slice(None), slice(3)
        places = {"last.weight": (colour,), "last.bias": (colour,)}
        if len(self.coarsest):
            places["coarsest.0.0.weight"] = (every, slice(self.coarsest[0][0].out_channels))
        for level, (first, _) in enumerate(self.scales):
            inputs = range(first[0].in_channels)  # last the body, then at full size image, cover
            finest = level == len(self.scales) - 1
            places[f"scales.{level}.0.0.weight"] = (
                every, [*inputs[:-5], *inputs[-4:-1]] if finest else [*inputs[:-1]])
        return places

    def forward(self, features: list[Tensor], warped: Tensor, target_pose: Tensor,
                cover: Tensor) -> tuple[Tensor, Tensor | None]:
        """The encoder's features, the source and the person's mask `[B, 1, H, W]`, all sampled at
        the flow, and the pose `[B, 18, 3]` -> what to add to the warped source, `[B, 3, H, W]`
        float32, and `posed` to the mask, `[B, 1, H, W]`."""
        *finer, x = features
        if self.posed and len(self.coarsest):
            x = _joined(x, limb_maps(target_pose, x.shape[-2:], _SIGMA))
        x = self.coarsest(x)
        for scale, sampled in zip(self.scales, reversed(finer), strict=True):
            x = F.interpolate(x, sampled.shape[-2:], mode="nearest")
            more = [sampled]
            if self.posed:
                more.append(body_map(target_pose, sampled.shape[-2:], _SIGMA))
            if sampled is finer[0]:
                more += [warped, cover] if self.posed else [warped]
            x = scale(_joined(x, *more))
        change = self.last(x).float()
        return change.split([3, 1], dim=1) if self.posed else (change, None)


def _joined(x: Tensor, *more: Tensor) -> Tensor:
    """Channels side by side, in the type of the first ones."""
    return channels_last(torch.cat([x, *(some.to(x.dtype) for some in more)], dim=1))


class DetailRefinement(Refinement):
    """Encoder, warp at every scale, decoder, added to the warped source.

    Unlike the paper's R it need not make the image anew, and what is sharp in the warped source
    stays so. Like it, it sees of the source nothing that the flow did not bring, and, unless its
    decoder is `posed`, nothing else. Not in the paper.
    """

    def __init__(self, *, encoder: DetailEncoder, decoder: DetailDecoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def of_the_blind(self) -> dict[str, tuple[slice | list[int], ...]]:
        """`DetailDecoder.of_the_blind`, by the names that the weights have here."""
        return {f"decoder.{name}": place for name, place in self.decoder.of_the_blind().items()}

    def person(self, source: Tensor, flow: Tensor, target_pose: Tensor, scene: Scene | None
               ) -> tuple[Tensor, Tensor | None]:
        """See `Refinement`."""
        warped = moved(source, flow, scene).float()
        cover = torch.ones_like(warped[:, :1]) if scene is None else scene.cover(flow)
        features = [pose_kernels.flow_sample(x, flow.to(x.dtype)) for x in self.encoder(source)]
        colour, more = self.decoder(features, warped, target_pose, cover)
        image = in_range(warped + colour, leaking=self.training)
        if scene is None:
            return image, None
        if more is not None:
            cover = in_range(cover + more, leaking=self.training,
                             bounds=scene.bounds or (0.0, 1.0))
        return image, cover
