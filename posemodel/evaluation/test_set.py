"""An evaluation under a protocol: of any length, shared by processes, continued after an end.

Every pair's values are kept in a folder of `evaluation.records`; beside them whatever is pooled
over pixels or images. Batches are never cut in another way, so that neither the number of processes
nor an interruption changes a bit of any pair's values.
"""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from posemodel.config.sections import DataConfig
from posemodel.data.images import read_image
from posemodel.data.reading import open_pairs
from posemodel.data.source import HeldOut
from posemodel.evaluation import fid, records
from posemodel.evaluation import lpips as lpips_metric
from posemodel.evaluation.held_out import evaluation_row
from posemodel.evaluation.measures import PROTOCOL_PREFIXES, Instruments, Totals, measure_batch
from posemodel.evaluation.protocols import PROTOCOLS, Codec, Protocol, prepare
from posemodel.model.pose_transfer import PoseTransfer
from posemodel.runtime.distributed import ALONE, World
from posemodel.runtime.errors import UserError

_SECONDS_BETWEEN_COMMITS = 60.0


def protocol_for(name: str, size: tuple[int, int]) -> Protocol:
    """The protocol called `name`, for images of (H, W) pixels.

    The paper's is about the warp, and is taken at the size that the images have; the others bring
    every image to the size that they are known for.

    Raises: `UserError` for images that the protocol cannot measure.
    """
    protocol = PROTOCOLS[name]
    if name == "paper":
        return protocol.at(size)
    try:
        prepare(torch.zeros(1, 3, *size), protocol, Codec())
    except ValueError as error:
        raise UserError(f"--protocol {name}: {error}") from error
    return protocol


def instruments_for(protocol: Protocol, data: DataConfig, device: torch.device, *, lpips: str,
                    folder: str | Path = "", log: Callable[[str], None] = print) -> Instruments:
    """The protocol, and the networks of its metrics as far as they are at hand.

    Args:
        lpips: "alex" or "vgg", that network alone; "none"; or "auto", those whose weights are at
            hand.
        folder: of `--weights`, see `PublishedWeights`.
        log: is given a line for each metric that is left out.

    Raises: `UserError` for a network that is asked for by name and cannot be had, and for a file
        with other weights than its name says.
    """
    networks, inception = lpips_metric.networks(lpips, device, folder, log), None
    if protocol.fid_weights is not None:
        why = "generated people have no list of training images to compare with" \
            if data.kind == "mannequins" else fid.missing(protocol.fid_weights, folder)
        if why:
            log(f"FID left out: {why}")
        else:
            inception = fid.InceptionFeatures(protocol.fid_weights, device, folder=folder)
    return Instruments(protocol=protocol, lpips=networks, inception=inception,
                       lpips_records=lpips_metric.records(networks, lpips))


def description(instruments: Instruments, held_out: HeldOut, data: DataConfig, *, step: int,
                weights: str, device: torch.device, dtype: torch.dtype, commit: str | None) -> dict:
    """What the numbers of an evaluation depend on, as JSON values.

    Args:
        step, weights: of the model, the SHA-256 of its weights.
        commit: the version of this code; None where there is no repository.
    """
    record = instruments.protocol.record(pairs=data.evaluation_pairs, commit=commit)
    if held_out.holes is not None:
        record["holes"] = held_out.holes
    inception = instruments.inception
    return {
        # What "auto" chooses depends on the machine, and the images on what it chose.
        "protocol": {**record, "split": held_out.split, "device": device.type,
                     "precision": str(dtype).removeprefix("torch."),
                     "lpips_weights": {net: network.record
                                       for net, network in instruments.lpips.items()},
                     "fid_file_sha256": inception.digest if inception is not None else None},
        "step": step, "weights": weights,
        "data": {name: value for name, value in vars(data).items()
                 if name not in ("root", "workers")},
        "list": held_out.fingerprint()}


def folder_name(about: dict) -> str:
    """Where under a run's `evaluation` folder the values belong: another name for other numbers."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return f"{about['protocol']['name']}-step{about['step']}-{digest[:8]}"


@torch.no_grad()
def evaluate_under(instruments: Instruments, model: PoseTransfer, held_out: HeldOut,
                   data: DataConfig, dtype: torch.dtype, *, folder: Path, about: dict,
                   world: World = ALONE) -> dict | None:
    """Measure what is still to be measured of the held-out pairs; all processes call this.

    Args:
        folder: for the values of the pairs; named after `about`, see `folder_name`.
        about: a `description`.

    Returns, in the first process, the row of evaluation.json: `step`, what `evaluation_row` returns
    of all columns, and

        - `measures`, `measures_copy`, `measures_refined`: means of the protocol's metrics, of the
          image that it is about, of the source as it is, and of the refined image where it is about
          the warped one; `fid` among the first if it was asked for;
        - `flow`: on mannequins, what `MannequinTotals.summary` returns, else None;
        - `protocol`: its record, and `values`, the folder.

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
        totals = Totals().load(file.totals)
        committed = time.monotonic()
        for batch in held_out.stream(mine):
            pairs = batch["pair"].numpy()
            file.append(pairs.tolist(), {"person": torch.from_numpy(people[pairs]).double(),
                                         **measure_batch(model, batch, dtype, instruments, totals)})
            if time.monotonic() - committed > _SECONDS_BETWEEN_COMMITS:
                file.commit(totals.state())
                committed = time.monotonic()
        if mine:
            file.commit(totals.state())
    world.agree(0)
    with world.first_alone():
        return _row(instruments, data, folder, about, held_out) if world.first else None


def _row(instruments: Instruments, data: DataConfig, folder: Path, about: dict,
         held_out: HeldOut) -> dict:
    """What all processes have measured."""
    table, states = records.read(folder)
    totals, protocol = Totals(), dict(about["protocol"])
    for state in states:
        totals.merge(Totals().load(state))
    row = evaluation_row(data.kind, held_out.split, table, totals, instruments,
                         holes=held_out.holes)
    # What belongs to the protocol gets a place of its own.
    for part in (row, *(row["by_turn"] or {}).values()):
        part |= {kind: {name.removeprefix(prefix): part.pop(name) for name in list(part)
                        if name.startswith(prefix)} for kind, prefix in PROTOCOL_PREFIXES.items()}
    row["flow"] = totals.truth.summary() if row["by_turn"] else None
    if instruments.inception is not None:
        reference = _reference(instruments, data, folder.parent, held_out)
        row["measures"]["fid"] = fid.frechet_distance(totals.fid, reference)
        protocol |= {"fid_images": totals.fid.count, "fid_reference_images": reference.count}
    return {"step": about["step"], **row, "protocol": {**protocol, "pairs": row["pairs"]},
            "values": str(folder)}


def _reference(instruments: Instruments, data: DataConfig, cache: Path,
               held_out: HeldOut) -> fid.FeatureStatistics:
    """Statistics of all training images, as the model would see them."""
    train = open_pairs(data.root, "train", kind=data.kind)

    def read(path: Path) -> np.ndarray:
        picture = held_out.disk.view.picture(read_image(path))
        if picture is None:
            raise UserError(f"{path}: not the shape of a {train.kind} image; check the data set "
                            "with python -m posemodel.data check")
        return picture.copy()  # Pillow's own cannot be written to, which PyTorch warns of

    return fid.reference_statistics([train.path(index) for index in range(len(train.names))],
                                    instruments.inception, instruments.protocol, cache, read)
