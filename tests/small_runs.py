"""A run folder as training leaves it, of a tiny model whose flow is not the identity."""

from pathlib import Path

import torch

from posemodel.build import build_generator
from posemodel.config.stored import to_dict
from posemodel.engine.run_folder import RunFolder
from posemodel.model.pose_transfer import PoseTransfer
from posemodel.runtime import checkpoint
from tests.tiny import tiny_config


def tiny_generator(**changes) -> PoseTransfer:
    """In evaluation mode; the same one for the same changes of `tiny_config`."""
    torch.manual_seed(0)
    config = tiny_config(**changes)
    generator = build_generator(config.model, config.data.image_size)
    # Last layers start at zero, and then every pose would give much the same flow, and the warped
    # image would be the refined one.
    if config.model.flow == "ours":
        torch.nn.init.normal_(generator.warping.head.layers[-1].weight, std=0.05)
    if config.model.refine in ("detail", "posed"):
        torch.nn.init.normal_(generator.refinement.decoder.last.weight, std=0.3)
    return generator.eval()


def write_tiny_run(path: Path, *, step: int = 7, **changes) -> Path:
    """A run folder with one checkpoint of `tiny_generator`."""
    config = tiny_config(**changes)
    config.out = str(path)
    with RunFolder.open(config, []) as run:
        weights = {"averaged": tiny_generator(**changes).state_dict()}
        checkpoint.save(run.checkpoints, step, weights=weights, state={}, config=to_dict(config))
    return path
