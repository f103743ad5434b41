"""The text files of the published data sets: joints, pairs, names of images.

Annotation file: one row for each image, `name:keypoints_y:keypoints_x`, y first, 18 OpenPose joints
(`keypoints.JOINTS`), whole pixels, -1 for a missing joint:

    name:keypoints_y:keypoints_x
    0224_c6s1_055726_02.jpg: [8, 23, ..., 8]: [39, 37, ..., 47]

Pairs file: `from,to`, the names of source and target.

The rule that makes pairs out of annotations is that of Siarohin et al., "Deformable GANs for
pose-based human image generation" (CVPR 2018), which all later work on Market-1501 shares.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from posemodel.data.keypoints import JOINTS
from posemodel.errors import UserError
from posemodel.files import write_aside

MISSING = -1
COLUMNS = ("name", "keypoints_y", "keypoints_x")
PAIR_COLUMNS = ("from", "to")

# Both shoulders and both hips: without them a row makes no pairs.
TORSO = (2, 5, 8, 11)
MARKET_TEST_PAIRS = 12_000

_NUMBERS = {int, float}  # and not bool, which is an int
_FAR = 100_000  # no picture is that large; what is beyond is damage
_OTHER_SKELETONS = {17: "; 17 is COCO's skeleton, which has no neck",
                    25: "; 25 is OpenPose's BODY_25, which has another order"}
_VIEW = re.compile(r"(?P<number>\d\d)_(?P<kind>\d)_(?P<what>\w+)\.(?P<ending>\w+)")
_FASHION = re.compile(r"fash?ion(?P<person>(?:WO)?MEN\w+?id\d{8}\d\d)_\d[a-z]+\.\w+")


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is no coordinate")


_JSON = json.JSONDecoder(parse_constant=_refuse_constant)


# --- annotations --------------------------------------------------------------------------------


def read_annotations(path: Path) -> tuple[tuple[str, ...], np.ndarray]:
    """Names and joints of an annotation file, N rows.

    Blank lines, either line ending and the columns in either order (as the header says) are fine. A
    joint is missing where either coordinate is -1. Other negative numbers are coordinates: a file
    in the 176 pixels wide frame may place a joint left of it.

    Returns:
        The names, and `[N, 18, 3]` float32: x, y in pixels of the file's own frame, presence. A
        missing joint is all zero.

    Raises: `UserError` that names the file and the first lines that are wrong.
    """
    lines = _read_lines(path)
    header_line, header = lines[0] if lines else (1, "")
    order = tuple(word.strip() for word in header.split(":"))
    if sorted(order) != sorted(COLUMNS):
        raise UserError(f"{path}, line {header_line}: expected the header {':'.join(COLUMNS)}, "
                        f"got {_short(header)}")
    name_at, ys_at, xs_at = (order.index(name) for name in COLUMNS)
    first_line: dict[str, int] = {}
    ys: list[float] = []
    xs: list[float] = []
    bad = []
    for number, line in lines[1:]:
        cells = line.split(":")
        try:
            if len(cells) != 3:
                raise ValueError(f"expected 3 columns with `:` between them, got {len(cells)}")
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
        raise ValueError(f"{column} is no list of numbers ({error}): {_short(text)}") from error
    if end != len(text) or not isinstance(values, list) or not _NUMBERS.issuperset(
            map(type, values)):
        raise ValueError(f"{column} is no list of numbers: {_short(text)}")
    if len(values) != len(JOINTS):
        hint = _OTHER_SKELETONS.get(len(values), "")
        raise ValueError(f"{column} has {len(values)} numbers, expected one for each of the "
                         f"{len(JOINTS)} joints{hint}")
    if min(values) < -_FAR or max(values) > _FAR:
        raise ValueError(f"{column} has a coordinate beyond {_FAR}: {_short(text)}")
    return values


# --- pairs --------------------------------------------------------------------------------------


def read_pairs(path: Path, names: Sequence[str]) -> np.ndarray:
    """The pairs of a pairs file as `[P, 2]` int64 indices of source and target into `names`.

    A pair of an image with itself is a pair like any other; count them where it matters.

    Raises: `UserError` that names the file and the line, also for a name that is not in `names`.
    """
    lines = _read_lines(path)
    header_line, header = lines[0] if lines else (1, "")
    if tuple(word.strip() for word in header.split(",")) != PAIR_COLUMNS:
        raise UserError(f"{path}, line {header_line}: expected the header "
                        f"{','.join(PAIR_COLUMNS)}, got {_short(header)}")
    index = {name: number for number, name in enumerate(names)}
    ends: list[int] = []
    for number, line in lines[1:]:
        cells = line.split(",")
        if len(cells) != 2:
            raise UserError(f"{path}, line {number}: expected two names with a comma between them, "
                            f"got {_short(line)}")
        for cell in cells:
            name = cell.strip()
            if name not in index:
                raise UserError(f"{path}, line {number}: {_short(name)} has no row of joints; "
                                "the pairs and the annotations must be of one split")
            ends.append(index[name])
    return np.array(ends, np.int64).reshape(-1, 2)


def write_pairs(path: Path, names: Sequence[str], pairs: np.ndarray) -> None:
    """Write `[P, 2]` indices into `names` in the format of `read_pairs`."""
    lines = [",".join(PAIR_COLUMNS)]
    lines += [f"{names[source]},{names[target]}" for source, target in pairs.tolist()]
    write_aside(path, "".join(line + "\n" for line in lines))


def read_list(path: Path) -> list[str]:
    """The names in a `train.lst` or `test.lst`, one in each line."""
    return [line.strip() for _, line in _read_lines(path)]


def has_torso(joints: np.ndarray) -> np.ndarray:
    """Which of `[N, 18, 3]` joints have both shoulders and both hips, `[N]` bool."""
    return (joints[:, TORSO, 2] > 0).all(1)


def ordered_pairs(persons: Sequence[str], usable: np.ndarray) -> np.ndarray:
    """All ordered pairs of different usable images of one person, `[P, 2]` int64 indices.

    Persons come in the order of their first usable image, sources and targets in the order given.

    Args:
        persons: of each image, N of them.
        usable: `[N]` bool.
    """
    images: dict[str, list[int]] = {}
    for index in np.flatnonzero(usable).tolist():
        images.setdefault(persons[index], []).append(index)
    blocks = [np.empty((0, 2), np.int64)]
    for indices in images.values():
        block = np.stack(np.meshgrid(indices, indices, indexing="ij"), -1).reshape(-1, 2)
        blocks.append(block[block[:, 0] != block[:, 1]])
    return np.concatenate(blocks)


def market_pairs(names: Sequence[str], joints: np.ndarray) -> np.ndarray:
    """The `ordered_pairs` of Market-1501, `[P, 2]` int64 indices into `names`.

    Images without the whole torso, junk (`-1_`) and distractors (`0000_`) make none.
    """
    persons = [market_person(name) for name in names]
    someone = np.array([person not in ("-1", "0000") for person in persons], bool)
    return ordered_pairs(persons, has_torso(joints) & someone)


def market_test_pairs(names: Sequence[str], joints: np.ndarray) -> np.ndarray:
    """The published 12,000 test pairs of Market-1501, in their order: a sample, by a fixed seed, of
    `market_pairs` of the test images; all pairs where there are fewer."""
    pairs = market_pairs(names, joints)
    if len(pairs) <= MARKET_TEST_PAIRS:
        return pairs
    drawn = np.random.RandomState(0).choice(len(pairs), MARKET_TEST_PAIRS, replace=False)
    return pairs[drawn]


# --- names --------------------------------------------------------------------------------------


def market_person(name: str) -> str:
    """`0002_c1s1_000451_03.jpg` -> `0002`; junk is `-1`, distractors are `0000`."""
    return name.partition("_")[0]


def fashion_person(name: str) -> str:
    """Garment and outfit of a flattened DeepFashion name, the same for both spellings.

    `fashionWOMENTees_Tanksid0000783805_7additional.jpg` -> `WOMENTeesTanksid0000783805`: garment
    00007838, outfit 05. Images of one garment in two outfits may show two people.

    Raises: `UserError` for another name.
    """
    found = _FASHION.fullmatch(name)
    if found is None:
        raise UserError(f"{_short(name)} is no flattened DeepFashion name, such as "
                        "fashionWOMENTees_Tanksid0000783805_7additional.jpg")
    return found["person"].replace("_", "")


def flatten_inshop(path: str, *, spelling: str = "fashion") -> str:
    """The flattened name of an image of the In-shop benchmark.

    `WOMEN/Tees_Tanks/id_00007838/05_7_additional.jpg` becomes
    `fashionWOMENTees_Tanksid0000783805_7additional.jpg` (PATN and later work) or, spelling
    "fasion", `fasionWOMENTeesTanksid0000783805_7additional.jpg` (Siarohin et al.).

    Raises: `UserError` where the path is none of the benchmark.
    """
    parts = path.split("/")
    view = _VIEW.fullmatch(parts[-1])
    if len(parts) != 4 or view is None:
        raise UserError(f"{_short(path)} is no path of the In-shop benchmark, such as "
                        "WOMEN/Tees_Tanks/id_00007838/05_7_additional.jpg")
    gender, category, garment, _ = parts
    if spelling == "fasion":
        category = category.replace("_", "")
    garment = garment.replace("_", "")
    end = f"{view['kind']}{view['what'].replace('_', '')}.{view['ending']}"
    return f"{spelling}{gender}{category}{garment}{view['number']}_{end}"


def _check_name(name: str) -> None:
    # A name with a folder in it could lead out of the data set.
    if not name or name in (".", "..") or not name.isprintable() or "/" in name or "\\" in name:
        raise ValueError(f"{_short(name)} is no plain file name")


# --- files --------------------------------------------------------------------------------------


def _read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines that are not blank, each with its number in the file."""
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {number}: no text (byte {error.start} of the file)"
                        ) from error
    # Not splitlines: it would also break lines at characters that may stand in a name.
    lines = enumerate(text.split("\n"), 1)
    return [(number, line) for number, line in lines if line.strip()]


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
