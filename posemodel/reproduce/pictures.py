"""The pictures of a table: people as each method warps them (as in Fig. 2), and learning curves."""

import io
from pathlib import Path

import torch
from torch import Tensor

import pose_kernels
from posemodel import pictures
from posemodel.engine import environment
from posemodel.engine.data_source import held_out_batches
from posemodel.engine.evaluation import has_truth, inspect
from posemodel.engine.trained import load_trained
from posemodel.files import write_aside
from posemodel.reproduce.results import Outcome

ROWS = 6
_GREY = 0.0  # of [-1, 1]


def write_warps(outcome: Outcome, path: Path, device: str) -> None:
    """Source, target pose, target, and the source as the first seed of each method warps it.

    On mannequins also the person as the true flow warps it; what the source does not show is grey.
    """
    place, _ = environment.choose_device(device)
    config = outcome.results["ours"][0].run.config
    batch = next(held_out_batches(config, place, ROWS))
    fine = tuple(4 * side for side in config.data.image_size)
    columns = [
        ("source", _images(batch["source"])),
        ("target pose", [pictures.draw_skeleton(pose, fine) for pose in batch["target_pose"]]),
        ("target", _images(batch["target"])),
    ]
    if has_truth(batch):
        true = pose_kernels.flow_sample(batch["source"], batch["flow"])
        person = torch.where(batch["visible"], true, _GREY)
        columns.append(("true flow", _images(torch.where(batch["target_foreground"], person, 1.0))))
    for cell in outcome.table.cells:
        if cell.key == "copy":
            continue
        run = outcome.results[cell.key][0].run
        model, _ = load_trained(run, place)
        dtype, _ = environment.choose_precision(run.config.precision, place)
        shown = inspect(model, batch, dtype)
        columns.append((cell.label, _images(shown.warped)))
        if outcome.table.refined:
            columns.append(("... refined", _images(shown.image)))
    pictures.contact_sheet(columns, path, title=outcome.table.title)


def write_curves(outcome: Outcome, path: Path) -> None:
    """The warped image's l1 on held-out pairs over the steps, relative to the source unmoved."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    cells = [cell for cell in outcome.table.cells if cell.key != "copy"]
    colors = matplotlib.colormaps["tab10"].colors
    for cell, color in zip(cells, colors, strict=False):
        for index, one in enumerate(outcome.results[cell.key]):
            rows = one.run.read_evaluations()
            axes.plot([row["step"] for row in rows],
                      [row["warped_l1"] / row["copy_l1"] for row in rows], color=color, marker="o",
                      markersize=3, linewidth=1.4, label=cell.label if index == 0 else None)
    axes.axhline(1, color="0.5", linewidth=1, linestyle=":", label="source unmoved")
    axes.set(title=f"{outcome.table.title}: held-out pairs, a line for each seed",
             xlabel="training steps", ylabel="l1 of the warped source / of the source unmoved")
    axes.title.set_fontsize(10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_aside(path, buffer.getvalue())


def _images(images: Tensor) -> list[Tensor]:
    return list(((images.float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))
