"""Where the pairs of a run come from: generated mannequins, or a data set on disk."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from posemodel.config.sections import DataConfig
from posemodel.data.augmentation import Augmentation
from posemodel.data.layouts.layout import VALIDATION
from posemodel.data.pair_loader import PairLoader, TrainingPairs
from posemodel.data.reading import DatasetFiles, find_dataset, make_validation, open_pairs
from posemodel.mannequins.pairs import Mannequins
from posemodel.pictures.inpainting import filling
from posemodel.runtime.errors import UserError

# Runs train on seeds below 2**32 (`check_seed`), so these pairs are nobody's training pairs.
# Whatever experiments choose, such as a default, they choose on validation pairs: test pairs show.
# 2**32 + 2 were test pairs, until a table of them suggested what to try next.
HELD_OUT_SEEDS = {VALIDATION: 2**32 + 1, "test": 2**32 + 3}
# Held-out pairs at a time: the pictures of their 4D maps are made from whole maps.
_BATCH, _MAP_VALUES = 16, 2**28

Log = Callable[[str], None]


def check_seed(seed: int) -> None:
    """Training seeds stay clear of the held-out pairs. Raises: `UserError` otherwise."""
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed {seed}: expected 0 to {2**32 - 1}")


def check_root(data: DataConfig) -> None:
    """A data set on disk is somewhere. Raises: `UserError` otherwise."""
    if not data.generated and not data.root:
        raise UserError(
            f"no --data.root for the {data.kind} data set: give its folder; or train the same "
            "sizes on generated people with --data.kind mannequins, or make a data set of them "
            f"with python -m posemodel.data synthesize DIR --layout {data.kind}")


def mannequins(data: DataConfig, *, seed: int, device: torch.device) -> Mannequins:
    """The generator of pairs that a configuration describes."""
    return Mannequins(size=data.image_size, turn=data.turn, background=data.background,
                      hidden_joints=data.hidden_joints, seed=seed, device=device)


# --- to train on --------------------------------------------------------------------------------


class TrainingMannequins:
    """Generated training batches, one for each step."""

    def __init__(self, data: DataConfig, device: torch.device,
                 positions: Callable[[int], Sequence[int]], *, seed: int):
        self.mannequins, self.positions = mannequins(data, seed=seed, device=device), positions
        self.description = (
            f"mannequins, {_size(data)}, facing within {data.turn:g} degrees, "
            f"{data.background}; {data.evaluation_pairs} validation pairs")

    def batch(self, step: int) -> dict[str, Tensor]:
        """The batch of training step n (from 1), as `Mannequins.pairs` returns it."""
        return self.mannequins.pairs(self.positions(step))

    def report_to(self, log: Log) -> None:
        """There is nothing to report: no image of these can be bad."""

    def close(self) -> None:
        """There is nothing to close."""


def open_training_data(
    data: DataConfig, device: torch.device, positions: Callable[[int], Sequence[int]], *, seed: int,
    timeout: float = 600.0
) -> TrainingMannequins | TrainingPairs:
    """The training pairs of a run: `batch(step)` gives those of a step, `description` says in one
    line what they are, and bad images are reported to where `report_to(log)` says.

    Args:
        positions: which places of the endless training sequence a step has, in this process.
        seed: of the run.
        timeout: seconds that processes which decode images may take for a batch.

    Raises: `UserError` when the data set cannot be used.
    """
    if data.generated:
        return TrainingMannequins(data, device, positions, seed=seed)
    loader = _loader(data, "train", device, workers=data.workers, replace=True, seed=seed,
                     timeout=timeout)
    # Now rather than at the first evaluation, which may be hours away.
    split = split_while_training(data)
    held_out = len(_loader(data, split, device, workers=0, replace=False).pairs.pairs)
    train = loader.pairs
    return TrainingPairs(
        loader, positions=positions, pairs_per_epoch=data.pairs_per_epoch, seed=seed,
        augmentation=Augmentation(flip=data.flip, rotate=data.rotate, scale=data.scale,
                                  shift=data.shift),
        description=f"{data.kind}, {_size(data)}, {len(train.pairs):,} pairs of "
                    f"{len(train.names):,} images; {min(data.evaluation_pairs, held_out):,} of "
                    f"{held_out:,} {split} pairs held out")


# --- to measure on ------------------------------------------------------------------------------


def split_while_training(data: DataConfig) -> str:
    """The split of the evaluations in a training run, which people choose settings by:
    "validation", or "test" of a data set on disk that has no other. Raises: `UserError`."""
    if data.generated or _dataset(data).has_validation:
        return VALIDATION
    return "test"


def missing_validation(data: DataConfig) -> str:
    """A line for people where evaluations while training have to use test pairs, else empty.
    Raises: `UserError`."""
    if split_while_training(data) == VALIDATION:
        return ""
    return ("no validation list: evaluations on the way use test pairs; choose nothing by them "
            f"({make_validation(_dataset(data))} makes one)")


class HeldOutMannequins:
    """Generated pairs that nobody trains on, the same ones every time."""

    disk = None
    """there is no loader of files"""
    holes = None
    """nor a hole behind anybody that is made up alone: the background is known"""

    def __init__(self, data: DataConfig, device: torch.device, batches: list[np.ndarray],
                 split: str):
        self.mannequins = mannequins(data, seed=HELD_OUT_SEEDS[split], device=device)
        self.split, self.batches = split, batches
        """which pairs make up each batch"""

    def fingerprint(self) -> str:
        """Tells lists of pairs on disk apart; empty, for these are what the configuration says."""
        return ""

    def people(self) -> np.ndarray:
        """Who stands in the source of each pair there is, as a number: always somebody else."""
        return np.arange(sum(map(len, self.batches)))

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[dict[str, Tensor]]:
        """The pairs of some batches. Yields: `pair` `[B]`, the indices of these pairs, and what
        `Mannequins.pairs` returns."""
        for pairs in batches:
            yield {"pair": torch.from_numpy(pairs), **self.mannequins.pairs(pairs.tolist())}


class HeldOutImages:
    """Pairs of a data set on disk that are not for training, with the face of `HeldOutMannequins`.
    A pair with a bad image is left out."""

    def __init__(self, loader: PairLoader, batches: list[np.ndarray]):
        self.disk, self.split, self.batches = loader, loader.pairs.split, batches
        self.stream = loader.stream
        """as that of `HeldOutMannequins`; of what mannequins have, images and poses alone"""

    @property
    def holes(self) -> str | None:
        """What fills the holes behind the people; None: there are none."""
        pairs = self.disk.pairs
        return filling(plate=pairs.has_plates) if pairs.layout.masks else None

    def fingerprint(self) -> str:
        """Tells lists of pairs apart, wherever they lie."""
        pairs = self.disk.pairs
        return hashlib.sha256("\n".join(pairs.names).encode() + pairs.pairs.tobytes()
                              + pairs.joints.tobytes()).hexdigest()

    def people(self) -> np.ndarray:
        """Who stands in the source of each pair there is, as a number: pairs of one person share
        images."""
        pairs = self.disk.pairs
        names = [pairs.layout.person(pairs.names[source]) for source in pairs.pairs[:, 0]]
        return np.unique(names, return_inverse=True)[1]


HeldOut = HeldOutMannequins | HeldOutImages


def open_held_out(data: DataConfig, device: torch.device, count: int, *, split: str,
                  positions: int, log: Log = print) -> HeldOut:
    """Pairs that nobody trains on, in batches of up to 16 (fewer where maps have more than 2^28
    values), the same ones every time.

    Of a data set on disk they are evenly spread over the list of the split, and all of them where
    `count` is no less.

    Args:
        split: "validation", to choose by, or "test", to show.
        positions: of the flow's grid; a 4D map has their square of values.
        log: is given a line for each bad image.

    Raises: `UserError` when the data set cannot be used.
    """
    size = max(1, min(_BATCH, _MAP_VALUES // positions**2))
    if data.generated:
        return HeldOutMannequins(data, device, _batches(np.arange(count), size), split)
    # A single batch is read sooner than a worker has started.
    workers = data.workers if count > size else 0
    loader = _loader(data, split, device, workers=workers, replace=False)
    loader.report_to(log)
    available = len(loader.pairs.pairs)
    count = min(count, available)
    return HeldOutImages(loader, _batches(np.arange(count) * available // count, size))


def held_out_batches(data: DataConfig, device: torch.device, count: int, *, split: str,
                     positions: int, log: Log = print) -> Iterator[dict[str, Tensor]]:
    """All pairs of `open_held_out`, batch by batch."""
    held_out = open_held_out(data, device, count, split=split, positions=positions, log=log)
    yield from held_out.stream(held_out.batches)


def _batches(chosen: np.ndarray, size: int) -> list[np.ndarray]:
    return np.split(chosen, range(size, len(chosen), size))


def _size(data: DataConfig) -> str:
    height, width = data.image_size
    return f"{height} x {width}"


def _dataset(data: DataConfig) -> DatasetFiles:
    check_root(data)
    return find_dataset(data.root, kind=data.kind)


def _loader(data: DataConfig, split: str, device: torch.device, *, workers: int, replace: bool,
            seed: int = 0, timeout: float = 600.0) -> PairLoader:
    check_root(data)
    pairs = open_pairs(data.root, split, kind=data.kind)
    return PairLoader(pairs, image_size=data.image_size, fit=data.fit, workers=workers,
                      replace=replace, seed=seed, timeout=timeout, device=device)
