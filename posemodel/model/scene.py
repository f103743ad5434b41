"""A person before a background that stays: the moved person is laid over what was behind them."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import pose_kernels
from posemodel.pictures.inpainting import fill, inpaint, opencv_version
from posemodel.pictures.pixels import to_pictures, to_tensor
from posemodel.poses.limb_widths import cover_bounds, limb_widths

# Pixels around the mask of an image 128 pixels high that are no background yet: the camera blurs
# the person's edge. Every pixel more costs background that is known.
_SEAM = 1
PERSON = 0.3
"""a mask of at least this much is no background either"""
_CERTAIN = 0.5  # a mask of at least this much, away from its edge, is the person and nothing else


class Scene(NamedTuple):
    """What is known of a source image whose background stays where it is."""

    mask: Tensor
    """the person in the source, `[B, 1, H, W]` float32, 0 to 1"""
    behind: Tensor
    """the source without the person, `[B, 3, H, W]`"""
    hole: Tensor | None = None
    """`[B, 1, H, W]`: 1 where `behind` is made up, else 0; where somebody asks"""
    front: Tensor | None = None
    """the person, their colours continued over their edge, `[B, 3, H, W]`; None: the source"""
    bounds: tuple[Tensor, Tensor] | None = None
    """how much the person covers of each pixel of the target at least and at most, twice
    `[B, 1, H, W]`; None: 0 and 1"""

    def moved(self, source: Tensor, flow: Tensor) -> Tensor:
        """The person moved by a flow `[B, 2, h, w]`, target -> source, `[B, 3, H, W]`; of the
        source's background nothing comes along."""
        return pose_kernels.flow_sample(source if self.front is None else self.front, flow)

    def under(self, image: Tensor, flow: Tensor) -> Tensor:
        """The moved person over the background.

        Args:
            image: `[B, 3, H, W]`, warped or refined.
            flow: `[B, 2, h, w]`, target -> source, which also moves the mask.
        """
        return self.covered(image, self.cover(flow))

    def covered(self, image: Tensor, cover: Tensor) -> Tensor:
        """The same where somebody says how much of each pixel the person covers,
        `[B, 1, H, W]`."""
        return torch.lerp(self.behind.float(), image.float(), cover)

    def cover(self, flow: Tensor) -> Tensor:
        """How much of each pixel the moved person covers, `[B, 1, H, W]`."""
        size = tuple(self.behind.shape[-2:])
        cover = pose_kernels.flow_sample(self.mask, flow.float(), size)
        return cover if self.bounds is None else cover.clamp(*self.bounds)


def moved(source: Tensor, flow: Tensor, scene: Scene | None) -> Tensor:
    """The source image `[B, 3, H, W]` sampled at a flow `[B, 2, h, w]`, target -> source; of a
    scene the person alone."""
    return pose_kernels.flow_sample(source, flow) if scene is None else scene.moved(source, flow)


def scene_of(source: Tensor, mask: Tensor, *, rows: float | None = None,
             plate: tuple[Tensor, Tensor] | None = None) -> Scene:
    """The scene of a source image.

    Args:
        source: `[B, 3, H, W]`.
        mask: where the person stands, `[B, 1, H, W]` float32, 0 to 1.
        rows: of the part of the image that the person fills; None: all of it.
        plate: what the same camera sees there without the person, `[B, 3, H, W]`, and where that is
            known, `[B, 1, H, W]`, 1 or 0. Its light is fitted to that of the source.
    """
    hole = _grown(mask >= PERSON, rows or source.shape[-2]).to(source.dtype)
    if plate is not None:
        picture, known = plate
        lit = picture + light(source, picture, torch.maximum(hole, 1 - known))
        source = torch.where(hole > 0, lit.clamp(-1, 1), source)
        hole = hole * (1 - known)
    return Scene(mask, fill(source, hole), hole)


def light(source: Tensor, plate: Tensor, unknown: Tensor) -> Tensor:
    """By how much a picture is lighter than another one of the same place, `[B, 3, H, W]`, smoothly
    continued to where that is not known, `[B, 1, H, W]`, 1 or 0."""
    return fill(source - plate, unknown)


def front_of(source: Tensor, mask: Tensor) -> Tensor:
    """The person of a source image, their colours continued over their edge: what the flow takes
    from beside them, where it is not exact, is then nothing of the background.

    Args:
        source: `[B, 3, H, W]`.
        mask: where the person stands, `[B, 1, H, W]` float32, 0 to 1.

    Returns: `[B, 3, H, W]`; the source where nobody is.
    """
    unknown = uncertain(mask)
    nobody = unknown.all(dim=-1, keepdim=True).all(dim=-2, keepdim=True)
    return torch.where(nobody, source, fill(source, unknown))


def uncertain(mask: Tensor) -> Tensor:
    """`[B, 1, H, W]` bool: where a pixel is not the person's alone."""
    return _grown(mask < _CERTAIN, mask.shape[-2])


def _grown(places: Tensor, rows: float) -> Tensor:
    """Of a picture of so many rows, with the seam around them."""
    seam = max(1, round(_SEAM * rows / 128))
    return F.max_pool2d(places.float(), 2 * seam + 1, 1, seam) > 0


def scene_of_batch(batch: dict[str, Tensor]) -> Scene | None:
    """The scenes of some pairs; None where nobody says which pixels are the person's."""
    source, mask = batch["source"], batch.get("source_mask")
    if mask is None:
        return None
    plate = (batch["source_plate"], batch["source_known"]) if "source_plate" in batch else None
    return scene_of(source, mask, plate=plate)._replace(
        front=front_of(source, mask),
        bounds=bounds_of(mask, batch["source_pose"], batch["target_pose"]))


def bounds_of(mask: Tensor, source_pose: Tensor, target_pose: Tensor) -> tuple[Tensor, Tensor]:
    """`Scene.bounds` of a person with this mask `[B, 1, H, W]` and this pose in the source, in
    another pose, `[B, 18, 3]`, normalised coordinates. One source goes with any number of
    targets."""
    widths = limb_widths(source_pose, mask >= PERSON)
    return cover_bounds(widths, target_pose, tuple(mask.shape[-2:]))


def continued(scene: Scene) -> Scene:
    """A scene of `scene_of` with edges and patterns continued into its holes (see
    `pictures.inpainting`), where OpenCV is installed; not differentiable, and a matter of a second
    for a large hole."""
    if not opencv_version():
        return scene
    behind = scene.behind.clone()
    for image, hole in zip(behind, scene.hole[:, 0] > 0, strict=True):
        if hole.any() and not hole.all():
            made = inpaint(to_pictures(image[None])[0], hole.cpu().numpy())
            image[:, hole] = to_tensor(made, image.device)[0].to(image.dtype)[:, hole]
    return scene._replace(behind=behind)
