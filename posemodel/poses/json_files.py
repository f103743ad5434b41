"""Joints out of JSON: OpenPose, COCO, and the results of other estimators, of pictures and films.

The coordinates stay in the units of the file, see `layouts.in_pixels`.
"""

import math
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from posemodel.poses.joints import JOINTS
from posemodel.poses.layouts import FLAT_SHAPES, LAYOUTS, Pose
from posemodel.poses.pictures import Pictures, by_image, in_step, people_or_frames
from posemodel.runtime.errors import UserError

# What results are wrapped in.
_WRAPPINGS = ("instance_info", "predictions", "instances", "frames", "results")
# What estimators call the number of a frame, and the confidences of joints beside their places.
_FRAME = ("frame_id", "frame", "frame_index", "frame_number")
_SCORES = ("keypoint_scores", "keypoints_scores", "scores")
# What MediaPipe's dumps call the landmarks of the body in the image.
_LANDMARKS = re.compile("(pose_?)?landmarks?", re.IGNORECASE)

Convert = Callable[..., Pose]
"""`layouts.as_stated` with what the user has asked for"""


def from_json(data, where: str, format: str | None, convert: Convert) -> Pictures:
    """What a document holds, whoever wrote it. Raises: `UserError` with the place in it."""
    if _has(data, "annotations"):
        return by_image(_from_coco(data, where, convert))
    data, where = _unwrapped(data, where)
    if _is_list_of(data, _is_result):
        return by_image(_from_results(data, where, convert))
    frames = _frames(data, where)
    if frames is not None:
        people = [[replace(pose, name=name) for pose in _from_picture(node, place, format, convert)]
                  for place, name, node in frames]
        return Pictures(people=people, film=len(people) > 1)
    if isinstance(data, list) and all(map(_is_empty, data)):
        return Pictures(people=[[] for _ in data or [None]], film=len(data) > 1)
    if isinstance(data, dict) and _is_document(data):
        return Pictures(people=[_from_picture(data, where, format, convert)])
    landmarks = _from_landmarks(data, where, format, convert)
    if landmarks is not None:
        return people_or_frames(landmarks)
    if isinstance(data, list):
        return _from_numbers(data, where, format, convert)
    raise _unknown(where)


def _from_picture(data, where: str, format: str | None, convert: Convert) -> list[Pose]:
    """The people of one picture."""
    if _has(data, "people"):
        return _from_openpose(data, where, convert)
    data, where = _unwrapped(data, where)
    if _is_empty(data):
        return []
    if _is_list_of(data, _is_result):
        return _from_results(data, where, convert)
    landmarks = _from_landmarks(data, where, format, convert)
    if landmarks is None:
        raise _unknown(where)
    return [pose for pose in landmarks if pose.present.any()]


def _unwrapped(data, where: str) -> tuple[object, str]:
    for key in _WRAPPINGS:
        if _has(data, key):
            data, where = data[key], f"{where}: {key}"
    if not _is_result(data):
        return data, where
    if _depth(data["keypoints"]) < 3:
        return [data], where
    # All people of a picture, or those of each frame, in one array, as rtmlib has them.
    scores = next((data[key] for key in _SCORES if _has(data, key)), None)
    return _parted(data["keypoints"], scores, where), where


def _parted(keypoints, scores, where: str) -> list | dict:
    """Lists of lists of joints `[..., K, 2 or 3]` with their confidences, one result a person."""
    if _depth(keypoints) < 3:
        return {"keypoints": keypoints} | ({} if scores is None else {_SCORES[0]: scores})
    if scores is not None and (not isinstance(scores, list) or len(scores) != len(keypoints)):
        raise UserError(f"{where}: {len(keypoints)} lists of keypoints with scores "
                        f"{_short(scores)}")
    return [[] if _is_empty(part) else _parted(part, part_scores, where)
            for part, part_scores in zip(keypoints, scores or [None] * len(keypoints),
                                         strict=True)]


def _unknown(where: str) -> UserError:
    return UserError(
        f"{where}: no joints found; expected people (OpenPose), annotations or keypoints (COCO), "
        "landmarks (MediaPipe) or a list of numbers")


# --- films ----------------------------------------------------------------------------------------


def _frames(data, where: str) -> list[tuple[str, str | None, object]] | None:
    """The pictures of a film, where they lie and what they are called; of those without anybody
    nothing. None for what is no list of pictures."""
    if isinstance(data, dict):
        if not data or _is_document(data) or not all(map(_is_document, data.values())):
            return None
        return [(f"{where}[{name!r}]", name, node) for name, node in data.items()]
    if not isinstance(data, list) or not any(map(_is_document, data)):
        return None
    strange = [index for index, node in enumerate(data)
               if not _is_empty(node) and not _is_document(node)]
    if strange:
        raise UserError(f"{where}[{strange[0]}] is {_short(data[strange[0]])}, not the joints of "
                        "a picture like those beside it")
    numbers = [next((node[key] for key in _FRAME if _has(node, key)), None) for node in data]
    order = in_step(numbers) if all(type(number) is int for number in numbers) else None
    return [(f"{where}[{index}]", None, None if index is None else data[index])
            for index in order or range(len(data))]


def _is_document(node) -> bool:
    """Whether this is all the joints of a picture, as estimators write them for each frame."""
    if isinstance(node, dict):
        return any(key in node for key in ("people", *_WRAPPINGS)) or _is_mediapipe(node)
    # A list of people, each with keypoints or with landmarks.
    return _is_list_of(node, _is_result) or (
        _is_list_of(node, lambda person: _is_list_of(person, _is_point)))


def _is_mediapipe(node) -> bool:
    return isinstance(node, dict) and any(map(_LANDMARKS.fullmatch, node))


# --- estimators -----------------------------------------------------------------------------------


def _from_openpose(data: dict, where: str, convert: Convert) -> list[Pose]:
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
        rows = _reshaped(_numbers(item[key], f"{place}.{key}"), f"{place}.{key}", None)
        pose = convert(rows, where=f"{place}.{key}")
        poses.append(replace(pose, person=person, frame=frame))
    return poses


def _from_coco(data: dict, where: str, convert: Convert) -> list[Pose]:
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


def _from_results(items: list, where: str, convert: Convert) -> list[Pose]:
    return [_from_result(item, person, where, convert) for person, item in enumerate(items)]


def _from_result(item: dict, person: int, where: str, convert: Convert) -> Pose:
    """One person of a COCO annotation, or of the results of COCO's tools, MMPose, AlphaPose,
    Ultralytics and others."""
    place = f"{where}[{person}].keypoints"
    rows = _joint_rows(item["keypoints"], place, None)
    key = next((key for key in _SCORES if key in item), None)
    if key is not None:
        scores = _numbers(item[key], f"{where}[{person}].{key}")
        if len(scores) != len(rows):
            raise UserError(f"{place}: {len(rows)} joints with {len(scores)} scores")
        rows = np.column_stack([rows[:, :2], scores])
    image = next((item[key] for key in ("image_id", *_FRAME) if item.get(key) is not None), None)
    score = next((item[key] for key in ("score", "bbox_score", "confidence")
                  if item.get(key) is not None), None)
    return replace(convert(rows, where=place), person=person,
                   name=None if image is None else str(image),
                   score=None if score is None else finite(score, f"{where}[{person}]: score"))


def _from_landmarks(data, where: str, format: str | None, convert: Convert) -> list[Pose] | None:
    """MediaPipe's people, or frames: nobody where a list has nothing, or a dump of a picture is
    without. None: there are no landmarks here."""
    whole = not isinstance(data, list) or any(map(_is_point, data))
    parts = [] if whole else list(enumerate(data))
    places = [(f"{where}[{index}]", part) for index, part in parts] or [(where + ":", data)]
    lists, lengths = [], set()
    for place, part in places:
        found, others = _landmark_lists(part, place)
        lists += found or ([(place, None)] if _is_empty(part) else [])
        lengths |= others
    if not any(rows for _, rows in lists):
        if _is_mediapipe(data):
            return []
        if lengths:
            raise UserError(f"{where}: lists of {sorted(lengths)} landmarks, expected 33")
        return None
    if format not in (None, "mediapipe33"):
        raise UserError(f"{where}: holds mediapipe33, not {format}")
    return [_nobody(person, "mediapipe33") if rows is None else
            replace(convert(_landmarks(rows, place), where=place, format="mediapipe33"),
                    person=person)
            for person, (place, rows) in enumerate(lists)]


def _landmark_lists(data, where: str) -> tuple[list[tuple[str, list]], set[int]]:
    """MediaPipe's lists of 33 landmarks and where they lie, however deep, and the lengths of other
    lists; hands, faces and landmarks in metres, which the same dumps hold, are left out."""
    lists: list[tuple[str, list]] = []
    lengths: set[int] = set()
    nodes = [(where, data)]
    while nodes:
        place, node = nodes.pop()
        if isinstance(node, list) and any(map(_is_point, node)):
            if len(node) == LAYOUTS["mediapipe33"].rows:
                lists.append((place, node))
            else:
                lengths.add(len(node))
        elif isinstance(node, list):
            nodes += [(f"{place}[{index}]", item) for index, item in enumerate(node)][::-1]
        elif isinstance(node, dict):
            nodes += [(f"{place}.{key}", item) for key, item in node.items()
                      if "world" not in key.lower()][::-1]
    return lists, lengths


def _nobody(person: int, format: str) -> Pose:
    return Pose(joints=np.zeros((len(JOINTS), 3), np.float32), format=format, person=person)


def _landmarks(node: list, where: str) -> np.ndarray:
    """`[33, 2 or 3]`; a landmark that is null is missing."""
    points = [point for point in node if point is not None]
    keys = ("x", "y", "visibility") if any("visibility" in item for item in points) else ("x", "y")
    rows = []
    for index, item in enumerate(node):
        missing = [key for key in keys if item is not None and not _has(item, key)]
        if missing:
            raise UserError(f"{where}[{index}] has no {missing[0]}")
        rows.append(_numbers([item and item[key] for key in keys], f"{where}[{index}]"))
    return np.array(rows)


# --- numbers --------------------------------------------------------------------------------------


def _from_numbers(data: list, where: str, format: str | None, convert: Convert) -> Pictures:
    """Lists without names: joints of a person, people of a picture, or pictures of a film."""
    def person(rows, place: str, number: int) -> Pose:
        if _is_empty(rows):
            return _nobody(number, format or "openpose18")
        return replace(convert(_joint_rows(rows, place, format), where=place), person=number)

    depth = _depth(data)
    if depth == 4:
        for frame, picture in enumerate(data):
            if not isinstance(picture, list | None):
                raise UserError(f"{where}[{frame}] is {_short(picture)}, not a list of people")
        people = [[person(rows, f"{where}[{frame}][{number}]", number)
                   for number, rows in enumerate(picture or [])]
                  for frame, picture in enumerate(data)]
        return Pictures(people=people, film=len(people) > 1)
    longest = max((len(row) for row in data if isinstance(row, list)), default=0)
    if depth == 3 or depth == 2 and longest > max(LAYOUTS["mediapipe33"].columns):
        return people_or_frames([person(rows, f"{where}[{number}]", number)
                                 for number, rows in enumerate(data)])
    return Pictures(people=[[person(data, where, 0)]])


def _depth(value) -> int:
    """How many lists lie within each other, by the first in each that is not empty."""
    depth = 0
    while isinstance(value, list):
        depth += 1
        value = next((node for node in value if not _is_empty(node)), None)
    return depth


def _joint_rows(value, where: str, format: str | None) -> np.ndarray:
    """Rows of numbers, or all of them in one list; also Ultralytics' columns, and named points."""
    if _has(value, "x") and _has(value, "y"):
        keys = ("x", "y", "visible") if value.get("visible") is not None else ("x", "y")
        columns = [_numbers(value[key], f"{where}.{key}") for key in keys]
        if len(set(map(len, columns))) != 1:
            raise UserError(f"{where}: columns of {sorted(set(map(len, columns)))} numbers")
        return np.column_stack(columns)
    if _is_list_of(value, _is_point):
        keys = [next((key for key in names if key in value[0]), None)
                for names in (("x",), ("y",), ("score", "visibility", "confidence"))]
        value = [[point.get(key) for key in keys if key] for point in value]
    if isinstance(value, list) and any(isinstance(row, list) for row in value):
        columns = next(len(row) for row in value if isinstance(row, list))
        rows = [[math.nan] * columns if row is None else _numbers(row, f"{where}[{index}]")
                for index, row in enumerate(value)]
        if len({len(row) for row in rows}) != 1 or not rows[0]:
            raise UserError(f"{where}: rows of different lengths, or empty ones")
        return np.array(rows)
    return _reshaped(_numbers(value, where), where, format)


def _reshaped(numbers: list[float], where: str, format: str | None) -> np.ndarray:
    """All numbers of a person in one list, one row for each joint."""
    shapes = FLAT_SHAPES if format is None else {
        count: shape for count, shape in FLAT_SHAPES.items() if shape[0] == LAYOUTS[format].rows}
    if len(numbers) not in shapes:
        expected = " or ".join(
            f"{count} ({rows} x {columns})" for count, (rows, columns) in sorted(shapes.items()))
        raise UserError(f"{where}: {len(numbers)} numbers, expected {expected}")
    return np.array(numbers).reshape(shapes[len(numbers)])


def _numbers(value, where: str) -> list[float]:
    """Numbers; null, which is NaN to others, is NaN."""
    if not isinstance(value, list):
        raise UserError(f"{where}: expected a list of numbers, found {_short(value)}")
    return [math.nan if number is None or number != number
            else finite(number, f"{where}[{index}]") for index, number in enumerate(value)]


def finite(value, where: str) -> float:
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


def _is_result(item) -> bool:
    return _has(item, "keypoints")


def _is_point(item) -> bool:
    return _has(item, "x") and _has(item, "y")


def _is_empty(node) -> bool:
    return node is None or node == [] or node == {}


def _is_list_of(value, kind: Callable[[object], bool]) -> bool:
    """Whether this is a list of some of that kind, and nothing else."""
    return isinstance(value, list) and bool(value) and all(map(kind, value))


def _short(value) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 1e30 else "a huge number"
    return text if len(text) <= 40 else text[:40] + "..."
