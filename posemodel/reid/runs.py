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
from dataclasses import asdict
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from posemodel.reid.batches import Batches, read_resized
from posemodel.reid.config import ReidConfig
from posemodel.reid.export import open_augmented
from posemodel.reid.market import (
    DISTRACTOR,
    JUNK,
    Crops,
    describe,
    few_per_person,
    open_split,
    parse_generated,
)
from posemodel.reid.network import ReidNetwork, batch_hard_triplet, load_imagenet
from posemodel.reid.ranking import CONVENTIONS, rank_features
from posemodel.runtime.environment import choose_device, choose_precision
from posemodel.runtime.errors import UserError
from posemodel.runtime.files import new_folder, write_result, writing
from posemodel.runtime.folder import OwnFolder
from posemodel.runtime.progress_bar import duration

# The course of the learning rate, as shares of the steps: 10, 40 and 70 of 120 epochs.
_WARM_UP, _DROPS = 10 / 120, (40 / 120, 70 / 120)
_WEIGHT_DECAY = 5e-4
_LOG_EVERY = 50
_FEATURES_AT_ONCE = 128


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
    kept = np.array([source in stems and not 0 < config.max_poses <= pose for source, pose in made])
    if not kept.any():
        raise UserError(f"{config.augmented} has no image made of those in {config.root}")
    return real, generated.take(kept)


def train(config: ReidConfig, out: Path, *, seeds: list[int], device: str, workers: int,
          say: Callable[[str], None]) -> None:
    """Train each seed that is not there yet. Raises: `UserError` for a folder of another config."""
    chosen, why = choose_device(device)
    dtype, _ = choose_precision("auto", chosen)
    with writing(out):
        _own(out).claim(asdict(config))
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
    """The config of a run folder. Raises: `UserError` for another folder."""
    with _own(run).reading() as values:
        return ReidConfig(**{**values, "image_size": tuple(values["image_size"])})


def _own(run: Path) -> OwnFolder:
    return OwnFolder(run, "config.json", "run of posemodel.reid train")


def seed_folders(run: Path) -> list[Path]:
    """The seeds that are trained. Raises: `UserError` where there is none."""
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
        features = (extract(network, crops, config.image_size, chosen, workers)
                    for crops in (query, gallery))
        ranking = rank_features(
            *features, query_persons=query.persons, query_cameras=query.cameras,
            gallery_persons=gallery.persons, gallery_cameras=gallery.cameras)
        scores = {"root": str(where), "queries": len(query.names), "gallery": len(gallery.names),
                 "queries_with_match": int((ranking.matches > 0).sum()),
                 **{name: ranking.scores(name) for name in CONVENTIONS}}
        write_result(folder / "evaluation.json", json.dumps(scores, indent=2) + "\n")
        shown = ", ".join(f"{name} {100 * value:.1f}" for name, value in scores["step"].items())
        say(f"{folder.name}: {shown} ({duration(time.perf_counter() - start)})")


def load_network(config: ReidConfig, folder: Path) -> ReidNetwork:
    """The network of one seed. Raises: `UserError` for a file that is missing or damaged."""
    path = folder / "weights.safetensors"
    try:
        weights = safetensors.torch.load_file(path)
        network = ReidNetwork(backbone=config.backbone, identities=len(weights["classes.weight"]))
        network.load_state_dict(weights)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise UserError(f"{path}: no weights of this run ({str(error).splitlines()[0]})") from error
    return network.eval()


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


def _train_seed(config: ReidConfig, real: Crops, generated: Crops | None, seed: int, folder: Path,
                device: torch.device, dtype: torch.dtype, workers: int,
                say: Callable[[str], None]) -> None:
    torch.manual_seed(seed)
    batches = Batches(real, generated, config, seed=seed, workers=workers)
    network = ReidNetwork(backbone=config.backbone, identities=len(batches.persons))
    began = load_imagenet(network, config.backbone, config.weights)
    say(f"seed {seed}: {began}")
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
                                metadata={"config": json.dumps({**asdict(config), "seed": seed,
                                                                "start": began})})
