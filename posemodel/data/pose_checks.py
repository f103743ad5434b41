"""Warnings about joints that may not belong to the image they come with.

The usual accidents: x and y swapped, the frame of another copy of the data set, fractions taken for
pixels. Left and right swapped is not among them: the joints of a person seen from the front are
those of the mirrored person seen from behind.
"""

import numpy as np

from posemodel.data.joint_layouts import Pose
from posemodel.data.keypoints import JOINTS

_HEAD = [JOINTS.index(name) for name in
         ("nose", "neck", "right_eye", "left_eye", "right_ear", "left_ear")]  # fmt: skip
_FEET_FIRST = [[JOINTS.index(f"{side}_{part}") for side in ("right", "left")]
               for part in ("ankle", "knee", "hip")]  # fmt: skip

# DeepFashion exists as 256 x 256 images with white borders of 40 pixels left and right, and
# without them. People stand in the middle: on average at x = 128 and 88. Of the published rows with
# borders 1 % lie left of the middle of the two.
_BORDER = 40
_WITH_BORDERS, _WITHOUT_BORDERS = (256, 256), (256, 176)
_BETWEEN = 108.0


def check_pose(pose: Pose, image_size: tuple[int, int]) -> list[str]:
    """What looks wrong, one line each; an empty list where nothing does.

    Args:
        pose: joints in pixels.
        image_size: (H, W) of the image that they are used with.
    """
    xy = pose.joints[pose.present, :2]
    if not len(xy):
        return ["no joint is present"]
    warnings = []
    if pose.frame is not None and pose.frame != image_size:
        warnings.append(
            f"the joints belong to a picture of {_words(pose.frame)} pixels, this image has "
            f"{_words(image_size)}"
        )
    if len(xy) > 1 and xy.min() >= -1 and xy.max() <= 1 and min(image_size) > 8:
        return [*warnings, "all joints lie within two pixels: fractions taken for pixels?"]

    outside = ~_inside(xy, image_size)
    if outside.any():
        names = [JOINTS[joint] for joint in np.flatnonzero(pose.present)[outside]]
        (left, top), (right, bottom) = xy.min(axis=0), xy.max(axis=0)
        warnings.append(
            f"{len(names)} of {len(xy)} joints lie outside of the image of {_words(image_size)} "
            f"pixels ({', '.join(names)}); x reaches from {left:.0f} to {right:.0f}, "
            f"y from {top:.0f} to {bottom:.0f}"
        )
    right, down = _from_head_to_feet(pose)
    if right > 2 * abs(down):
        warnings.append(
            "the person lies on the side and would stand if x and y changed places: swapped?"
        )
    elif outside.any() and down <= abs(right) and _inside(xy[:, ::-1], image_size).all():
        warnings.append("with x and y swapped all joints would lie inside: swapped?")
    elif borders := _border_warning(xy, image_size):
        warnings.append(borders)
    elif outside.mean() > 0.5 and xy.min() >= 0:
        warnings.append("most joints lie outside: are they of a larger picture than this one?")
    return warnings


def _inside(xy: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    return ((xy >= -0.5) & (xy <= (width - 0.5, height - 0.5))).all(axis=1)


def _from_head_to_feet(pose: Pose) -> tuple[float, float]:
    """How far to the right and down the lowest joints are from the head; zeros if not known."""
    head = [joint for joint in _HEAD if pose.present[joint]]
    for pair in _FEET_FIRST:
        low = [joint for joint in pair if pose.present[joint]]
        if head and low:
            x, y = pose.joints[low, :2].mean(axis=0) - pose.joints[head, :2].mean(axis=0)
            return float(x), float(y)
    return 0.0, 0.0


def _border_warning(xy: np.ndarray, size: tuple[int, int]) -> str | None:
    if len(xy) < 3:
        return None
    middle = xy[:, 0].mean()
    if size == _WITH_BORDERS and middle < _BETWEEN and _inside(xy, _WITHOUT_BORDERS).all():
        return (
            "the joints may be those of the same image without its borders (176 x 256): then "
            f"{_BORDER} is to be added to x"
        )
    if size == _WITHOUT_BORDERS and middle > _BETWEEN and _inside(xy - (_BORDER, 0), size).all():
        return (
            "the joints may be those of the same image with white borders (256 x 256): then "
            f"{_BORDER} is to be taken from x"
        )
    return None


def _words(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"
