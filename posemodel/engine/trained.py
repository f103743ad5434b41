"""A trained network out of its run folder."""

from collections.abc import Callable

import torch

from posemodel.engine import checkpoint
from posemodel.engine.run_folder import RunFolder
from posemodel.errors import UserError
from posemodel.model.pose_transfer import PoseTransfer, build_generator


def load_trained(run: RunFolder, device: torch.device, log: Callable[[str], None] = print,
                 ) -> tuple[PoseTransfer, checkpoint.Checkpoint]:
    """The averaged weights of the newest valid checkpoint, and the checkpoint.

    Raises: `UserError` for a run that has none.
    """
    found = checkpoint.load_latest(run.checkpoints)
    if found is None:
        raise UserError(f"{run.path} has no checkpoint yet; train it first")
    for line in found.skipped:
        log(f"warning: {line}")
    model = build_generator(run.config.model, run.config.data.image_size).to(device)
    model.load_state_dict(found.weights["averaged"])
    return model.eval(), found
