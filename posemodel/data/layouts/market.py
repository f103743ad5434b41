"""Market-1501, for pose transfer: PATN's annotations of its training and gallery images.

    market_data/
      train/  test/                            or bounding_box_train, as it comes
      market-annotation-train.csv
      market-pairs-train.csv                   made where it is not there; and the same of test

The frame is 128 x 64 (rows x columns). The rule that makes pairs out of annotations is that of
Siarohin et al., "Deformable GANs for pose-based human image generation" (CVPR 2018), which all
later work shares.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from posemodel.data.images import image_names
from posemodel.data.layouts.layout import SPLITS, DatasetLayout, generated_person

JUNK, DISTRACTOR = "-1", "0000"
TEST_PAIRS = 12_000
_STRANGERS = 10  # of generated people in the test split every tenth is nobody


class _Market(DatasetLayout):
    kind = "market"
    title = "Market-1501"
    where = ("images: https://zheng-lab.cecs.anu.edu.au/Project/project_reid.html;"
             " annotations: https://github.com/tengteng95/Pose-Transfer")
    preset = "market"

    frame = (128, 64)

    stems = ("market",)
    image_folders = ("{}", "bounding_box_{}")
    name_words = ("market", "bounding_box")
    archives = ("Market-1501-v15.09.15.zip", "Market-1501*.zip")

    listed_pairs = False
    nobody = frozenset({JUNK, DISTRACTOR})

    published = {"train": {"images": 12_936, "rows": 12_936, "pairs": 263_632},
                 "test": {"images": 19_732, "rows": 19_732, "pairs": TEST_PAIRS}}

    def person(self, name: str) -> str:
        """`0002_c1s1_000451_03.jpg` -> `0002`; junk is `-1`, distractors are `0000`."""
        return name.partition("_")[0]

    def pairs(self, split: str, names: Sequence[str], joints: np.ndarray) -> np.ndarray:
        """All pairs or, of test, the published 12,000 in their order: a sample by a fixed seed."""
        pairs = super().pairs(split, names, joints)
        if split != "test" or len(pairs) <= TEST_PAIRS:
            return pairs
        return pairs[np.random.RandomState(0).choice(len(pairs), TEST_PAIRS, replace=False)]

    def raw_files(self, raw: Path) -> dict[str, dict[str, Path]] | None:
        for place in (raw, *sorted(path for path in raw.iterdir() if path.is_dir())):
            folders = {split: place / f"bounding_box_{split}" for split in SPLITS}
            if all(folder.is_dir() for folder in folders.values()):
                return {split: {name: folder / name for name in image_names(folder)}
                        for split, folder in folders.items()}
        return None

    def generated_names(self, split: str, index: int) -> tuple[str, str]:
        persons = (f"{generated_person(split, index):04d}",) * 2
        if split == "test" and index % _STRANGERS == _STRANGERS - 1:
            persons = (DISTRACTOR, JUNK)
        return tuple(image_name(person, camera=1 + (index + view) % 6, sequence=1 + index % 3,
                                frame=index, detection=view + 1)
                     for view, person in enumerate(persons))


def image_name(person: str, *, camera: int, frame: int, detection: int, sequence: int = 1) -> str:
    """`0002_c1s1_000451_03.jpg`: identity, camera and sequence, frame, number of the detection."""
    return f"{person}_c{camera}s{sequence}_{frame:06d}_{detection:02d}.jpg"


MARKET = _Market()
