"""Training the baseline for some seeds, and evaluating what came out.

    RUN/config.json               what was asked for; another command does not go into the folder
    RUN/seed_0/weights.safetensors
    RUN/seed_0/log.jsonl          losses
    RUN/seed_0/evaluation.json    written by `evaluate`

A seed's folder is there as a whole or not at all: the same command again trains those missing.
"""

import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from posemodel.engine.environment import choose_device, choose_precision
from posemodel.engine.progress import duration
from posemodel.errors import UserError
from posemodel.files import write_result
from posemodel.reid.batches import Batches, BatchPlan, read_resized
from posemodel.reid.export import new_folder, open_augmented
from posemodel.reid.losses import batch_hard_triplet
from posemodel.reid.market import (
    DISTRACTOR,
    JUNK,
    Crops,
    describe,
    few_per_person,
    open_split,
    parse_generated,
)
from posemodel.reid.network import BACKBONES, ReidNetwork, load_imagenet
from posemodel.reid.ranking import CONVENTIONS, Ranking, rank_features

# The course of the learning rate, as shares of the steps: 10, 40 and 70 of 120 epochs.
_WARM_UP, _DROPS = 10 / 120, (40 / 120, 70 / 120)
_WEIGHT_DECAY = 5e-4
_LOG_EVERY = 50
_FEATURES_AT_ONCE = 128


@dataclass(frozen=True, kw_only=True)
class ReidConfig:
    """A baseline; the defaults are those of Luo et al. for Market-1501."""

    root: str
    augmented: str
    """folder of `augment`; empty: real images only"""
    backbone: str
    weights: str
    """auto, none or a file, see `load_imagenet`"""
    image_size: tuple[int, int]
    batch_identities: int
    batch_images: int
    generated_share: float
    """of the images of a batch, where there are generated ones"""
    max_images: int
    """real images of each identity, over all cameras; 0: all"""
    max_poses: int
    """generated images of each real one; 0: all"""
    steps: int
    lr: float
    label_smoothing: float
    margin: float
    erase: float

    def __post_init__(self):
        if self.backbone not in BACKBONES:
            raise UserError(f"--backbone {self.backbone}: expected {', '.join(BACKBONES)}")
        for flag, value in (("steps", self.steps), ("lr", self.lr)):
            if not value > 0:
                raise UserError(f"--{flag} {value}: expected more than 0")
        for flag, value in (("generated-share", self.generated_share), ("erase", self.erase),
                            ("label-smoothing", self.label_smoothing)):
            if not 0 <= value <= 1:
                raise UserError(f"--{flag} {value}: expected a share, 0 to 1")
        for flag, value in (("max-images", self.max_images), ("max-poses", self.max_poses),
                            ("margin", self.margin)):
            if value < 0:
                raise UserError(f"--{flag} {value}: expected 0 or more")
        if len(self.image_size) != 2 or min(self.image_size) < 32:
            raise UserError(f"--image-size {self.image_size}: expected height and width, at least "
                            "32")


def training_crops(config: ReidConfig) -> tuple[Crops, Crops | None]:
    """The real and the generated images that a config trains on."""
    real = open_split(Path(config.root), "train")
    real = real.take(real.persons > DISTRACTOR)
    if config.max_images:
        real = real.take(few_per_person(real, config.max_images))
    if not config.augmented:
        return real, None
    generated = open_augmented(Path(config.augmented))
    stems = {Path(name).stem for name in real.names}
    made = [parse_generated(name) for name in generated.names]
    kept = np.array([source in stems and not 0 < config.max_poses <= pose
                     for source, pose in made])
    if not kept.any():
        raise UserError(f"{config.augmented} has no image made of those in {config.root}")
    return real, generated.take(kept)


def train(config: ReidConfig, out: Path, *, seeds: list[int], device: str, workers: int,
          say: Callable[[str], None]) -> None:
    """Train each seed that is not there yet.

    Raises: `UserError` for a folder of another config.
    """
    chosen, why = choose_device(device)
    dtype, _ = choose_precision("auto", chosen)
    _open_run(config, out)
    real, generated = training_crops(config)
    say(f"real: {describe(real)}")
    if generated is not None:
        say(f"generated: {describe(generated)}; {config.generated_share:.0%} of a batch")
    say(f"device: {chosen} ({why}), {str(dtype).removeprefix('torch.')}")
    for seed in seeds:
        folder = out / f"seed_{seed}"
        if folder.exists():
            say(f"{folder}: there already")
            continue
        with new_folder(folder) as temporary:
            _train_seed(config, real, generated, seed, temporary, chosen, dtype, workers, say)


def read_config(run: Path) -> ReidConfig:
    """The config of a run folder.

    Raises: `UserError` for another folder.
    """
    path = run / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return ReidConfig(**{**values, "image_size": tuple(values["image_size"])})
    except OSError as error:
        raise UserError(f"{run} is no run of posemodel.reid train: cannot read {path}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is no config of posemodel.reid train ({error!r})") from error


def seed_folders(run: Path) -> list[Path]:
    """The seeds that are trained.

    Raises: `UserError` where there is none.
    """
    folders = sorted(run.glob("seed_*"), key=lambda path: (len(path.name), path.name))
    if not folders:
        raise UserError(f"{run} has no trained seed in it; give its training command again")
    return folders


def evaluate(run: Path, *, root: Path | None, device: str, workers: int,
             say: Callable[[str], None]) -> None:
    """Rank the queries with each seed's network and write its evaluation.json.

    Args:
        root: None: the data set that the run was trained on.
    """
    config = read_config(run)
    chosen, _ = choose_device(device)
    where = root or Path(config.root)
    query, gallery = (open_split(where, split) for split in ("query", "gallery"))
    query = query.take(query.persons > DISTRACTOR)
    say(f"query: {describe(query)}")
    say(f"gallery: {describe(gallery)}")
    gallery = gallery.take(gallery.persons != JUNK)
    for folder in seed_folders(run):
        network = load_network(config, folder).to(chosen)
        start = time.perf_counter()
        ranking = rank(network, query, gallery, config.image_size, chosen, workers)
        found = {"root": str(where), "queries": len(query.names), "gallery": len(gallery.names),
                 "queries_with_match": int((ranking.matches > 0).sum()),
                 **{name: ranking.scores(name) for name in CONVENTIONS}}
        write_result(folder / "evaluation.json", json.dumps(found, indent=2) + "\n")
        shown = ", ".join(f"{name} {100 * value:.1f}" for name, value in found["step"].items())
        say(f"{folder.name}: {shown} ({duration(time.perf_counter() - start)})")


def load_network(config: ReidConfig, folder: Path) -> ReidNetwork:
    """The network of one seed.

    Raises: `UserError` for a file that is missing or damaged.
    """
    path = folder / "weights.safetensors"
    try:
        weights = safetensors.torch.load_file(path)
        network = ReidNetwork(backbone=config.backbone,
                              identities=len(weights["classes.weight"]))
        network.load_state_dict(weights)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise UserError(f"{path}: no weights of this run ({str(error).splitlines()[0]})"
                        ) from error
    return network.eval()


def rank(network: ReidNetwork, query: Crops, gallery: Crops, size: tuple[int, int],
         device: torch.device, workers: int) -> Ranking:
    """Extract the features of both and rank."""
    return rank_features(
        extract(network, query, size, device, workers),
        extract(network, gallery, size, device, workers),
        query_persons=query.persons, query_cameras=query.cameras,
        gallery_persons=gallery.persons, gallery_cameras=gallery.cameras)


@torch.inference_mode()
def extract(network: ReidNetwork, crops: Crops, size: tuple[int, int], device: torch.device,
            workers: int) -> Tensor:
    """The features after the neck of every image, `[N, C]`."""
    features = []
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(crops.names), _FEATURES_AT_ONCE):
            some = range(start, min(start + _FEATURES_AT_ONCE, len(crops.names)))
            pixels = np.stack(list(pool.map(lambda i: read_resized(crops.path(i), size), some)))
            features.append(network(torch.from_numpy(pixels).to(device))[1])
    return torch.cat(features)


def rate(step: int, config: ReidConfig) -> float:
    """Learning rate of step n (from 1): a linear warm-up, then a tenth after each drop."""
    done = step / config.steps
    drops = sum(done > drop for drop in _DROPS)
    return config.lr * min(1.0, done / _WARM_UP) * 0.1**drops


def _train_seed(
    config: ReidConfig, real: Crops, generated: Crops | None, seed: int, folder: Path,
    device: torch.device, dtype: torch.dtype, workers: int, say: Callable[[str], None],
) -> None:
    torch.manual_seed(seed)
    plan = BatchPlan(identities=config.batch_identities, images=config.batch_images,
                     generated_share=config.generated_share, image_size=config.image_size,
                     erase=config.erase, seed=seed)
    batches = Batches(real, generated, plan, workers=workers)
    network = ReidNetwork(backbone=config.backbone, identities=len(batches.persons))
    say(f"seed {seed}: {load_imagenet(network, config.backbone, config.weights)}")
    network.to(device, memory_format=torch.channels_last).train()
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=config.lr, weight_decay=_WEIGHT_DECAY)
    start = time.perf_counter()
    rows = []
    for step, (pixels, classes) in enumerate(batches.stream(config.steps), 1):
        pixels, classes = pixels.to(device), classes.to(device)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, config)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            before, after = network(pixels)
            scores = network.classes(after)
        entropy = F.cross_entropy(scores.float(), classes, label_smoothing=config.label_smoothing)
        triplet = batch_hard_triplet(before, classes, config.margin)
        loss = entropy + triplet
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % _LOG_EVERY == 0 or step == config.steps:
            elapsed = time.perf_counter() - start
            right = (scores.argmax(1) == classes).float().mean()
            row = {"step": step, "loss": loss.item(), "entropy": entropy.item(),
                   "triplet": triplet.item(), "right": right.item(),
                   "images_per_second": step * len(pixels) / elapsed}
            if not math.isfinite(row["loss"]):
                raise UserError(f"seed {seed}: the loss is not finite at step {step}; try a lower "
                                "--lr")
            rows.append(row)
            left = duration(elapsed / step * (config.steps - step))
            say(f"seed {seed}: step {step}/{config.steps}, loss {row['loss']:.3f}, "
                f"{row['right']:.0%} right, {row['images_per_second']:.0f} images/s, {left} left")
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    weights = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    safetensors.torch.save_file(weights, folder / "weights.safetensors",
                                metadata={"config": json.dumps({**asdict(config), "seed": seed})})


def _open_run(config: ReidConfig, out: Path) -> None:
    """Make the folder, or see that it is of the same config."""
    path = out / "config.json"
    if path.exists():
        there, asked = asdict(read_config(out)), asdict(config)
        changed = [f"{name}: {there[name]!r} there, {asked[name]!r} asked" for name in asked
                   if there[name] != asked[name]]
        if changed:
            raise UserError(f"{out} holds another run ({'; '.join(changed)}): nothing was touched; "
                            "choose another --out")
        return
    try:
        if out.exists() and any(out.iterdir()):
            raise UserError(f"{out} is not empty and is no run of posemodel.reid train: nothing "
                            "was touched; choose another --out")
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
    write_result(path, json.dumps(asdict(config), indent=2) + "\n")
