"""Annotation files of PATN: `name:keypoints_y:keypoints_x`, one row per image."""

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from posemodel.poses.joints import JOINTS
from posemodel.runtime.errors import UserError
from posemodel.runtime.files import write_aside

MISSING = -1

COLUMNS = ("name", "keypoints_y", "keypoints_x")

# Both shoulders and both hips: without them a row makes no pairs.
TORSO = (2, 5, 8, 11)

_NUMBERS = {int, float}  # and not bool, which is an int

_FAR = 100_000  # no picture is that large; what is beyond is damage

_OTHER_SKELETONS = {17: "; 17 is COCO's skeleton, which has no neck",
                    25: "; 25 is OpenPose's BODY_25, which has another order"}


def _constant(word: str) -> float:
    if word == "NaN":  # what pandas makes of a joint that is missing
        return math.nan
    raise ValueError(f"{word} is no coordinate")


_JSON = json.JSONDecoder(parse_constant=_constant)


def read_annotations(path: Path) -> tuple[tuple[str, ...], np.ndarray]:
    """Names and joints of an annotation file, N rows.

    Blank lines, either line ending, UTF-16, quotes and the columns in either order (as the header
    says) are fine. A joint is missing where either coordinate is -1, null or NaN. Other negative
    numbers are coordinates: a file in a narrow frame may place a joint left of it.

    Returns:
        The names, and `[N, 18, 3]` float32: x, y in pixels of the file's own frame, presence. A
        missing joint is all zero.

    Raises: `UserError` that names the file and the first lines that are wrong.
    """
    lines = read_lines(path)
    header_line, header = lines[0] if lines else (1, "")
    separator, order = _header(header)
    if separator is None:
        raise UserError(f"{path}, line {header_line}: expected the header {':'.join(COLUMNS)}, "
                        f"got {short(header)}")
    name_at, ys_at, xs_at = (order.index(name) for name in COLUMNS)
    first_line: dict[str, int] = {}
    ys: list[float] = []
    xs: list[float] = []
    bad = []
    for number, line in lines[1:]:
        cells = split_cells(line, separator)
        try:
            if len(cells) != len(order):
                raise ValueError(f"expected {len(order)} columns with `{separator}` between them, "
                                 f"got {len(cells)}")
            name = cells[name_at].strip()
            _check_name(name)
            if name in first_line:
                raise ValueError(f"{name} is in line {first_line[name]} already")
            first_line[name] = number
            ys += _coordinates(COLUMNS[1], cells[ys_at].strip())
            xs += _coordinates(COLUMNS[2], cells[xs_at].strip())
        except ValueError as error:
            bad.append(f"line {number}: {error}")
    if bad:
        more = f"; and {len(bad) - 3:,} more" if len(bad) > 3 else ""
        raise UserError(f"{path}, {'; '.join(bad[:3])}{more}")
    joints = np.empty((len(first_line), len(JOINTS), 3), np.float32)
    joints[..., 0] = np.array(xs).reshape(joints.shape[:2])
    joints[..., 1] = np.array(ys).reshape(joints.shape[:2])
    joints[..., 2] = 1.0
    joints[(joints[..., :2] == MISSING).any(-1)] = 0.0
    return tuple(first_line), joints


def _header(line: str) -> tuple[str | None, list[str]]:
    """What stands between the columns, and their names; pandas writes commas, and numbers the
    rows in a column without a name. The former is None for what is no header."""
    for separator in ":,;\t":
        order = [word.strip() for word in split_cells(line, separator)]
        if sorted(order[order[0] == "":]) == sorted(COLUMNS):
            return separator, order
    return None, []


def write_annotations(path: Path, names: Sequence[str], joints: np.ndarray) -> None:
    """Write `[N, 18, 3]` joints (x, y, presence) in the format of `read_annotations`.

    Coordinates are rounded to whole pixels. Raises: `ValueError` for a joint that would read as
    missing, because it lies one pixel outside of the frame.
    """
    present = joints[..., 2:] > 0
    whole = np.where(present, np.rint(joints[..., :2]), MISSING).astype(np.int64)
    if (present & (whole == MISSING)).any():
        raise ValueError(f"a joint at {MISSING} cannot be told from a missing one")
    rows = zip(names, whole[..., 1].tolist(), whole[..., 0].tolist(), strict=True)
    lines = [":".join(COLUMNS), *(f"{name}: {ys}: {xs}" for name, ys, xs in rows)]
    write_aside(path, "".join(line + "\n" for line in lines))


def _coordinates(column: str, text: str) -> list[float]:
    try:
        values, end = _JSON.raw_decode(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{column} is no list of numbers ({error}): {short(text)}") from error
    if isinstance(values, list):
        values = [MISSING if value is None or value != value else value for value in values]
    if end != len(text) or not isinstance(values, list) or not _NUMBERS.issuperset(
            map(type, values)):
        raise ValueError(f"{column} is no list of numbers: {short(text)}")
    if len(values) != len(JOINTS):
        hint = _OTHER_SKELETONS.get(len(values), "")
        raise ValueError(f"{column} has {len(values)} numbers, expected one for each of the "
                         f"{len(JOINTS)} joints{hint}")
    if min(values) < -_FAR or max(values) > _FAR:
        raise ValueError(f"{column} has a coordinate beyond {_FAR}: {short(text)}")
    return values


def has_torso(joints: np.ndarray) -> np.ndarray:
    """Which of `[N, 18, 3]` joints have both shoulders and both hips, `[N]` bool."""
    return (joints[:, TORSO, 2] > 0).all(1)


def _check_name(name: str) -> None:
    # A name with a folder in it could lead out of the data set.
    if not name or name in (".", "..") or not name.isprintable() or "/" in name or "\\" in name:
        raise ValueError(f"{short(name)} is no plain file name")


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines that are not blank, each with its number in the file."""
    try:
        data = path.read_bytes()
        text = decoded(data)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {number}: no text (byte {error.start} of the file)"
                        ) from error
    # Not splitlines: it would also break lines at characters that may stand in a name.
    lines = enumerate(text.split("\n"), 1)
    return [(number, line) for number, line in lines if line.strip()]


def decoded(data: bytes) -> str:
    """Text in UTF-8 or, as Windows writes it, in UTF-16. Raises: `UnicodeDecodeError`."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16")
    if data[1:4:2] == b"\0\0" and 0 not in data[:3:2]:  # ASCII in pairs of bytes, without a mark
        return data.decode("utf-16-le")
    return data.decode("utf-8-sig")


def split_cells(line: str, separator: str) -> list[str]:
    """The cells of a line, without the quotes that spreadsheets put around each cell or around the
    whole line, and without the separators of their own that they add to its end."""
    padding = ",;\t ".replace(separator, "")
    if '"' not in line:
        return line.rstrip().rstrip(padding).split(separator)
    try:
        cells = next(csv.reader([line.strip()], delimiter=separator, skipinitialspace=True))
    except csv.Error:  # damage: what is no row has one cell
        return [line]
    return cells[0].rstrip(padding).split(separator) if len(cells) == 1 else cells


def short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
