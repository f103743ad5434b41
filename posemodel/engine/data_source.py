"""Where the pairs of a run come from: generated mannequins, or a data set on disk."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from posemodel.config import Config
from posemodel.data.annotations import fashion_person, market_person
from posemodel.data.augmentation import Augmentation
from posemodel.data.layouts import open_pairs
from posemodel.data.mannequins import Mannequins
from posemodel.data.pair_loader import PairLoader, TrainingPairs
from posemodel.errors import UserError

# Runs train on seeds below 2**32 (`check_seed`), so these pairs are nobody's training pairs.
HELD_OUT_SEED = 2**32 + 1
# Held-out pairs at a time: the pictures of their 4D maps are made from whole maps.
_BATCH, _MAP_VALUES = 16, 2**28

Log = Callable[[str], None]


def check_seed(seed: int) -> None:
    """Training seeds stay clear of the held-out pairs.

    Raises: `UserError` otherwise.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed {seed}: expected 0 to {2**32 - 1}")


def check_root(config: Config) -> None:
    """A data set on disk is somewhere.

    Raises: `UserError` otherwise.
    """
    data = config.data
    if data.kind != "mannequins" and not data.root:
        raise UserError(
            f"no --data.root for the {data.kind} data set: give its folder; or train the same "
            "sizes on generated people with --data.kind mannequins, or make a data set of them "
            f"with python -m posemodel.data synthesize DIR --layout {data.kind}")


def mannequins(config: Config, *, seed: int, device: torch.device) -> Mannequins:
    """The generator of pairs that a configuration describes."""
    data = config.data
    return Mannequins(size=data.image_size, turn=data.turn, background=data.background,
                      hidden_joints=data.hidden_joints, seed=seed, device=device)


class TrainingMannequins:
    """Generated training batches, one for each step."""

    def __init__(self, config: Config, device: torch.device,
                 positions: Callable[[int], Sequence[int]]):
        self.data = mannequins(config, seed=config.seed, device=device)
        self.positions = positions
        data = config.data
        self.description = (
            f"mannequins, {_size(config)}, facing within {data.turn:g} degrees, "
            f"{data.background}; {data.evaluation_pairs} held-out pairs")

    def batch(self, step: int) -> dict[str, Tensor]:
        """The batch of training step n (from 1), as `Mannequins.pairs` returns it."""
        return self.data.pairs(self.positions(step))

    def report_to(self, log: Log) -> None:
        """There is nothing to report: no image of these can be bad."""

    def close(self) -> None:
        """There is nothing to close."""


def open_training_data(
    config: Config, device: torch.device, positions: Callable[[int], Sequence[int]]
) -> TrainingMannequins | TrainingPairs:
    """The training pairs of a run: `batch(step)` gives those of a step, `description` says in one
    line what they are, and bad images are reported to where `report_to(log)` says.

    Args:
        positions: which places of the endless training sequence a step has, in this process.

    Raises: `UserError` when the data set cannot be used.
    """
    data = config.data
    if data.kind == "mannequins":
        return TrainingMannequins(config, device, positions)
    loader = _loader(config, "train", device, workers=data.workers, replace=True)
    # Now rather than at the first evaluation, which may be hours away.
    held_out = len(_loader(config, "test", device, workers=0, replace=False).pairs.pairs)
    train = loader.pairs
    return TrainingPairs(
        loader, positions=positions, pairs_per_epoch=data.pairs_per_epoch, seed=config.seed,
        augmentation=Augmentation(flip=data.flip, rotate=data.rotate, scale=data.scale,
                                  shift=data.shift),
        description=f"{data.kind}, {_size(config)}, {len(train.pairs):,} pairs of "
                    f"{len(train.names):,} images; {min(data.evaluation_pairs, held_out):,} of "
                    f"{held_out:,} test pairs held out")


class HeldOutPairs:
    """Pairs that nobody trains on, in batches of up to 16 (fewer where maps have more than 2^28
    values), the same ones every time.

    Of a data set on disk they are pairs of the test split, evenly spread over its list, and all of
    them where `count` is no less; a pair with a bad image is left out.
    """

    def __init__(self, config: Config, device: torch.device, count: int, log: Log = print):
        """Raises: `UserError` when the data set cannot be used."""
        height, width = config.data.image_size
        size = max(1, min(_BATCH, _MAP_VALUES // (height * width // 16) ** 2))
        self.mannequins: Mannequins | None = None
        self.disk: PairLoader | None = None
        """one of the two"""
        if config.data.kind == "mannequins":
            self.mannequins = mannequins(config, seed=HELD_OUT_SEED, device=device)
            chosen = np.arange(count)
        else:
            # A single batch is read sooner than a worker has started.
            workers = config.data.workers if count > size else 0
            self.disk = _loader(config, "test", device, workers=workers, replace=False)
            self.disk.report_to(log)
            available = len(self.disk.pairs.pairs)
            chosen = np.arange(min(count, available)) * available // min(count, available)
        self.batches: list[np.ndarray] = np.split(chosen, range(size, len(chosen), size))
        """which pairs make up each batch"""

    def fingerprint(self) -> str:
        """Tells lists of pairs on disk apart, wherever they lie; empty for mannequins, which are
        what the configuration says."""
        if self.disk is None:
            return ""
        pairs = self.disk.pairs
        return hashlib.sha256("\n".join(pairs.names).encode() + pairs.pairs.tobytes()
                              + pairs.joints.tobytes()).hexdigest()

    def people(self) -> np.ndarray:
        """Who stands in the source of each pair there is, as a number: pairs of one person share
        images. Every mannequin is another person."""
        if self.disk is None:
            return np.arange(sum(map(len, self.batches)))
        pairs = self.disk.pairs
        person = {"deepfashion": fashion_person, "market": market_person}[pairs.kind]
        names = [person(pairs.names[source]) for source in pairs.pairs[:, 0]]
        return np.unique(names, return_inverse=True)[1]

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[dict[str, Tensor]]:
        """The pairs of some batches.

        Yields: `pair` `[B]`, the indices of these pairs, and what `Mannequins.pairs` returns, or
        the `source`, `target`, `source_pose` and `target_pose` of it that a data set on disk has.
        """
        if self.disk is not None:
            yield from self.disk.stream(batches)
        else:
            for pairs in batches:
                yield {"pair": torch.from_numpy(pairs), **self.mannequins.pairs(pairs.tolist())}


def held_out_batches(
    config: Config, device: torch.device, count: int, log: Log = print
) -> Iterator[dict[str, Tensor]]:
    """All pairs of `HeldOutPairs`, batch by batch."""
    held_out = HeldOutPairs(config, device, count, log)
    yield from held_out.stream(held_out.batches)


def _size(config: Config) -> str:
    height, width = config.data.image_size
    return f"{height} x {width}"


def _loader(config: Config, split: str, device: torch.device, *, workers: int,
            replace: bool) -> PairLoader:
    check_root(config)
    data = config.data
    pairs = open_pairs(data.root, split, kind=data.kind)
    return PairLoader(pairs, image_size=data.image_size, fit=data.fit, workers=workers,
                      replace=replace, seed=config.seed, device=device)
