"""Finding out which data set lies in a folder, and opening one split of it.

    fashion_data/                            market_data/
      train/  test/                            train/  test/
      fasion-resize-annotation-train.csv       market-annotation-train.csv
      fasion-resize-pairs-train.csv            market-pairs-train.csv, made where it is not there
      train.lst                                and the same of test
      and the same of test

This is how PATN and its descendants lay the data out. Found as well: "fashion" for "fasion", names
without "resize", image folders `train_highres` (CFLD) and `bounding_box_train` (Market-1501 as it
comes), text files one folder higher, and all of it one folder deeper.

Convention: the frame of DeepFashion is 256 x 256 with 40 white columns left and right, whatever the
image files and the annotation file have: an annotation file in the frame of the 176 columns in
between is moved by 40. The frame of Market-1501 is 128 x 64 (rows x columns).
"""

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from posemodel.data.annotations import (
    TORSO,
    has_torso,
    market_pairs,
    market_test_pairs,
    read_annotations,
    read_pairs,
)
from posemodel.data.dataset_folder import read_manifest
from posemodel.data.images import read_image
from posemodel.data.pair_set import PairSet
from posemodel.errors import UserError

KINDS = ("deepfashion", "market")
SPLITS = ("train", "test")
FRAMES = {"deepfashion": (256, 256), "market": (128, 64)}
BORDER = 40
INNER_WIDTH = 176
TITLES = {"deepfashion": "DeepFashion", "market": "Market-1501"}
WHERE = {
    "deepfashion": "images: https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html;"
                   " annotations and lists: https://github.com/tengteng95/Pose-Transfer",
    "market": "images: https://zheng-lab.cecs.anu.edu.au/Project/project_reid.html;"
              " annotations: https://github.com/tengteng95/Pose-Transfer",
}

_FILE_STEMS = {"deepfashion": ("fasion-resize", "fashion-resize", "fasion", "fashion"),
               "market": ("market",)}
_IMAGE_FOLDERS = ("{}", "bounding_box_{}", "{}_highres")
_SUFFIXES = (".jpg", ".jpeg", ".png")
_FEW = 0.01  # share of images that may be lost
_STRAY = 0.05  # share of joints that may lie outside of the frame

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SplitFiles:
    """Where the parts of one split are; None: not there."""

    images: Path | None
    annotations: Path | None
    pairs: Path | None
    list: Path | None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What lies in a folder; parts may be missing."""

    kind: str
    root: Path
    """the folder with the image folders, or with the text files where there are no images"""
    splits: dict[str, SplitFiles]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One split that was read, and what was seen on the way."""

    pairs: PairSet
    rows: int
    """of the annotation file"""
    images: int
    """image files in the folder"""
    file_frame: tuple[int, int]
    """(H, W) of the frame that the annotation file is in"""
    notes: tuple[str, ...]
    """what was left out or looks wrong, a line each"""


def open_pairs(
    root: str | os.PathLike, split: str, *, kind: str | None = None, frame: int | None = None
) -> PairSet:
    """Open one split of the data set in a folder. What was left out is logged as a warning.

    Args:
        root: the data set's folder, or one that contains it.
        split: "train" or "test".
        kind: "deepfashion" or "market", where the folder has both.
        frame: 176 or 256, the width of the frame that DeepFashion's annotation file is in. None:
            told from the joints, the name of the file and the images.

    Raises: `UserError` for a set that is not there, incomplete, damaged, or has no pairs.
    """
    if split not in SPLITS:
        raise UserError(f"no split is called {split!r}; expected {' or '.join(SPLITS)}")
    reading = read_split(find_layout(root, kind=kind), split, frame=frame)
    for note in reading.notes:
        _log.warning("%s %s: %s", reading.pairs.kind, split, note)
    return reading.pairs


# --- what is there ------------------------------------------------------------------------------


def find_layout(root: str | os.PathLike, *, kind: str | None = None) -> Layout:
    """The one data set in a folder or in the folders in it.

    Raises: `UserError` where there is none, or more than one.
    """
    root = Path(root)
    if kind is not None and kind not in KINDS:
        raise UserError(f"no kind of data set is called {kind!r}; expected {' or '.join(KINDS)}")
    if not root.is_dir():
        raise UserError(f"{root} is no folder")
    try:
        folders = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
        found = [layout for folder in folders for layout in _layouts_of(folder)]
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
    found = [layout for layout in found if kind in (None, layout.kind)]
    # Text files above the image folders are also seen without them.
    found = [layout for layout in found if _has_images(layout)] or found
    if not found:
        manifest = read_manifest(root)
        if manifest is not None and not manifest["complete"]:
            raise UserError(f"{root}: {manifest['recipe'].get('made_by')} was stopped before the "
                            "set was complete; give its command again")
        raise UserError(
            f"{root} has no {TITLES.get(kind, 'data set')} in it: expected folders train and test "
            f"(or bounding_box_train, ...) and files such as {_file_name(kind or KINDS[0])}. "
            "`python -m posemodel.data prepare` makes it of the downloads. "
            + " | ".join(f"{TITLES[one]}: {WHERE[one]}" for one in KINDS if kind in (None, one)))
    if len(found) > 1:
        places = "; ".join(f"{layout.kind} in {layout.root}" for layout in found)
        raise UserError(f"{root} has more than one data set: {places}. Give the folder of one of "
                        "them, or its --kind")
    return found[0]


def _layouts_of(folder: Path) -> list[Layout]:
    images = {split: _first(folder / form.format(split) for form in _IMAGE_FOLDERS)
              for split in SPLITS}
    has_images = any(images.values())
    places = [folder]
    kinds = [kind for kind in KINDS if _has_files(kind, places)]
    if has_images and not kinds:
        places.append(folder.resolve().parent)
        kinds = [kind for kind in KINDS if _has_files(kind, places)]
        if len(kinds) != 1:  # both or none: the folder's own name has to tell
            kinds = _kinds_by_name(folder, images.values())
    layouts = []
    for kind in kinds:
        splits = {}
        for split in SPLITS:
            annotations, pairs = (
                _first(place / f"{stem}-{what}-{split}.csv"
                       for place in places for stem in _FILE_STEMS[kind])
                for what in ("annotation", "pairs"))
            names = _first(place / f"{split}.lst" for place in places)
            splits[split] = SplitFiles(images=images[split], annotations=annotations, pairs=pairs,
                                       list=names)
        layouts.append(Layout(kind=kind, root=folder, splits=splits))
    return layouts


def _has_files(kind: str, places: Sequence[Path]) -> bool:
    return any((place / f"{stem}-{what}-{split}.csv").is_file() for place in places
               for stem in _FILE_STEMS[kind] for what in ("annotation", "pairs")
               for split in SPLITS)


def _kinds_by_name(folder: Path, images: Iterable[Path | None]) -> list[str]:
    name = folder.resolve().name.lower()
    if "market" in name or any(path and path.name.startswith("bounding_box") for path in images):
        return ["market"]
    return ["deepfashion"] if "fashion" in name or "fasion" in name else []


def _has_images(layout: Layout) -> bool:
    return any(files.images for files in layout.splits.values())


def _first(paths: Iterable[Path]) -> Path | None:
    return next((path for path in paths if path.exists()), None)


def _file_name(kind: str, what: str = "annotation", split: str = "train") -> str:
    return f"{_FILE_STEMS[kind][0]}-{what}-{split}.csv"


def image_names(folder: Path) -> list[str]:
    """The image files in a folder, sorted."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from error
    return sorted(name for name in names
                  if name.lower().endswith(_SUFFIXES) and not name.startswith("."))


# --- reading it ---------------------------------------------------------------------------------


def read_split(layout: Layout, split: str, *, frame: int | None = None) -> Reading:
    """Read one split; `frame` as in `open_pairs`.

    Rows whose image is not there are left out, also with their pairs if these are few.

    Raises: `UserError` for what is missing, damaged or cannot be decided.
    """
    files = layout.splits[split]
    kind, where = layout.kind, f"get it from {WHERE[layout.kind]}"
    if files.annotations is None:
        raise UserError(f"{layout.root}: {_file_name(kind, 'annotation', split)} is missing; "
                        + where)
    if files.images is None:
        raise UserError(f"{layout.root}: the folder {split} with the images is missing; {where}")
    all_names, joints = read_annotations(files.annotations)
    pairs = _read_or_make_pairs(layout, split, all_names, joints)
    if not len(pairs):
        raise UserError(f"{files.pairs or files.annotations}: no pair comes out of it; a pair needs"
                        " two images of one person with both shoulders and both hips")
    images = image_names(files.images)
    notes: list[str] = []
    kept, pairs = _keep_present(all_names, pairs, images, files.images, where, notes)
    names, joints = tuple(all_names[index] for index in kept), joints[kept]
    if not joints[..., 2].any():
        raise UserError(f"{files.annotations}: no image has a single joint")
    width = FRAMES[kind][1]
    if kind == "deepfashion":
        width = frame or _width_of_file(files, names, joints)
        if width not in (INNER_WIDTH, FRAMES[kind][1]):
            raise UserError(f"--frame {frame}: expected {INNER_WIDTH} or {FRAMES[kind][1]}")
        if width == INNER_WIDTH:
            joints[..., 0] += BORDER * joints[..., 2]
    elif frame is not None:
        raise UserError(f"--frame {frame}: only the annotations of deepfashion come in two frames")
    _drop_strays(files.annotations, FRAMES[kind], names, joints, notes)
    if _lie_down(joints):
        notes.append(f"{files.annotations.name}: the bodies lie on their sides; x and y may be "
                     "swapped (y comes first)")
    pair_set = PairSet(kind=kind, split=split, folder=files.images, frame=FRAMES[kind],
                       names=names, joints=joints, pairs=pairs)
    return Reading(pairs=pair_set, rows=len(all_names), images=len(images),
                   file_frame=(FRAMES[kind][0], width), notes=tuple(notes))


def _read_or_make_pairs(
    layout: Layout, split: str, names: tuple[str, ...], joints: np.ndarray
) -> np.ndarray:
    files = layout.splits[split]
    if files.pairs is not None:
        return read_pairs(files.pairs, names)
    if layout.kind == "market":
        return (market_pairs if split == "train" else market_test_pairs)(names, joints)
    raise UserError(f"{layout.root}: {_file_name(layout.kind, 'pairs', split)} is missing; get it "
                    f"from {WHERE[layout.kind]}")


def _keep_present(
    names: tuple[str, ...], pairs: np.ndarray, images: list[str], folder: Path, where: str,
    notes: list[str],
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the rows whose image is there, and the pairs among them, in new indices.

    A row that no pair needs may go without an image: published annotation files cover more images
    than the lists.
    """
    there = set(images)
    present = np.array([name in there for name in names])
    needed = np.zeros(len(names), bool)
    needed[pairs] = True
    lost = np.flatnonzero(needed & ~present)
    if len(lost):
        shown = ", ".join(names[index] for index in lost[:3])
        text = (f"{len(lost):,} of the {needed.sum():,} images that the pairs need are not in "
                f"{folder}, the first: {shown}")
        if len(lost) > _FEW * needed.sum():
            raise UserError(f"{text}; {where}")
        whole = present[pairs].all(1)
        notes.append(f"{text}; left out with {(~whole).sum():,} of {len(pairs):,} pairs")
        pairs = pairs[whole]
    new_index = np.cumsum(present) - 1
    return np.flatnonzero(present), new_index[pairs]


def _width_of_file(files: SplitFiles, names: Sequence[str], joints: np.ndarray) -> int:
    """176 or 256: the frame that a DeepFashion annotation file is in.

    Nearly all joints lie in the inner 176 columns, so that either frame leaves some joints of the
    other one outside of them.
    """
    x = joints[..., 0][joints[..., 2] > 0]
    outer = FRAMES["deepfashion"][1]
    outside_inner = ((x < 0) | (x >= INNER_WIDTH)).mean()  # were the file in the inner frame
    outside_outer = ((x < BORDER) | (x >= outer - BORDER)).mean()
    by_joints = None
    if max(outside_inner, outside_outer) >= 0.01:
        by_joints = INNER_WIDTH if outside_inner < outside_outer else outer
    named_inner = "resize" in files.annotations.name
    say = (f"rename it with `resize` in its name for the frame of {INNER_WIDTH} columns or without "
           f"for that of {outer}, or give --frame {INNER_WIDTH} or --frame {outer}")
    if named_inner and by_joints == outer:
        raise UserError(
            f"{files.annotations}: by its name the joints are in the frame of {INNER_WIDTH} "
            f"columns, but {outside_inner:.0%} of them lie outside of it (x up to {x.max():.0f}); "
            + say)
    if by_joints is not None or named_inner:
        return by_joints or INNER_WIDTH
    # Too few joints to tell: the file is taken to be in the frame of the images.
    widths = {INNER_WIDTH if image.shape[1] < 0.85 * image.shape[0] else outer
              for image in (read_image(files.images / name) for name in names[:4])}
    if len(widths) > 1:
        raise UserError(f"{files.annotations}: neither the joints nor the images, which differ in "
                        f"shape, tell the frame of the joints; {say}")
    return widths.pop()


def _drop_strays(
    path: Path, frame: tuple[int, int], names: Sequence[str], joints: np.ndarray, notes: list[str]
) -> None:
    """Joints outside of the frame become missing, in place."""
    inside = ((joints[..., :2] >= -0.5) & (joints[..., :2] < np.array(frame[::-1]) - 0.5)).all(-1)
    stray = ~inside & (joints[..., 2] > 0)
    if not stray.any():
        return
    share = stray.sum() / (joints[..., 2] > 0).sum()
    row = int(stray.any(1).argmax())
    text = (f"{path.name}: {stray.sum():,} joints ({share:.1%}) lie outside of the frame of "
            f"{frame[0]} x {frame[1]} (rows x columns), the first in {names[row]}")
    if share > _STRAY:
        raise UserError(f"{text}; the file is in another frame, or x and y are swapped "
                        "(y comes first)")
    notes.append(f"{text}; taken as missing")
    joints[stray] = 0.0


def _lie_down(joints: np.ndarray) -> bool:
    """Whether hips are beside the shoulders rather than below, in most rows."""
    whole = joints[has_torso(joints)]
    if not len(whole):
        return False
    down = whole[:, TORSO[2:], :2].mean(1) - whole[:, TORSO[:2], :2].mean(1)
    return bool((np.abs(down[:, 0]) > np.abs(down[:, 1])).mean() > 0.5)
