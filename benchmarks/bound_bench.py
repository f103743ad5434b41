"""How near to the truth a picture can come that is made with one flow: of generated people, whose
true flow is known, beside what a model makes of them.

    python benchmarks/bound_bench.py --weights DIR --json docs/bounds.json
    python benchmarks/bound_bench.py --read docs/bounds.json        # the table again

The target itself, moved sideways by a part of a pixel, says what an outline costs that is known to
that part. The true flow moves the person of the source, and stands before the target's own
background: no flow does better where the source shows the person. The model is the package's, the
people are the test people of its configuration but for --background and --turn. Pixels of the
background that touch the person hold a part of it each, since edges are smooth: the last column
leaves them out.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import pose_kernels
from posemodel.data.source import held_out_batches
from posemodel.evaluation import metrics
from posemodel.evaluation.lpips import Lpips
from posemodel.evaluation.mannequin_metrics import background_off
from posemodel.inference.model import PoseTransferModel
from posemodel.model.scene import scene_of_batch

CPU = torch.device("cpu")
MOVED = (0.25, 0.5, 1.0)  # pixels
COLUMNS = {"l1": "l1", "ssim": "SSIM", "lpips": "LPIPS-Alex", "off": "background off",
           "off_apart": "of it, not touching the person"}
DIGITS = {"l1": ".2f", "ssim": ".3f", "lpips": ".3f", "off": ".2%", "off_apart": ".2%"}


def main() -> int:
    """Measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--read", type=Path, metavar="FILE", help="print a table that was written")
    parser.add_argument("--model", metavar="RUN", help="folder or file (default: the package's)")
    parser.add_argument("--background", choices=("white", "still", "cluttered"))
    parser.add_argument("--turn", type=float, metavar="DEGREES")
    parser.add_argument("--pairs", type=int, default=256, help="test pairs (default: 256)")
    parser.add_argument("--weights", default="", metavar="DIR", help="folder of AlexNet's weights")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    if arguments.read is not None:
        print(table(json.loads(arguments.read.read_text())))
        return 0
    if arguments.pairs < 1:
        parser.error("--pairs: at least 1")
    content = {"command": ["python", *sys.argv], **measured(arguments)}
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    print(table(content))
    return 0


@torch.no_grad()
def measured(arguments: argparse.Namespace) -> dict:
    """The rows, and which people they are means of."""
    model = (PoseTransferModel.shipped("cpu") if arguments.model is None
             else PoseTransferModel.choose(arguments.model, "cpu"))
    data = replace(model.config.data, evaluation_pairs=arguments.pairs, **{
        name: getattr(arguments, name) for name in ("background", "turn")
        if getattr(arguments, name) is not None})
    lpips = Lpips("alex", CPU, arguments.weights)
    rows: dict[str, dict[str, list[float]]] = {}
    for batch in held_out_batches(data, CPU, arguments.pairs, split="test",
                                  positions=model.config.flow_positions, log=print):
        for name, image in images(model, batch):
            for column, values in measures(image, batch, lpips).items():
                rows.setdefault(name, {}).setdefault(column, []).extend(values.tolist())
    return {"pairs": arguments.pairs, "size": data.image_size, "turn": data.turn,
            "background": data.background, "split": "test",
            "rows": {name: {column: statistics.fmean(values) for column, values in row.items()}
                     for name, row in rows.items()}}


def images(model: PoseTransferModel, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """What is measured of a batch, by its row."""
    yield "the source as it is", batch["source"]
    for pixels in MOVED:
        yield f"the target, moved by {pixels:g} pixels", moved(batch["target"], pixels)
    yield "the true flow, the true background", true_flow(batch)
    made = model.generator(batch["source"], batch["source_pose"], batch["target_pose"],
                           scene_of_batch(batch))
    yield "warped", made.warped
    yield "refined", made.image


def moved(image: Tensor, pixels: float) -> Tensor:
    """`[B, 3, H, W]` moved to the right by a part of a pixel, or by pixels; the left column stands
    for what comes in."""
    height, width = image.shape[-2:]
    flow = pose_kernels.identity_flow(height, width).expand(len(image), -1, -1, -1).clone()
    flow[:, 0] -= 2 * pixels / width
    return pose_kernels.flow_sample(image, flow)


def true_flow(batch: dict[str, Tensor]) -> Tensor:
    """The source moved by the true flow where the target shows the person, else the target."""
    person = pose_kernels.flow_sample(batch["source"], batch["flow"])
    return torch.where(batch["target_foreground"], person, batch["target"])


def measures(image: Tensor, batch: dict[str, Tensor], lpips: Lpips) -> dict[str, Tensor]:
    """Of each pair, `[B]`."""
    image, target = image.clamp(-1, 1), batch["target"]
    return {"l1": metrics.IMAGE_METRICS["l1"](image, target), "ssim": metrics.ssim(image, target),
            "lpips": lpips(image, target), "off": background_off(image, batch),
            "off_apart": background_off(image, batch, touching=False)}


def table(content: dict) -> str:
    """In Markdown."""
    lines = ["| | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(format(row[column], DIGITS[column]).replace("%", " %")
                                          for column in COLUMNS) + " |"
              for name, row in content["rows"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
