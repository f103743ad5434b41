"""Market-1501 as re-identification reads it: who is on an image, and seen by which camera.

    bounding_box_train/  0002_c1s1_000451_03.jpg, ...: 12,936 images of 751 identities
    query/               0001_c1s1_001051_00.jpg, ...: 3,368 images of 750 other identities
    bounding_box_test/   19,732 images: 13,115 of those 750, 2,798 distractors (0000), 3,819 of
                         junk (-1)

A name is identity, camera and sequence, frame, number of the detection; `_00` is a box drawn by
hand. Distractors are nobody of the query. Junk is an image that counts neither for nor against.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from posemodel.data.images import image_names
from posemodel.runtime.errors import UserError

JUNK = -1
DISTRACTOR = 0

# Names of one split's folder, the first that is there is taken.
FOLDERS = {"train": ("bounding_box_train", "train"),
           "gallery": ("bounding_box_test", "test", "gallery"), "query": ("query",)}

_NAME = re.compile(r"(-1|\d+)_c(\d)")
_GENERATED = re.compile(r"(?P<source>.+)_p(?P<pose>\d+)\.jpg")


@dataclass(frozen=True, kw_only=True, eq=False)
class Crops:
    """The images of one folder; none has been opened yet."""

    folder: Path
    names: tuple[str, ...]
    """N file names in `folder`, in order"""
    persons: np.ndarray
    """`[N]` int64; -1 junk, 0 distractor"""
    cameras: np.ndarray
    """`[N]` int64, from 1"""

    def path(self, index: int) -> Path:
        """The file of one image."""
        return self.folder / self.names[index]

    def take(self, which: np.ndarray) -> "Crops":
        """The images with these indices, or where a mask is True."""
        which = np.flatnonzero(which) if which.dtype == bool else which
        return Crops(folder=self.folder, names=tuple(self.names[i] for i in which),
                     persons=self.persons[which], cameras=self.cameras[which])


def read_crops(folder: Path) -> Crops:
    """The images of a folder, sorted by name. Raises: `UserError` for a folder that is missing or
    has none, and for another kind of name."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder")
    names = image_names(folder)
    if not names:
        raise UserError(f"{folder} has no images")
    numbers = np.array([parse_name(name) for name in names], np.int64)
    return Crops(folder=folder, names=tuple(names), persons=numbers[:, 0], cameras=numbers[:, 1])


def open_split(root: Path, split: str) -> Crops:
    """One split of a data set folder: "train", "gallery" or "query". Raises: `UserError` where it
    is not there."""
    folders = [root / name for name in FOLDERS[split] if (root / name).is_dir()]
    if not folders:
        raise UserError(f"{root} has no folder {FOLDERS[split][0]}: expected Market-1501 as it "
                        "comes, with bounding_box_train, bounding_box_test and query; `python -m "
                        "posemodel.reid synthesize` makes such a folder of generated people")
    return read_crops(folders[0])


def parse_name(name: str) -> tuple[int, int]:
    """Identity and camera: `0002_c1s1_000451_03.jpg` -> 2, 1. Raises: `UserError` for another kind
    of name."""
    match = _NAME.match(name)
    if match is None:
        raise UserError(f"{name!r} is no name of Market-1501, such as 0002_c1s1_000451_03.jpg")
    return int(match[1]), int(match[2])


def generated_name(source: str, pose: int, poses: int) -> str:
    """Name of image number `pose` of `poses` that are made of `source`: `..._p07.jpg`.

    Identity and camera stay where torchreid, fast-reid and DG-Net++ look for them.
    """
    digits = max(2, len(str(poses - 1)))
    return f"{Path(source).stem}_p{pose:0{digits}d}.jpg"


def parse_generated(name: str) -> tuple[str, int]:
    """Stem of the source and number of the pose of a `generated_name`. Raises: `UserError` for
    another kind of name."""
    match = _GENERATED.fullmatch(name)
    if match is None:
        raise UserError(f"{name!r} is no name of a generated image, such as "
                        "0002_c1s1_000451_03_p07.jpg")
    return match["source"], int(match["pose"])


def describe(crops: Crops) -> str:
    """`12,936 images, 751 identities, 6 cameras`, and distractors and junk where there are."""
    real = crops.persons > DISTRACTOR
    parts = [f"{len(crops.names):,} images", f"{len(np.unique(crops.persons[real])):,} identities",
             f"{len(np.unique(crops.cameras)):,} cameras"]
    for word, count in (("distractors", (crops.persons == DISTRACTOR).sum()),
                        ("junk", (crops.persons == JUNK).sum())):
        if count:
            parts.append(f"{count:,} {word}")
    return ", ".join(parts)


def few_per_person(crops: Crops, most: int) -> np.ndarray:
    """Which images stay where each identity keeps at most `most`, `[N]` bool.

    They are spread over the cameras: first one of each camera, then a second one, by name.
    """
    keep = np.zeros(len(crops.names), bool)
    for person in np.unique(crops.persons):
        mine = np.flatnonzero(crops.persons == person)
        cameras = crops.cameras[mine]
        turn = np.tril(cameras[:, None] == cameras, -1).sum(1)  # images before it of its camera
        keep[mine[np.lexsort((cameras, turn))[:most]]] = True
    return keep
