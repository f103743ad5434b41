"""The joints of other pose estimators, turned into the 18 OpenPose joints.

Convention: joints are float32 `[18, 3]` = (x, y, presence 0 or 1) in pixels of a frame, x in
columns and y in rows, 0 = centre of the first pixel. A missing joint is all zero.
"""

from dataclasses import dataclass

import numpy as np

from posemodel.poses.joints import JOINTS
from posemodel.runtime.errors import UserError

# No picture is that large: a coordinate beyond it is an error of the file.
_LARGEST_COORDINATE = 1e6

_COCO_17 = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear",
    "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
    "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
)

_BODY_25 = (*JOINTS[:8], "middle_hip", *JOINTS[8:])

# Up to the ankles; hands, heels and toes are not used.
_MEDIAPIPE = (
    "nose", "left_eye_inner", "left_eye", "left_eye_outer",
    "right_eye_inner", "right_eye", "right_eye_outer", "left_ear", "right_ear",
    "mouth_left", "mouth_right",
    "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
    "left_pinky", "right_pinky", "left_index", "right_index", "left_thumb", "right_thumb",
    "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The order of the joints in one family of files, and what its numbers mean."""

    rows: int
    """joints in the file"""
    names: tuple[str, ...]
    """names of the first of them"""
    threshold: float
    """confidence from which a joint counts as seen, where the user gives none"""
    meaning: str
    """for messages: whose files these are"""
    normalized: bool = False
    """coordinates are fractions of the width and the height instead of pixels"""


LAYOUTS = {
    # 0.05 is what OpenPose itself draws from.
    "openpose18": Layout(rows=18, names=JOINTS, threshold=0.05,
                         meaning="OpenPose COCO-18, PATN, NTED, pixels"),
    "body25": Layout(rows=25, names=_BODY_25, threshold=0.05, meaning="OpenPose BODY_25, pixels"),
    # Estimators of this family answer for every joint; DWPose draws from 0.3. The flags of COCO
    # annotations (0 absent, 1 hidden, 2 visible) fall on the right sides of it.
    "coco17": Layout(rows=17, names=_COCO_17, threshold=0.3, meaning="COCO, pixels"),
    "wholebody133": Layout(rows=133, names=_COCO_17, threshold=0.3,
                           meaning="COCO-WholeBody, DWPose, pixels"),
    # 0.5 is what MediaPipe itself draws from.
    "mediapipe33": Layout(rows=33, names=_MEDIAPIPE, threshold=0.5, normalized=True,
                          meaning="MediaPipe pose landmarks, 0..1"),
    "openpose18-normalized": Layout(rows=18, names=JOINTS, threshold=0.05, normalized=True,
                                    meaning="OpenPose's order, vunet, 0..1"),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Pose:
    """The joints of one person, as read from a file."""

    joints: np.ndarray
    """`[18, 3]` float32: x, y, presence; see the convention of this module"""
    format: str
    """a key of `LAYOUTS`: how the file ordered its joints"""
    frame: tuple[int, int] | None = None
    """(H, W) of the picture the joints belong to, where it is known"""
    name: str | None = None
    """file name of that picture, where the file states one"""
    person: int = 0
    """which person of the file this is, from 0"""
    score: float | None = None
    """score of the whole person, where the file states one"""

    @property
    def present(self) -> np.ndarray:
        """`[18]` bool."""
        return self.joints[:, 2] > 0


def layout_list() -> str:
    """The formats in one line, for messages."""
    return ", ".join(f"{name} ({layout.meaning})" for name, layout in LAYOUTS.items())


def check_format(name: str | None) -> None:
    """Raises: `UserError` for a name that is no format; None (as the content says) is fine."""
    if name is not None and name not in LAYOUTS:
        raise UserError(f"no format is called {name!r}; formats: {layout_list()}")


def from_array(array: np.ndarray, format: str | None = None, *,
               image_size: tuple[int, int] | None = None, threshold: float | None = None,
               where: str = "array") -> Pose:
    """One person's joints in the order of their estimator.

    Args:
        array: `[K, 2]` (x, y), `[K, 3]` (x, y, confidence), or for MediaPipe also `[33, 3]`
            (x, y, z) and `[33, 4]` (x, y, z, visibility). Without a confidence a joint is missing
            where x or y is -1, or both are 0. A row whose x and y are NaN is missing always.
        format: a key of `LAYOUTS`. None: as the number of rows says; refused where that does not
            settle it.
        image_size: (H, W); needed where the coordinates are fractions of it.
        threshold: smallest confidence of a joint that counts as seen, 0..1. None: as the
            estimator's own drawings.
        where: what messages call the array.

    Fractions become pixels as their makers count: MediaPipe from the edge of the image (x W - 0.5),
    the others from the centre of the first pixel (x W).

    Raises: `UserError`.
    """
    check_format(format)
    if threshold is not None and not 0 <= threshold <= 1:
        raise UserError(f"threshold {threshold}: expected a number from 0 to 1")
    array = _numeric(array, where)
    name = format or _guess(array, where)
    layout = LAYOUTS[name]
    threshold = layout.threshold if threshold is None else threshold
    xy, confidence = _columns(array, name, where)
    present = _presence(xy, confidence, threshold)

    _require_sound(xy, present, where)
    if layout.normalized:
        _require_fractions(xy, present, name, where)
        if image_size is None:
            raise UserError(f"{where}: {name} holds fractions of an image; give its size")
        height, width = image_size
        xy = xy * (width, height) - (0.5 if name == "mediapipe33" else 0.0)
    elif format is None:
        _require_pixels(xy, present, where)
    joints = _reorder(xy, present, layout.names)
    return Pose(joints=joints, format=name, frame=image_size if layout.normalized else None)


def _numeric(array: np.ndarray, where: str) -> np.ndarray:
    array = np.asarray(array)
    if array.dtype.kind not in "iuf":
        raise UserError(f"{where}: expected numbers, found {array.dtype}")
    if array.ndim != 2:
        raise UserError(f"{where}: expected one row for each joint, found the shape {array.shape}")
    array = array.astype(np.float64)
    infinite = np.argwhere(np.isinf(array))
    if len(infinite):
        raise UserError(f"{where}: row {infinite[0][0]} is infinite")
    return array


def _guess(array: np.ndarray, where: str) -> str:
    rows, columns = array.shape
    if rows == 18 and columns == 2:
        xy = array[_presence(array, None, 0.0)]
        if len(xy) and xy.min() >= 0 and xy.max() <= 1:
            raise UserError(
                f"{where}: 18 joints that all lie between 0 and 1 may be fractions of the image "
                "(format openpose18-normalized) or pixels (format openpose18); give the format")
        return "openpose18"
    for name, layout in LAYOUTS.items():
        if rows == layout.rows:  # of the two with 18 rows openpose18 comes first
            return name
    raise UserError(f"{where}: {rows} joints; formats: {layout_list()}")


def _columns(array: np.ndarray, name: str, where: str) -> tuple[np.ndarray, np.ndarray | None]:
    """x and y `[K, 2]`, and the confidence `[K]` if there is one."""
    rows, columns = array.shape
    wanted = LAYOUTS[name].rows
    allowed = (2, 3, 4) if name == "mediapipe33" else (2, 3)
    if rows != wanted or columns not in allowed:
        shapes = " or ".join(f"{wanted} x {count}" for count in allowed)
        raise UserError(f"{where}: {rows} x {columns} numbers, expected {shapes} for {name}")
    xy, last = array[:, :2], array[:, -1]
    # MediaPipe's z counts from the hips and has both signs; a visibility has not.
    is_depth = name == "mediapipe33" and columns == 3 and bool((last < 0).any())
    if columns == 2 or is_depth:
        return xy, None
    located = ~np.isnan(xy).all(axis=1)
    if np.isnan(last[located]).any():
        raise UserError(f"{where}: joint {_first(np.isnan(last) & located)} has no confidence")
    # AlphaPose reaches 6. Far beyond lie depths, and other things that are no confidence.
    high = np.nan_to_num(last) > 10
    if high.any():
        raise UserError(
            f"{where}: joint {_first(high)} has the confidence {last[high][0]:g}, expected about "
            "0 to 1; is the last column something else?")
    return xy, last


def _presence(xy: np.ndarray, confidence: np.ndarray | None, threshold: float) -> np.ndarray:
    located = ~np.isnan(xy).all(axis=1)
    if confidence is None:
        return located & ~(xy == -1).any(axis=1) & ~(xy == 0).all(axis=1)
    return located & (confidence > 0) & (confidence >= threshold)


def _require_sound(xy: np.ndarray, present: np.ndarray, where: str) -> None:
    bad = present & ~(np.abs(xy) <= _LARGEST_COORDINATE).all(axis=1)  # also NaN
    if bad.any():
        x, y = xy[bad][0]
        raise UserError(f"{where}: joint {_first(bad)} lies at ({x:g}, {y:g})")


def _require_fractions(xy: np.ndarray, present: np.ndarray, name: str, where: str) -> None:
    far = present & ((xy < -1) | (xy > 2)).any(axis=1)
    if far.any():
        x, y = xy[far][0]
        raise UserError(
            f"{where}: joint {_first(far)} lies at ({x:g}, {y:g}); expected fractions of the "
            f"image, 0..1, for {name}")
    if name == "mediapipe33":
        hips = xy[[_MEDIAPIPE.index("left_hip"), _MEDIAPIPE.index("right_hip")]]
        if (np.abs(hips.mean(axis=0)) < 0.01).all():
            raise UserError(
                f"{where}: the hips lie at the origin, so these are MediaPipe's world landmarks, "
                "in metres; give the landmarks of the image instead")


def _require_pixels(xy: np.ndarray, present: np.ndarray, where: str) -> None:
    if present.sum() >= 2 and np.abs(xy[present]).max() <= 1:
        raise UserError(
            f"{where}: all joints lie within one pixel, so these are fractions of an image; "
            "multiply them by its width and height, or give the format that they are in")


def _reorder(xy: np.ndarray, present: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    joints = np.zeros((len(JOINTS), 3), np.float32)
    for index, joint in enumerate(JOINTS):
        if joint in names and present[names.index(joint)]:
            joints[index] = (*xy[names.index(joint)], 1)
    if "neck" not in names:
        shoulders = joints[[JOINTS.index("left_shoulder"), JOINTS.index("right_shoulder")]]
        if shoulders[:, 2].all():
            joints[JOINTS.index("neck")] = shoulders.mean(axis=0)
    return joints


def _first(flags: np.ndarray) -> int:
    return int(np.argmax(flags))
