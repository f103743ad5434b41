"""A trained network out of its run folder."""

from collections.abc import Callable

import torch

from posemodel.build import build_generator
from posemodel.engine.run_folder import RunFolder
from posemodel.model.pose_transfer import PoseTransfer
from posemodel.runtime import checkpoint


def load_trained(run: RunFolder, device: torch.device, log: Callable[[str], None] = print,
                 ) -> tuple[PoseTransfer, checkpoint.Checkpoint]:
    """The averaged weights of the newest valid checkpoint, and the checkpoint.

    Raises: `UserError` for a run that has none.
    """
    saved = checkpoint.newest(run.path, log)
    model = build_generator(run.config.model, run.config.data.image_size).to(device)
    model.load_state_dict(saved.weights["averaged"])
    return model.eval(), saved
