"""Small data sets in the published layouts, drawn in a moment: coloured squares with joints. And
what is said of those that cannot be used."""

import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from posemodel.data.layouts.deepfashion import DEEPFASHION
from posemodel.data.layouts.market import MARKET
from posemodel.data.lists import write_pairs
from posemodel.data.synthesize import SynthesisPlan, synthesize
from posemodel.poses.annotations import read_annotations, write_annotations
from posemodel.runtime.errors import UserError

SHARED = Path(os.environ.get("POSEMODEL_SHARED_DATA",
                             Path(__file__).parents[2] / "shared" / "data"))
MARKET_TRAIN = SHARED / "market-annotation-train.csv"
needs_market = pytest.mark.skipif(not MARKET_TRAIN.exists(), reason=f"{MARKET_TRAIN} is not there")


class Killed(BaseException):
    """As a kill, nothing in the program can catch it."""


def contents(root: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(root).as_posix(): path.read_bytes()
            for path in root.rglob("*") if path.is_file()}


def refused(message: str, call, *arguments, **options) -> str:
    """A call refuses its arguments in one line, in which the pattern `message` is found."""
    text = refusal(call, *arguments, **options)
    assert re.search(message, text), text
    return text


def refusal(call, *arguments, **options) -> str:
    """The one line with which a call refuses its arguments."""
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def random_joints(count: int) -> np.ndarray:
    """`[count, 18, 3]`, whole pixels of the middle 176 columns of a frame of 256 x 256: people who
    stand upright, arms spread to both sides, and miss a joint now and then."""
    random = np.random.default_rng([0, count])
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


def whole_person(which: int = 0) -> np.ndarray:
    """`[18, 3]`, one of two people who are built differently, all joints there, in the middle of a
    frame of 256 x 256."""
    x = np.array([128, 128, 108, 98, 93, 148, 158, 163, 115, 113, 112, 141, 143, 144,
                  124, 132, 119, 137])
    y = np.array([30, 60, 60, 90, 120, 60, 90, 120, 140, 190, 240, 140, 190, 240, 25, 25, 28, 28])
    if which:
        x, y = 128 + (x - 128) * 1.4, 20 + (y - 20) * 0.8
    return np.column_stack([x, y, np.ones(18)]).astype(np.float32)


def generated_plan(**changes) -> SynthesisPlan:
    return SynthesisPlan(**{"layout": "deepfashion", "pairs": 6, "test_pairs": 2, "seed": 3,
                            "held_out_seed": 2**32 + 2, "image_rows": 32, **changes})


def make_generated(root: Path, **changes) -> Path:
    """A data set of mannequins."""
    synthesize(root, generated_plan(**changes), progress=lambda done, total: None)
    return root


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    """An image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def change_joints(path: Path, change) -> tuple[tuple[str, ...], np.ndarray]:
    """Write an annotation file again with `change(joints)`; its names and the new joints."""
    names, joints = read_annotations(path)
    joints = change(joints)
    write_annotations(path, names, joints)
    return names, joints


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
        pairs = DEEPFASHION.pairs(split, names, joints)
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
            write_pairs(root / f"market-pairs-{split}.csv", names,
                        MARKET.pairs(split, names, joints))
    return root
