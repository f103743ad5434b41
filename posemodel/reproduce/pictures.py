"""The pictures of a table: people as each method warps them (as in Fig. 2), and learning curves."""

import io
from pathlib import Path

import torch

import pose_kernels
from posemodel.data.source import held_out_batches
from posemodel.engine.trained import load_trained
from posemodel.evaluation.inspection import has_truth, inspect
from posemodel.evaluation.tables import kind_of_pairs
from posemodel.pictures.pixels import to_pictures
from posemodel.pictures.sheet import contact_sheet
from posemodel.poses.drawing import draw_skeleton
from posemodel.reproduce.results import TableNumbers
from posemodel.runtime import environment
from posemodel.runtime.files import write_aside

ROWS = 6
_GREY = 0.0  # of [-1, 1]


def write_warps(numbers: TableNumbers, path: Path, device: str) -> None:
    """Source, target pose, target, and the source as the first seed of each method warps it.

    On mannequins also the person as the true flow warps it; what the source does not show is grey.
    """
    place, _ = environment.choose_device(device)
    config = numbers.results["ours"][0].run.config
    batch = next(held_out_batches(config.data, place, ROWS, split="test",
                                  positions=config.flow_positions))
    fine = tuple(4 * side for side in config.data.image_size)
    columns = [("source", list(to_pictures(batch["source"]))),
               ("target pose", [draw_skeleton(pose, fine) for pose in batch["target_pose"]]),
               ("target", list(to_pictures(batch["target"])))]
    if has_truth(batch):
        true = pose_kernels.flow_sample(batch["source"], batch["flow"])
        person = torch.where(batch["visible"], true, _GREY)
        shown = to_pictures(torch.where(batch["target_foreground"], person, 1.0))
        columns.append(("true flow", list(shown)))
    for cell in numbers.table.trained:
        if not cell.pictured:
            continue
        run = numbers.results[cell.key][0].run
        model, _ = load_trained(run, place)
        dtype, _ = environment.choose_precision(run.config.precision, place)
        shown = inspect(model, batch, dtype)
        columns.append((cell.label, list(to_pictures(shown.warped))))
        if numbers.table.refined:
            columns.append(("... refined", list(to_pictures(shown.image))))
    contact_sheet(columns, path, title=numbers.table.title)


def write_curves(numbers: TableNumbers, path: Path) -> None:
    """The warped image's l1 while training over the steps, relative to the source unmoved."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    shown = [cell for cell in numbers.table.trained if cell.pictured]
    for cell, color in zip(shown, matplotlib.colormaps["tab10"].colors, strict=False):
        for index, result in enumerate(numbers.results[cell.key]):
            rows = result.run.read_evaluations()
            axes.plot([row["step"] for row in rows],
                      [row["warped_l1"] / row["copy_l1"] for row in rows], color=color, marker="o",
                      markersize=3, linewidth=1.4, label=cell.label if index == 0 else None)
    axes.axhline(1, color="0.5", linewidth=1, linestyle=":", label="source unmoved")
    pairs = kind_of_pairs(numbers.results["ours"][0].run.read_evaluations()[-1])
    axes.set(title=f"{numbers.table.title}: {pairs}, a line for each seed",
             xlabel="training steps", ylabel="l1 of the warped source / of the source unmoved")
    axes.title.set_fontsize(10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_aside(path, buffer.getvalue())
