"""What is known of a published data set: the face that every layout has."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from posemodel.data.lists import ordered_pairs
from posemodel.poses.annotations import has_torso

SPLITS = ("train", "test")
VALIDATION = "validation"
"""the split that a data set may have as well: pairs to choose settings by"""
ALL_SPLITS = (*SPLITS, VALIDATION)
# High-resolution files may be some pixels narrower than the picture that they show.
_ASPECT_TOLERANCE = 0.01
_VALIDATED_FROM = 1_000_001  # number of the first generated person to validate on


def same_aspect(size: tuple[int, int], other: tuple[int, int], tolerance: float = 0.0) -> bool:
    """Whether two sizes (H, W) have the same shape, to within a share of the width."""
    ratio = (size[1] * other[0]) / (size[0] * other[1])
    return abs(ratio - 1) <= tolerance


class DatasetLayout:
    """A data set as it is published and shared. Each has a file beside this one.

    Convention: joints live in the frame, whatever the files have. Where a set has a border, that is
    as many white columns left and right in the frame, and there are image and annotation files with
    it and without it.
    """

    kind: str
    """as `--data.kind` calls it"""
    title: str
    """as people call it"""
    where: str
    """where to get it, for messages"""
    preset: str
    """of `posemodel.train`, made for it"""

    frame: tuple[int, int]
    """(H, W)"""
    border: int = 0
    """white columns on either side of the frame"""
    background: str = "cluttered"
    """what stands behind the people: white, cluttered, or still, the same in both of a pair"""

    stems: tuple[str, ...]
    """beginnings of the names of annotation and pairs files, the published one first"""
    inner_word: str = ""
    """where there is a border: a word in the names of files without it"""
    image_folders: tuple[str, ...] = ("{}",)
    """names of the image folders; `{}` is the split"""
    masks: str = ""
    """folder of the masks of the people, `{}` is the split; empty: there are none"""
    plates: str = ""
    """folder of what is behind each of `person`, where that is known; empty: there is none"""
    name_words: tuple[str, ...]
    """words in the names of folders that tell this set from others"""
    archives: tuple[str, ...]
    """what the downloads are called, the best first"""

    listed_pairs: bool = True
    """the pairs are a published list; otherwise they follow from names and joints"""
    listed_images: bool = False
    """the images of a split are listed in a file, `train.lst`"""
    validation_by_time: bool = False
    """the splits are parts of each film, and not people: only its maker can cut another one"""
    nobody: frozenset[str] = frozenset()
    """persons who are none: distractors and junk"""

    published: Mapping[str, Mapping[str, int]]
    """counts of the published set, by split; empty: nothing is published"""
    other_splits: Mapping[tuple[str, int], str] = {}
    """(split, number of pairs) of other splits in use, and what they mean"""

    # --- frame ---

    @property
    def inner(self) -> tuple[int, int]:
        """The first and the last plus one of the frame's columns between the borders."""
        return self.border, self.frame[1] - self.border

    @property
    def inner_width(self) -> int:
        """Columns between the borders."""
        return self.frame[1] - 2 * self.border

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns that a file of the frame's height may have: with and without the borders."""
        return tuple(dict.fromkeys((self.frame[1], self.inner_width)))

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(H, W) of the files, with and without the borders."""
        return [(self.frame[0], width) for width in self.widths]

    def covered(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """The frame's columns that a file of (H, W) shows, in any resolution: all of them, or those
        between the borders. None: it is no picture of this frame."""
        whole = (0, self.frame[1])
        for columns, shape in zip((whole, self.inner), self.sizes, strict=False):
            if same_aspect(size, shape, _ASPECT_TOLERANCE):
                return columns
        return None

    def fitted(self, picture: Image.Image) -> Image.Image:
        """A picture of another size in that of the frame."""
        return picture.resize(self.frame[::-1], Image.Resampling.LANCZOS)

    # --- names and pairs ---

    def file_name(self, what: str, split: str, *, width: int | None = None) -> str:
        """Of the "annotation" or the "pairs" file, as it is published.

        Args:
            width: columns of the frame that the file is in; None: the published one.
        """
        stems = [stem for stem in self.stems if width is None or not self.border
                 or (self.inner_word in stem) == (width != self.frame[1])]
        return f"{stems[0]}-{what}-{split}.csv"

    def file_names(self, what: str, split: str) -> list[str]:
        """All spellings of `file_name`."""
        return [f"{stem}-{what}-{split}.csv" for stem in self.stems]

    def person(self, name: str) -> str:
        """Who is on the image of this name. Raises: `UserError` for a name that does not say."""
        raise NotImplementedError

    def key(self, name: str) -> str:
        """The same for all spellings of an image's name."""
        return name

    def pairs(self, split: str, names: Sequence[str], joints: np.ndarray) -> np.ndarray:
        """The rule that makes pairs: `[P, 2]` int64 indices into `names`, by default all ordered
        pairs of different images of one person with the whole torso.

        Args:
            joints: `[N, 18, 3]`.
        """
        persons = [self.person(name) for name in names]
        someone = np.array([person not in self.nobody for person in persons], bool)
        return ordered_pairs(persons, has_torso(joints) & someone)

    # --- downloads and generated people ---

    def raw_files(self, raw: Path) -> dict[str, dict[str, Path]] | None:
        """For each split the image files of an unpacked download by their `key`; None where it has
        none."""
        raise NotImplementedError

    def generated_names(self, split: str, index: int) -> tuple[str, str]:
        """Names for the two views of generated person number `index`; nobody is in two splits."""
        raise NotImplementedError


def generated_person(split: str, index: int) -> int:
    """The number of a generated person: train has the odd ones, test the even ones, and validation
    those beyond the first million, which neither gets to."""
    if split == VALIDATION:
        return _VALIDATED_FROM + index
    return 2 * index + 1 + (split == "test")
