"""Joints out of JSON: OpenPose, COCO, and the results of other estimators."""

from dataclasses import replace

import numpy as np

from posemodel.poses.layouts import LAYOUTS, Pose
from posemodel.runtime.errors import UserError


def from_json(data, where: str, format: str | None, convert,
              image_size: tuple[int, int] | None) -> list[Pose]:
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
        return [replace(convert(rows, where=place, format="mediapipe33"), person=person)
                for person, (place, rows) in enumerate(landmarks)]
    if isinstance(data, list):
        return [convert(_joint_rows(data, where, format), where=where)]
    raise UserError(
        f"{where}: no joints found; expected people (OpenPose), annotations or keypoints (COCO), "
        "landmarks (MediaPipe) or a list of numbers")


def _from_openpose(data: dict, where: str, format: str | None, convert,
                   image_size: tuple[int, int] | None) -> list[Pose]:
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
                f"{place}.{key}: {len(numbers)} numbers, expected 54 (18 joints) or 75 (25 joints)")
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
    return replace(convert(rows, where=place), person=person,
                   name=None if image is None else str(image),
                   score=None if score is None else finite(score, f"{where}[{person}]: score"))


def _joint_rows(value, where: str, format: str | None) -> np.ndarray:
    """Rows of numbers, or all of them in one list."""
    if isinstance(value, list) and value and isinstance(value[0], list):
        rows = [_numbers(row, f"{where}[{index}]") for index, row in enumerate(value)]
        if len({len(row) for row in rows}) != 1 or not rows[0]:
            raise UserError(f"{where}: rows of different lengths, or empty ones")
        return np.array(rows)
    numbers = _numbers(value, where)
    shapes = {layout.rows * columns: (layout.rows, columns)
              for layout in ([LAYOUTS[format]] if format else LAYOUTS.values())
              for columns in ((2, 3, 4) if layout.rows == 33 else (2, 3))}
    if len(numbers) not in shapes:
        expected = " or ".join(
            f"{count} ({rows} x {columns})" for count, (rows, columns) in sorted(shapes.items()))
        raise UserError(f"{where}: {len(numbers)} numbers, expected {expected}")
    return np.array(numbers).reshape(shapes[len(numbers)])


def _landmark_lists(data, where: str) -> list[tuple[str, np.ndarray]]:
    """MediaPipe's lists of landmarks `[33, 2 or 3]` and where they lie; hands, faces and landmarks
    in metres, which the same dumps hold, are left out."""
    landmarks: list[tuple[str, np.ndarray]] = []
    lengths: list[int] = []
    nodes = [(where + ":", data)]
    while nodes:
        place, node = nodes.pop()
        if isinstance(node, list) and node and all(_has(item, "x") for item in node):
            lengths.append(len(node))
            if len(node) == LAYOUTS["mediapipe33"].rows:
                landmarks.append((place, _landmarks(node, place)))
        elif isinstance(node, list):
            nodes += [(f"{place}[{index}]", item) for index, item in enumerate(node)][::-1]
        elif isinstance(node, dict):
            nodes += [(f"{place}.{key}", item) for key, item in node.items()
                      if "world" not in key.lower()][::-1]
    if lengths and not landmarks:
        raise UserError(f"{where}: lists of {sorted(set(lengths))} landmarks, expected 33")
    return landmarks


def _landmarks(node: list[dict], where: str) -> np.ndarray:
    keys = ("x", "y", "visibility") if any("visibility" in item for item in node) else ("x", "y")
    rows = []
    for index, item in enumerate(node):
        missing = [key for key in keys if key not in item]
        if missing:
            raise UserError(f"{where}[{index}] has no {missing[0]}")
        rows.append(_numbers([item[key] for key in keys], f"{where}[{index}]"))
    return np.array(rows)


def _numbers(value, where: str) -> list[float]:
    if not isinstance(value, list):
        raise UserError(f"{where}: expected a list of numbers, found {_short(value)}")
    return [finite(number, f"{where}[{index}]") for index, number in enumerate(value)]


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


def _short(value) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 1e30 else "a huge number"
    return text if len(text) <= 40 else text[:40] + "..."
