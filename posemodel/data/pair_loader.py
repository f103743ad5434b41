"""Batches of pairs from a data set on disk.

Worker processes open, crop and resize image files. Only their uint8 pixels travel; conversion to
float, augmentation and pose maps are the training device's. Which pairs a batch holds, and what is
done to them, is a pure function of (seed, position in the training sequence): the number of workers
changes nothing, and any batch can be asked for directly.
"""

import gc
import itertools
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from posemodel.data.augmentation import Augmentation, augment, draw
from posemodel.data.images import BadImages, ImageError, read_image, read_or_substitute
from posemodel.data.keypoints import pixels_to_normalized
from posemodel.data.layouts import BORDER, INNER_WIDTH
from posemodel.data.pair_set import PairSet
from posemodel.errors import UserError

_ORDER = 1  # the random stream of this module; `augmentation` has another
# DeepFashion's people stand in the middle 176 of 256 columns; the rest is white.
_INNER = (BORDER, BORDER + INNER_WIDTH)
# Seconds that a worker goes on after SIGTERM; torchrun grants a job as many.
_GRACE = 30
# The high-resolution files of DeepFashion are 750 x 1101: not quite 176 x 256.
_ASPECT_TOLERANCE = 0.01


class View:
    """What part of a data set's frame the model sees, and in what size.

    An image of the frame's own aspect shows the whole frame. DeepFashion's (256, 176) shows its
    middle, without the white borders; `fit="stretch"` widens that middle to the whole image (GFLA).
    """

    def __init__(self, pairs: PairSet, *, image_size: tuple[int, int], fit: str):
        """
        Args:
            image_size: (H, W) of the images to come.
            fit: "pad"; deepfashion also "stretch".

        Raises: `UserError` for a size that would distort the people.
        """
        height, width = pairs.frame
        self.frame, self.image_size = pairs.frame, tuple(image_size)
        self._bordered = pairs.kind == "deepfashion"
        aspects = [(height, width)] + [(height, INNER_WIDTH)] * self._bordered
        if not any(_same_aspect(image_size, aspect, 0.0) for aspect in aspects):
            shapes = " or ".join(f"{h}:{w}" for h, w in aspects)
            raise UserError(
                f"--data.image-size {image_size[0]} {image_size[1]} would distort the people of a "
                f"{pairs.kind} data set; expected a height to width of {shapes}")
        whole = _same_aspect(image_size, pairs.frame, 0.0) and fit == "pad"
        self.columns = (0, width) if whole else _INNER
        """the first and the last plus one of the frame's columns that the model sees"""

    def joints(self, joints: np.ndarray) -> np.ndarray:
        """`[..., 3]` in pixels of the frame -> normalised; outside of what is seen: missing."""
        first, last = self.columns
        pixels = torch.from_numpy(joints - np.float32([first, 0, 0]))
        pose = pixels_to_normalized(pixels, (self.frame[0], last - first))
        return (pose * (pose[..., :2].abs() <= 1).all(-1, keepdim=True)).numpy()

    def _covered(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """The frame's columns that a file of (H, W) shows: all of them or, without the borders,
        the middle ones, in any resolution. None: it is no picture of this frame."""
        height, width = self.frame
        if _same_aspect(size, (height, width), _ASPECT_TOLERANCE):
            return 0, width
        if self._bordered and _same_aspect(size, (height, INNER_WIDTH), _ASPECT_TOLERANCE):
            return _INNER
        return None

    def picture(self, image: np.ndarray) -> np.ndarray | None:
        """An image file's pixels `[h, w, 3]` uint8 -> `[H, W, 3]`; None if they do not fit.

        Resized by Pillow's bicubic filter, which averages where it reduces.
        """
        height, width = image.shape[:2]
        covered = self._covered((height, width))
        if covered is None:
            return None
        picture = Image.fromarray(image)
        first, last = ((column - covered[0]) * width / (covered[1] - covered[0])
                       for column in self.columns)
        if first < 0:
            border = round(-first)
            page = Image.new("RGB", (width + 2 * border, height), (255, 255, 255))
            page.paste(picture, (border, 0))
            picture, first, last = page, 0, page.width
        size = self.image_size[::-1]
        return np.asarray(picture.resize(size, Image.Resampling.BICUBIC, (first, 0, last, height)))


def _same_aspect(size: tuple[int, int], other: tuple[int, int], tolerance: float) -> bool:
    ratio = (size[1] * other[0]) / (size[0] * other[1])
    return abs(ratio - 1) <= tolerance


class PairImages(Dataset):
    """The images of pairs, decoded; what a worker process holds."""

    def __init__(self, pairs: PairSet, view: View, *, replace: bool, seed: int):
        """`replace`: another pair takes the place of one with a bad image, which one depends on
        `seed`; otherwise the pair is left out."""
        self.pairs, self.view, self.replace, self.seed = pairs, view, replace, seed

    def __getitem__(self, wanted: np.ndarray) -> dict:
        """The pairs with these indices.

        Returns: `images` `[B, 2, H, W, 3]` uint8, `pairs` `[B]` the indices that they really have,
        `problems` a line for each bad image, `failure` a line if no other pair could be found.
        """
        images, found, problems = [], [], []
        part = {"images": torch.empty(0, 2, *self.view.image_size, 3, dtype=torch.uint8),
                "pairs": torch.empty(0, dtype=torch.long), "problems": problems, "failure": ""}
        try:
            for index in wanted:
                sample = self._read_or_replace(int(index), problems)
                if sample is not None:
                    found.append(sample[0])
                    images.append(sample[1])
        except ImageError as error:
            # An exception that leaves a worker comes out as its traceback.
            return part | {"failure": str(error)}
        if images:
            part |= {"images": torch.from_numpy(np.stack(images)), "pairs": torch.tensor(found)}
        return part

    def _read_or_replace(self, index: int, problems: list[str]) -> tuple[int, np.ndarray] | None:
        if self.replace:
            sample, bad = read_or_substitute(self._read, index, count=len(self.pairs.pairs),
                                             seed=self.seed)
            problems += bad
            return sample
        try:
            return self._read(index)
        except ImageError as error:
            problems.append(str(error))
            return None

    def _read(self, index: int) -> tuple[int, np.ndarray]:
        return index, np.stack([self._picture(image) for image in self.pairs.pairs[index]])

    def _picture(self, image: int) -> np.ndarray:
        path = self.pairs.path(image)
        pixels = read_image(path)
        picture = self.view.picture(pixels)
        if picture is None:
            (height, width), (h, w) = pixels.shape[:2], self.view.frame
            raise ImageError(f"{path}: {width} x {height} pixels; a {self.pairs.kind} image has "
                             f"the shape of {w} x {h}")
        return picture


class PairOrder:
    """Which pair stands at each position of the endless training sequence."""

    def __init__(self, count: int, *, pairs_per_epoch: int, seed: int):
        """
        Args:
            count: number of pairs.
            pairs_per_epoch: 0: an epoch is a shuffle of all pairs, each of them once; N: an epoch
                is N random pairs, as in PATN and its descendants (4000).
        """
        self.count, self.seed = count, seed
        self.pairs_per_epoch = pairs_per_epoch
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    def indices(self, positions: Sequence[int]) -> np.ndarray:
        """Indices of pairs, a pure function of the positions (from 0)."""
        length = self.pairs_per_epoch or self.count
        return np.array([self._of_epoch(n // length)[n % length] for n in positions], np.int64)

    def _of_epoch(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            generator = np.random.default_rng([self.seed, _ORDER, epoch])
            self._epoch = epoch
            self._order = generator.integers(self.count, size=self.pairs_per_epoch) \
                if self.pairs_per_epoch else generator.permutation(self.count)
        return self._order


class PairLoader:
    """Batches of the pairs of a `PairSet`, on the training device."""

    def __init__(self, pairs: PairSet, *, image_size: tuple[int, int], fit: str = "pad",
                 workers: int = 0, replace: bool = True, seed: int = 0,
                 device: torch.device | str = "cpu"):
        """
        Args:
            image_size: (H, W) of the images.
            fit: "pad" or "stretch", see `View`.
            workers: processes that decode; 0: this one.
            replace, seed: what happens to a pair with a bad image, see `PairImages`.

        Raises: `UserError` for a set without pairs and for a size that does not suit it.
        """
        if not len(pairs.pairs):
            raise UserError(f"{pairs.folder}: the {pairs.split} split has no pairs")
        self.pairs, self.workers, self.device = pairs, workers, torch.device(device)
        self.view = View(pairs, image_size=image_size, fit=fit)
        self.images = PairImages(pairs, self.view, replace=replace, seed=seed)
        self._poses = torch.from_numpy(self.view.joints(pairs.joints))
        self._bad = BadImages(images=len(pairs.names), report=print)
        self._named: set[str] = set()
        self._asked = self._left_out = 0
        self.report_to(print)

    def report_to(self, log: Callable[[str], None]) -> None:
        """From now on `log` is given a line for each bad image."""
        self._log = self._bad.report = log

    def stream(self, requests: Iterable[np.ndarray]) -> Iterator[dict[str, Tensor]]:
        """One batch for each array of pair indices; workers read ahead.

        Yields: `source`, `target` `[B, 3, H, W]` float32 in [-1, 1], `source_pose`, `target_pose`
        `[B, 18, 3]`, (x, y, presence), normalised, and `pair` `[B]`, the indices of these pairs.

        Raises: `UserError` when too many images are bad.
        """
        loader = DataLoader(
            self.images, sampler=requests, batch_size=None, num_workers=self.workers,
            worker_init_fn=_start_worker, pin_memory=self.device.type == "cuda",
            # Its own generator: the global one belongs to the training step.
            generator=torch.Generator())
        for part in loader:
            self._account(part)
            if len(part["pairs"]):
                yield self.on_device(part)

    def _account(self, part: dict) -> None:
        """Report bad images; stop when there are too many."""
        if part["failure"]:
            raise UserError(f"{part['failure']}; check it with python -m posemodel.data check")
        if self.images.replace:
            self._bad.add(2 * len(part["pairs"]), part["problems"])
            return
        for problem in part["problems"]:
            if problem not in self._named:
                self._named.add(problem)
                self._log(f"bad image, its pairs are left out: {problem}")
        self._left_out += len(part["problems"])
        self._asked += len(part["problems"]) + len(part["pairs"])
        if self._left_out > max(10, self._asked // 100):
            raise UserError(
                f"{self._left_out} of {self._asked} {self.pairs.split} pairs have bad images (one: "
                f"{part['problems'][-1]}); check the data set with python -m posemodel.data check")

    def on_device(self, part: dict) -> dict[str, Tensor]:
        """A batch of what `PairImages` returned."""
        images = part["images"].to(self.device, non_blocking=True)
        ends = torch.from_numpy(self.pairs.pairs)[part["pairs"]]                   # [B, 2]
        batch = {"pair": part["pairs"]}
        for side, name in enumerate(("source", "target")):
            pixels = images[:, side].permute(0, 3, 1, 2)
            batch[name] = pixels.to(torch.float32, memory_format=torch.contiguous_format) \
                .div_(127.5).sub_(1)
            batch[f"{name}_pose"] = self._poses[ends[:, side]].to(self.device, non_blocking=True)
        return batch


class TrainingPairs:
    """The training batches: shuffled, augmented, one for each step."""

    def __init__(self, loader: PairLoader, *, positions: Callable[[int], Sequence[int]],
                 pairs_per_epoch: int, seed: int, augmentation: Augmentation,
                 description: str = ""):
        """
        Args:
            positions: the places in the endless training sequence that a step works on, in this
                process.
            pairs_per_epoch, seed: see `PairOrder`.
        """
        self.loader, self.positions = loader, positions
        self.augmentation, self.seed, self.description = augmentation, seed, description
        self.report_to = loader.report_to
        self._order = PairOrder(len(loader.pairs.pairs), pairs_per_epoch=pairs_per_epoch, seed=seed)
        self._next, self._stream = 0, _nothing()

    def batch(self, step: int) -> dict[str, Tensor]:
        """The batch of training step n (from 1); steps in a row are read ahead.

        Returns: what `PairLoader.stream` yields, augmented.
        """
        if step != self._next:
            # The stream must not refer to `self`, which refers to it: its workers end with it.
            positions = map(self.positions, itertools.count(step))
            self._stream = self.loader.stream(map(self._order.indices, positions))
        self._next = step + 1
        height, width = self.loader.view.image_size
        draws = draw(self.augmentation, seed=self.seed, positions=self.positions(step),
                     aspect=width / height)
        return augment(next(self._stream), draws)

    def close(self) -> None:
        """Ends the worker processes. Left to the interpreter's exit, that would take as long as
        they are allowed to outlive a signal."""
        self._next, stream, self._stream = 0, self._stream, _nothing()
        stream.close()


def _nothing() -> Iterator[dict[str, Tensor]]:
    yield from ()


def _start_worker(_index: int) -> None:
    # Ctrl-C and torchrun signal a whole group of processes; the training process alone decides.
    os.setpgrp()
    # A cluster signals each process, while the training one needs batches to end its step.
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))
    # What was inherited is the training process's to clean up; other loaders, for example.
    gc.freeze()
