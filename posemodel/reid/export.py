"""Folders that other people's code for re-identification reads, of real and generated images.

- `market`: bounding_box_train, bounding_box_test and query, as torchreid and fast-reid read it.
- `folders`: pytorch/train_all, train, val, gallery and query with a folder for each identity, as
  DG-Net++ and the baseline of Zheng et al. read it. `val` has one real image of each identity.

Generated images only come into the training folders. Everything is a copy.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from posemodel.data.dataset_folder import read_manifest
from posemodel.reid.market import Crops, open_split, read_crops
from posemodel.runtime.errors import UserError
from posemodel.runtime.files import new_folder

LAYOUTS = ("market", "folders")

# Both libraries check these bounds and stop.
_MOST_PERSONS, _MOST_CAMERAS = 1501, 6
# They search the whole path for identity and camera, not the file's name.
_SEARCHED = re.compile(r"[-\d]+_c\d")


def export(root: Path, out: Path, *, layout: str, augmented: Path | None,
           progress: Callable[[int, int], None]) -> dict[str, int]:
    """Write a new folder; it is there as a whole or not at all.

    Args:
        root: Market-1501 as it comes.
        augmented: folder of `augment`; None: real images only.
        progress: is called with files done and files in total.

    Returns: number of images in each folder that was written.

    Raises: `UserError`.
    """
    real = {split: open_split(root, split) for split in ("train", "gallery", "query")}
    generated = open_augmented(augmented) if augmented is not None else None
    check_names([*real.values(), *([generated] if generated is not None else [])], out)
    plan = {"market": _market, "folders": _by_identity}[layout](real, generated)
    total = sum(len(files) for files in plan.values())
    done = 0
    with new_folder(out) as folder:
        for name, files in plan.items():
            for path, place in files:
                target = folder / name / place
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
                done += 1
                progress(done, total)
    return {name: len(files) for name, files in plan.items()}


def open_augmented(folder: Path) -> Crops:
    """The images of `augment`. Raises: `UserError` for another folder, and for one that is not
    complete."""
    manifest = read_manifest(folder)
    if manifest is None or manifest["recipe"].get("made_by") != "reid augment":
        raise UserError(f"{folder} was not made by python -m posemodel.reid augment")
    if not manifest["complete"]:
        raise UserError(f"{folder} is not complete: give the command that makes it again")
    return read_crops(folder / "train")


def check_names(parts: list[Crops], out: Path) -> None:
    """Whether torchreid and fast-reid would read the same identities and cameras. Raises:
    `UserError`."""
    where = str(out.resolve())
    found = _SEARCHED.search(where)
    if found is not None:
        raise UserError(f"--out {out}: torchreid and fast-reid would take {found[0]!r} in the path "
                        "for identity and camera; choose another name")
    for crops in parts:
        bad = (crops.persons > _MOST_PERSONS) | (crops.cameras > _MOST_CAMERAS) \
            | (crops.cameras < 1) | np.array([not name.endswith(".jpg") for name in crops.names])
        if bad.any():
            name = crops.names[int(bad.argmax())]
            raise UserError(f"{crops.folder / name}: torchreid and fast-reid read .jpg files of "
                            f"identities up to {_MOST_PERSONS} and cameras 1 to {_MOST_CAMERAS}")


def _places(crops: Crops | None, *, by_identity: bool = False) -> list[tuple[Path, str]]:
    """The files of images, and where below a folder they go."""
    return [(crops.path(index), f"{name.partition('_')[0]}/{name}" if by_identity else name)
            for index, name in enumerate(crops.names)] if crops else []


def _market(real: dict[str, Crops], generated: Crops | None) -> dict[str, list]:
    return {"bounding_box_train": _places(real["train"]) + _places(generated),
            "bounding_box_test": _places(real["gallery"]), "query": _places(real["query"])}


def _by_identity(real: dict[str, Crops], generated: Crops | None) -> dict[str, list]:
    whole, made, gallery, query = (_places(crops, by_identity=True) for crops in (
        real["train"], generated, real["gallery"], real["query"]))
    first = set(np.unique(real["train"].persons, return_index=True)[1].tolist())
    held_out = [file for index, file in enumerate(whole) if index in first]
    stems = {path.stem for path, _ in held_out}
    # What was made of a held-out image is that image again, in other poses.
    made_of_others = [(path, place) for path, place in made
                      if path.stem.rpartition("_p")[0] not in stems]
    rest = [file for index, file in enumerate(whole) if index not in first]
    return {"pytorch/train_all": whole + made, "pytorch/train": rest + made_of_others,
            "pytorch/val": held_out, "pytorch/gallery": gallery, "pytorch/query": query}
