"""Finding out which data set lies in a folder, and opening one split of it.

`layouts` says how each set is laid out. Found as well: text files one folder higher than the image
folders, and all of it one folder deeper than said.

Convention: whatever the files have, joints come out in the frame of the layout: an annotation file
in the frame between the borders is moved by a border.
"""

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from posemodel.data.dataset_folder import read_manifest
from posemodel.data.images import image_names, read_image
from posemodel.data.layouts import IMAGE_FOLDERS, LAYOUTS, layout_of
from posemodel.data.layouts.layout import ALL_SPLITS, SPLITS, VALIDATION, DatasetLayout
from posemodel.data.lists import read_pairs
from posemodel.data.pair_set import PairSet
from posemodel.poses.annotations import TORSO, has_torso, read_annotations
from posemodel.runtime.errors import UserError

_FEW = 0.01  # share of images that may be lost
_STRAY = 0.05  # share of joints that may lie outside of the frame
_NARROW = 0.85  # width / height below which an image is taken to have no borders

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SplitFiles:
    """Where the parts of one split are; None: not there."""

    images: Path | None
    annotations: Path | None
    pairs: Path | None
    list: Path | None


@dataclass(frozen=True, kw_only=True)
class DatasetFiles:
    """What lies in a folder; parts may be missing."""

    layout: DatasetLayout
    root: Path
    """the folder with the image folders, or with the text files where there are no images"""
    splits: dict[str, SplitFiles]
    """of a validation list without images and joints of its own, those of the training split"""

    @property
    def has_validation(self) -> bool:
        """Whether there are pairs to choose settings by, beside those to train on and to show."""
        return self.splits[VALIDATION].annotations is not None

    @property
    def validates_on_training_people(self) -> bool:
        """Whether the validation list is of images and joints of the training split."""
        own = self.splits[VALIDATION].annotations
        return own is not None and own == self.splits["train"].annotations

    @property
    def kind(self) -> str:
        """As `--data.kind` calls it."""
        return self.layout.kind

    @property
    def has_images(self) -> bool:
        """Whether there is an image folder."""
        return any(files.images for files in self.splits.values())


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


def open_pairs(root: str | os.PathLike, split: str, *, kind: str | None = None,
               frame: int | None = None) -> PairSet:
    """Open one split of the data set in a folder. What was left out is logged as a warning.

    Args:
        root: the data set's folder, or one that contains it.
        split: "train", "test" or "validation".
        kind: a name of `layouts.LAYOUTS`, where the folder has several.
        frame: of a set with white borders, the width of the frame that its annotation file is in,
            one of the layout's `widths`. None: told from the joints, the name of the file and the
            images.

    Raises: `UserError` for a set that is not there, incomplete, damaged, or has no pairs.
    """
    if split not in ALL_SPLITS:
        raise UserError(f"no split is called {split!r}; expected {' or '.join(ALL_SPLITS)}")
    reading = read_split(find_dataset(root, kind=kind), split, frame=frame)
    for note in reading.notes:
        _log.warning("%s %s: %s", reading.pairs.kind, split, note)
    return reading.pairs


# --- what is there ------------------------------------------------------------------------------


def find_dataset(root: str | os.PathLike, *, kind: str | None = None) -> DatasetFiles:
    """The one data set in a folder or in the folders in it. Raises: `UserError` where there is
    none, or more than one."""
    root = Path(root)
    wanted = list(LAYOUTS.values()) if kind is None else [layout_of(kind)]
    if not root.is_dir():
        raise UserError(f"{root} is no folder")
    try:
        folders = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
        datasets = [dataset for folder in folders for dataset in _datasets_of(folder)]
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
    datasets = [dataset for dataset in datasets if dataset.layout in wanted]
    # Text files above the image folders are also seen without them.
    datasets = [dataset for dataset in datasets if dataset.has_images] or datasets
    if not datasets:
        raise _nothing_found(root, wanted)
    if len(datasets) > 1:
        places = "; ".join(f"{dataset.kind} in {dataset.root}" for dataset in datasets)
        raise UserError(f"{root} has more than one data set: {places}. Give the folder of one of "
                        "them, or its --kind")
    return datasets[0]


def _nothing_found(root: Path, wanted: list[DatasetLayout]) -> UserError:
    manifest = read_manifest(root)
    if manifest is not None and not manifest["complete"]:
        return UserError(f"{root}: {manifest['recipe'].get('made_by')} was stopped before the "
                         "set was complete; give its command again")
    title = wanted[0].title if len(wanted) == 1 else "data set"
    return UserError(
        f"{root} has no {title} in it: expected folders train and test (or bounding_box_train, "
        f"...) and files such as {wanted[0].file_name('annotation', 'train')}. `python -m "
        "posemodel.data prepare` makes it of the downloads. "
        + " | ".join(f"{layout.title}: {layout.where}" for layout in wanted))


def _datasets_of(folder: Path) -> list[DatasetFiles]:
    images = {split: _first(folder / form.format(split) for form in IMAGE_FOLDERS)
              for split in ALL_SPLITS}
    places = [folder]
    layouts = [layout for layout in LAYOUTS.values() if _has_files(layout, places)]
    if any(images.values()) and not layouts:
        places.append(folder.resolve().parent)
        layouts = [layout for layout in LAYOUTS.values() if _has_files(layout, places)]
        # Several or none: the names of the folders have to tell, the later layouts' first.
        if len(layouts) != 1:
            names = " ".join([folder.resolve().name.lower(),
                              *(path.name for path in images.values() if path is not None)])
            layouts = [layout for layout in LAYOUTS.values()
                       if any(word in names for word in layout.name_words)][-1:]
    return [DatasetFiles(layout=layout, root=folder, splits=_splits(layout, places, images))
            for layout in layouts]


def _splits(layout: DatasetLayout, places: Sequence[Path],
            images: dict[str, Path | None]) -> dict[str, SplitFiles]:
    splits = {}
    for split in ALL_SPLITS:
        annotations, pairs = (
            _first(place / name for place in places for name in layout.file_names(what, split))
            for what in ("annotation", "pairs"))
        names = _first(place / f"{split}.lst" for place in places)
        splits[split] = SplitFiles(images=images[split], annotations=annotations, pairs=pairs,
                                   list=names)
    train, own = splits["train"], splits[VALIDATION]
    if own.annotations or own.pairs:
        splits[VALIDATION] = replace(own, images=own.images or train.images,
                                     annotations=own.annotations or train.annotations)
    return splits


def _has_files(layout: DatasetLayout, places: Sequence[Path]) -> bool:
    return any((place / name).is_file() for place in places for what in ("annotation", "pairs")
               for split in SPLITS for name in layout.file_names(what, split))


def _first(paths: Iterable[Path]) -> Path | None:
    return next((path for path in paths if path.exists()), None)


# --- reading it ---------------------------------------------------------------------------------


def read_split(dataset: DatasetFiles, split: str, *, frame: int | None = None) -> Reading:
    """Read one split; `frame` as in `open_pairs`.

    Rows whose image is not there are left out, also with their pairs if these are few.

    Raises: `UserError` for what is missing, damaged or cannot be decided.
    """
    files, layout = dataset.splits[split], dataset.layout
    where = _where(layout)
    if split == VALIDATION and not dataset.has_validation:
        raise UserError(f"{dataset.root}: there is no validation list, "
                        f"{layout.file_name('pairs', split)}; {make_validation(dataset)} makes one")
    if files.annotations is None:
        raise UserError(f"{dataset.root}: {layout.file_name('annotation', split)} is missing; "
                        + where)
    if files.images is None:
        raise UserError(f"{dataset.root}: the folder {split} with the images is missing; {where}")
    all_names, joints = read_annotations(files.annotations)
    pairs = read_or_make_pairs(dataset, split, all_names, joints)
    if not len(pairs):
        raise UserError(f"{files.pairs or files.annotations}: no pair comes out of it; a pair needs"
                        " two images of one person with both shoulders and both hips")
    images = image_names(files.images)
    notes: list[str] = []
    kept, pairs = _keep_present(all_names, pairs, images, files.images, where, notes)
    names, joints = tuple(all_names[index] for index in kept), joints[kept]
    if not joints[..., 2].any():
        raise UserError(f"{files.annotations}: no image has a single joint")
    width = _width_of_file(layout, files, names, joints, frame)
    if width != layout.frame[1]:
        joints[..., 0] += layout.border * joints[..., 2]
    _drop_strays(files.annotations, layout.frame, names, joints, notes)
    if _lie_down(joints):
        notes.append(f"{files.annotations.name}: the bodies lie on their sides; x and y may be "
                     "swapped (y comes first)")
    pair_set = PairSet(layout=layout, split=split, folder=files.images, names=names, joints=joints,
                       pairs=pairs)
    return Reading(pairs=pair_set, rows=len(all_names), images=len(images),
                   file_frame=(layout.frame[0], width), notes=tuple(notes))


def make_validation(dataset: DatasetFiles) -> str:
    """The command that makes a validation list of a data set, for messages."""
    if dataset.layout.validation_by_time:
        return dataset.layout.where
    return f"python -m posemodel.data split {dataset.root}"


def _where(layout: DatasetLayout) -> str:
    return f"get it from {layout.where}; docs/own-data.md shows how to lay out a set of your own"


def read_or_make_pairs(dataset: DatasetFiles, split: str, names: tuple[str, ...],
                       joints: np.ndarray) -> np.ndarray:
    """The pairs of a split as they are listed or, by the rule of the layout, made: `[P, 2]` indices
    into names. Raises: `UserError`."""
    files, layout = dataset.splits[split], dataset.layout
    if files.pairs is not None:
        return read_pairs(files.pairs, names)
    if layout.listed_pairs:
        raise UserError(f"{dataset.root}: {layout.file_name('pairs', split)} is missing; "
                        + _where(layout))
    return layout.pairs(split, names, joints)


def _keep_present(names: tuple[str, ...], pairs: np.ndarray, images: list[str], folder: Path,
                  where: str, notes: list[str]) -> tuple[np.ndarray, np.ndarray]:
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


def _width_of_file(layout: DatasetLayout, files: SplitFiles, names: Sequence[str],
                   joints: np.ndarray, frame: int | None) -> int:
    """The columns of the frame that an annotation file is in, those of `frame` if it is given."""
    if not layout.border:
        if frame is not None:
            bordered = " and ".join(each.kind for each in LAYOUTS.values() if each.border)
            raise UserError(f"--frame {frame}: only the annotations of {bordered} come in two "
                            "frames")
        return layout.frame[1]
    width = frame or _told_width(layout, files, names, joints)
    if width not in layout.widths:
        raise UserError(f"--frame {frame}: expected {' or '.join(map(str, sorted(layout.widths)))}")
    return width


def _told_width(layout: DatasetLayout, files: SplitFiles, names: Sequence[str],
                joints: np.ndarray) -> int:
    """The width of the frame that the joints, the name of the file and the images speak for.

    Nearly all joints lie between the borders, so that either frame leaves some joints of the other
    one outside of them.
    """
    x = joints[..., 0][joints[..., 2] > 0]
    inner, outer, (first, last) = layout.inner_width, layout.frame[1], layout.inner
    outside_inner = ((x < 0) | (x >= inner)).mean()  # were the file in the inner frame
    outside_outer = ((x < first) | (x >= last)).mean()
    by_joints = None
    if max(outside_inner, outside_outer) >= 0.01:
        by_joints = inner if outside_inner < outside_outer else outer
    named_inner = layout.inner_word in files.annotations.name
    say = (f"rename it with `{layout.inner_word}` in its name for the frame of {inner} columns or "
           f"without for that of {outer}, or give --frame {inner} or --frame {outer}")
    if named_inner and by_joints == outer:
        raise UserError(
            f"{files.annotations}: by its name the joints are in the frame of {inner} columns, but "
            f"{outside_inner:.0%} of them lie outside of it (x up to {x.max():.0f}); {say}")
    if by_joints is not None or named_inner:
        return by_joints or inner
    # Too few joints to tell: the file is taken to be in the frame of the images.
    widths = {inner if image.shape[1] < _NARROW * image.shape[0] else outer
              for image in (read_image(files.images / name) for name in names[:4])}
    if len(widths) > 1:
        raise UserError(f"{files.annotations}: neither the joints nor the images, which differ in "
                        f"shape, tell the frame of the joints; {say}")
    return widths.pop()


def _drop_strays(path: Path, frame: tuple[int, int], names: Sequence[str], joints: np.ndarray,
                 notes: list[str]) -> None:
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
