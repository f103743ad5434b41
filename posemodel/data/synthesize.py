"""Mannequins as a data set on disk, in the layouts of the real ones: no photograph is needed to try
everything that reads them.

DeepFashion: 176 x 256 (width x height) files with the annotations in that frame, PATN's form, or
256 x 256 files with white borders. Market-1501: 64 x 128 files before clutter; a few images of the
test split are junk (`-1_`) and distractors (`0000_`). Images are JPEG of quality 95 without
subsampling of colour.

A person has two images, the two views of an index of `Mannequins`, and so two ordered pairs. Like
an estimator of poses, the annotation misses joints now and then, and at times the whole body.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from posemodel.data.annotations import (
    MISSING,
    TORSO,
    fashion_person,
    has_torso,
    market_pairs,
    ordered_pairs,
    write_annotations,
    write_pairs,
)
from posemodel.data.dataset_folder import DatasetFolder, encode_jpeg, open_folder
from posemodel.data.layouts import BORDER, FRAMES, INNER_WIDTH, KINDS, SPLITS
from posemodel.errors import UserError
from posemodel.files import write_aside

_AT_ONCE = 8
_MISSED_JOINTS = 0.15  # share of limbs and faces that the annotation misses
_MISSED_BODIES = 0.03  # share of images without any joint; Market-1501 has 419 of 12,936
_ESTIMATOR = 0x706F7365  # the random stream of the missed joints
_STRANGERS = 10  # in Market's test split every tenth index is nobody's


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to write."""

    layout: str
    """deepfashion or market"""
    pairs: int
    """of the train split"""
    test_pairs: int
    seed: int
    """of the people in the train split"""
    held_out_seed: int
    """of the people in the test split"""
    frame: int = INNER_WIDTH
    """columns of DeepFashion's images and annotations: 176, or 256 with white borders"""
    image_rows: int = 0
    """height of the image files; 0: that of the frame"""

    def __post_init__(self):
        if self.layout not in KINDS:
            raise UserError(f"--layout {self.layout}: expected {' or '.join(KINDS)}")
        if self.pairs < 1 or self.test_pairs < 1:
            raise UserError(f"--pairs {self.pairs} --test-pairs {self.test_pairs}: expected at "
                            "least 1 of each")
        if self.frame not in (INNER_WIDTH, FRAMES["deepfashion"][1]):
            raise UserError(f"--frame {self.frame}: expected {INNER_WIDTH} or 256")
        if self.image_rows % 32 or self.image_rows < 0:
            # 176 columns of 256 are 22 of 32, and a border is 5.
            raise UserError(f"--image-rows {self.image_rows}: expected a multiple of 32")

    @property
    def file_frame(self) -> tuple[int, int]:
        """(H, W) of the frame that the annotation file is in."""
        return FRAMES["market"] if self.layout == "market" else (256, self.frame)


def synthesize(out: Path, plan: Plan, *, progress: Callable[[int, int], None]) -> bool:
    """Write the data set into a new folder, or continue there.

    The same plan gives the same bytes (with the same versions of torch and Pillow), however often
    it was stopped.

    Args:
        progress: is called with pairs done and pairs in total.

    Returns: False where the set was complete already.

    Raises: `UserError` for a folder that holds anything else.
    """
    recipe = {"made_by": "synthesize", **vars(plan)}
    with open_folder(out, recipe) as folder:
        if folder.complete:
            return False
        counts, texts, done = {}, [], 0
        total = plan.pairs + plan.test_pairs
        for split, wanted in zip(SPLITS, (plan.pairs, plan.test_pairs), strict=True):
            names, joints, pairs = [], [], []
            for more_names, more_joints in _batches(folder, plan, split):
                # Nobody is in two batches.
                more = _pairs(plan.layout, more_names, more_joints) + len(names)
                names += more_names
                joints += list(more_joints)
                pairs += list(more)
                progress(done + min(len(pairs), wanted), total)
                if len(pairs) >= wanted:
                    break
            done += wanted
            pairs = np.array(pairs[:wanted])
            texts += _write_texts(folder.root, plan, split, names, np.stack(joints), pairs)
            counts[split] = {"images": len(names), "rows": len(names), "pairs": len(pairs)}
        folder.finish(counts, texts)
    return True


def _batches(
    folder: DatasetFolder, plan: Plan, split: str
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Names and joints `[N, 18, 3]`, in pixels of the file's frame, of one group of people after
    the other; their images are written where they are not there."""
    start = 0
    while True:
        indices = range(start, start + _AT_ONCE)
        names = [name for index in indices for name in _names(plan.layout, split, index)]
        missing = {name for name in names if (split, name) not in folder.rows}
        if missing:
            for name, image, joints in zip(names, *_render(plan, split, indices), strict=True):
                if name in missing:
                    points = np.where(joints[:, 2:] > 0, joints[:, :2], MISSING).astype(int)
                    folder.add_image(split, name, image, x=points[:, 0].tolist(),
                                     y=points[:, 1].tolist())
        rows = [folder.rows[split, name] for name in names]
        points = np.array([[row["x"], row["y"]] for row in rows]).transpose(0, 2, 1)
        present = (points != MISSING).all(-1, keepdims=True)
        yield names, np.concatenate([points * present, present], -1)
        start += _AT_ONCE


def _render(plan: Plan, split: str, indices: range) -> tuple[list[bytes], list[np.ndarray]]:
    """JPEG files and joints of both views of the people with these indices."""
    import torch

    from posemodel.data.keypoints import normalized_to_pixels
    from posemodel.data.mannequins import Mannequins

    height = plan.image_rows or FRAMES[plan.layout][0]
    columns, background = height // 2, "cluttered"
    if plan.layout == "deepfashion":
        columns, background = height * INNER_WIDTH // 256, "white"
    seed = plan.seed if split == "train" else plan.held_out_seed
    people = Mannequins(size=(height, columns), background=background, seed=seed)
    batch = people.pairs(indices)
    images = torch.stack([batch["source"], batch["target"]], 1).flatten(0, 1)
    images = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    poses = torch.stack([batch["source_pose"], batch["target_pose"]], 1).flatten(0, 1)
    border = 0
    rows, inner = FRAMES["market"]
    if plan.layout == "deepfashion":
        rows, inner = FRAMES["deepfashion"][0], INNER_WIDTH
        border = BORDER if plan.frame != INNER_WIDTH else 0
    joints = normalized_to_pixels(poses, (rows, inner)).numpy()
    # A joint in the outer half of the last pixel is rounded into the picture.
    joints[..., :2] = np.clip(np.rint(joints[..., :2]), 0, (inner - 1, rows - 1))
    joints[..., 0] += border
    _miss(joints, seed, indices)
    side = border * height // rows
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (side, side), (0, 0)), constant_values=255)
    return [encode_jpeg(image) for image in padded], list(joints)


def _miss(joints: np.ndarray, seed: int, indices: range) -> None:
    """Take away what an estimator of poses would miss, in place; the torso is found or all is
    missed, so that most people make pairs."""
    for number, index in enumerate(indices):
        words = [_ESTIMATOR, seed & 0xFFFFFFFF, seed >> 32, index]
        draws = np.random.default_rng(words).random((2, 19))
        missed = draws[:, :18] < _MISSED_JOINTS
        missed[:, TORSO] = False
        missed |= draws[:, 18:] < _MISSED_BODIES
        joints[2 * number : 2 * number + 2][missed] = 0.0


def _names(layout: str, split: str, index: int) -> tuple[str, str]:
    """File names of the two views; no person is in both splits."""
    person = 2 * index + 1 + (split == "test")
    if layout == "deepfashion":
        category = ("MENShirts_Polos", "WOMENTees_Tanks", "MENPants", "WOMENDresses")[index % 4]
        stem = f"fashion{category}id{person:08d}01"
        return f"{stem}_1front.jpg", f"{stem}_7additional.jpg"
    who = (f"{person:04d}",) * 2
    if split == "test" and index % _STRANGERS == _STRANGERS - 1:
        who = ("0000", "-1")
    return tuple(f"{one}_c{1 + (index + view) % 6}s{1 + index % 3}_{index:06d}_0{view + 1}.jpg"
                 for view, one in enumerate(who))


def _pairs(layout: str, names: list[str], joints: np.ndarray) -> np.ndarray:
    if layout == "market":
        return market_pairs(names, joints)
    return ordered_pairs([fashion_person(name) for name in names], has_torso(joints))


def _write_texts(
    root: Path, plan: Plan, split: str, names: list[str], joints: np.ndarray, pairs: np.ndarray
) -> list[str]:
    if plan.layout == "market":
        annotations, listed = f"market-annotation-{split}.csv", f"market-pairs-{split}.csv"
        texts = [annotations, listed]
    else:
        stem = "fasion-resize" if plan.frame == INNER_WIDTH else "fasion"
        annotations, listed = f"{stem}-annotation-{split}.csv", f"{stem}-pairs-{split}.csv"
        texts = [annotations, listed, f"{split}.lst"]
        write_aside(root / f"{split}.lst", "".join(name + "\n" for name in names))
    write_annotations(root / annotations, names, joints)
    write_pairs(root / listed, names, pairs)
    return texts
