"""Table 5: re-identification without and with generated images."""

import json
from pathlib import Path

import numpy as np

from posemodel.evaluation.statistics import spread
from posemodel.reid.ranking import CONVENTIONS
from posemodel.reid.runs import read_config, seed_folders
from posemodel.runtime.errors import UserError

METRICS = {"mAP": "mAP", "rank1": "rank 1", "rank5": "rank 5", "rank10": "rank 10"}

# The paper's Table 5, percent: DG-Net++ as published (Duke -> Market-1501, adapted without labels),
# and with the paper's images.
PAPER = {"mAP": (61.7, 63.8), "rank1": (82.1, 83.8), "rank5": (90.2, 93.0), "rank10": (92.7, 95.4)}

PAPER_NOTE = (
    "The last two columns are quoted from the paper, which gives no spread. They are another task: "
    "DG-Net++, trained on DukeMTMC and adapted to Market-1501 without labels. Ten runs by its "
    "authors have an mAP of 61.7 to 64.0 (63.2 ± 0.83): both quoted values of mAP lie in that "
    "range.")


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


def table(real: Path, augmented: Path) -> str:
    """Markdown: both conventions, mean and standard deviation over the seeds. Raises: `UserError`
    for runs that cannot be compared."""
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
    parts = []
    for convention in CONVENTIONS:
        plain, more = (read_scores(run, convention) for run in (real, augmented))
        lines = ["| percent | real | real + generated | difference "
                 "| paper: DG-Net++ | paper: with its images |", "|---|---|---|---|---|---|"]
        for name, title in METRICS.items():
            gain = more[name].mean() - plain[name].mean()
            quoted = " | ".join(f"*{value:.1f}*" for value in PAPER[name])
            cells = [spread(values[name]).text(digits=1) for values in (plain, more)]
            lines.append(f"| {title} | {cells[0]} | {cells[1]} | {gain:+.1f} "
                         f"| {quoted} |")
        counts = f"{len(plain['mAP'])} and {len(more['mAP'])} seeds"
        parts.append("\n".join([f"Average precision by {convention}, {counts}, mean ± standard "
                                "deviation of single runs:", "", *lines]))
    return "\n\n".join([*parts, PAPER_NOTE])
