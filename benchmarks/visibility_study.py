"""How well can visibility be found at all, and by which measures? On generated people.

    python benchmarks/visibility_study.py                          # what bounds every method
    python benchmarks/visibility_study.py runs/quick runs/other    # measures of trained flows

Without a run: the true flow by the measure of local affinity on grids of several sizes, and a
classifier that is trained with labels, from the two poses alone. With runs: further measures than
an evaluation has, and where on the body they find what they find. All numbers are areas under the
ROC curve over the person's pixels of held-out pairs; 0.5 is chance.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pose_kernels
from posemodel import visibility
from posemodel.baselines.estimator import FlowEstimator
from posemodel.config import Config
from posemodel.data.keypoints import JOINTS
from posemodel.engine.data_source import held_out_batches, mannequins
from posemodel.engine.run_folder import RunFolder
from posemodel.engine.trained import load_trained
from posemodel.errors import UserError
from posemodel.evaluation.roc import RocAccumulator
from posemodel.model.pose_maps import pose_maps
from posemodel.model.pose_transfer import PoseTransfer
from posemodel.presets import PRESETS

CPU = torch.device("cpu")
SIGMA = 6.0
"""of a joint in the maps that the classifier sees, pixels of an image 256 pixels high"""
RIM = 3
"""pixels from the background within which a pixel counts as the rim of the body"""


class Curves:
    """ROC curves by name."""

    def __init__(self):
        self._curves: dict[str, RocAccumulator] = {}

    def add(self, name: str, score: Tensor, chosen: Tensor, visible: Tensor) -> None:
        """Count the chosen pixels; all three `[B, 1, H, W]`."""
        self._curves.setdefault(name, RocAccumulator()).update(score[chosen], visible[chosen])

    def lines(self) -> Iterator[str]:
        for name, curve in self._curves.items():
            yield f"{name:<44}{curve.auc():.3f}"


def body_depth(body: Tensor) -> Tensor:
    """How many pixels (of the larger axis) each pixel is from the background, up to 2 `RIM`."""
    left, depth = body.float(), torch.zeros(body.shape)
    for _ in range(2 * RIM):
        depth = depth + left
        left = -F.max_pool2d(-left, 3, 1, 1)
    return depth


def true_flow(config: Config, pairs: int) -> Iterator[str]:
    """The true flow, which also says where a hidden point is, by its distance from affine."""
    height, width = config.data.image_size
    curves = Curves()
    for batch in held_out_batches(config, CPU, pairs):
        body, visible = batch["target_foreground"], batch["visible"]
        at = pose_kernels.identity_flow(height, width).expand_as(batch["flow"])
        moved = batch["flow"] - at
        for cell in (4, 2, 1):
            grid = (height // cell, width // cell)
            coarse = F.avg_pool2d(moved, cell) + pose_kernels.identity_flow(*grid)
            score = pose_kernels.flow_sample(visibility.affine_score(coarse), at, (height, width))
            curves.add(f"true flow, affine, grid {grid[0]} x {grid[1]}", score, body, visible)
        curves.add("distance from the background", body_depth(body), body, visible)
    return curves.lines()


class Classifier(nn.Module):
    """A small U-Net: maps of two poses to the log odds of "visible", `[B, 1, H, W]`; H and W are
    multiples of 8."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.first = _layer(2 * len(JOINTS), width)
        self.down = nn.ModuleList(
            nn.Sequential(_layer(before, after, stride=2), _layer(after, after))
            for before, after in ((width, 2 * width), (2 * width, 4 * width),
                                  (4 * width, 4 * width)))
        self.up = nn.ModuleList(_layer(before, after) for before, after in (
            (8 * width, 2 * width), (4 * width, width), (2 * width, width)))
        self.last = nn.Conv2d(width, 1, 1)

    def forward(self, maps: Tensor) -> Tensor:
        levels = [self.first(maps)]
        for down in self.down:
            levels.append(down(levels[-1]))
        x = levels.pop()
        for up in self.up:
            x = up(torch.cat([F.interpolate(x, scale_factor=2), levels.pop()], 1))
        return self.last(x)


def _layer(before: int, after: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False),
                         nn.BatchNorm2d(after), nn.ReLU(inplace=True))


def classifier(config: Config, pairs: int, steps: int) -> Iterator[str]:
    """What a network finds that is told the truth in training."""
    size, batch = config.data.image_size, config.optim.batch_size
    torch.manual_seed(config.seed)
    net, data = Classifier(), mannequins(config, seed=config.seed, device=CPU)

    def maps(batch: dict[str, Tensor]) -> Tensor:
        return torch.cat([pose_maps(batch[f"{view}_pose"], size, SIGMA)
                          for view in ("source", "target")], 1)

    optimizer = torch.optim.Adam(net.parameters())
    course = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        known = data.pairs(range(step * batch, (step + 1) * batch))
        body = known["target_foreground"]
        loss = F.binary_cross_entropy_with_logits(net(maps(known))[body],
                                                  known["visible"][body].float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.step()
    net.eval()
    curves = Curves()
    with torch.no_grad():
        for held_out in held_out_batches(config, CPU, pairs):
            curves.add(f"classifier with labels, {steps} steps", net(maps(held_out)),
                       held_out["target_foreground"], held_out["visible"])
    return curves.lines()


@torch.no_grad()
def measures(model: PoseTransfer, config: Config, pairs: int) -> Iterator[str]:
    """Measures of a trained flow, over all of the body, its rim and the rest."""
    curves = Curves()
    for batch in held_out_batches(config, CPU, pairs):
        body, visible = batch["target_foreground"], batch["visible"]
        rim = body_depth(body) < RIM
        for name, score in scores_of(model, batch).items():
            for where, chosen in (("", body), (", rim", body & rim), (", inside", body & ~rim)):
                curves.add(name + where, score, chosen, visible)
    return curves.lines()


def scores_of(model: PoseTransfer, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scores of visibility by name, each `[B, 1, H, W]`, higher is more visible."""
    source, poses = batch["source"], (batch["source_pose"], batch["target_pose"])
    size = tuple(source.shape[-2:])
    flow = model.flow(source, *poses)
    backward = model.flow(pose_kernels.flow_sample(source, flow), *reversed(poses))
    there, back = (pose_kernels.resize_flow(one, size) for one in (flow, backward))
    at = pose_kernels.identity_flow(*size).expand_as(there)

    def fine(score: Tensor) -> Tensor:
        return pose_kernels.flow_sample(score, at, size)

    cycle = visibility.cycle_score(there, back)
    scores = {f"affine, {window} x {window} cells": fine(visibility.affine_score(flow, window))
              for window in (3, 5, 7)}
    scores |= {"cycle": cycle, "cycle, smoothed over 9 pixels": F.avg_pool2d(cycle, 9, 1, 4),
               "arrivals of the way back": arrivals(back, batch["source_foreground"])}
    if not isinstance(model.warping, FlowEstimator):
        features = model.warping.encode(*poses)
        scores["correlation"] = fine(visibility.correlation_score(*features))
    return scores


def arrivals(backward: Tensor, body: Tensor) -> Tensor:
    """How much of the source's body the way back puts on each target pixel: the range map of Wang
    et al., "Occlusion Aware Unsupervised Learning of Optical Flow" (2018), smoothed.

    Args:
        backward: `[B, 2, H, W]`, source -> target.
        body: `[B, 1, H, W]` bool, of the source.
    """
    # Putting is the adjoint of sampling.
    canvas = torch.zeros(body.shape, requires_grad=True)
    with torch.enable_grad():
        sampled = pose_kernels.flow_sample(canvas, backward, padding_mode="zeros")
        put, = torch.autograd.grad(sampled, canvas, body.float())
    for _ in range(2):
        put = F.avg_pool2d(put, 3, 1, 1)
    return put


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folders")
    parser.add_argument("--preset", choices=PRESETS, default="quick",
                        help="people and sizes, where there is no run (default: quick)")
    parser.add_argument("--steps", type=int, default=1500,
                        help="training steps of the classifier (default: 1500)")
    parser.add_argument("--pairs", type=int, default=256, help="held-out pairs (default: 256)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not arguments.runs:
        config = PRESETS[arguments.preset]()
        print(*true_flow(config, arguments.pairs), sep="\n", flush=True)
        print(*classifier(config, arguments.pairs, arguments.steps), sep="\n")
    for path in arguments.runs:
        try:
            run = RunFolder.open_existing(path)
            model, _ = load_trained(run, CPU)
        except UserError as error:
            parser.error(str(error))
        print(path, *measures(model, run.config, arguments.pairs), sep="\n", flush=True)


if __name__ == "__main__":
    main()
