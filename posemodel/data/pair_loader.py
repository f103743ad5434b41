"""Batches of pairs from a data set on disk.

Worker processes open, crop and resize image files. Only their uint8 pixels travel; conversion to
float, augmentation and pose maps are the training device's. Which pairs a batch holds, and what is
done to them, is a pure function of (seed, position in the training sequence): the number of workers
changes nothing, and any batch can be asked for directly.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from posemodel.data.augmentation import Augmentation, augment, draw
from posemodel.data.images import BadImages, ImageError, read_image, read_or_substitute
from posemodel.data.layouts.layout import same_aspect
from posemodel.data.pair_set import PairSet
from posemodel.data.workers import NoSharedMemory, parts, shared, start_worker
from posemodel.pictures.pixels import to_images
from posemodel.poses.joints import pixels_to_normalized
from posemodel.runtime.errors import UserError

_KNOWN = 250  # of 255: a pixel that is reduced from what is known and what is not has less
_PLATES = 64  # that a process remembers
_ORDER = 1  # the random stream of this module; `augmentation` has another


class View:
    """What part of a data set's frame the model sees, and in what size.

    An image of the frame's own aspect shows the whole frame, one of the aspect of what lies between
    white borders that alone; `fit="stretch"` widens it to an image of the frame's aspect (GFLA).
    """

    def __init__(self, pairs: PairSet, *, image_size: tuple[int, int], fit: str):
        """
        Args:
            image_size: (H, W) of the images to come.
            fit: "pad"; of a data set with white borders also "stretch".

        Raises: `UserError` for a size that would distort the people.
        """
        self.layout, self.image_size = pairs.layout, tuple(image_size)
        if not any(same_aspect(image_size, size) for size in self.layout.sizes):
            shapes = " or ".join(f"{h}:{w}" for h, w in self.layout.sizes)
            raise UserError(
                f"--data.image-size {image_size[0]} {image_size[1]} would distort the people of a "
                f"{pairs.kind} data set; expected a height to width of {shapes}")
        whole = same_aspect(image_size, pairs.frame) and fit == "pad"
        self.columns = (0, pairs.frame[1]) if whole else self.layout.inner
        """the first and the last plus one of the frame's columns that the model sees"""

    def joints(self, joints: np.ndarray) -> np.ndarray:
        """`[..., 3]` in pixels of the frame -> normalised; outside of what is seen: missing."""
        first, last = self.columns
        pixels = torch.from_numpy(joints - np.float32([first, 0, 0]))
        pose = pixels_to_normalized(pixels, (self.layout.frame[0], last - first))
        return (pose * (pose[..., :2].abs() <= 1).all(-1, keepdim=True)).numpy()

    def picture(self, image: np.ndarray) -> np.ndarray | None:
        """An image file's pixels `[h, w, 3]` uint8 -> `[H, W, 3]`; None if they do not fit.

        Resized by Pillow's bicubic filter, which averages where it reduces.
        """
        height, width = image.shape[:2]
        covered = self.layout.covered((height, width))
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


class Sample(NamedTuple):
    """What files say of a pair."""

    index: int
    images: np.ndarray
    """`[2, H, W, 3]` uint8"""
    masks: np.ndarray | None
    """`[2, H, W]` uint8"""
    plate: np.ndarray | None
    """what is behind the person of the source, and how far that is known, `[H, W, 4]` uint8"""


class PairImages(Dataset):
    """The images of pairs, decoded; what a worker process holds."""

    def __init__(self, pairs: PairSet, view: View, *, replace: bool, seed: int):
        """`replace`: another pair takes the place of one with a bad image, which one depends on
        `seed`; otherwise the pair is left out."""
        self.pairs, self.view, self.replace, self.seed = pairs, view, replace, seed
        self._plates: dict[tuple[Path, Path], np.ndarray] = {}
        """by their files: all pairs of a shot have the same"""

    def __getitem__(self, wanted: np.ndarray) -> dict:
        """The pairs with these indices.

        Returns: `images` `[B, 2, H, W, 3]` uint8, `masks` `[B, 2, H, W]` uint8 and `plates`
        `[B, H, W, 4]` uint8 where the set has masks and plates, `pairs`, the B indices that they
        really have, `problems` a line for each bad image, `failure` a line if there is no batch.
        """
        samples, problems, failure, arrays = [], [], "", {}
        try:
            samples = [sample for index in wanted
                       if (sample := self._read_or_replace(int(index), problems)) is not None]
            arrays = {name: shared(torch.from_numpy(array)) for name, array in
                      self._stacked(samples).items()}
        # An exception that leaves a worker comes out as its traceback.
        except ImageError as error:
            failure = f"{error}; check it with python -m posemodel.data check"
        except NoSharedMemory as error:
            failure = str(error)
        if failure:
            samples, arrays = [], {"images": None}
        return {**arrays, "pairs": [sample.index for sample in samples], "problems": problems,
                "failure": failure}

    def _stacked(self, samples: list[Sample]) -> dict[str, np.ndarray]:
        size = self.view.image_size
        arrays = {"images": np.array([sample.images for sample in samples],
                                     np.uint8).reshape(-1, 2, *size, 3)}
        if self.pairs.layout.masks:
            arrays["masks"] = np.array([sample.masks for sample in samples],
                                       np.uint8).reshape(-1, 2, *size)
        if any(sample.plate is not None for sample in samples):
            unknown = np.zeros((*size, 4), np.uint8)
            arrays["plates"] = np.stack([unknown if sample.plate is None else sample.plate
                                         for sample in samples])
        return arrays

    def _read_or_replace(self, index: int, problems: list[str]) -> Sample | None:
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

    def _read(self, index: int) -> Sample:
        images = self.pairs.pairs[index]
        pictures = np.stack([self._picture(self.pairs.path(image)) for image in images])
        masks = [self.pairs.mask(image) for image in images]
        if None in masks:
            return Sample(index, pictures, None, None)
        return Sample(index, pictures, np.stack([self._picture(mask)[..., 0] for mask in masks]),
                      self._plate(images[0]))

    def _plate(self, image: int) -> np.ndarray | None:
        """What is behind the person of an image, and how far that is known, `[H, W, 4]` uint8."""
        files = self.pairs.plate(image)
        if files is None:
            return None
        if files not in self._plates:
            if len(self._plates) >= _PLATES:
                self._plates.clear()
            behind, known = map(self._picture, files)
            self._plates[files] = np.concatenate([behind, known[..., :1]], -1)
        return self._plates[files]

    def _picture(self, path: Path) -> np.ndarray:
        pixels = read_image(path)
        picture = self.view.picture(pixels)
        if picture is None:
            (height, width), (h, w) = pixels.shape[:2], self.pairs.frame
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


class _Loader(DataLoader):
    def check_worker_number_rationality(self) -> None:
        """torch warns of more workers than there are cores, at length and twice; --data.workers has
        a meaning with one core, too: a step does not wait for a disk."""


class PairLoader:
    """Batches of the pairs of a `PairSet`, on the training device."""

    def __init__(self, pairs: PairSet, *, image_size: tuple[int, int], fit: str = "pad",
                 workers: int = 0, replace: bool = True, seed: int = 0,
                 timeout: float = 600.0, device: torch.device | str = "cpu"):
        """
        Args:
            image_size: (H, W) of the images.
            fit: "pad" or "stretch", see `View`.
            workers: processes that decode; 0: this one.
            timeout: seconds that these may take for a batch.
            replace, seed: what happens to a pair with a bad image, see `PairImages`.

        Raises: `UserError` for a set without pairs and for a size that does not suit it.
        """
        if not len(pairs.pairs):
            raise UserError(f"{pairs.folder}: the {pairs.split} split has no pairs")
        self.pairs, self.workers, self.device = pairs, workers, torch.device(device)
        self.timeout = timeout
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
        `[B, 18, 3]`, (x, y, presence), normalised, `pair` `[B]`, the indices of these pairs, and
        where the set has masks `source_mask`, `target_mask` `[B, 1, H, W]` float32, 0 to 1, and
        with plates among them `source_plate` as an image and `source_known` `[B, 1, H, W]`, 1 where
        it is known, else 0.

        Raises: `UserError` when too many images are bad, and for workers that fail or do not
        answer in time.
        """
        loader = _Loader(
            self.images, sampler=requests, batch_size=None, num_workers=self.workers,
            worker_init_fn=start_worker, pin_memory=self.device.type == "cuda",
            # Its own generator: the global one belongs to the training step.
            generator=torch.Generator())
        for part in parts(loader, limit=self.timeout):
            self._account(part)
            if len(part["pairs"]):
                yield self.on_device(part)

    def _account(self, part: dict) -> None:
        """Report bad images; stop when there are too many."""
        if part["failure"]:
            raise UserError(part["failure"])
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
        numbers = torch.tensor(part["pairs"], dtype=torch.long)
        ends = torch.from_numpy(self.pairs.pairs)[numbers]                         # [B, 2]
        batch = {"pair": numbers}
        for side, name in enumerate(("source", "target")):
            batch[name] = to_images(images[:, side])
            batch[f"{name}_pose"] = self._poses[ends[:, side]].to(self.device, non_blocking=True)
            if "masks" in part:
                masks = part["masks"][:, side, None].to(self.device, non_blocking=True)
                batch[f"{name}_mask"] = masks.float() / 255
        if "plates" in part:
            plates = part["plates"].to(self.device, non_blocking=True)
            batch["source_plate"] = to_images(plates[..., :3])
            batch["source_known"] = (plates[..., 3] >= _KNOWN)[:, None].float()
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
        self._next, self._stream = 0, None

    def batch(self, step: int) -> dict[str, Tensor]:
        """The batch of training step n (from 1); steps in a row are read ahead. Returns: what
        `PairLoader.stream` yields, augmented."""
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
        self._next, stream, self._stream = 0, self._stream, None
        if stream is not None:
            stream.close()
