"""A small Market-1501 with joints, and a small untrained model, for the tests of this folder."""

import json
import re
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from posemodel.build import build_generator
from posemodel.config.stored import to_dict
from posemodel.inference.model import PoseTransferModel
from posemodel.reid.augment import AugmentPlan, augment
from tests.small_datasets import change_joints, make_market, market_names
from tests.tiny import tiny_config

LOST = "0002_c2s1_000001_01.jpg"


def small_market(root: Path) -> Path:
    """`bounding_box_train`, `bounding_box_test`, `query`, 3 images of each person, the joints of
    one image missing; the pictures are noise."""
    make_market(root, form="bounding_box_{}", pairs=False)
    kept = (np.array(market_names(4)) != LOST)[:, None, None]
    change_joints(root / "market-annotation-train.csv", lambda joints: joints * kept)
    (root / "query").mkdir()
    random = np.random.default_rng(0)
    for folder in ("bounding_box_train", "bounding_box_test"):
        for path in sorted((root / folder).iterdir()):
            Image.fromarray(random.integers(256, size=(128, 64, 3), dtype=np.uint8)).save(path)
    for path in (root / "bounding_box_test").glob("*_c1s1_*"):
        (root / "query" / path.name.replace("_01.jpg", "_00.jpg")).write_bytes(path.read_bytes())
    for name in ("0000_c1s1_000900_01.jpg", "-1_c2s1_000901_01.jpg"):
        (root / "bounding_box_test" / name).write_bytes(path.read_bytes())
    return root


def model_file(path: Path, size: tuple[int, int] = (64, 32)) -> Path:
    """Weights of an untrained model for images of (H, W)."""
    torch.manual_seed(0)
    config = tiny_config(data_image_size=size, model_refine="none")
    weights = build_generator(config.model, config.data.image_size).state_dict()
    safetensors.torch.save_file({name: t.contiguous() for name, t in weights.items()}, path,
                                metadata={"config": json.dumps(to_dict(config)), "step": "3"})
    return path


def small_augmented(folder: Path, market: Path, *, poses: int, on_missing: str) -> Path:
    """A folder of `augment`, made by that model."""
    model = PoseTransferModel.from_file(model_file(folder / "tiny.safetensors"), "cpu")
    plan = AugmentPlan(poses=poses, on_missing=on_missing, seed=0, batch_size=20)
    augment(model, market, folder / "out", plan, writers=2, progress=lambda done, total: None)
    return folder / "out"


# --- how other programs read Market-1501, from their rules ---------------------------------------


def read_as_torchreid(folder: Path) -> list[tuple[int, int]]:
    """Identity (relabelled) and camera (from 0) of each image of a training folder."""
    pattern = re.compile(r"([-\d]+)_c(\d)")
    found = []
    for path in sorted(folder.glob("*.jpg")):
        person, camera = map(int, pattern.search(str(path)).groups())
        if person == -1:
            continue
        assert 0 <= person <= 1501 and 1 <= camera <= 6
        found.append((person, camera - 1))
    label = {person: number for number, person in enumerate(sorted({p for p, _ in found}))}
    return [(label[person], camera) for person, camera in found]


def read_as_dgnet(folder: Path) -> list[tuple[str, int]]:
    """Identity (name of the folder) and camera of each image."""
    return [(path.parent.name, int(path.name.split("c")[1][0]))
            for path in sorted(folder.glob("*/*.jpg"))]
