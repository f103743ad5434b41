"""The generator as a whole: a flow estimator, and the refinement of what it warps."""

from typing import NamedTuple

from torch import Tensor, nn

from posemodel.flow.estimator import FlowEstimator
from posemodel.model.refinement import Refinement
from posemodel.model.scene import Scene, moved


class Transfer(NamedTuple):
    """What `PoseTransfer` returns."""

    image: Tensor
    """the refined image, `[B, 3, H, W]` in [-1, 1]"""
    flow: Tensor
    """target -> source, `[B, 2, h, w]`, absolute, normalised"""
    warped: Tensor
    """the source sampled at the flow, nothing refined, `[B, 3, H, W]`"""
    person: Tensor
    """the refined image before it is laid over a background, `[B, 3, H, W]`"""
    cover: Tensor | None
    """how much of each pixel the person covers, `[B, 1, H, W]`; None: there is no scene"""


class PoseTransfer(nn.Module):
    """W estimates one flow from two poses; it warps the source, and R finishes the image.

    A method of Table 1 may stand in the place of W.
    """

    def __init__(self, *, warping: FlowEstimator, refinement: Refinement):
        super().__init__()
        self.warping, self.refinement = warping, refinement

    def forward(self, source: Tensor, source_pose: Tensor, target_pose: Tensor,
                scene: Scene | None = None) -> Transfer:
        """A person in a new pose.

        Args:
            source: image `[B, 3, H, W]` in [-1, 1].
            source_pose, target_pose: `[B, 18, 3]`, (x, y, presence), normalised coordinates.
            scene: of the source, where its background stays; None: the flow moves all there is.
        """
        flow = self.flow(source, source_pose, target_pose)
        return self.transfer(source, flow, target_pose, scene)

    def flow(self, source: Tensor, source_pose: Tensor, target_pose: Tensor) -> Tensor:
        """The flow, target -> source, `[B, 2, h, w]`; W itself does not look at the image."""
        image = source if self.warping.uses_image else None
        return self.warping(source_pose, target_pose, image).flow

    def transfer(self, source: Tensor, flow: Tensor, target_pose: Tensor,
                 scene: Scene | None = None) -> Transfer:
        """What R makes of an image and a flow to a pose, and the image sampled at it; over the
        background where there is a scene."""
        person, cover = self.refinement.person(source, flow, target_pose, scene)
        warped = moved(source, flow, scene)
        if scene is None:
            return Transfer(person, flow, warped, person, None)
        return Transfer(scene.covered(person, cover), flow, scene.under(warped, flow), person,
                        cover)
