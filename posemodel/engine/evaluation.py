"""Evaluation on held-out mannequins, where the true flow and visibility are known."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import pose_kernels
from posemodel import metrics, visibility
from posemodel.config import Config
from posemodel.data.mannequins import Mannequins
from posemodel.errors import UserError
from posemodel.model.pose_transfer import PoseTransfer

# Runs train on seeds below 2**32 (`check_seed`), so these pairs are nobody's training pairs.
HELD_OUT_SEED = 2**32 + 1
TURNS = ((0, 30), (30, 60), (60, 180))
_BATCH = 16

ImageDistance = Callable[[Tensor, Tensor], Tensor]

# Pooled over pixels; the other metrics are means over pairs.
_VISIBILITY = ("affine", "cycle", "peak", "correlation")


def mannequins(config: Config, *, seed: int, device: torch.device) -> Mannequins:
    """The generator of pairs that a configuration describes."""
    data = config.data
    return Mannequins(size=data.image_size, turn=data.turn, background=data.background,
                      hidden_joints=data.hidden_joints, seed=seed, device=device)


def check_seed(seed: int) -> None:
    """Training seeds stay clear of the held-out pairs.

    Raises: `UserError` otherwise.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed {seed}: expected 0 to {2**32 - 1}")


@dataclass
class Inspection:
    """One batch seen through the model: what the metrics and the pictures are made from."""

    image: Tensor
    """refined, `[B, 3, H, W]` in [-1, 1]"""
    warped: Tensor
    """`[B, 3, H, W]`"""
    flow: Tensor
    """at image size, `[B, 2, H, W]`, normalised"""
    scores: dict[str, Tensor]
    """visibility by each measure, at image size, `[B, 1, H, W]`, higher is more visible"""


@torch.no_grad()
def inspect(model: PoseTransfer, batch: dict[str, Tensor], dtype: torch.dtype) -> Inspection:
    """Run the model on a batch of pairs, both ways, with all intermediate results."""
    device_type = batch["source"].device.type
    size = tuple(batch["source"].shape[-2:])
    with torch.autocast(device_type, dtype, enabled=dtype != torch.float32):
        features = model.warping.encode(batch["source_pose"], batch["target_pose"])
        guided = model.warping.match(*features)
        flow = model.warping.flow_from(guided)
        backward = model.warping(batch["target_pose"], batch["source_pose"])
        image = model.refinement(batch["source"], flow)
    fine, back = (pose_kernels.resize_flow(one, size) for one in (flow, backward))
    at = pose_kernels.identity_flow(*size, device=flow.device).expand_as(fine)
    coarse_scores = {
        "affine": visibility.affine_score(flow),
        "peak": visibility.peak_score(guided),
        "correlation": visibility.correlation_score(*features),
    }
    scores = {name: pose_kernels.flow_sample(score, at, size)
              for name, score in coarse_scores.items()}
    scores["cycle"] = visibility.cycle_score(fine, back)
    return Inspection(image.clamp(-1, 1), pose_kernels.flow_sample(batch["source"], flow), fine,
                      scores)


def measure(batch: dict[str, Tensor], seen: Inspection,
            distances: dict[str, ImageDistance]) -> dict[str, Tensor]:
    """The metrics of each pair of a batch, `[B]` each; `distances` are added by their names."""
    source, target = batch["source"], batch["target"]
    visible = batch["visible"][:, 0]
    identity = pose_kernels.identity_flow(*source.shape[-2:], device=source.device)
    values = {
        "epe_zero": metrics.masked_mean(
            metrics.end_point_error(identity.expand_as(batch["flow"]), batch["flow"]), visible),
        "epe_visible": metrics.masked_mean(
            metrics.end_point_error(seen.flow, batch["flow"]), visible),
        "ssim_copy": metrics.ssim(source, target),
        "ssim_warped": metrics.ssim(seen.warped, target),
        "ssim": metrics.ssim(seen.image, target),
    }
    for name, image in (("copy", source), ("warped", seen.warped), ("refined", seen.image)):
        values[f"{name}_l1"] = metrics.l1_255(image, target)
        values[f"{name}_l1_32"] = metrics.l1_255_at_32(image, target)
        for kind, distance in distances.items():
            values[f"{name}_{kind}"] = distance(image, target)
    return values


@torch.no_grad()
def evaluate(model: PoseTransfer, config: Config, device: torch.device,
             dtype: torch.dtype, distances: dict[str, ImageDistance] | None = None) -> dict:
    """All metrics on the held-out pairs: over all of them, and by how far the body turns.

    Args:
        distances: further metrics between two images by name; each gives the keys `copy_NAME`,
            `warped_NAME` and `refined_NAME`.

    Returns the row of eval.jsonl without its step; values that do not exist are None.
    """
    model.eval()
    data = mannequins(config, seed=HELD_OUT_SEED, device=device)
    per_pair: dict[str, list[Tensor]] = {}
    pixels: dict[str, list[Tensor]] = {name: [] for name in (*_VISIBILITY, "visible", "pair")}
    turns = []
    count = config.data.evaluation_pairs
    for first in range(0, count, _BATCH):
        batch = data.pairs(range(first, min(first + _BATCH, count)))
        seen = inspect(model, batch, dtype)
        for name, values in measure(batch, seen, distances or {}).items():
            per_pair.setdefault(name, []).append(values.cpu())
        turns.append(batch["turn"].cpu())
        body = batch["target_foreground"]
        for name in _VISIBILITY:
            pixels[name].append(seen.scores[name][body].cpu())
        pixels["visible"].append(batch["visible"][body].cpu())
        index = torch.arange(first, first + len(body)).view(-1, 1, 1, 1)
        pixels["pair"].append(index.to(body.device).expand_as(body)[body].cpu())
    table = {name: torch.cat(values) for name, values in per_pair.items()}
    pool = {name: torch.cat(values) for name, values in pixels.items()}
    turn = torch.cat(turns)

    def summary(chosen: Tensor) -> dict:
        row = {name: _number(values[chosen].nanmean()) for name, values in table.items()}
        inside = chosen[pool["pair"]]
        for name in _VISIBILITY:
            auc = metrics.roc_auc(pool[name][inside], pool["visible"][inside])
            row[f"visibility_auc_{name}"] = _number(auc)
        row["pairs"] = int(chosen.sum())
        return row

    everything = summary(torch.ones_like(turn, dtype=torch.bool))
    everything["by_turn"] = {
        f"{low}-{high}": summary((turn >= low) & ((turn < high) | (high == 180)))
        for low, high in TURNS
    }
    return everything


def _number(value: Tensor | float) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None
