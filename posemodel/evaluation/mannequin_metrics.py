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
from posemodel.evaluation import metrics
from posemodel.evaluation.accumulators import Group, Sum
from posemodel.evaluation.roc import RocAccumulator
from posemodel.mannequins.pairs import PART_NAMES

WITHIN = (1, 3, 5)  # pixels
OFF = 16  # of 255
TURNS = ((0, 30), (30, 60), (60, 180))
"""degrees that a body turns by, from one to below the other"""
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

    return {"epe": (error, visible),
            **{f"within_{limit}px": ((error <= limit).float(), visible) for limit in WITHIN},
            "invented_l1": (color_distance(pose_kernels.flow_sample(source, flow)), invented),
            "invented_l1_mean": (color_distance(mean_color), invented),
            "invented_l1_copy": (color_distance(source), invented),
            "invented_same_part": ((part == batch["target_part"][:, 0]).float(), invented),
            "invented_background": ((part == 0).float(), invented)}


@torch.no_grad()
def background_off(image: Tensor, batch: dict[str, Tensor], *, touching: bool = True) -> Tensor:
    """The share of the pixels behind the target's person in which a colour of the image,
    `[B, 3, H, W]` in [-1, 1], is off by more than `OFF` of 255; `[B]`.

    Args:
        touching: whether pixels count that touch the person, sideways or by a corner. They hold a
            part of the smooth edge, so that only an outline that is known to a fraction of a pixel
            has them right.
    """
    off = (image.clamp(-1, 1) - batch["target"]).abs().amax(1) * 127.5 > OFF
    behind = ~batch["target_foreground"][:, 0]
    if not touching:
        off = off & ~(F.max_pool2d((~behind).float(), 3, 1, 1) > 0)
    return metrics.masked_mean(off.float(), behind)


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

    pixels = batch["target_foreground"], batch["visible"]
    return {f"pair_auc_{name}": torch.tensor(
        [area(*pair) for pair in zip(score, *pixels, strict=True)], dtype=torch.float64)
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
    indices = torch.arange(len(PART_NAMES), device=part.device)[:, None]
    # Pair by pair: a map of every part of every pair is large.
    sums = torch.stack([(parts.flatten() == indices).double() @ column.double()
                        for parts, column in zip(part, columns, strict=True)])
    return {name: (sums[..., 2 * index], sums[..., 2 * index + 1])
            for index, name in enumerate(values)}


def turned_by(turn, low: int, high: int):
    """Which of some turns in degrees, `[B]`, are among those of one of `TURNS`, `[B]` bool."""
    return (turn >= low) & ((turn < high) | (high == 180))


class MannequinTotals(Group):
    """Pooled over all pixels of a test set, over the body, by part and by turn, in bounded memory.

    Convention: pooled values are means over pixels, those of `pair_metrics` means of pairs' means.
    """

    def __init__(self):
        self._sums = Group(lambda name: Sum())                 # [2, parts]: sum and number
        self._curves = Group(lambda score: Group(
            lambda part: RocAccumulator() if part == "all" else RocAccumulator(_PART_LIMIT)))
        self._turns = Group(lambda low: Group(lambda score: RocAccumulator()))
        super().__init__(mannequins=Group(sum=self._sums, roc=self._curves), turn=self._turns)

    @torch.no_grad()
    def update(self, batch: dict[str, Tensor], flow: Tensor, scores: dict[str, Tensor]) -> None:
        """Add a batch.

        Args:
            flow: at image size, `[B, 2, H, W]`, normalised.
            scores: visibility by each measure, `[B, 1, H, W]`, higher is more visible.
        """
        sums = part_sums(pixel_values(batch, flow), batch["target_part"][:, 0])
        for name, pair in sums.items():
            self._sums[name].update(torch.stack([part.sum(0) for part in pair]).cpu().numpy())
        body = batch["target_foreground"]
        part, order = batch["target_part"][body].sort()
        visible = batch["visible"][body][order]
        index, sizes = part.unique_consecutive(return_counts=True)
        names, sizes = [PART_NAMES[part] for part in index.tolist()], sizes.tolist()
        for score, values in scores.items():
            values = values[body][order]
            self._curves[score]["all"].update(values, visible)
            for name, *pixels in zip(names, values.split(sizes), visible.split(sizes), strict=True):
                self._curves[score][name].update(*pixels)
        for low, high in TURNS:
            chosen = body & turned_by(batch["turn"], low, high).view(-1, 1, 1, 1)
            for score, values in scores.items():
                self._turns[str(low)][score].update(values[chosen], batch["visible"][chosen])

    def aucs(self, turn: tuple[int, int] | None = None) -> dict[str, float | None]:
        """How well each score tells visible pixels, of one of `TURNS` or all; None where there are
        no two kinds of pixels to tell apart."""
        curves = {score: parts["all"] for score, parts in self._curves.parts.items()} \
            if turn is None else self._turns[str(turn[0])].parts
        return {score: _number(curve.auc()) for score, curve in curves.items()}

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
        visibility = {}
        for score, curves in self._curves.parts.items():
            body = curves["all"]
            visibility[score] = {
                "parts": {part: _number(curve.auc()) for part, curve in curves.parts.items()
                          if part != "all"},
                "auc": _number(body.auc()), "auc_error": _number(body.auc_error()),
                "curve": body.curve()}
        return {"body": self._means(slice(1, None)), "parts": parts, "visibility": visibility}

    def _means(self, parts: slice) -> dict[str, float | None]:
        total = {name: sums.total[:, parts].sum(1) for name, sums in self._sums.parts.items()}
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
