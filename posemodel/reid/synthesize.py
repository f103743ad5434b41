"""Mannequins in the layout of Market-1501: identities under several cameras.

A person keeps body and clothes and takes another stance, facing any direction, in each image. A
camera has light (brightness, contrast, tint, noise), some places that people pass by, and a way to
crop them; a detector's boxes scatter around it. Identities of the test are never seen in training.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from posemodel.data.dataset_folder import encode_jpeg
from posemodel.data.layouts.market import DISTRACTOR, JUNK, MARKET, image_name
from posemodel.data.source import check_seed
from posemodel.data.synthesize import missed_joints, views, write_texts
from posemodel.mannequins.pairs import Mannequins
from posemodel.poses.joints import normalized_to_pixels
from posemodel.reid.config import require
from posemodel.runtime.files import new_folder

_FRAME = MARKET.frame
_RENDERED = (144, 72)  # larger than the frame, to be cropped
_PLACES = 4  # backgrounds that a camera sees
_MISSED_JOINTS = 0.05
_DISTRACTORS = 0.15  # of the gallery; 2,798 of 19,732
_JUNK = 0.1  # of the gallery; 3,819 of 19,732
_AT_ONCE = 32

# Indices of the generator that mean another thing each.
_PERSONS, _STRANGERS, _SCENES, _VIEWS = 0, 1 << 20, 1 << 40, 1 << 41
_LOOK, _BOX = 1, 2  # random streams of this module


@dataclass(frozen=True, kw_only=True)
class MarketPlan:
    """What to make."""

    identities: int
    """of the train split, and as many others of the test"""
    cameras: int
    images: int
    """of each identity under each camera, the query's not counted"""
    turn: float
    """each body faces the camera to within this many degrees"""
    seed: int

    def __post_init__(self):
        for flag, value, low, high in (("identities", self.identities, 2, 750),
                                       ("cameras", self.cameras, 2, 6),
                                       ("images", self.images, 1, 99)):
            require(low <= value <= high, flag, value, f"{low} to {high}")
        require(0 <= self.turn <= 180, "turn", self.turn, "0 to 180 degrees")
        check_seed(self.seed)


@dataclass(frozen=True)
class _Crop:
    """One image to come."""

    folder: str
    name: str
    person: int
    """index of the generator"""
    camera: int
    number: int
    """of the image in the whole set"""
    turn: int
    """of the image among those of its person"""
    junk: bool = False


def synthesize(out: Path, plan: MarketPlan, *,
               progress: Callable[[int, int], None]) -> dict[str, int]:
    """Write a new folder: bounding_box_train, bounding_box_test, query, and the joints of the first
    two as annotation files. The same plan gives the same bytes (with the same versions of torch and
    Pillow).

    Args:
        progress: is called with images done and images in total.

    Returns: number of images in each folder.

    Raises: `UserError`, also for a folder that is there already.
    """
    crops = list(_crops(plan))
    rows = {"bounding_box_train": [], "bounding_box_test": [], "query": []}
    with new_folder(out) as folder:
        for name in rows:
            (folder / name).mkdir()
        for start in range(0, len(crops), _AT_ONCE):
            some = crops[start : start + _AT_ONCE]
            for crop, (image, joints) in zip(some, _render(plan, some), strict=True):
                (folder / crop.folder / crop.name).write_bytes(encode_jpeg(image))
                rows[crop.folder].append((crop.name, joints))
            progress(min(start + _AT_ONCE, len(crops)), len(crops))
        for split in ("train", "test"):
            listed = sorted(rows[f"bounding_box_{split}"], key=lambda row: row[0])
            names, joints = zip(*listed, strict=True)
            write_texts(folder, MARKET, split, names, np.stack(joints))
    return {name: len(images) for name, images in rows.items()}


def _crops(plan: MarketPlan) -> Iterator[_Crop]:
    """All images; odd identities train, even ones test."""
    number, turns = 0, Counter()

    def crop(folder: str, person: int, label: str, camera: int, detection: int, **more) -> _Crop:
        nonlocal number
        number += 1
        turns[person] += 1
        name = image_name(label, camera=camera, frame=number, detection=detection)
        return _Crop(folder, name, person, camera, number, turns[person] - 1, **more)

    for identity in range(1, 2 * plan.identities + 1):
        train = identity % 2 == 1
        folder = "bounding_box_train" if train else "bounding_box_test"
        for camera in range(1, plan.cameras + 1):
            if not train:
                yield crop("query", _PERSONS + identity, f"{identity:04d}", camera, 0)
            for image in range(plan.images):
                yield crop(folder, _PERSONS + identity, f"{identity:04d}", camera, 1 + image)
    gallery = plan.identities * plan.cameras * plan.images
    real = 1 - _DISTRACTORS - _JUNK
    for stranger in range(round(gallery * _DISTRACTORS / real)):
        camera = 1 + stranger % plan.cameras
        yield crop("bounding_box_test", _STRANGERS + stranger, DISTRACTOR, camera, 1)
    for number_of_junk in range(round(gallery * _JUNK / real)):
        # A box that hardly holds the person, of somebody who is also in the test.
        person, camera = 2 * (1 + number_of_junk % plan.identities), \
            1 + number_of_junk % plan.cameras
        yield crop("bounding_box_test", _PERSONS + person, JUNK, camera, 1, junk=True)


def _render(plan: MarketPlan, crops: list[_Crop]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pixels `[128, 64, 3]` and joints `[18, 3]` in them, of one crop after the other."""
    generator = Mannequins(size=_RENDERED, turn=plan.turn, background="cluttered", seed=plan.seed)
    draws = [_random(plan, _BOX, crop.number) for crop in crops]
    # Two images of a person are the two views of a pair.
    wanted = dict.fromkeys((crop.person, crop.turn // 2) for crop in crops)
    pairs = {pair: place for place, pair in enumerate(wanted)}
    slots = [2 * pairs[crop.person, crop.turn // 2] + crop.turn % 2 for crop in crops]
    scenes = [0] * (2 * len(pairs))
    for crop, slot, random in zip(crops, slots, draws, strict=True):
        scenes[slot] = _SCENES + crop.camera * _PLACES + int(random.integers(_PLACES))
    batch = generator.pairs([_VIEWS + (person << 12) + turn for person, turn in pairs],
                            persons=[person for person, _ in pairs], scenes=scenes)
    images, poses = views(batch)
    images = ((images + 1) / 2).permute(0, 2, 3, 1).numpy()
    joints = normalized_to_pixels(poses, _RENDERED).numpy()
    for crop, slot, random in zip(crops, slots, draws, strict=True):
        image, points = images[slot], joints[slot].copy()
        left, top, width, height = _box(plan, crop, random)
        lit = Image.fromarray(_expose(plan, crop.camera, image, random))
        picture = lit.resize(_FRAME[::-1], Image.Resampling.BICUBIC,
                             (left, top, left + width, top + height))
        points[:, 0] = (points[:, 0] + 0.5 - left) * _FRAME[1] / width - 0.5
        points[:, 1] = (points[:, 1] + 0.5 - top) * _FRAME[0] / height - 0.5
        yield np.asarray(picture), _seen(points, random)


def _box(plan: MarketPlan, crop: _Crop, random: np.random.Generator) -> tuple[float, ...]:
    """Left, top, width and height of the detector's box in the rendered image, pixels."""
    camera = _random(plan, _LOOK, crop.camera)
    rows, columns = _RENDERED
    loose = camera.uniform(0.86, 0.98) + random.uniform(-0.05, 0.02)
    slim = random.uniform(0.94, 1.0)
    if crop.junk:
        loose *= 0.45
    height, width = loose * rows, loose * slim * columns
    middle = 0.5 + camera.uniform(-0.3, 0.3, 2) * 0.5 + random.uniform(-0.25, 0.25, 2)
    # As much as the box leaves free, so that it stays inside.
    left, top = np.clip(middle, 0, 1) * (columns - width, rows - height)
    return left, top, width, height


def _expose(plan: MarketPlan, camera: int, image: np.ndarray,
            random: np.random.Generator) -> np.ndarray:
    """A camera's light on `[H, W, 3]` in [0, 1]; uint8."""
    look = _random(plan, _LOOK, plan.cameras + camera)
    gain = look.uniform(0.65, 1.1) * look.uniform(0.88, 1.12, 3) * random.uniform(0.92, 1.08)
    gamma, black = look.uniform(0.8, 1.35), look.uniform(0.0, 0.10)
    lit = black + (1 - black) * np.clip(image * gain, 0, 1) ** gamma
    noisy = lit + look.uniform(0.005, 0.03) * random.standard_normal(image.shape)
    return np.clip(np.rint(255 * noisy), 0, 255).astype(np.uint8)


def _seen(points: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """What an estimator finds: joints in the frame, rounded, now and then one or all missed."""
    missed = missed_joints(random.random(len(points) + 1), _MISSED_JOINTS)
    whole = np.rint(points[:, :2])
    inside = ((whole >= 0) & (whole < _FRAME[::-1])).all(1)
    seen = (points[:, 2] > 0) & inside & ~missed
    return np.concatenate([whole, np.ones((len(points), 1))], 1) * seen[:, None]


def _random(plan: MarketPlan, *words: int) -> np.random.Generator:
    return np.random.default_rng([plan.seed, *words])
