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
`format` (a key of `joint_layouts.LAYOUTS`) decides where it does not.
"""

import difflib
import json
import tokenize
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from posemodel.data.annotations import read_annotations
from posemodel.data.joint_layouts import LAYOUTS, Pose, check_format, from_array
from posemodel.errors import UserError

_CANDIDATE, _SUBSET = "_candidate.txt", "_subset.txt"


def read_poses(
    path: str | Path,
    *,
    format: str | None = None,
    name: str | None = None,
    image_size: tuple[int, int] | None = None,
    threshold: float | None = None,
) -> list[Pose]:
    """Everybody in a file of joints, in the order of the file.

    Args:
        path: see the table of this module.
        format: key of `joint_layouts.LAYOUTS`; None: as the content says, refused where it does
            not.
        name: only those of this image, for files of many images.
        image_size: (H, W) of the image; needed where the joints are fractions of it.
        threshold: smallest confidence of a joint that counts as seen, 0..1. None: as the
            estimator's own drawings.

    Returns:
        at least one pose; people without any joint are left out.

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
            poses = _from_json(_parse(text, str(path)), str(path), format, convert, image_size)
        elif "keypoints_" in text.split("\n", 1)[0]:
            poses = _from_patn(path, format)
        else:
            poses = _from_text(path, text, format, convert)
    if name is not None:
        poses = _named(path, poses, name)
    seen = [pose for pose in poses if pose.present.any()]
    if not seen:
        of_whom = f" in {name}" if name is not None else ""
        raise UserError(f"{path}: no person with a visible joint{of_whom}")
    return seen


def openpose_json(poses: list[Pose], size: tuple[int, int]) -> str:
    """OpenPose JSON with 18 joints a person; confidences are 0 or 1.

    Args:
        poses: people of one picture.
        size: (H, W) of that picture; kept as `canvas_height` and `canvas_width`.
    """
    people = [
        {"person_id": [-1], "pose_keypoints_2d": [float(v) for v in pose.joints.ravel()]}
        for pose in poses
    ]
    document = {
        "version": 1.3, "people": people, "canvas_height": size[0], "canvas_width": size[1],
    }  # fmt: skip
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
            tokenize.TokenError) as error:  # fmt: skip
        raise UserError(f"{path}: broken .npy file ({error})") from error
    if array.ndim != 3:
        return [convert(array, where=str(path))]
    return [
        replace(convert(rows, where=f"{path}, person {person}"), person=person)
        for person, rows in enumerate(array)
    ]


# --- text -----------------------------------------------------------------------------------------


def _from_text(path: Path, text: str, format: str | None, convert) -> list[Pose]:
    rows = _number_rows(path, text)
    if path.name.endswith((_CANDIDATE, _SUBSET)):
        return _from_candidates(path, rows, format, convert)
    return [convert(rows, where=str(path))]


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
                f"starts like this one"
            ) from error
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
            "expected 4 and 20"
        )
    where = f"{path.with_name(stem + _SUBSET)}"
    poses = []
    for person, row in enumerate(people):
        indices = row[:18]
        if not np.isin(indices, np.arange(-1, len(candidates))).all():
            raise UserError(
                f"{where}: person {person} has joints that are none of the {len(candidates)} rows "
                "of candidates"
            )
        joints = np.where(indices[:, None] < 0, 0.0, candidates[indices.astype(int), :3])
        pose = convert(joints, where=f"{where}, person {person}", format=format or "openpose18")
        poses.append(replace(pose, person=person, score=_finite(row[18], f"{where}: score")))
    return poses


def _from_patn(path: Path, format: str | None) -> list[Pose]:
    if format not in (None, "openpose18"):
        raise UserError(f"{path}: an annotation file holds openpose18, not {format}")
    names, joints = read_annotations(path)
    poses = [
        Pose(joints=rows, format="openpose18", name=row_name)
        for row_name, rows in zip(names, joints, strict=True)
    ]
    if not poses:
        raise UserError(f"{path}: has a header but no rows")
    return poses


# --- JSON -----------------------------------------------------------------------------------------


def _from_json(
    data, where: str, format: str | None, convert, image_size: tuple[int, int] | None
) -> list[Pose]:
    # ComfyUI saves a list of pictures, usually of one.
    if isinstance(data, list) and len(data) == 1 and _has(data[0], "people"):
        data = data[0]
    if _has(data, "people"):
        return _from_openpose(data, where, format, convert, image_size)
    if _has(data, "annotations"):
        return _from_coco(data, where, convert)
    for key in ("instance_info", "predictions"):
        if _has(data, key):
            data, where = data[key], f"{where}: {key}"
    if _has(data, "keypoints"):
        data = [data]
    if isinstance(data, list) and all(_has(item, "keypoints") for item in data):
        return [_from_result(item, person, where, convert) for person, item in enumerate(data)]
    landmarks = _landmark_lists(data, where)
    if landmarks:
        if format not in (None, "mediapipe33"):
            raise UserError(f"{where}: holds mediapipe33, not {format}")
        return [
            replace(convert(rows, where=place, format="mediapipe33"), person=person)
            for person, (place, rows) in enumerate(landmarks)
        ]
    if isinstance(data, list):
        return [convert(_joint_rows(data, where, format), where=where)]
    raise UserError(
        f"{where}: no joints found; expected people (OpenPose), annotations or keypoints (COCO), "
        "landmarks (MediaPipe) or a list of numbers"
    )


def _from_openpose(
    data: dict, where: str, format: str | None, convert, image_size: tuple[int, int] | None
) -> list[Pose]:
    frame = _size(data, "canvas_height", "canvas_width", where)
    poses = []
    for person, item in enumerate(_list(data, "people", where)):
        place = f"{where}: people[{person}]"
        # Until its version 1.2 OpenPose called it pose_keypoints.
        key = "pose_keypoints" if _has(item, "pose_keypoints") else "pose_keypoints_2d"
        if not _has(item, key):
            raise UserError(f"{place} has no pose_keypoints_2d")
        if not item[key]:
            continue  # a person of whom only a hand or the face is there
        numbers = _numbers(item[key], f"{place}.{key}")
        if len(numbers) not in (54, 75):
            raise UserError(
                f"{place}.{key}: {len(numbers)} numbers, expected 54 (18 joints) or 75 (25 joints)"
            )
        rows = np.array(numbers).reshape(-1, 3)
        seen = rows[rows[:, 2] > 0, :2]
        # ControlNet writes pixels or fractions of the canvas.
        if frame and format is None and len(seen) > 1 and seen.min() >= 0 and seen.max() <= 1:
            rows[:, :2] *= frame[::-1]
        pose = convert(rows, where=f"{place}.{key}", image_size=frame or image_size)
        poses.append(replace(pose, person=person, frame=frame or pose.frame))
    return poses


def _from_coco(data: dict, where: str, convert) -> list[Pose]:
    images: dict = {}
    listed = _list(data, "images", where) if "images" in data else []
    for index, image in enumerate(listed):
        place = f"{where}: images[{index}]"
        if not _has(image, "id") or not _has(image, "file_name"):
            raise UserError(f"{place} has no id or no file_name")
        size = _size(image, "height", "width", place)
        images[str(image["id"])] = str(image["file_name"]), size
    poses = []
    for index, item in enumerate(_list(data, "annotations", where)):
        if not _has(item, "keypoints"):
            continue  # a box or a mask of something else
        pose = _from_result(item, index, f"{where}: annotations", convert)
        name, frame = images.get(str(item.get("image_id")), (pose.name, None))
        poses.append(replace(pose, name=name, frame=frame))
    return poses


def _from_result(item: dict, person: int, where: str, convert) -> Pose:
    """One person of a COCO annotation, a COCO result, or MMPose's predictions."""
    place = f"{where}[{person}].keypoints"
    rows = _joint_rows(item["keypoints"], place, None)
    if "keypoint_scores" in item:
        scores = _numbers(item["keypoint_scores"], f"{where}[{person}].keypoint_scores")
        if len(scores) != len(rows):
            raise UserError(f"{place}: {len(rows)} joints with {len(scores)} scores")
        rows = np.column_stack([rows[:, :2], scores])
    image, score = item.get("image_id"), item.get("score", item.get("bbox_score"))
    return replace(
        convert(rows, where=place),
        person=person,
        name=None if image is None else str(image),
        score=None if score is None else _finite(score, f"{where}[{person}]: score"),
    )


def _joint_rows(value, where: str, format: str | None) -> np.ndarray:
    """Rows of numbers, or all of them in one list."""
    if isinstance(value, list) and value and isinstance(value[0], list):
        rows = [_numbers(row, f"{where}[{index}]") for index, row in enumerate(value)]
        if len({len(row) for row in rows}) != 1 or not rows[0]:
            raise UserError(f"{where}: rows of different lengths, or empty ones")
        return np.array(rows)
    numbers = _numbers(value, where)
    shapes = {
        layout.rows * columns: (layout.rows, columns)
        for layout in ([LAYOUTS[format]] if format else LAYOUTS.values())
        for columns in ((2, 3, 4) if layout.rows == 33 else (2, 3))
    }
    if len(numbers) not in shapes:
        expected = " or ".join(
            f"{count} ({rows} x {columns})" for count, (rows, columns) in sorted(shapes.items())
        )
        raise UserError(f"{where}: {len(numbers)} numbers, expected {expected}")
    return np.array(numbers).reshape(shapes[len(numbers)])


def _landmark_lists(data, where: str) -> list[tuple[str, np.ndarray]]:
    """MediaPipe's lists of landmarks `[33, 2 or 3]` and where they lie; hands, faces and landmarks
    in metres, which the same dumps hold, are left out."""
    found: list[tuple[str, np.ndarray]] = []
    lengths: list[int] = []
    nodes = [(where + ":", data)]
    while nodes:
        place, node = nodes.pop()
        if isinstance(node, list) and node and all(_has(item, "x") for item in node):
            lengths.append(len(node))
            if len(node) == LAYOUTS["mediapipe33"].rows:
                found.append((place, _landmarks(node, place)))
        elif isinstance(node, list):
            nodes += [(f"{place}[{index}]", item) for index, item in enumerate(node)][::-1]
        elif isinstance(node, dict):
            nodes += [
                (f"{place}.{key}", item) for key, item in node.items() if "world" not in key.lower()
            ][::-1]
    if lengths and not found:
        raise UserError(f"{where}: lists of {sorted(set(lengths))} landmarks, expected 33")
    return found


def _landmarks(node: list[dict], where: str) -> np.ndarray:
    keys = ("x", "y", "visibility") if any("visibility" in item for item in node) else ("x", "y")
    rows = []
    for index, item in enumerate(node):
        missing = [key for key in keys if key not in item]
        if missing:
            raise UserError(f"{where}[{index}] has no {missing[0]}")
        rows.append(_numbers([item[key] for key in keys], f"{where}[{index}]"))
    return np.array(rows)


# --- values ---------------------------------------------------------------------------------------


def _numbers(value, where: str) -> list[float]:
    if not isinstance(value, list):
        raise UserError(f"{where}: expected a list of numbers, found {_short(value)}")
    return [_finite(number, f"{where}[{index}]") for index, number in enumerate(value)]


def _finite(value, where: str) -> float:
    # True and False are numbers to Python. Whole numbers of JSON may be too long for a float.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
        raise UserError(f"{where}: expected a finite number, found {_short(value)}")
    return float(value)


def _size(item: dict, height: str, width: str, where: str) -> tuple[int, int] | None:
    if height not in item and width not in item:
        return None
    size = item.get(height), item.get(width)
    if not all(isinstance(side, int) and 0 < side < 2**31 for side in size):
        raise UserError(f"{where}: {height} and {width} are {_short(size)}, expected whole pixels")
    return size


def _list(item: dict, key: str, where: str) -> list:
    if not isinstance(item[key], list):
        raise UserError(f"{where}: {key} is {_short(item[key])}, expected a list")
    return item[key]


def _has(item, key: str) -> bool:
    return isinstance(item, dict) and key in item


def _short(value) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 1e30 else "a huge number"
    return text if len(text) <= 40 else text[:40] + "..."


def _named(path: Path, poses: list[Pose], name: str) -> list[Pose]:
    if all(pose.name is None for pose in poses):
        raise UserError(f"{path}: names no images, so there is no {name} to find")
    matching = [pose for pose in poses if pose.name == name]
    if not matching:
        raise _no_such_name(path, name, (pose.name for pose in poses if pose.name))
    return matching


def _no_such_name(path: Path, name: str | None, names) -> UserError:
    near = difflib.get_close_matches(name or "", names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return UserError(f"{path}: no joints of {name}{hint}")
