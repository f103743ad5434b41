"""What only generated people allow: their true flow, visibility and body parts are known.

`batch` is what `data.mannequins.Mannequins.pairs` returns. A pixel of the target is *visible* if
the source shows its surface point, and *invented* if it shows the person but the source does not:
there the flow has no right answer, and what counts is whether it samples a fitting colour.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import pose_kernels
from posemodel import metrics
from posemodel.data.mannequins import PART_NAMES
from posemodel.evaluation.roc import RocAccumulator

WITHIN = (1, 3, 5)  # pixels
_PART_LIMIT = 1 << 14


def pixel_values(batch: dict[str, Tensor], flow: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """What every metric averages, and over which pixels.

    Args:
        flow: at image size, `[B, 2, H, W]`, normalised.

    Returns: by name a value `[B, H, W]` and a mask `[B, H, W]`:

        - epe, within_1px, within_3px, within_5px: end-point error in pixels, and whether it is at
          most that, on visible pixels;
        - invented_l1: colour that the flow samples against the true one on invented pixels, mean
          absolute difference on 0..255; invented_l1_mean with the mean colour of the source's
          person instead, invented_l1_copy with the source's pixel at the same place;
        - invented_same_part, invented_background: whether the nearest pixel of the sample shows the
          same part of the body, or no part.
    """
    source, target = batch["source"], batch["target"]
    visible = batch["visible"][:, 0]
    invented = batch["target_foreground"][:, 0] & ~visible
    error = metrics.end_point_error(flow, batch["flow"])
    person = batch["source_foreground"]
    mean_color = (source * person).sum((2, 3), keepdim=True) / person.sum((2, 3), keepdim=True)
    part = F.grid_sample(batch["source_part"].float(), flow.permute(0, 2, 3, 1), mode="nearest",
                         padding_mode="border", align_corners=False)[:, 0].long()

    def color_distance(color: Tensor) -> Tensor:
        return (color - target).abs().mean(1) * 127.5

    return {
        "epe": (error, visible),
        **{f"within_{limit}px": ((error <= limit).float(), visible) for limit in WITHIN},
        "invented_l1": (color_distance(pose_kernels.flow_sample(source, flow)), invented),
        "invented_l1_mean": (color_distance(mean_color), invented),
        "invented_l1_copy": (color_distance(source), invented),
        "invented_same_part": ((part == batch["target_part"][:, 0]).float(), invented),
        "invented_background": ((part == 0).float(), invented),
    }


@torch.no_grad()
def pair_metrics(batch: dict[str, Tensor], flow: Tensor) -> dict[str, Tensor]:
    """The mean of each of `pixel_values` for each pair, `[B]`; NaN where it has no pixel."""
    return {name: metrics.masked_mean(value, mask)
            for name, (value, mask) in pixel_values(batch, flow).items()}


@torch.no_grad()
def pair_aucs(batch: dict[str, Tensor], scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """The area under the ROC curve of each pair by itself, `[B]` float64; NaN where the source
    shows all of the person, or nothing.

    Args:
        scores: visibility by each measure, `[B, 1, H, W]`, higher is more visible.

    Returns: by the names `pair_auc_SCORE`.
    """
    def area(score: Tensor, body: Tensor, visible: Tensor) -> float:
        curve = RocAccumulator()
        curve.update(score[body], visible[body])
        return curve.auc()

    seen = batch["target_foreground"], batch["visible"]
    return {f"pair_auc_{name}": torch.tensor([area(*one) for one in zip(score, *seen, strict=True)],
                                             dtype=torch.float64)
            for name, score in scores.items()}


@torch.no_grad()
def part_sums(values: dict[str, tuple[Tensor, Tensor]], part: Tensor,
              ) -> dict[str, tuple[Tensor, Tensor]]:
    """Sums of values over the masked pixels of each part of the body, and how many these are.

    Args:
        values: by name a value and a bool mask, `[B, H, W]` each.
        part: `[B, H, W]`, indices into `PART_NAMES`.

    Returns: by name two tensors `[B, parts]`, float64.
    """
    columns = torch.stack([column for value, mask in values.values() for column in (
        value.where(mask, 0.0).flatten(1), mask.flatten(1).to(value.dtype))], -1)   # [B, HW, 2 K]
    every = torch.arange(len(PART_NAMES), device=part.device)[:, None]
    # Pair by pair: a map of every part of every pair is large.
    sums = torch.stack([(one.flatten() == every).double() @ column.double()
                        for one, column in zip(part, columns, strict=True)])
    return {name: (sums[..., 2 * index], sums[..., 2 * index + 1])
            for index, name in enumerate(values)}


class MannequinTotals:
    """Pooled over all pixels of a test set, over the body and by part, in bounded memory.

    Convention: pooled values are means over pixels, those of `pair_metrics` means of pairs' means.
    """

    def __init__(self):
        self._sums: dict[str, np.ndarray] = {}             # name -> [2, parts]: sum and number
        self._roc: dict[str, RocAccumulator] = {}          # "score/part" or "score/all"

    @torch.no_grad()
    def update(self, batch: dict[str, Tensor], flow: Tensor, scores: dict[str, Tensor]) -> None:
        """Add a batch.

        Args:
            flow: at image size, `[B, 2, H, W]`, normalised.
            scores: visibility by each measure, `[B, 1, H, W]`, higher is more visible.
        """
        sums = part_sums(pixel_values(batch, flow), batch["target_part"][:, 0])
        for name, pair in sums.items():
            total = torch.stack([one.sum(0) for one in pair])
            self._sums[name] = self._sums.get(name, 0) + total.cpu().numpy()
        body = batch["target_foreground"]
        part, order = batch["target_part"][body].sort()
        visible = batch["visible"][body][order]
        index, sizes = part.unique_consecutive(return_counts=True)
        for name, score in scores.items():
            score = score[body][order]
            self._curve(f"{name}/all").update(score, visible)
            split = zip(index.tolist(), score.split(sizes.tolist()), visible.split(sizes.tolist()),
                        strict=True)
            for one, part_score, part_visible in split:
                self._curve(f"{name}/{PART_NAMES[one]}").update(part_score, part_visible)

    def merge(self, other: "MannequinTotals") -> None:
        """Add the pixels of another part of the test set."""
        for name, total in other._sums.items():
            self._sums[name] = self._sums.get(name, 0) + total
        for key, curve in other._roc.items():
            self._curve(key).merge(curve)

    def summary(self) -> dict:
        """Ready for JSON; a value that no pixel has is None.

        Returns:
            - `body`: each of `pixel_values`, and `invented_relative`, its l1 over that of the mean
              colour (1: no better than painting the person in one colour), and `invented_share` of
              the person's pixels;
            - `parts`: the same by part;
            - `visibility`: for each score `auc`, `auc_error` (0: exact), the `curve`, and `parts`,
              the AUC of each.
        """
        parts = {name: self._means(slice(index, index + 1))
                 for index, name in enumerate(PART_NAMES) if index}
        visibility: dict[str, dict] = {}
        for key, curve in self._roc.items():
            score, _, part = key.partition("/")
            entry = visibility.setdefault(score, {"parts": {}})
            if part == "all":
                entry |= {"auc": _number(curve.auc()), "auc_error": _number(curve.auc_error()),
                          "curve": curve.curve()}
            else:
                entry["parts"][part] = _number(curve.auc())
        return {"body": self._means(slice(1, None)), "parts": parts, "visibility": visibility}

    def state(self) -> dict[str, np.ndarray]:
        """Everything that `load` needs to go on, as arrays."""
        state = {f"sum/{name}": total for name, total in self._sums.items()}
        for key, curve in self._roc.items():
            state |= {f"roc/{key}/{name}": value for name, value in curve.state().items()}
        return state

    @classmethod
    def load(cls, state: dict[str, np.ndarray]) -> "MannequinTotals":
        """The totals that `state` was taken from; an empty state gives empty totals."""
        self, curves = cls(), {}
        for key, value in state.items():
            kind, _, name = key.partition("/")
            if kind == "sum":
                self._sums[name] = value
            else:
                key, _, field = name.rpartition("/")
                curves.setdefault(key, {})[field] = value
        self._roc = {key: RocAccumulator.load(fields) for key, fields in curves.items()}
        return self

    def _curve(self, key: str) -> RocAccumulator:
        if key not in self._roc:
            self._roc[key] = RocAccumulator() if key.endswith("/all") \
                else RocAccumulator(_PART_LIMIT)
        return self._roc[key]

    def _means(self, parts: slice) -> dict[str, float | None]:
        total = {name: sums[:, parts].sum(1) for name, sums in self._sums.items()}
        values = {name: _ratio(*pair) for name, pair in total.items()}
        if total:
            visible, invented = total["epe"][1], total["invented_l1"][1]
            values["invented_relative"] = _ratio(total["invented_l1"][0],
                                                 total["invented_l1_mean"][0])
            values["invented_share"] = _ratio(invented, visible + invented)
        return values


def _ratio(value: float, unit: float) -> float | None:
    return float(value / unit) if unit else None


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
