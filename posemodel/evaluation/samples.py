"""The sample sheet: the same held-out pairs every time, everything the model does beside them."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from posemodel.config.sections import Config
from posemodel.data.source import held_out_batches
from posemodel.evaluation.inspection import has_truth, inspect
from posemodel.flow.pictures import flow_picture
from posemodel.model.pose_transfer import PoseTransfer
from posemodel.pictures.flow_colors import heat
from posemodel.pictures.pixels import to_pictures
from posemodel.pictures.sheet import contact_sheet
from posemodel.poses.drawing import draw_skeleton

ROWS = 6


def write_samples(model: PoseTransfer, config: Config, device: torch.device, dtype: torch.dtype,
                  path: Path, *, split: str, title: str = "", rows: int = ROWS) -> None:
    """Source, poses, target, and what the model makes of them, as PNG; of mannequins also the true
    flow and visibility. Where nobody knows which pixels are the person's, all are shown.

    Args:
        split: "validation" or "test", of the pairs.
    """
    model.eval()
    batch = next(held_out_batches(config.data, device, rows, split=split,
                                  positions=config.flow_positions))
    seen = inspect(model, batch, dtype)
    truth = has_truth(batch)
    body = batch["target_foreground"] if truth \
        else torch.ones_like(seen.scores["affine"], dtype=torch.bool)
    # Drawn finer than the images, the lines of a skeleton stay lines.
    fine = tuple(4 * side for side in config.data.image_size)
    columns = {"source": list(to_pictures(batch["source"])),
               "source pose": [draw_skeleton(pose, fine) for pose in batch["source_pose"].cpu()],
               "target pose": [draw_skeleton(pose, fine) for pose in batch["target_pose"].cpu()],
               "target": list(to_pictures(batch["target"])),
               **({"true flow": _flows(batch["flow"], body)} if truth else {}),
               "flow": _flows(seen.flow, body), "warped": list(to_pictures(seen.warped)),
               "refined": list(to_pictures(seen.image)),
               **({"truly visible": _heats(batch["visible"].float(), body)} if truth else {}),
               "found visible": _heats(rank(seen.scores["affine"], body), body)}
    contact_sheet(list(columns.items()), path, title=title, legend=True)


def rank(scores: Tensor, inside: Tensor) -> Tensor:
    """Scores to their rank among the pixels inside, 0 to 1: a picture of what the AUC judges."""
    ranked = torch.zeros_like(scores)
    for mine, theirs, chosen in zip(ranked, scores, inside, strict=True):
        order = theirs[chosen].argsort().argsort()
        mine[chosen] = order.to(mine.dtype) / max(1, len(order) - 1)
    return ranked


def _flows(flow: Tensor, body: Tensor) -> list[np.ndarray]:
    """Displacements in the colour wheel, on the person; the background is left white."""
    return [flow_picture(field, inside) for field, inside in zip(flow, body, strict=True)]


def _heats(values: Tensor, body: Tensor) -> list[np.ndarray]:
    return [np.where(inside[0, :, :, None], heat(value[0]), np.uint8(255))
            for value, inside in zip(values.cpu(), body.cpu().numpy(), strict=True)]
