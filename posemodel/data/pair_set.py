"""One split of a data set on disk: images, the joints in them, and the pairs made of them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from posemodel.data.layouts.layout import DatasetLayout
from posemodel.data.plates import plate_files


@dataclass(frozen=True, kw_only=True, eq=False)
class PairSet:
    """What every layout on disk is read into; no image has been opened yet.

    Convention: `joints` are pixels of `frame`, x in columns and y in rows, 0 = centre of the first
    pixel. A missing joint is all zero.
    """

    layout: DatasetLayout
    """of the data set: its frame, and how a person is read from a name"""
    split: str
    """train, test or validation"""
    folder: Path
    """where the images lie"""
    names: tuple[str, ...]
    """file names in `folder`, N of them, no two the same"""
    joints: np.ndarray
    """`[N, 18, 3]` float32: x, y, presence (0 or 1)"""
    pairs: np.ndarray
    """`[P, 2]` int64: indices of source and target"""

    @property
    def kind(self) -> str:
        """As `--data.kind` calls the data set."""
        return self.layout.kind

    @property
    def frame(self) -> tuple[int, int]:
        """(H, W) of the pictures that the joints belong to."""
        return self.layout.frame

    def path(self, index: int) -> Path:
        """The file of one image."""
        return self.folder / self.names[index]

    def mask(self, index: int) -> Path | None:
        """The file of its mask; None where the layout has none."""
        if not self.layout.masks:
            return None
        folder = self.folder.parent / self.layout.masks.format(self.folder.name)
        return (folder / self.names[index]).with_suffix(".png")

    @property
    def has_plates(self) -> bool:
        """Whether it is known of any image what is behind the person."""
        return bool(self.layout.plates) and (self.folder.parent / self.layout.plates).is_dir()

    def plate(self, index: int) -> tuple[Path, Path] | None:
        """The files of what is behind the person of an image, and of where that is known; None
        where there are none."""
        if not self.layout.plates:
            return None
        shot = self.layout.person(self.names[index])
        files = plate_files(self.folder.parent / self.layout.plates / shot)
        return files if all(file.is_file() for file in files) else None
