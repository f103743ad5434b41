"""An evaluation under a protocol: of any length, shared by processes, continued after an end.

Every pair's values are kept in a folder of `evaluation.records`; beside them whatever is pooled
over pixels or images. Batches are never cut in another way, so that neither the number of processes
nor an interruption changes a bit of any pair's values.
"""

import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from posemodel.config import Config
from posemodel.data.images import read_image
from posemodel.data.keypoints import normalized_to_pixels
from posemodel.data.layouts import open_pairs
from posemodel.engine.data_source import HeldOutPairs
from posemodel.engine.distributed import ALONE, World
from posemodel.engine.evaluation import (
    ImageDistance,
    Inspection,
    Totals,
    has_truth,
    inspect,
    measure,
    summary,
    turns,
)
from posemodel.errors import UserError
from posemodel.evaluation import records
from posemodel.evaluation.fid import (
    FeatureStatistics,
    InceptionFeatures,
    frechet_distance,
    reference_statistics,
)
from posemodel.evaluation.mannequin_metrics import pair_aucs, pair_metrics
from posemodel.evaluation.pose_mask import pose_mask
from posemodel.model.pose_transfer import PoseTransfer
from posemodel.protocols import PROTOCOLS, Codec, Protocol, prepare
from posemodel.protocols import measure as measure_images

_SECONDS_BETWEEN_COMMITS = 60.0
# Columns of the protocol's measures: of the image that it is about, of the source as it is, and of
# the refined image where it is about the warped one.
_PREFIXES = {"measures": "protocol_", "measures_copy": "copy_protocol_",
             "measures_refined": "refined_protocol_"}


def protocol_for(name: str, config: Config) -> Protocol:
    """The protocol called `name`, for images of a run.

    The paper's is about the warp, and is taken at the size that the run has; the others bring every
    image to the size that they are known for.

    Raises: `UserError` for images that the protocol cannot measure.
    """
    protocol, size = PROTOCOLS[name], config.data.image_size
    if name == "paper":
        return protocol.at(size)
    try:
        prepare(torch.zeros(1, 3, *size), protocol, Codec())
    except ValueError as error:
        raise UserError(f"--protocol {name}: {error}") from error
    return protocol


@dataclass(kw_only=True)
class Measures:
    """What is measured of each pair."""

    protocol: Protocol
    lpips: dict[str, ImageDistance] = field(default_factory=dict)
    """networks by their net"""
    inception: InceptionFeatures | None = None
    """of the protocol's FID"""

    def of_pairs(self, batch: dict[str, Tensor], seen: Inspection) -> dict[str, Tensor]:
        """`[B]` by name: what every evaluation has, the protocol's, and on mannequins the flow's.
        """
        target = batch["target"]
        images = {"measures": seen.image, "measures_copy": batch["source"]}
        if self.protocol.image == "warped":
            images |= {"measures": seen.warped, "measures_refined": seen.image}
        masks = self._masks(batch) if self.protocol.mask_ssim else None
        distances = {"lpips_alex": self.lpips["alex"]} if "alex" in self.lpips else {}
        values = {**measure(batch, seen, distances), **turns(batch)}
        for kind, shown in images.items():
            found = measure_images(self.protocol, shown, target, masks, lpips=self.lpips)
            values |= {_PREFIXES[kind] + name: value for name, value in found.items()}
        if has_truth(batch):
            values |= pair_metrics(batch, seen.flow) | pair_aucs(batch, seen.scores)
        return values

    def features(self, seen: Inspection) -> Tensor:
        """`[B, 2048]` for the FID."""
        return self.inception(prepare(seen.image, self.protocol, self.protocol.result_codec))

    def _masks(self, batch: dict[str, Tensor]) -> Tensor:
        size = self.protocol.size
        joints = normalized_to_pixels(batch["target_pose"].cpu(), size).numpy()
        masks = np.stack([pose_mask(pose, size) for pose in joints])
        return torch.from_numpy(masks).unsqueeze(1).to(batch["target"].device)


@torch.no_grad()
def evaluate_under(measures: Measures, model: PoseTransfer, held_out: HeldOutPairs,
                   config: Config, dtype: torch.dtype, *, folder: Path, about: dict,
                   world: World = ALONE) -> dict | None:
    """Measure what is still to be measured of the held-out pairs; all processes call this.

    Args:
        folder: for the values of the pairs; named after `about`, see `folder_name`.
        about: what the numbers depend on.

    Returns, in the first process, what `evaluation.evaluate` returns, and

        - `measures`, `measures_copy`, `measures_refined`: means of the protocol's metrics, of the
          image that it is about, of the source as it is, and of the refined image where it is about
          the warped one; `fid` among the first if it was asked for;
        - `flow`: on mannequins, what `MannequinTotals.summary` returns, else None.

    Raises: `UserError`.
    """
    model.eval()
    people = held_out.people()
    with records.PairRecords.open(folder, about, process=world.rank) as file:
        # One process says what is left: the others may have looked a moment later.
        left = world.from_first([index for index, pairs in enumerate(held_out.batches)
                                 if file.pending(pairs)])
        mine = [np.array(file.pending(held_out.batches[index]))
                for index in left[world.rank::world.size]]
        totals, images = _load(file.totals)
        committed = time.monotonic()
        for batch in held_out.stream(mine):
            pairs = batch["pair"].numpy()
            seen = inspect(model, batch, dtype)
            file.append(pairs.tolist(), {"person": torch.from_numpy(people[pairs]).double(),
                                         **measures.of_pairs(batch, seen)})
            totals.update(batch, seen)
            if measures.inception is not None:
                images.update(measures.features(seen))
            if time.monotonic() - committed > _SECONDS_BETWEEN_COMMITS:
                file.commit(_state(totals, images))
                committed = time.monotonic()
        if mine:
            file.commit(_state(totals, images))
    world.agree(0)
    with world.first_alone():
        return _result(measures, config, folder, held_out) if world.first else None


def folder_name(about: dict) -> str:
    """Where under a run's `evaluation` folder the values belong: another name for other numbers."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return f"{about['protocol']['name']}-step{about['step']}-{digest[:8]}"


def _state(totals: Totals, images: FeatureStatistics) -> dict[str, np.ndarray]:
    state = {f"truth/{name}": value for name, value in totals.state().items()}
    if images.count:
        state |= {f"fid/{name}": value for name, value in images.state().items()}
    return state


def _load(state: dict[str, np.ndarray]) -> tuple[Totals, FeatureStatistics]:
    parts: dict[str, dict] = {"truth": {}, "fid": {}}
    for key, value in state.items():
        kind, _, name = key.partition("/")
        parts[kind][name] = value
    images = FeatureStatistics.load(parts["fid"]) if parts["fid"] else FeatureStatistics()
    return Totals.load(parts["truth"]), images


def _result(measures: Measures, config: Config, folder: Path, held_out: HeldOutPairs) -> dict:
    """The means of everything that the processes have measured."""
    table, states = records.read(folder)
    totals, images = Totals(), FeatureStatistics()
    for state in states:
        part, part_images = _load(state)
        totals.merge(part)
        images.merge(part_images)
    row = summary(config.data.kind, {name: values for name, values in table.items()
                                     if name not in ("pair", "person")}, totals)
    # What belongs to the protocol gets a place of its own.
    for part in (row, *(row["by_turn"] or {}).values()):
        found = {kind: {name.removeprefix(prefix): part.pop(name) for name in list(part)
                        if name.startswith(prefix)} for kind, prefix in _PREFIXES.items()}
        part |= found
    row["flow"] = totals.mannequins.summary() if row["by_turn"] else None
    if measures.inception is not None:
        reference = _reference(measures, config, folder.parent, held_out)
        row["measures"]["fid"] = frechet_distance(images, reference)
        row |= {"fid_images": images.count, "fid_reference_images": reference.count}
    return row


def _reference(measures: Measures, config: Config, cache: Path,
               held_out: HeldOutPairs) -> FeatureStatistics:
    """Statistics of all training images, as the model would see them."""
    train = open_pairs(config.data.root, "train", kind=config.data.kind)

    def read(path: Path) -> np.ndarray:
        picture = held_out.disk.view.picture(read_image(path))
        if picture is None:
            raise UserError(f"{path}: not the shape of a {train.kind} image; check the data set "
                            "with python -m posemodel.data check")
        return picture.copy()  # Pillow's own cannot be written to, which PyTorch warns of

    return reference_statistics([train.path(index) for index in range(len(train.names))],
                                measures.inception, measures.protocol, cache, read)
