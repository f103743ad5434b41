"""Evaluation on held-out pairs; on mannequins also of flow and visibility, which are known."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from posemodel.config.sections import Config
from posemodel.data.source import open_held_out
from posemodel.evaluation import lpips as lpips_metric
from posemodel.evaluation import records
from posemodel.evaluation.mannequin_metrics import TURNS, turned_by
from posemodel.evaluation.measures import Instruments, Totals, measure_batch
from posemodel.model.pose_transfer import PoseTransfer
from posemodel.runtime.errors import UserError

# Only generated people have these; those of visibility are pooled over pixels, all others are means
# over pairs.
_ABSENT = dict.fromkeys(("epe_zero", "epe_visible", *(
    f"{image}_background_off" for image in ("copy", "warped", "refined")), *(
    f"visibility_auc_{score}" for score in ("affine", "cycle", "peak", "correlation"))))
# Columns of the records that are no measures.
_NOT_MEASURED = ("pair", "person", "turn")
# LPIPS by VGG-16 takes many times as long as by AlexNet.
_ONLY_AT_THE_END = "vgg"


def instruments_of_run(config: Config, device: torch.device) -> Instruments:
    """What a run measures its held-out pairs with: LPIPS as far as its weights are at hand.
    Raises: `UserError` for weights that are damaged, or of another network."""
    found = lpips_metric.networks("auto", device, config.loss.weights_folder, log=lambda line: None)
    return Instruments(lpips=found, lpips_records=lpips_metric.records(found, "auto"))


def on_the_way(instruments: Instruments) -> Instruments:
    """Those of the evaluations before the last one, without what takes long."""
    net = _ONLY_AT_THE_END
    if net not in instruments.lpips:
        return instruments
    return replace(
        instruments, lpips={name: each for name, each in instruments.lpips.items() if name != net},
        lpips_records={**instruments.lpips_records, net: "not measured: only at the last step"})


@torch.no_grad()
def evaluate(model: PoseTransfer, config: Config, device: torch.device, dtype: torch.dtype, *,
             split: str, log: Callable[[str], None] = print,
             instruments: Instruments | None = None) -> dict:
    """All metrics on the held-out pairs; of mannequins also by how far the body turns.

    Args:
        split: as of `open_held_out`.
        log: is given a line for each held-out image that cannot be read.
        instruments: None: without networks.

    Returns the row of eval.jsonl without its step; values that do not exist are None.
    """
    instruments = instruments or Instruments()
    model.eval()
    columns: dict[str, list[Tensor]] = {}
    totals = Totals()
    held_out = open_held_out(config.data, device, config.data.evaluation_pairs, split=split,
                             positions=config.flow_positions, log=log)
    for batch in held_out.stream(held_out.batches):
        for name, values in measure_batch(model, batch, dtype, instruments, totals).items():
            columns.setdefault(name, []).append(values.double().cpu())
    table = {name: torch.cat(values).numpy() for name, values in columns.items()}
    return evaluation_row(config.data.kind, split, table, totals, instruments,
                          holes=held_out.holes)


def evaluation_row(kind: str, split: str, table: dict[str, np.ndarray], totals: Totals,
                   instruments: Instruments, *, holes: str | None = None) -> dict:
    """The numbers of an evaluation: means of what was measured of each pair, and what was pooled.

    Args:
        kind: of data set.
        split: "validation" or "test", of the pairs.
        table: values by name, each `[N]`; NaN where a pair does not have the value.
        holes: what fills those behind the people of films.

    Raises: `UserError` for a table without pairs.

    Returns: `data`, `split`, the mean of each column, `visibility_auc_SCORE`, `pairs`, `lpips`, by
        net what its values depend on or why there are none, `holes`, and `by_turn`, on mannequins
        the same of each turn, else None; values that do not exist are None.
    """
    if not table or not len(table["copy_l1"]):
        raise UserError("no held-out pair has readable images; check the data set with "
                        "python -m posemodel.data check")

    def part(chosen: np.ndarray, aucs: dict[str, float | None]) -> dict:
        means = records.means({name: values[chosen] for name, values in table.items()
                               if name not in _NOT_MEASURED})
        return {**_ABSENT, **means, **{f"visibility_auc_{name}": auc for name, auc in aucs.items()},
                "pairs": int(chosen.sum())}

    truth, by_turn = totals.truth, None
    if "turn" in table:
        by_turn = {f"{low}-{high}": part(turned_by(table["turn"], low, high),
                                         truth.aucs((low, high))) for low, high in TURNS}
    return {"data": kind, "split": split,
            **part(np.ones(len(table["copy_l1"]), bool), truth.aucs()),
            "lpips": dict(instruments.lpips_records),
            "holes": holes, "by_turn": by_turn}
