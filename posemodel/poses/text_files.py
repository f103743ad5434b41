"""Joints out of text: rows of numbers, OpenPose's two files of a picture, Ultralytics' labels.

The coordinates stay in the units of the file, see `layouts.in_pixels`.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from posemodel.poses.annotations import decoded
from posemodel.poses.json_files import finite
from posemodel.poses.layouts import FLAT_SHAPES, Pose
from posemodel.poses.pictures import Pictures, people_or_frames
from posemodel.runtime.errors import UserError

CANDIDATE, SUBSET = "_candidate.txt", "_subset.txt"

# Ultralytics writes a line for each person: class, box (x, y, w, h), 17 joints of 2 or 3 numbers
# and, where it is asked for, a confidence and the number of a track.
_BEFORE = 5
_LABEL_LENGTHS = {_BEFORE + 17 * columns + more: columns for columns in (2, 3) for more in range(3)}


def read_text(path: Path, content: bytes) -> str:
    """The text of a file, without blanks around it. Raises: `UserError` where it is none."""
    try:
        return decoded(content).strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: neither text nor a .npy array") from error


def from_text(path: Path, text: str, format: str | None, convert: Callable[..., Pose]) -> Pictures:
    """What the rows of numbers of a text file hold. Raises: `UserError`."""
    lines = _number_lines(path, text)
    if path.name.endswith((CANDIDATE, SUBSET)):
        return _from_candidates(path, _rectangle(path, lines), format, convert)
    if _are_labels(lines):
        people = []
        for person, (_, line) in enumerate(lines):
            columns = _LABEL_LENGTHS[len(line)]
            joints = np.array(line[_BEFORE:_BEFORE + 17 * columns]).reshape(17, columns)
            where = f"{path}, person {person}"
            people.append(replace(convert(joints, where=where), person=person))
        return Pictures(people=[people])
    return from_rows(_rectangle(path, lines), str(path), convert)


def from_rows(array: np.ndarray, where: str, convert: Callable[..., Pose]) -> Pictures:
    """What an array without names holds.

    Args:
        array: `[K, C]` a person; `[K C]` the same in one row; `[N, K C]` or `[N, K, C]` people of
            a picture or frames of a film; `[T, P, K, C]` people in the frames of a film.
    """
    if array.ndim == 1:
        array = array[None]
    if array.ndim == 2 and array.shape[1] in FLAT_SHAPES:
        array = array.reshape(len(array), *FLAT_SHAPES[array.shape[1]])
    if array.ndim == 4:
        return Pictures(film=len(array) > 1, people=[
            [replace(convert(rows, where=f"{where}, frame {frame}, person {person}"), person=person)
             for person, rows in enumerate(people)] for frame, people in enumerate(array)])
    if array.ndim == 3:
        return people_or_frames([
            replace(convert(rows, where=f"{where}, person {person}"), person=person)
            for person, rows in enumerate(array)])
    return Pictures(people=[[convert(array, where=where)]])


def _are_labels(lines: list[tuple[int, list[float]]]) -> bool:
    """Ultralytics': of its lengths, a class, a box in fractions."""
    return all(len(line) in _LABEL_LENGTHS and line[0].is_integer() and line[0] >= 0
               and all(0 <= number <= 1 for number in line[1:_BEFORE]) for _, line in lines)


def _number_lines(path: Path, text: str) -> list[tuple[int, list[float]]]:
    """Numbers between spaces, tabs, commas or semicolons, each line with its number."""
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.replace(",", " ").replace(";", " ").split()
        if not words:
            continue
        try:
            lines.append((number, [float(word) for word in words]))
        except ValueError as error:
            raise UserError(
                f"{path}: line {number} is no row of numbers, and no other known file of joints "
                f"starts like this one") from error
    if not lines:
        raise UserError(f"{path}: has no number in it")
    return lines


def _rectangle(path: Path, lines: list[tuple[int, list[float]]]) -> np.ndarray:
    _, first = lines[0]
    for number, line in lines:
        if len(line) != len(first):
            raise UserError(f"{path}: line {number} has {len(line)} numbers, not {len(first)}")
    return np.array([line for _, line in lines])


def _from_candidates(path: Path, rows: np.ndarray, format: str | None,
                     convert: Callable[..., Pose]) -> Pictures:
    """OpenPose's two text files: joints (x, y, score, index), and people as 18 rows of joints,
    total score, count."""
    stem = path.name.removesuffix(CANDIDATE).removesuffix(SUBSET)
    other = path.with_name(stem + (SUBSET if path.name.endswith(CANDIDATE) else CANDIDATE))
    try:
        content = other.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} belongs together with {other.name}, which cannot be read: {error.strerror}"
        ) from error
    text = read_text(other, content)
    if not text:
        raise UserError(f"{other}: is empty")
    pair = rows, _rectangle(other, _number_lines(other, text))
    candidates, people = pair if path.name.endswith(CANDIDATE) else pair[::-1]
    if candidates.shape[1] != 4 or people.shape[1] != 20:
        raise UserError(
            f"{path}: candidates of {candidates.shape[1]} numbers and people of {people.shape[1]}, "
            "expected 4 and 20")
    where = f"{path.with_name(stem + SUBSET)}"
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
    return Pictures(people=[poses])
