"""Training batches of P identities with K images each, real and generated ones mixed.

What a batch holds, and what is done to its images, is a pure function of the seed and the step.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from posemodel.data.images import read_image
from posemodel.reid.config import ReidConfig
from posemodel.reid.market import Crops
from posemodel.reid.network import MEAN
from posemodel.runtime.errors import UserError

_BATCHES = 0x7265_6964  # the random stream of this module
_PADDING = 10 / 128  # of the height, before a random crop
_ERASED = (0.02, 0.4)  # share of the image
_ERASED_ASPECT = 0.3
_FILL = tuple(round(255 * value) for value in MEAN)
_AHEAD = 3  # batches that are read while one is trained on


class Batches:
    """The batches of a training run."""

    def __init__(self, real: Crops, generated: Crops | None, config: ReidConfig, *, seed: int,
                 workers: int):
        """
        Args:
            seed: of the run.
            workers: threads that read images.

        Raises: `UserError` for fewer identities than a batch has.
        """
        self.persons = np.unique(real.persons)
        """`[I]`, the identity of each class"""
        self.config, self.seed, self.workers = config, seed, workers
        self.identities, self.images = config.batch_identities, config.batch_images
        if len(self.persons) < self.identities:
            raise UserError(f"--batch-identities {self.identities}: there are only "
                            f"{len(self.persons)} identities")
        if self.identities < 2 or self.images < 2:
            raise UserError(f"--batch-identities {self.identities} --batch-images {self.images}: "
                            "expected at least 2 of each")
        self._real = _by_person(real, self.persons)
        self._generated = None if generated is None else _by_person(generated, self.persons)

    def stream(self, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels `[P K, H, W, 3]` uint8 and classes `[P K]` int64 of steps 1 to `steps`."""
        with ThreadPoolExecutor(self.workers) as pool:
            def submit(step: int) -> tuple[list[Future], np.ndarray]:
                files, classes = self.draw(step)
                return [pool.submit(self._read, path, step, slot)
                        for slot, path in enumerate(files)], classes

            waiting = deque(submit(step) for step in range(1, min(_AHEAD, steps) + 1))
            for step in range(1, steps + 1):
                if step + _AHEAD <= steps:
                    waiting.append(submit(step + _AHEAD))
                futures, classes = waiting.popleft()
                pixels = np.stack([future.result() for future in futures])
                yield torch.from_numpy(pixels), torch.from_numpy(classes)

    def draw(self, step: int) -> tuple[list[Path], np.ndarray]:
        """Files and classes of a batch, K of one identity after K of another."""
        random = np.random.default_rng([self.seed, _BATCHES, step])
        classes = random.choice(len(self.persons), self.identities, replace=False)
        files: list[Path] = []
        for index in classes.tolist():
            generated = self._generated[index] if self._generated else []
            wanted = int((random.random(self.images) < self.config.generated_share).sum())
            if not generated:
                wanted = 0
            files += _some(random, self._real[index], self.images - wanted)
            files += _some(random, generated, wanted)
        return files, classes.repeat(self.images)

    def _read(self, path: Path, step: int, slot: int) -> np.ndarray:
        random = np.random.default_rng([self.seed, _BATCHES, step, slot])
        image = read_resized(path, self.config.image_size)
        if random.random() < 0.5:
            image = image[:, ::-1]
        return _erase(_shift(image, random), random, self.config.erase)


def read_resized(path: Path, size: tuple[int, int]) -> np.ndarray:
    """An image file as `[H, W, 3]` uint8."""
    image = Image.fromarray(read_image(path))
    return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))


def _by_person(crops: Crops, persons: np.ndarray) -> list[list[Path]]:
    return [[crops.path(index) for index in np.flatnonzero(crops.persons == person)]
            for person in persons]


def _some(random: np.random.Generator, files: list[Path], count: int) -> list[Path]:
    """`count` different files, or as often the same as needs be."""
    if not count:
        return []
    return [files[index] for index in random.choice(len(files), count, replace=len(files) < count)]


def _shift(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A crop of the image with a black border around it, in the image's own size."""
    height, width = image.shape[:2]
    border = max(1, round(_PADDING * height))
    padded = np.pad(image, ((border, border), (border, border), (0, 0)))
    top, left = random.integers(2 * border + 1, size=2)
    return padded[top : top + height, left : left + width]


def _erase(image: np.ndarray, random: np.random.Generator, share: float) -> np.ndarray:
    """The image, or a copy with a rectangle of the mean colour."""
    height, width = image.shape[:2]
    if random.random() >= share:
        return image
    area = random.uniform(*_ERASED) * height * width
    aspect = np.exp(random.uniform(np.log(_ERASED_ASPECT), -np.log(_ERASED_ASPECT)))
    rows = min(height, max(1, round(np.sqrt(area * aspect))))
    columns = min(width, max(1, round(np.sqrt(area / aspect))))
    top, left = random.integers(height - rows + 1), random.integers(width - columns + 1)
    image = image.copy()
    image[top : top + rows, left : left + columns] = _FILL
    return image
