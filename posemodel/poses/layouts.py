"""The joints of other pose estimators, turned into the 18 OpenPose joints.

Convention: joints are float32 `[18, 3]` = (x, y, presence 0 or 1) in pixels of a frame, x in
columns and y in rows, 0 = centre of the first pixel. A missing joint is all zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from posemodel.poses.joints import JOINTS
from posemodel.poses.units import check_units, guess_units, require_within, to_pixels
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
    """The order of the joints in one family of files."""

    rows: int
    """joints in the file"""
    names: tuple[str, ...]
    """names of the first of them"""
    threshold: float
    """confidence from which a joint counts as seen, where the user gives none"""
    meaning: str
    """for messages: whose files these are"""
    units: str = "pixels"
    """what its makers count in, one of `units.UNITS`; the file may say otherwise"""
    columns: tuple[int, ...] = (2, 3)
    """numbers that a joint may have"""


LAYOUTS = {
    # 0.05 is what OpenPose itself draws from.
    "openpose18": Layout(rows=18, names=JOINTS, threshold=0.05,
                         meaning="OpenPose COCO-18, PATN, NTED, vunet, tf-pose"),
    "body25": Layout(rows=25, names=_BODY_25, threshold=0.05, meaning="OpenPose BODY_25"),
    # Estimators of this family answer for every joint; DWPose draws from 0.3. The flags of COCO
    # annotations (0 absent, 1 hidden, 2 visible) fall on the right sides of it.
    "coco17": Layout(rows=17, names=_COCO_17, threshold=0.3,
                     meaning="COCO, Ultralytics, MMPose, rtmlib"),
    # Halpe has a neck of its own, above OpenPose's, which lies between the shoulders.
    "halpe26": Layout(rows=26, names=_COCO_17, threshold=0.3, meaning="Halpe, body and feet"),
    "wholebody133": Layout(rows=133, names=_COCO_17, threshold=0.3,
                           meaning="COCO-WholeBody, DWPose"),
    "halpe136": Layout(rows=136, names=_COCO_17, threshold=0.3,
                       meaning="Halpe, whole body: AlphaPose"),
    # 0.5 is what MediaPipe itself draws from.
    "mediapipe33": Layout(rows=33, names=_MEDIAPIPE, threshold=0.5, units="fractions",
                          columns=(2, 3, 4), meaning="MediaPipe pose landmarks"),
}

# A name from when a layout and its units were one thing.
_JOINED = {"openpose18-normalized": ("openpose18", "fractions")}

# How many numbers a person has where they stand in one list, and what shape that is.
FLAT_SHAPES = {layout.rows * columns: (layout.rows, columns)
               for layout in LAYOUTS.values() for columns in layout.columns}


@dataclass(frozen=True, kw_only=True, eq=False)
class Pose:
    """The joints of one person, as read from a file."""

    joints: np.ndarray
    """`[18, 3]` float32: x, y, presence; see the convention of this module"""
    format: str
    """a key of `LAYOUTS`: how the file ordered its joints"""
    units: str = "pixels"
    """one of `units.UNITS`: what the file counted in"""
    frame: tuple[int, int] | None = None
    """(H, W) of the picture the joints belong to, where it is known"""
    name: str | None = None
    """file name of that picture, where the file states one"""
    person: int = 0
    """which person of its picture this is, from 0"""
    score: float | None = None
    """score of the whole person, where the file states one"""

    @property
    def present(self) -> np.ndarray:
        """`[18]` bool."""
        return self.joints[:, 2] > 0


def layout_list() -> str:
    """The formats in one line, for messages."""
    return ", ".join(f"{name} ({layout.meaning})" for name, layout in LAYOUTS.items())


def split_format(format: str | None, units: str | None) -> tuple[str | None, str | None]:
    """Layout and units that a user has asked for; None is open.

    Raises: `UserError` for a name that is none.
    """
    check_units(units)
    if format in _JOINED:
        format, own = _JOINED[format]
        units = units or own
    if format is not None and format not in LAYOUTS:
        raise UserError(f"no format is called {format!r}; formats: {layout_list()}")
    return format, units


def from_array(array: np.ndarray, format: str | None = None, *, units: str | None = None,
               image_size: tuple[int, int] | None = None, threshold: float | None = None,
               where: str = "array") -> Pose:
    """One person's joints in the order of their estimator.

    Args:
        array: `[K, 2]` (x, y), `[K, 3]` (x, y, confidence), or for MediaPipe also `[33, 3]`
            (x, y, z) and `[33, 4]` (x, y, z, visibility). A joint is missing where x and y are
            both 0, -1 or NaN; without a confidence also where one of them is -1.
        format: a key of `LAYOUTS`. None: as the number of rows says.
        units: one of `units.UNITS`. None: as the numbers show; refused where they do not.
        image_size: (H, W); needed where the coordinates are no pixels.
        threshold: smallest confidence of a joint that counts as seen, 0..1. None: as the
            estimator's own drawings.
        where: what messages call the array.

    Fractions become pixels as their makers count: MediaPipe from the edge of the image (x W - 0.5),
    the others from the centre of the first pixel (x W).

    Raises: `UserError`.
    """
    format, units = split_format(format, units)
    pose = as_stated(array, format, threshold=threshold, where=where)
    return in_pixels([pose], units=units, image_size=image_size, where=where)[0]


def as_stated(array: np.ndarray, format: str | None = None, *, threshold: float | None = None,
              where: str = "array") -> Pose:
    """As `from_array`, the coordinates still in the units of the array: `in_pixels` of all poses
    of a file comes after it."""
    if threshold is not None and not 0 <= threshold <= 1:
        raise UserError(f"threshold {threshold}: expected a number from 0 to 1")
    array = _numeric(array, where)
    name = format or _guess(array, where)
    layout = LAYOUTS[name]
    xy, confidence = _columns(array, name, where)
    present = _presence(xy, confidence, layout.threshold if threshold is None else threshold)
    _require_sound(xy, present, where)
    return Pose(joints=_reorder(xy, present, layout.names), format=name)


def in_pixels(poses: Sequence[Pose], *, units: str | None, image_size: tuple[int, int] | None,
              where: str) -> list[Pose]:
    """All poses of a file, `as_stated`, in pixels. What they are counted in is asked of all their
    joints at once: those of one alone may leave it open.

    Args:
        units: one of `units.UNITS`; None: as the numbers show.
        image_size: (H, W) of the picture of those poses that do not state their frame.
        where: what messages call the file.

    Raises: `UserError`.
    """
    poses = list(poses)
    seen = [pose.joints[pose.present, :2].astype(np.float64) for pose in poses]
    if not any(map(len, seen)):
        return poses
    units = units or guess_units(np.concatenate(seen), LAYOUTS[poses[0].format].units, where)
    if units == "pixels":
        return poses
    scaled = []
    for pose, xy in zip(poses, seen, strict=True):
        require_within(xy, units, where)
        if pose.format == "mediapipe33":
            _require_no_world(pose, where)
        size = pose.frame or image_size
        if size is None:
            of_what = "fractions of an image" if units == "fractions" else "counted from the " \
                "middle of an image"
            raise UserError(f"{where}: the joints are {of_what}; give its size")
        joints = pose.joints.copy()
        joints[pose.present, :2] = to_pixels(xy, units, size,
                                             from_edge=pose.format == "mediapipe33")
        scaled.append(replace(pose, joints=joints, units=units, frame=size))
    return scaled


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
    for name, layout in LAYOUTS.items():
        if len(array) == layout.rows:
            return name
    raise UserError(f"{where}: {len(array)} joints; formats: {layout_list()}")


def _columns(array: np.ndarray, name: str, where: str) -> tuple[np.ndarray, np.ndarray | None]:
    """x and y `[K, 2]`, and the confidence `[K]` if there is one."""
    rows, columns = array.shape
    wanted, allowed = LAYOUTS[name].rows, LAYOUTS[name].columns
    if rows != wanted or columns not in allowed:
        shapes = " or ".join(f"{wanted} x {count}" for count in allowed)
        raise UserError(f"{where}: {rows} x {columns} numbers, expected {shapes} for {name}")
    xy, last = array[:, :2], array[:, -1]
    # MediaPipe's z counts from the hips and has both signs; a visibility has not.
    is_depth = name == "mediapipe33" and columns == 3 and bool((last < 0).any())
    if columns == 2 or is_depth:
        return xy, None
    located = _located(xy)
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
    if confidence is None:
        return _located(xy) & ~(xy == -1).any(axis=1)
    return _located(xy) & (confidence > 0) & (confidence >= threshold)


def _located(xy: np.ndarray) -> np.ndarray:
    # The corner is where estimators put what they did not find, some of them with a confidence.
    return ~np.isnan(xy).all(axis=1) & ~(xy == 0).all(axis=1) & ~(xy == -1).all(axis=1)


def _require_sound(xy: np.ndarray, present: np.ndarray, where: str) -> None:
    bad = present & ~(np.abs(xy) <= _LARGEST_COORDINATE).all(axis=1)  # also NaN
    if bad.any():
        x, y = xy[bad][0]
        raise UserError(f"{where}: joint {_first(bad)} lies at ({x:g}, {y:g})")


def _require_no_world(pose: Pose, where: str) -> None:
    hips = pose.joints[[JOINTS.index("left_hip"), JOINTS.index("right_hip")]]
    if hips[:, 2].all() and (np.abs(hips[:, :2].mean(axis=0)) < 0.01).all():
        raise UserError(
            f"{where}: the hips lie at the origin, so these are MediaPipe's world landmarks, "
            "in metres; give the landmarks of the image instead")


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
