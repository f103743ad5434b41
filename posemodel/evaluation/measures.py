"""What is measured of each pair: the table of measures, and what an evaluation pools besides.

A new measure is a function and a line in one file: of images in `metrics.IMAGE_METRICS`, of a
protocol in `protocols.compare`, of the flow of mannequins in `mannequin_metrics.pixel_values`, of
anything else in `MEASURES`. Records, rows and the tables of the protocol then have it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import pose_kernels
from posemodel.evaluation import metrics
from posemodel.evaluation.accumulators import Group
from posemodel.evaluation.fid import FeatureStatistics, InceptionFeatures
from posemodel.evaluation.inspection import Inspection, has_truth, inspect
from posemodel.evaluation.lpips import Lpips
from posemodel.evaluation.mannequin_metrics import (
    MannequinTotals,
    background_off,
    pair_aucs,
    pair_metrics,
)
from posemodel.evaluation.protocols import Protocol, compare, prepare
from posemodel.model.pose_transfer import PoseTransfer
from posemodel.poses.joints import normalized_to_pixels
from posemodel.poses.mask import pose_mask

Batch = dict[str, Tensor]
Columns = dict[str, Tensor]
"""one value of each pair, `[B]`, by name"""

# They come first, and are not named as the other metrics of images are.
_SSIM_COLUMNS = {"copy": "ssim_copy", "warped": "ssim_warped", "refined": "ssim"}

_AROUND = 1 / 32  # of the rows: what is still taken to be the person

PROTOCOL_PREFIXES = {"measures": "protocol_", "measures_copy": "copy_protocol_",
                     "measures_refined": "refined_protocol_"}
"""Columns of the protocol's metrics: of the image that it is about, of the source as it is, and of
the refined image where it is about the warped one."""


@dataclass(frozen=True, kw_only=True)
class Instruments:
    """What pairs are measured with."""

    protocol: Protocol | None = None
    """None: images as they are, and nothing else"""
    lpips: Mapping[str, Lpips] = field(default_factory=dict)
    """networks by their net"""
    lpips_records: Mapping[str, dict | str] = field(default_factory=dict)
    """`lpips.records` of them"""
    inception: InceptionFeatures | None = None
    """of the protocol's FID"""


class Totals(Group):
    """What is pooled over the pixels and the images of a test set."""

    def __init__(self):
        self.truth, self.fid = MannequinTotals(), FeatureStatistics()
        super().__init__(truth=self.truth, fid=self.fid)

    def update(self, batch: Batch, seen: Inspection, instruments: Instruments) -> None:
        """Add a batch."""
        if has_truth(batch):
            self.truth.update(batch, seen.flow, seen.scores)
        if instruments.inception is not None:
            protocol = instruments.protocol
            self.fid.update(instruments.inception(
                prepare(seen.image, protocol, protocol.result_codec)))


def measure_batch(model: PoseTransfer, batch: Batch, dtype: torch.dtype, instruments: Instruments,
                  totals: Totals) -> Columns:
    """All measures of a batch; what is pooled is added to the totals."""
    seen = inspect(model, batch, dtype)
    totals.update(batch, seen, instruments)
    return measure(batch, seen, instruments)


@torch.no_grad()
def measure(batch: Batch, seen: Inspection, instruments: Instruments) -> Columns:
    """All of `MEASURES` that these instruments take."""
    groups = MEASURES if instruments.protocol is None else MEASURES + PROTOCOL_MEASURES
    columns: Columns = {}
    for group in groups:
        columns |= group(batch, seen, instruments)
    return columns


def _similarities(batch: Batch, seen: Inspection, instruments: Instruments) -> Columns:
    return {_SSIM_COLUMNS[name]: metrics.ssim(image, batch["target"])
            for name, image in _images(batch, seen).items()}


def _flow_errors(batch: Batch, seen: Inspection, instruments: Instruments) -> Columns:
    """End-point errors in pixels where the source shows the surface."""
    if not has_truth(batch):
        return {}
    truth, visible = batch["flow"], batch["visible"][:, 0]
    unmoved = pose_kernels.identity_flow(*truth.shape[-2:], device=truth.device).expand_as(truth)
    return {name: metrics.masked_mean(metrics.end_point_error(flow, truth), visible)
            for name, flow in (("epe_zero", unmoved), ("epe_visible", seen.flow))}


def _image_metrics(batch: Batch, seen: Inspection, instruments: Instruments) -> Columns:
    images, target = _images(batch, seen), batch["target"]
    columns = {f"{name}_{metric}": distance(image, target) for name, image in images.items()
               for metric, distance in metrics.IMAGE_METRICS.items()}
    for net, network in instruments.lpips.items():
        names = [f"{name}_lpips_{net}" for name in images]
        columns |= zip(names, network.distances(list(images.values()), target), strict=True)
    return columns


def _backgrounds(batch: Batch, seen: Inspection, instruments: Instruments) -> Columns:
    """How much of what lies behind the person is not as it should be, where it is known."""
    if not has_truth(batch):
        return {}
    return {f"{name}_background_off": background_off(image, batch)
            for name, image in _images(batch, seen).items()}


def _people(batch: Batch, seen: Inspection, instruments: Instruments) -> Columns:
    """The error where the target's person is, and a little beyond, where a mask says so."""
    if "target_mask" not in batch:
        return {}
    reach = max(1, round(_AROUND * batch["target"].shape[-2]))
    near = F.max_pool2d((batch["target_mask"] > 0.5).float(), 2 * reach + 1, 1, reach)[:, 0] > 0
    return {f"{name}_person_l1": metrics.masked_mean(
                (image.clamp(-1, 1) - batch["target"]).abs().mean(1) * 127.5, near)
            for name, image in _images(batch, seen).items()}


def _turn(batch: Batch, seen: Inspection, instruments: Instruments) -> Columns:
    """By how many degrees each body turns, where it is known."""
    return {"turn": batch["turn"]} if has_truth(batch) else {}


def _under_protocol(batch: Batch, seen: Inspection, instruments: Instruments) -> Columns:
    """Images are stored as the protocol says, and measured by its metrics."""
    protocol = instruments.protocol
    images = {"measures": seen.image, "measures_copy": batch["source"]}
    if protocol.image == "warped":
        images |= {"measures": seen.warped, "measures_refined": seen.image}
    target = prepare(batch["target"], protocol, protocol.target_codec)
    masks = _masks(batch, protocol) if protocol.mask_ssim else None
    rows = compare(protocol, [prepare(image, protocol, protocol.result_codec)
                              for image in images.values()],
                   target, masks=masks, lpips=instruments.lpips)
    return {PROTOCOL_PREFIXES[part] + name: values for part, row in zip(images, rows, strict=True)
            for name, values in row.items()}


def _mannequin_means(batch: Batch, seen: Inspection, instruments: Instruments) -> Columns:
    if not has_truth(batch):
        return {}
    return pair_metrics(batch, seen.flow) | pair_aucs(batch, seen.scores)


MEASURES: tuple[Callable[[Batch, Inspection, Instruments], Columns], ...] = (
    _similarities, _flow_errors, _image_metrics, _backgrounds, _people, _turn)
"""of every evaluation; their order is that of the columns"""
PROTOCOL_MEASURES = (_under_protocol, _mannequin_means)
"""of an evaluation under a protocol, besides"""


def _images(batch: Batch, seen: Inspection) -> dict[str, Tensor]:
    return {"copy": batch["source"], "warped": seen.warped, "refined": seen.image}


def _masks(batch: Batch, protocol: Protocol) -> Tensor:
    joints = normalized_to_pixels(batch["target_pose"].cpu(), protocol.size).numpy()
    masks = np.stack([pose_mask(pose, protocol.size) for pose in joints])
    return torch.from_numpy(masks).unsqueeze(1).to(batch["target"].device)
