"""The one face of everything that turns two poses into a flow: ours, and the methods of Table 1."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

Features = Callable[[Tensor], list[Tensor]]
"""Images `[B, 3, H, W]` in [-1, 1] -> maps `[B, c, h, w]` at several resolutions, none negative:
the `features` of the reconstruction loss."""


@dataclass(frozen=True, kw_only=True)
class Motion:
    """What an estimator says about two poses; one with more to say has a class of its own."""

    flow: Tensor
    """target -> source, `[k B, 2, h, w]`, float32"""


class FlowEstimator(nn.Module, ABC):
    """Two poses in, one flow out.

    Convention: absolute sampling locations in the source, (x, y), normalised, pixel centres.
    """

    uses_image = False
    """whether it looks at the source image, and not at the poses alone"""
    has_correlation = False
    """whether the flow comes out of a correlation map, which `encode` and `match` give"""
    has_own_losses = False
    """taught by `losses` in the place of the affine task (Eq. 7)"""
    progress = 0.0
    """the share of the training that is done, 0 to 1; a trainer sets it before each step"""

    @abstractmethod
    def forward(self, source_pose: Tensor, target_pose: Tensor,
                source_image: Tensor | None = None) -> Motion:
        """The flow, and whatever else the method estimates.

        Args:
            source_pose: `[k B, 18, 3]`; k > 1 gives each target k sources, all first sources before
                all second ones.
            target_pose: `[B, 18, 3]`.
            source_image: `[k B, 3, H, W]` in [-1, 1] for one that looks at it (`uses_image`), else
                None.
        """

    def blocks(self) -> dict[str, nn.Module]:
        """Its networks, where they have names of their own in the paper's figure."""
        return {}

    def losses(self, motion: Motion, batch: dict[str, Tensor], features: Features,
               ) -> dict[str, Tensor]:
        """The method's own losses by name, each with its weight, to be added to the common ones.

        Args:
            motion: what it said about the poses of the batch.
            batch: "source" and "target", `[B, 3, H, W]` in [-1, 1].
            features: gives the maps in which images are compared.
        """
        return {}
