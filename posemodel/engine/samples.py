"""The sample sheet: the same held-out pairs every time, everything the model does beside them."""

from pathlib import Path

import torch
from torch import Tensor

import pose_kernels
from posemodel import pictures
from posemodel.config import Config
from posemodel.engine.data_source import held_out_batches
from posemodel.engine.evaluation import has_truth, inspect
from posemodel.model.pose_transfer import PoseTransfer

ROWS = 6
# One maximum for all sheets, so that colours mean the same from step to step.
_MAX_FLOW = 0.25


def write_samples(model: PoseTransfer, config: Config, device: torch.device, dtype: torch.dtype,
                  path: Path, title: str = "", rows: int = ROWS) -> None:
    """Source, poses, target, and what the model makes of them, as PNG; of mannequins also the true
    flow and visibility. Where nobody knows which pixels are the person's, all are shown."""
    model.eval()
    batch = next(held_out_batches(config, device, rows))
    seen = inspect(model, batch, dtype)
    truth = has_truth(batch)
    body = batch["target_foreground"] if truth \
        else torch.ones_like(seen.scores["affine"], dtype=torch.bool)
    # Drawn finer than the images, the lines of a skeleton stay lines.
    fine = tuple(4 * side for side in config.data.image_size)
    columns = {
        "source": _images(batch["source"]),
        "source pose": [pictures.draw_skeleton(pose, fine) for pose in batch["source_pose"].cpu()],
        "target pose": [pictures.draw_skeleton(pose, fine) for pose in batch["target_pose"].cpu()],
        "target": _images(batch["target"]),
        **({"true flow": _flows(batch["flow"], body)} if truth else {}),
        "flow": _flows(seen.flow, body),
        "warped": _images(seen.warped),
        "refined": _images(seen.image),
        **({"truly visible": _heats(batch["visible"].float(), body)} if truth else {}),
        "found visible": _heats(rank(seen.scores["affine"], body), body),
    }
    pictures.contact_sheet(list(columns.items()), path, title=title, legend={
        "flow": "flow: where a pixel looks for its source; white: no motion",
        "heat": "visible in the source: no to yes",
    })


def rank(scores: Tensor, inside: Tensor) -> Tensor:
    """Scores to their rank among the pixels inside, 0 to 1: a picture of what the AUC judges."""
    ranked = torch.zeros_like(scores)
    for mine, theirs, chosen in zip(ranked, scores, inside, strict=True):
        order = theirs[chosen].argsort().argsort()
        mine[chosen] = order.to(mine.dtype) / max(1, len(order) - 1)
    return ranked


def _images(images: Tensor) -> list[Tensor]:
    return list(((images.float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))


def _flows(flow: Tensor, body: Tensor) -> list[Tensor]:
    """Displacements in the colour wheel, on the person; the background is left white."""
    height, width = flow.shape[-2:]
    unit = flow.new_tensor([width / 2, height / 2]).view(1, 2, 1, 1)
    moved = (flow - pose_kernels.identity_flow(height, width, device=flow.device)) * unit * body
    return [pictures.flow_to_color(one, max_flow=_MAX_FLOW * height) for one in moved.cpu()]


def _heats(values: Tensor, body: Tensor) -> list[Tensor]:
    white = torch.tensor(255, dtype=torch.uint8)
    return [torch.where(inside, pictures.heat(one[0]), white)
            for one, inside in zip(values.cpu(), body.cpu(), strict=True)]
