"""Evaluation on held-out pairs; on mannequins also of flow and visibility, which are known."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import pose_kernels
from posemodel import metrics, visibility
from posemodel.baselines.estimator import FlowEstimator
from posemodel.config import Config
from posemodel.engine.data_source import held_out_batches
from posemodel.errors import UserError
from posemodel.evaluation import records
from posemodel.evaluation.mannequin_metrics import MannequinTotals
from posemodel.evaluation.roc import RocAccumulator
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
    "affine" alone where there is no truth to judge the others by, and without those that need a
    correlation where there is none"""


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
        if has_truth(batch) and not isinstance(model.warping, FlowEstimator):
            flow, coarse_scores = _matched(model, *poses)
        else:
            flow = model.flow(source, *poses)
        image = model.refinement(source, flow)
        if has_truth(batch):
            # The way back starts from the image that was made: the target is what nobody has.
            backward = model.flow(image, *reversed(poses))
    coarse_scores["affine"] = visibility.affine_score(flow)
    fine = pose_kernels.resize_flow(flow, size)
    at = pose_kernels.identity_flow(*size, device=flow.device).expand_as(fine)
    scores = {name: pose_kernels.flow_sample(score, at, size)
              for name, score in coarse_scores.items()}
    if has_truth(batch):
        scores["cycle"] = visibility.cycle_score(fine, pose_kernels.resize_flow(backward, size))
    return Inspection(image.clamp(-1, 1), pose_kernels.flow_sample(source, flow), fine, scores)


def _matched(model: PoseTransfer, *poses: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The flow, and the scores that are read from the correlation."""
    features = model.warping.encode(*poses)
    guided = model.warping.match(*features)
    return model.warping.flow_from(guided), {
        "peak": visibility.peak_score(guided),
        "correlation": visibility.correlation_score(*features)}


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


def turns(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """`turn` `[B]`, by how many degrees each body turns, where it is known."""
    return {"turn": batch["turn"]} if has_truth(batch) else {}


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
    columns: dict[str, list[Tensor]] = {}
    totals = Totals()
    for batch in held_out_batches(config, device, config.data.evaluation_pairs, log):
        seen = inspect(model, batch, dtype)
        for name, values in {**measure(batch, seen, distances or {}), **turns(batch)}.items():
            columns.setdefault(name, []).append(values.double().cpu())
        totals.update(batch, seen)
    table = {name: torch.cat(values).numpy() for name, values in columns.items()}
    return summary(config.data.kind, table, totals)


def summary(data: str, table: dict[str, np.ndarray], totals: "Totals") -> dict:
    """The means of a table of pairs, as `evaluate` returns them.

    Args:
        data: the kind of data set.
        table: values by name, each `[N]`; NaN where a pair does not have the value.

    Raises: `UserError` for a table without pairs.
    """
    if not table or not len(table["copy_l1"]):
        raise UserError("no held-out pair has readable images; check the data set with "
                        "python -m posemodel.data check")

    def part(chosen: np.ndarray, aucs: dict[str, float | None]) -> dict:
        row = records.means({name: values[chosen] for name, values in table.items()
                             if name not in ("pair", "turn")})
        return {**_ABSENT, **row, **{f"visibility_auc_{name}": auc for name, auc in aucs.items()},
                "pairs": int(chosen.sum())}

    everything = {"data": data, **part(np.ones(len(table["copy_l1"]), bool), totals.aucs())}
    everything["by_turn"] = None
    if "turn" in table:
        everything["by_turn"] = {
            f"{low}-{high}": part(_turns_by(table["turn"], low, high), totals.aucs((low, high)))
            for low, high in TURNS}
    return everything


class Totals:
    """What is pooled over pixels; stays empty without the truth."""

    def __init__(self):
        self.mannequins = MannequinTotals()
        self._turns: dict[str, RocAccumulator] = {}    # by the turn's first degree and the score

    def update(self, batch: dict[str, Tensor], seen: Inspection) -> None:
        """Add a batch."""
        if not has_truth(batch):
            return
        self.mannequins.update(batch, seen.flow, seen.scores)
        for low, high in TURNS:
            body = batch["target_foreground"] \
                & _turns_by(batch["turn"], low, high).view(-1, 1, 1, 1)
            for name, score in seen.scores.items():
                self._curve(f"{low}/{name}").update(score[body], batch["visible"][body])

    def merge(self, other: "Totals") -> None:
        """Add the pairs of another part of the test set."""
        self.mannequins.merge(other.mannequins)
        for key, curve in other._turns.items():
            self._curve(key).merge(curve)

    def aucs(self, turn: tuple[int, int] | None = None) -> dict[str, float | None]:
        """How well each score tells visible pixels, of one of `TURNS` or all; None where there are
        no two kinds of pixels to tell apart."""
        if turn is None:
            found = self.mannequins.summary()["visibility"]
            return {name: one["auc"] for name, one in found.items()}
        curves = {name: curve.auc() for key, curve in self._turns.items()
                  for low, _, name in [key.partition("/")] if low == str(turn[0])}
        return {name: auc if np.isfinite(auc) else None for name, auc in curves.items()}

    def state(self) -> dict[str, np.ndarray]:
        """Everything that `load` needs to go on."""
        state = {f"mannequins/{name}": value for name, value in self.mannequins.state().items()}
        for key, curve in self._turns.items():
            state |= {f"turn/{key}/{name}": value for name, value in curve.state().items()}
        return state

    @classmethod
    def load(cls, state: dict[str, np.ndarray]) -> "Totals":
        """The totals that `state` was taken from; an empty state gives empty totals."""
        self, pooled, curves = cls(), {}, {}
        for key, value in state.items():
            kind, _, name = key.partition("/")
            if kind == "mannequins":
                pooled[name] = value
            else:
                key, _, field = name.rpartition("/")
                curves.setdefault(key, {})[field] = value
        self.mannequins = MannequinTotals.load(pooled)
        self._turns = {key: RocAccumulator.load(fields) for key, fields in curves.items()}
        return self

    def _curve(self, key: str) -> RocAccumulator:
        return self._turns.setdefault(key, RocAccumulator())


def _turns_by(turn, low: int, high: int):
    return (turn >= low) & ((turn < high) | (high == 180))
