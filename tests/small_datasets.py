"""Small data sets in the published layouts, drawn in a moment: coloured squares with joints."""

from pathlib import Path

import numpy as np
from PIL import Image

from posemodel.data.annotations import (
    fashion_person,
    has_torso,
    market_pairs,
    ordered_pairs,
    write_annotations,
    write_pairs,
)


def random_joints(count: int, seed: int = 0) -> np.ndarray:
    """`[count, 18, 3]`, whole pixels of the middle 176 columns of a frame of 256 x 256: people who
    stand upright, arms spread to both sides, and miss a joint now and then."""
    random = np.random.default_rng([seed, count])
    x = np.full(18, 128) + np.array([0, 0, -20, -50, -80, 20, 50, 80, -15, -15, -15, 15, 15, 15,
                                     -5, 5, -9, 9])
    y = np.array([30, 60, 60, 90, 120, 60, 90, 120, 140, 190, 240, 140, 190, 240, 25, 25, 28, 28])
    joints = np.ones((count, 18, 3), np.float32)
    joints[..., 0] = x + random.integers(-6, 7, (count, 18))
    joints[..., 1] = y + random.integers(-6, 7, (count, 18))
    missing = random.random((count, 18)) < 0.2
    missing[:, [2, 5, 8, 11]] = False
    joints[missing] = 0
    return joints


def write_images(folder: Path, names: list[str], size: tuple[int, int]) -> None:
    """One small PNG, whatever its name, for each name; `size` is (H, W)."""
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        image = np.full((*size, 3), 40 * number % 256, np.uint8)
        Image.fromarray(image).save(folder / name, "PNG")


def fashion_names(people: int, *, first: int = 1) -> list[str]:
    """Three images of each person."""
    return [f"fashionWOMENTees_Tanksid{first + person:08d}01_{view}.jpg"
            for person in range(people) for view in ("1front", "2side", "3back")]


def make_fashion(root: Path, *, people: int = 4, stem: str = "fasion-resize", columns: int = 176,
                 image_size: tuple[int, int] = (32, 22)) -> Path:
    """PATN's layout, train and test; `columns`: frame of the annotation files."""
    for split, first in (("train", 1), ("test", 100)):
        names = fashion_names(people, first=first)
        joints = random_joints(len(names))
        pairs = ordered_pairs([fashion_person(name) for name in names], has_torso(joints))
        write_images(root / split, names, image_size)
        shifted = joints - np.float32([40 if columns == 176 else 0, 0, 0]) * joints[..., 2:]
        write_annotations(root / f"{stem}-annotation-{split}.csv", names, shifted)
        write_pairs(root / f"{stem}-pairs-{split}.csv", names, pairs)
        (root / f"{split}.lst").write_text("".join(name + "\n" for name in names))
    return root


def market_names(people: int, *, first: int = 1) -> list[str]:
    """Three images of each person."""
    return [f"{first + person:04d}_c{view}s1_{person:06d}_01.jpg"
            for person in range(people) for view in (1, 2, 3)]


def make_market(root: Path, *, people: int = 4, form: str = "{}", pairs: bool = True) -> Path:
    """Market's layout; `form`: names of the image folders."""
    for split, first in (("train", 1), ("test", 100)):
        names = market_names(people, first=first)
        joints = random_joints(len(names))
        joints[..., :2] = np.floor((joints[..., :2] - [40, 0]) * [64 / 176, 0.5])
        joints *= joints[..., 2:]
        write_images(root / form.format(split), names, (32, 16))
        write_annotations(root / f"market-annotation-{split}.csv", names, joints)
        if pairs:
            write_pairs(root / f"market-pairs-{split}.csv", names, market_pairs(names, joints))
    return root
