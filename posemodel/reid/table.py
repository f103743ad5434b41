"""Table 5: re-identification without and with generated images."""

import json
import math
from pathlib import Path

import numpy as np

from posemodel.evaluation.statistics import spread
from posemodel.reid.ranking import CONVENTIONS
from posemodel.reid.runs import read_config, seed_folders
from posemodel.runtime.errors import UserError

BETTER, WORSE, OPEN = "better", "worse", "not shown"

METRICS = {"mAP": "mAP", "rank1": "rank 1", "rank5": "rank 5", "rank10": "rank 10"}

# The paper's Table 5, percent: DG-Net++ as published (Duke -> Market-1501, adapted without labels),
# and with the paper's images.
PAPER = {"mAP": (61.7, 63.8), "rank1": (82.1, 83.8), "rank5": (90.2, 93.0), "rank10": (92.7, 95.4)}

PAPER_NOTE = (
    "The last two columns are quoted from the paper, which gives no spread. They are another task: "
    "DG-Net++, trained on DukeMTMC and adapted to Market-1501 without labels. Ten runs by its "
    "authors have an mAP of 61.7 to 64.0 (63.2 ± 0.83): both quoted values of mAP lie in that "
    "range. Rank 1, 5 and 10 with the paper's images lie above the best of these runs (82.6, 91.4, "
    "93.9).")


def read_scores(run: Path, convention: str) -> dict[str, np.ndarray]:
    """Percent by metric, `[seeds]`, of a run's evaluation files. Raises: `UserError` for a seed
    that is not evaluated, or on another gallery than the first."""
    found, galleries = [], set()
    for folder in seed_folders(run):
        path = folder / "evaluation.json"
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            found.append([100 * row[convention][name] for name in METRICS])
            galleries.add((row["root"], row["queries"], row["gallery"]))
        except OSError as error:
            raise UserError(f"{path} cannot be read; make it with python -m posemodel.reid "
                            f"evaluate {run}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error!r})") from error
    if len(galleries) > 1:
        raise UserError(f"{run}: its seeds were evaluated on different sets; evaluate it again")
    return dict(zip(METRICS, np.array(found).T, strict=True))


def compare_runs(real: Path, augmented: Path) -> dict:
    """All that the table says, as JSON values in percent. Raises: `UserError` for runs that cannot
    be compared."""
    configs = [read_config(run) for run in (real, augmented)]
    for name in ("root", "steps", "backbone", "weights", "image_size", "batch_identities",
                 "batch_images", "max_images"):
        values = [getattr(config, name) for config in configs]
        if values[0] != values[1]:
            raise UserError(f"{real} and {augmented} differ in {name} ({values[0]} and "
                            f"{values[1]}): a comparison takes the same")
    if configs[0].augmented or not configs[1].augmented:
        raise UserError("the first run has to be of real images, the second of real and generated "
                        "ones")
    found = {}
    for convention in CONVENTIONS:
        plain, more = (read_scores(run, convention) for run in (real, augmented))
        found[convention] = {name: {
            "title": title, "real": plain[name].tolist(), "both": more[name].tolist(),
            "difference": float(more[name].mean() - plain[name].mean()),
            "says": _verdict(plain[name], more[name]),
            "paper": dict(zip(("real", "both"), PAPER[name], strict=True))}
            for name, title in METRICS.items()}
    return {"real": str(real), "both": str(augmented), "conventions": found, "note": PAPER_NOTE}


def _verdict(plain: np.ndarray, more: np.ndarray) -> str:
    """Of the scores of single seeds: `BETTER` or `WORSE` where no seed of one side reaches into
    the other side. One seed has no spread, and shows nothing."""
    if min(len(plain), len(more)) < 2:
        return OPEN
    if more.min() > plain.max():
        return BETTER
    return WORSE if more.max() < plain.min() else OPEN


def table(compared: dict) -> str:
    """Markdown of `compare_runs`: both conventions, mean and standard deviation over the seeds."""
    parts = []
    for convention, rows in compared["conventions"].items():
        lines = ["| percent | real | real + generated | difference | with generated images "
                 "| *paper: DG-Net++* | *paper: with its images* |", "|---" * 7 + "|"]
        for row in rows.values():
            ours = [spread(row[side]).text(digits=1) for side in ("real", "both")]
            quoted = [f"*{row['paper'][side]:.1f}*" for side in ("real", "both")]
            cells = [row["title"], *ours, f"{row['difference']:+.1f}", row["says"], *quoted]
            lines.append(f"| {' | '.join(cells)} |")
        seeds = [len(rows["mAP"][side]) for side in ("real", "both")]
        parts.append("\n".join([f"Average precision by {convention}, {seeds[0]} and {seeds[1]} "
                                "seeds, mean ± standard deviation of single runs:", "", *lines]))
    chance = 200 / math.comb(sum(seeds), seeds[0])
    verdict = (f"*{BETTER.capitalize()}* or *{WORSE}* is said where every seed of one side lies "
               f"above every seed of the other, which chance alone does in {chance:.3g} % of "
               f"all comparisons; else the difference is *{OPEN}*.")
    if min(seeds) < 2:
        verdict = f"One seed tells nothing of the spread: every difference is *{OPEN}*."
    return "\n\n".join([*parts, verdict])
