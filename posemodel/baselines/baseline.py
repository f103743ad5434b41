"""What the methods of Table 1 share."""

from abc import abstractmethod

from torch import Tensor

from posemodel.flow.estimator import FlowEstimator, Motion
from posemodel.runtime.errors import UserError


class Baseline(FlowEstimator):
    """A method of Table 1, driven by given joints."""

    has_own_losses = True

    def __init__(self, *, config, image_size: tuple[int, int]):
        super().__init__()
        self.config, self.image_size = config, image_size
        self.uses_image = config.motion_input == "keypoints+image"

    def forward(self, source_pose: Tensor, target_pose: Tensor,
                source_image: Tensor | None = None) -> Motion:
        """As `FlowEstimator.forward`. Raises: ValueError when an image is missing or not wanted."""
        if (source_image is not None) != self.uses_image:
            wanted = "needs" if self.uses_image else "does not use"
            raise ValueError(f"source_image: this estimator {wanted} the source image")
        # Shapes, not len(): an exported program takes any batch.
        times = source_pose.shape[0] // target_pose.shape[0]
        return self.estimate(source_pose, target_pose.repeat(times, 1, 1), source_image)

    @abstractmethod
    def estimate(self, source_pose: Tensor, target_pose: Tensor,
                 source_image: Tensor | None) -> Motion:
        """As `forward`, with as many targets as sources."""


def require(config: object, allowed: str, *names: str) -> None:
    """Check fields of a configuration: "positive", "not negative" or "a share".

    Raises: `UserError` naming the field.
    """
    for name in names:
        value = getattr(config, name)
        if not {"positive": 0 < value < float("inf"), "not negative": 0 <= value < float("inf"),
                "a share": 0 <= value <= 1}[allowed]:
            raise UserError(f"{type(config).__name__}: {name} is {value!r}, expected {allowed}")
