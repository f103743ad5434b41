"""Warnings about joints that may not belong to the image they come with.

The usual accidents: x and y swapped, the frame of another copy of the data set, fractions taken for
pixels. Left and right swapped is not among them: the joints of a person seen from the front are
those of the mirrored person seen from behind.
"""

import numpy as np

from posemodel.data.layouts import LAYOUTS
from posemodel.poses.files import same_image
from posemodel.poses.joints import JOINTS
from posemodel.poses.layouts import Pose

_HEAD = [JOINTS.index(name) for name in
         ("nose", "neck", "right_eye", "left_eye", "right_ear", "left_ear")]
_PLAIN = 24  # how far (0..255) the colours of a plain background may be from each other
_FEET_FIRST = [[JOINTS.index(f"{side}_{part}") for side in ("right", "left")]
               for part in ("ankle", "knee", "hip")]


def check_pose(pose: Pose, image_size: tuple[int, int], image_name: str | None = None,
               image: np.ndarray | None = None) -> list[str]:
    """What looks wrong, one line each; an empty list where nothing does.

    Args:
        pose: joints in pixels.
        image_size: (H, W) of the image that they are used with.
        image_name: its name; None where it has none, or where the user has chosen the joints by
            name.
        image: itself, `[H, W, 3]` uint8, where it is at hand.
    """
    xy = pose.joints[pose.present, :2]
    if not len(xy):
        return ["no joint is present"]
    warnings = []
    if pose.name and image_name and not same_image(pose.name, image_name):
        warnings.append(f"the file names the image of these joints {pose.name}, this one is "
                        f"{image_name}")
    if pose.frame is not None and pose.frame != image_size:
        warnings.append(
            f"the joints belong to a picture of {_words(pose.frame)} pixels, this image has "
            f"{_words(image_size)}")
    if len(xy) > 1 and xy.min() >= -1 and xy.max() <= 1 and min(image_size) > 8:
        return [*warnings, "all joints lie within two pixels: fractions taken for pixels?"]

    outside = ~_inside(xy, image_size)
    if outside.any():
        names = [JOINTS[joint] for joint in np.flatnonzero(pose.present)[outside]]
        (left, top), (right, bottom) = xy.min(axis=0), xy.max(axis=0)
        warnings.append(
            f"{len(names)} of {len(xy)} joints lie outside of the image of {_words(image_size)} "
            f"pixels ({', '.join(names)}); x reaches from {left:.0f} to {right:.0f}, "
            f"y from {top:.0f} to {bottom:.0f}")
    right, down = _from_head_to_feet(pose)
    if right > 2 * abs(down):
        warnings.append(
            "the person lies on the side and would stand if x and y changed places: swapped?")
    elif outside.any() and down <= abs(right) and _inside(xy[:, ::-1], image_size).all():
        warnings.append("with x and y swapped all joints would lie inside: swapped?")
    # Without the image nothing shows where the person stands, but in a data set they stand in the
    # middle.
    elif (image is not None or pose.name) and (borders := _border_warnings(xy, image_size, image)):
        warnings += borders
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


def _border_warnings(xy: np.ndarray, size: tuple[int, int], image: np.ndarray | None) -> list[str]:
    """Of data sets whose images exist with white borders and without them."""
    warnings = []
    body = None if image is None else _body(image)
    for layout in (each for each in LAYOUTS.values() if each.border and len(xy) >= 3):
        wide, narrow = layout.sizes
        if size == wide and _inside(xy, narrow).all() and _belongs(xy, layout.border, size, body):
            warnings.append("the joints may be those of the same image without its borders "
                            f"({_words(narrow)}): then {layout.border} is to be added to x")
        elif size == narrow and _inside(xy - (layout.border, 0), size).all() and _belongs(
                xy, -layout.border, size, body):
            warnings.append("the joints may be those of the same image with white borders "
                            f"({_words(wide)}): then {layout.border} is to be taken from x")
    return warnings


def _belongs(xy: np.ndarray, shift: int, size: tuple[int, int], body: np.ndarray | None) -> bool:
    """Whether joints rather belong `shift` columns to the right."""
    if body is None:
        # People stand in the middle, but no generated person in 1,050 so far beside it. Half of
        # those whose joints are a border aside do.
        aside = (size[1] - 1) / 2 - xy[:, 0].mean()
        return bool(aside * np.sign(shift) > 1.05 * abs(shift))
    here, there = (body[tuple(np.rint(at).astype(int).clip(0, np.array(size[::-1]) - 1).T[::-1])]
                   for at in (xy, xy + (shift, 0)))
    return bool(there.mean() > here.mean() + 0.25)


def _body(image: np.ndarray) -> np.ndarray | None:
    """`[H, W]` bool, what stands before a plain background; None where there is none."""
    sides = np.concatenate([image[:, 0], image[:, -1]]).astype(int)
    plain = np.median(sides, axis=0)
    if (np.abs(sides - plain).max(axis=1) > _PLAIN).mean() > 0.1:
        return None
    return np.abs(image.astype(int) - plain).max(axis=2) > _PLAIN


def _words(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"
