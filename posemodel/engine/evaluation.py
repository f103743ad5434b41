"""Evaluation on held-out pairs; on mannequins also of flow and visibility, which are known."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import pose_kernels
from posemodel import metrics, visibility
from posemodel.config import Config
from posemodel.engine.data_source import held_out_batches
from posemodel.errors import UserError
from posemodel.model.pose_transfer import PoseTransfer

TURNS = ((0, 30), (30, 60), (60, 180))

ImageDistance = Callable[[Tensor, Tensor], Tensor]

# Pooled over pixels; the other metrics are means over pairs.
_VISIBILITY = ("affine", "cycle", "peak", "correlation")
# What only generated people have.
_ABSENT = dict.fromkeys(
    ("epe_zero", "epe_visible", *(f"visibility_auc_{name}" for name in _VISIBILITY)))


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
    """visibility by each measure, at image size, `[B, 1, H, W]`, higher is more visible; by
    "affine" alone where there is no truth to judge the others by"""


def has_truth(batch: dict[str, Tensor]) -> bool:
    """Whether the true flow and visibility of these pairs are known."""
    return "flow" in batch


@torch.no_grad()
def inspect(model: PoseTransfer, batch: dict[str, Tensor], dtype: torch.dtype) -> Inspection:
    """Run the model on a batch of pairs; both ways, with all scores, if their truth is known."""
    source, poses = batch["source"], (batch["source_pose"], batch["target_pose"])
    size = tuple(source.shape[-2:])
    coarse_scores = {}
    with torch.autocast(source.device.type, dtype, enabled=dtype != torch.float32):
        if has_truth(batch):
            features = model.warping.encode(*poses)
            guided = model.warping.match(*features)
            flow = model.warping.flow_from(guided)
            backward = model.warping(*reversed(poses))
            coarse_scores = {"peak": visibility.peak_score(guided),
                             "correlation": visibility.correlation_score(*features)}
        else:
            flow = model.warping(*poses)
        image = model.refinement(source, flow)
    coarse_scores["affine"] = visibility.affine_score(flow)
    fine = pose_kernels.resize_flow(flow, size)
    at = pose_kernels.identity_flow(*size, device=flow.device).expand_as(fine)
    scores = {name: pose_kernels.flow_sample(score, at, size)
              for name, score in coarse_scores.items()}
    if has_truth(batch):
        scores["cycle"] = visibility.cycle_score(fine, pose_kernels.resize_flow(backward, size))
    return Inspection(image.clamp(-1, 1), pose_kernels.flow_sample(source, flow), fine, scores)


def measure(batch: dict[str, Tensor], seen: Inspection,
            distances: dict[str, ImageDistance]) -> dict[str, Tensor]:
    """The metrics of each pair of a batch, `[B]` each; `distances` are added by their names."""
    source, target = batch["source"], batch["target"]
    values = {
        "ssim_copy": metrics.ssim(source, target),
        "ssim_warped": metrics.ssim(seen.warped, target),
        "ssim": metrics.ssim(seen.image, target),
    }
    if has_truth(batch):
        visible = batch["visible"][:, 0]
        identity = pose_kernels.identity_flow(*source.shape[-2:], device=source.device)
        for name, flow in (("epe_zero", identity.expand_as(batch["flow"])),
                           ("epe_visible", seen.flow)):
            values[name] = metrics.masked_mean(metrics.end_point_error(flow, batch["flow"]),
                                               visible)
    for name, image in (("copy", source), ("warped", seen.warped), ("refined", seen.image)):
        values[f"{name}_l1"] = metrics.l1_255(image, target)
        values[f"{name}_l1_32"] = metrics.l1_255_at_32(image, target)
        for kind, distance in distances.items():
            values[f"{name}_{kind}"] = distance(image, target)
    return values


@torch.no_grad()
def evaluate(model: PoseTransfer, config: Config, device: torch.device,
             dtype: torch.dtype, distances: dict[str, ImageDistance] | None = None,
             log: Callable[[str], None] = print) -> dict:
    """All metrics on the held-out pairs; of mannequins also by how far the body turns.

    Args:
        distances: further metrics between two images by name; each gives the keys `copy_NAME`,
            `warped_NAME` and `refined_NAME`.
        log: is given a line for each held-out image that cannot be read.

    Returns the row of eval.jsonl without its step; values that do not exist are None.
    """
    model.eval()
    per_pair: dict[str, list[Tensor]] = {}
    truth = _Truth()
    for batch in held_out_batches(config, device, config.data.evaluation_pairs, log):
        seen = inspect(model, batch, dtype)
        for name, values in measure(batch, seen, distances or {}).items():
            per_pair.setdefault(name, []).append(values.cpu())
        if has_truth(batch):
            truth.add(batch, seen)
    if not per_pair:
        raise UserError("no held-out pair has readable images; check the data set with "
                        "python -m posemodel.data check")
    table = {name: torch.cat(values) for name, values in per_pair.items()}
    pairs = len(table["copy_l1"])

    def summary(chosen: Tensor) -> dict:
        row = {name: _number(values[chosen].nanmean()) for name, values in table.items()}
        return {**_ABSENT, **row, **truth.visibility(chosen), "pairs": int(chosen.sum())}

    everything = {"data": config.data.kind, **summary(torch.ones(pairs, dtype=torch.bool))}
    everything["by_turn"] = {
        f"{low}-{high}": summary(chosen) for (low, high), chosen in truth.by_turn().items()} or None
    return everything


class _Truth:
    """Pixels of people with their true visibility, and how far each body turns."""

    def __init__(self):
        self._pixels: dict[str, list[Tensor]] = {}
        self._turns: list[Tensor] = []

    def add(self, batch: dict[str, Tensor], seen: Inspection) -> None:
        """Add a batch of mannequins."""
        body = batch["target_foreground"]
        first = sum(map(len, self._turns))
        pair = torch.arange(first, first + len(body), device=body.device).view(-1, 1, 1, 1)
        pixels = {**{name: seen.scores[name] for name in _VISIBILITY},
                  "visible": batch["visible"], "pair": pair.expand_as(body)}
        for name, values in pixels.items():
            self._pixels.setdefault(name, []).append(values[body].cpu())
        self._turns.append(batch["turn"].cpu())

    def visibility(self, chosen: Tensor) -> dict[str, float | None]:
        """The AUC of each score over the chosen pairs, `[pairs]` bool."""
        if not self._turns:
            return {}
        pool = {name: torch.cat(values) for name, values in self._pixels.items()}
        inside = chosen[pool["pair"]]
        return {f"visibility_auc_{name}": _number(metrics.roc_auc(pool[name][inside],
                                                                  pool["visible"][inside]))
                for name in _VISIBILITY}

    def by_turn(self) -> dict[tuple[int, int], Tensor]:
        """Which pairs, `[pairs]` bool, turn by how many degrees; empty if it is not known."""
        if not self._turns:
            return {}
        turn = torch.cat(self._turns)
        return {(low, high): (turn >= low) & ((turn < high) | (high == 180))
                for low, high in TURNS}


def _number(value: Tensor | float) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None
