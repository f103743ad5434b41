"""Mannequins as a data set on disk, in the layouts of the real ones: no photograph is needed to try
everything that reads them.

Files are as high as the frame and, of a set with white borders, without them (PATN's form) or with
them. Some images of Market-1501's test split are junk (`-1_`) and distractors (`0000_`). Images are
JPEG of quality 95 without subsampling of colour.

A person has two images, the two views of an index of `Mannequins`, and so two ordered pairs. Like
an estimator of poses, the annotation misses joints now and then, and at times the whole body.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from posemodel.data.dataset_folder import DatasetFolder, encode_jpeg, open_folder
from posemodel.data.layouts import FILE_WIDTHS, LAYOUTS
from posemodel.data.layouts.layout import VALIDATION, DatasetLayout
from posemodel.data.lists import write_pairs
from posemodel.poses.annotations import MISSING, TORSO, write_annotations
from posemodel.runtime.errors import UserError
from posemodel.runtime.files import write_aside

if TYPE_CHECKING:  # a plan is refused without torch
    from torch import Tensor

_AT_ONCE = 8
_MISSED_JOINTS = 0.15  # share of limbs and faces that the annotation misses
_MISSED_BODIES = 0.03  # share of images without any joint; Market-1501 has 419 of 12,936
_ESTIMATOR = 0x706F7365  # the random stream of the missed joints


@dataclass(frozen=True, kw_only=True)
class SynthesisPlan:
    """What to write."""

    layout: str
    """a name of `layouts.LAYOUTS`"""
    pairs: int
    """of the train split"""
    test_pairs: int
    seed: int
    """of the people in the train split"""
    held_out_seed: int
    """of the people in the test split"""
    validation_pairs: int = 0
    """of the validation split; 0: there is none"""
    validation_seed: int = 0
    """of the people in it"""
    frame: int = FILE_WIDTHS[0]
    """of a set with white borders, columns of images and annotations: without or with them"""
    image_rows: int = 0
    """height of the image files; 0: that of the frame"""

    def __post_init__(self):
        if self.layout not in LAYOUTS:
            raise UserError(f"--layout {self.layout}: expected {' or '.join(LAYOUTS)}")
        if self.pairs < 1 or self.test_pairs < 1:
            raise UserError(f"--pairs {self.pairs} --test-pairs {self.test_pairs}: expected at "
                            "least 1 of each")
        if self.validation_pairs < 0:
            raise UserError(f"--validation-pairs {self.validation_pairs}: expected 0 or more")
        if self.frame not in FILE_WIDTHS:
            raise UserError(f"--frame {self.frame}: expected {' or '.join(map(str, FILE_WIDTHS))}")
        if self.image_rows % 32 or self.image_rows < 0:
            # Then columns and borders are whole in every layout.
            raise UserError(f"--image-rows {self.image_rows}: expected a multiple of 32")


def synthesize(out: Path, plan: SynthesisPlan, *, progress: Callable[[int, int], None]) -> bool:
    """Write the data set into a new folder, or continue there.

    The same plan gives the same bytes (with the same versions of torch and Pillow), however often
    it was stopped.

    Args:
        progress: is called with pairs done and pairs in total.

    Returns: False where the set was complete already.

    Raises: `UserError` for a folder that holds anything else.
    """
    recipe = {"made_by": "synthesize", **vars(plan)}
    layout = LAYOUTS[plan.layout]
    with open_folder(out, recipe) as folder:
        if folder.complete:
            return False
        counts, texts, done = {}, [], 0
        splits = {"train": plan.pairs, "test": plan.test_pairs, VALIDATION: plan.validation_pairs}
        total = sum(splits.values())
        for split, wanted in splits.items():
            if not wanted:
                continue
            names, joints, pairs = [], [], []
            for more_names, more_joints in _batches(folder, plan, split):
                # Nobody is in two batches.
                more = layout.pairs(split, more_names, more_joints) + len(names)
                names += more_names
                joints += list(more_joints)
                pairs += list(more)
                progress(done + min(len(pairs), wanted), total)
                if len(pairs) >= wanted:
                    break
            done += wanted
            pairs = np.array(pairs[:wanted])
            texts += write_texts(folder.root, layout, split, names, np.stack(joints), pairs,
                                 width=plan.frame)
            counts[split] = {"images": len(names), "rows": len(names), "pairs": len(pairs)}
        folder.finish(counts, texts)
    return True


def _batches(folder: DatasetFolder, plan: SynthesisPlan,
             split: str) -> Iterator[tuple[list[str], np.ndarray]]:
    """Names and joints `[N, 18, 3]`, in pixels of the file's frame, of one group of people after
    the other; their images are written where they are not there."""
    layout, start = LAYOUTS[plan.layout], 0
    while True:
        indices = range(start, start + _AT_ONCE)
        names = [name for index in indices for name in layout.generated_names(split, index)]
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


def _render(plan: SynthesisPlan, split: str,
            indices: range) -> tuple[list[bytes], list[np.ndarray]]:
    """JPEG files and joints of both views of the people with these indices."""
    from posemodel.mannequins.pairs import Mannequins
    from posemodel.pictures.pixels import to_pictures
    from posemodel.poses.joints import normalized_to_pixels

    layout = LAYOUTS[plan.layout]
    rows, inner = layout.frame[0], layout.inner_width
    height = plan.image_rows or rows
    seed = {"train": plan.seed, "test": plan.held_out_seed,
            VALIDATION: plan.validation_seed}[split]
    people = Mannequins(size=(height, height * inner // rows), background=layout.background,
                        seed=seed)
    images, poses = views(people.pairs(indices))
    border = layout.border if plan.frame == layout.frame[1] else 0
    joints = normalized_to_pixels(poses, (rows, inner)).numpy()
    # A joint in the outer half of the last pixel is rounded into the picture.
    joints[..., :2] = np.clip(np.rint(joints[..., :2]), 0, (inner - 1, rows - 1))
    joints[..., 0] += border
    _miss(joints, seed, indices)
    side = border * height // rows
    edges = ((0, 0), (0, 0), (side, side), (0, 0))
    padded = np.pad(to_pictures(images), edges, constant_values=255)
    return [encode_jpeg(image) for image in padded], list(joints)


def _miss(joints: np.ndarray, seed: int, indices: range) -> None:
    """Take away what an estimator of poses would miss, in place; the torso is found or all is
    missed, so that most people make pairs."""
    for number, index in enumerate(indices):
        words = [_ESTIMATOR, seed & 0xFFFFFFFF, seed >> 32, index]
        draws = np.random.default_rng(words).random((2, 19))
        missed = missed_joints(draws, _MISSED_JOINTS, spared=TORSO)
        joints[2 * number : 2 * number + 2][missed] = 0.0


# --- what every writer of generated people needs ------------------------------------------------


def views(batch: "dict[str, Tensor]") -> "tuple[Tensor, Tensor]":
    """Images `[2 B, 3, H, W]` and poses `[2 B, 18, 3]` of B pairs of mannequins: the two views of
    one person after those of another."""
    import torch

    images, poses = (torch.stack([batch["source" + name], batch["target" + name]], 1).flatten(0, 1)
                     for name in ("", "_pose"))
    return images, poses


def missed_joints(draws: np.ndarray, share: float, *, spared: Sequence[int] = ()) -> np.ndarray:
    """What an estimator of poses misses, `[..., 18]` bool: now and then a joint or a whole body.

    Args:
        draws: `[..., 19]`, uniform in [0, 1): one for each joint, one for the body.
        share: of the joints that are missed.
        spared: joints that are only missed with the whole body.
    """
    missed = draws[..., :18] < share
    missed[..., list(spared)] = False
    return missed | (draws[..., 18:] < _MISSED_BODIES)


def write_texts(root: Path, layout: DatasetLayout, split: str, names: Sequence[str],
                joints: np.ndarray, pairs: np.ndarray | None = None, *,
                width: int | None = None) -> list[str]:
    """Write the text files of a split into a data set's folder.

    Args:
        joints: `[N, 18, 3]` in pixels.
        pairs: `[P, 2]` indices; None: left to the rule of the layout.
        width: columns of the frame that the joints are in, where the layout has several.

    Returns: the names of the files.
    """
    texts = [layout.file_name("annotation", split, width=width)]
    write_annotations(root / texts[0], names, joints)
    if pairs is not None:
        texts.append(layout.file_name("pairs", split, width=width))
        write_pairs(root / texts[1], names, pairs)
    if layout.listed_images:
        texts.append(f"{split}.lst")
        write_aside(root / texts[-1], "".join(name + "\n" for name in names))
    return texts
