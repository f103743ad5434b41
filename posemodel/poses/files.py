"""Files of joints, of any common pose estimator or data set, read into the 18 OpenPose joints.

| file | content |
|---|---|
| OpenPose JSON | `people[].pose_keypoints_2d` of 18 or 25 joints; also ControlNet's, DWPose's |
| OpenPose text | `NAME_candidate.txt` and `NAME_subset.txt` side by side |
| COCO JSON | a file with `annotations`, a list of results, or MMPose's predictions |
| MediaPipe JSON | lists of 33 `{"x", "y", "visibility"}`, however deep they lie |
| annotation csv | `name:keypoints_y:keypoints_x`, of PATN and others, see `annotations` |
| arrays | `.npy`, text or JSON with `[K, 2..4]` numbers; `.npy` also `[people, K, 2..4]` |

What a file is, its content says. How the joints of an array are ordered, its number of rows says;
`format` (a key of `layouts.LAYOUTS`) decides where it does not.
"""

import difflib
import json
import math
import tokenize
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from posemodel.poses.annotations import read_annotations
from posemodel.poses.json_files import finite, from_json
from posemodel.poses.layouts import Pose, check_format, from_array
from posemodel.runtime.errors import UserError

_CANDIDATE, _SUBSET = "_candidate.txt", "_subset.txt"


def read_poses(path: str | Path, *, format: str | None = None, name: str | None = None,
               image_size: tuple[int, int] | None = None,
               threshold: float | None = None) -> list[Pose]:
    """Everybody in a file of joints, in the order of the file.

    Args:
        path: see the table of this module.
        format: key of `layouts.LAYOUTS`; None: as the content says, refused where it does
            not.
        name: only those of this image, for files of many images.
        image_size: (H, W) of the image; needed where the joints are fractions of it.
        threshold: smallest confidence of a joint that counts as seen, 0..1. None: as the
            estimator's own drawings.

    Returns: at least one pose; people without any joint are left out.

    Raises: `UserError` with the file and the place in it.
    """
    path = Path(path)
    check_format(format)
    convert = partial(from_array, format=format, image_size=image_size, threshold=threshold)
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if content.startswith(b"\x93NUMPY"):
        poses = _from_npy(path, convert)
    else:
        text = _text(path, content)
        if text[0] in "{[":
            poses = from_json(_parse(text, str(path)), str(path), format, convert, image_size)
        elif "keypoints_" in text.split("\n", 1)[0]:
            poses = _from_patn(path, format)
        else:
            rows = _number_rows(path, text)
            poses = _from_candidates(path, rows, format, convert) \
                if path.name.endswith((_CANDIDATE, _SUBSET)) else [convert(rows, where=str(path))]
    if name is not None:
        poses = _named(path, poses, name)
    seen = [pose for pose in poses if pose.present.any()]
    if not seen:
        of_whom = f" in {name}" if name is not None else ""
        raise UserError(f"{path}: no person with a visible joint{of_whom}")
    return seen


def people_of_image(poses: list[Pose], image: str, *, where: str,
                    otherwise: str = "give one with --name") -> list[Pose]:
    """Those of a file's poses that belong to an image; a file of one image need not name it.

    Args:
        image: its name.
        where: what messages call the file.
        otherwise: what to do where the file has other images only, for that message.

    Raises: `UserError` in that case.
    """
    names = {pose.name for pose in poses}
    if len(names) == 1:
        return poses
    people = [pose for pose in poses if pose.name == image]
    if not people:
        raise UserError(f"{where} holds joints of {len(names)} images and none of {image}; "
                        + otherwise)
    return people


def choose_person(poses: list[Pose], number: int | None = None) -> Pose:
    """Person `number` of a file or, where that is None, the one with the most joints; among equals
    the one that fills the larger box. Raises: `UserError` where nobody has that number."""
    if number is None:
        return max(poses, key=lambda pose: (int(pose.present.sum()), _box_area(pose)))
    for pose in poses:
        if pose.person == number:
            return pose
    numbers = ", ".join(str(pose.person) for pose in poses)
    raise UserError(f"--person {number}: people with joints here: {numbers}")


def _box_area(pose: Pose) -> float:
    xy = pose.joints[pose.present, :2]
    return math.prod(np.ptp(xy, axis=0).tolist()) if len(xy) else 0.0


def openpose_json(poses: list[Pose], size: tuple[int, int]) -> str:
    """OpenPose JSON with 18 joints a person; confidences are 0 or 1.

    Args:
        poses: people of one picture.
        size: (H, W) of that picture; kept as `canvas_height` and `canvas_width`.
    """
    people = [{"person_id": [-1], "pose_keypoints_2d": [float(v) for v in pose.joints.ravel()]}
              for pose in poses]
    document = {"version": 1.3, "people": people, "canvas_height": size[0], "canvas_width": size[1]}
    return json.dumps(document) + "\n"


def _text(path: Path, content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: neither text nor a .npy array") from error
    if not text:
        raise UserError(f"{path}: is empty")
    return text


def _parse(text: str, where: str):
    def refuse(constant: str):
        raise UserError(f"{where}: {constant} is no JSON number")

    try:
        return json.loads(text, parse_constant=refuse)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: broken JSON ({error})") from error


def _from_npy(path: Path, convert) -> list[Pose]:
    try:
        # A mapped file is not read beyond its end, whatever size its header claims.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError, TypeError, KeyError, OverflowError,
            tokenize.TokenError) as error:
        raise UserError(f"{path}: broken .npy file ({error})") from error
    if array.ndim != 3:
        return [convert(array, where=str(path))]
    return [replace(convert(rows, where=f"{path}, person {person}"), person=person)
            for person, rows in enumerate(array)]


# --- text -----------------------------------------------------------------------------------------


def _number_rows(path: Path, text: str) -> np.ndarray:
    """Numbers between spaces, tabs or commas, one line for each row."""
    rows: list[list[float]] = []
    for line, words in enumerate((s.replace(",", " ").split() for s in text.splitlines()), 1):
        if not words:
            continue
        try:
            rows.append([float(word) for word in words])
        except ValueError as error:
            raise UserError(
                f"{path}: line {line} is no row of numbers, and no other known file of joints "
                f"starts like this one") from error
        if len(words) != len(rows[0]):
            raise UserError(f"{path}: line {line} has {len(words)} numbers, not {len(rows[0])}")
    return np.array(rows)


def _from_candidates(path: Path, rows: np.ndarray, format: str | None, convert) -> list[Pose]:
    """OpenPose's two text files: joints (x, y, score, index), and people as 18 rows of joints,
    total score, count."""
    stem = path.name.removesuffix(_CANDIDATE).removesuffix(_SUBSET)
    other = path.with_name(stem + (_SUBSET if path.name.endswith(_CANDIDATE) else _CANDIDATE))
    try:
        content = other.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} belongs together with {other.name}, which cannot be read: {error.strerror}"
        ) from error
    pair = rows, _number_rows(other, _text(other, content))
    candidates, people = pair if path.name.endswith(_CANDIDATE) else pair[::-1]
    if candidates.shape[1] != 4 or people.shape[1] != 20:
        raise UserError(
            f"{path}: candidates of {candidates.shape[1]} numbers and people of {people.shape[1]}, "
            "expected 4 and 20")
    where = f"{path.with_name(stem + _SUBSET)}"
    poses = []
    for person, row in enumerate(people):
        indices = row[:18]
        if not np.isin(indices, np.arange(-1, len(candidates))).all():
            raise UserError(
                f"{where}: person {person} has joints that are none of the {len(candidates)} rows "
                "of candidates")
        joints = np.where(indices[:, None] < 0, 0.0, candidates[indices.astype(int), :3])
        pose = convert(joints, where=f"{where}, person {person}", format=format or "openpose18")
        poses.append(replace(pose, person=person, score=finite(row[18], f"{where}: score")))
    return poses


def _from_patn(path: Path, format: str | None) -> list[Pose]:
    if format not in (None, "openpose18"):
        raise UserError(f"{path}: an annotation file holds openpose18, not {format}")
    names, joints = read_annotations(path)
    poses = [Pose(joints=rows, format="openpose18", name=row_name)
             for row_name, rows in zip(names, joints, strict=True)]
    if not poses:
        raise UserError(f"{path}: has a header but no rows")
    return poses


# --- names ----------------------------------------------------------------------------------------


def _named(path: Path, poses: list[Pose], name: str) -> list[Pose]:
    if all(pose.name is None for pose in poses):
        raise UserError(f"{path}: names no images, so there is no {name} to find")
    matching = [pose for pose in poses if pose.name == name]
    if not matching:
        near = difflib.get_close_matches(name, [pose.name for pose in poses if pose.name], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{path}: no joints of {name}{hint}")
    return matching
