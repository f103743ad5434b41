"""A validation list out of the training list of a data set: pairs to choose settings by.

Whole people are taken, so that nobody who is validated on is trained on. Images and joints stay
where they are; only the lists of pairs change, and the training list as it was is kept beside.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from posemodel.data.layouts.layout import VALIDATION, DatasetLayout
from posemodel.data.lists import write_pairs
from posemodel.data.reading import DatasetFiles, find_dataset, make_validation, read_or_make_pairs
from posemodel.poses.annotations import read_annotations
from posemodel.runtime.errors import UserError
from posemodel.runtime.files import write_aside, writing

WHOLE = ".whole"
"""end of the name under which the training list as it was is kept"""


@dataclass(frozen=True, kw_only=True)
class CarvedList:
    """What one list has after a split."""

    path: Path
    pairs: int
    people: int


def carve_validation(root: Path, *, share: float, kind: str | None = None) -> list[CarvedList]:
    """Move the pairs of some people from the training list to a validation list.

    Who moves depends on names alone: people whose images are paired, or who have the same name in
    the names of the images, are one. A split that was stopped is gone through again.

    Args:
        root, kind: as of `reading.open_pairs`.
        share: of the people, between 0 and 1; at least one moves, and one stays.

    Returns: the validation list and the training list.

    Raises: `UserError` where there is a validation list, or nothing to make one of; nothing is
        changed then.
    """
    if not 0 < share < 1:
        raise UserError(f"--validation {share:g}: expected a share between 0 and 1, such as 0.05")
    dataset = find_dataset(root, kind=kind)
    files, layout = dataset.splits["train"], dataset.layout
    if layout.validation_by_time:
        raise UserError(f"{dataset.root}: the validation list of a {layout.title} is a part of "
                        f"each shot; {make_validation(dataset)} writes it: make the set anew")
    if files.annotations is None:
        raise UserError(f"{dataset.root}: {layout.file_name('annotation', 'train')} is missing")
    train = files.pairs or files.annotations.with_name(layout.file_name("pairs", "train"))
    whole, validation = (train.with_name(name) for name in (
        train.name + WHOLE, train.name.replace("-train", f"-{VALIDATION}")))
    _refuse_another(dataset, train, whole)
    names, joints = read_annotations(files.annotations)
    pairs = read_or_make_pairs(dataset, "train", names, joints)
    people = _people(layout, names, pairs)[pairs[:, 0]] if len(pairs) else np.empty(0, int)
    chosen = _chosen(names, people, share)
    if not 0 < len(chosen) < len(np.unique(people)):
        raise UserError(f"{train}: no people can be taken out of the pairs of "
                        f"{len(np.unique(people))}; expected at least 2")
    moved = np.isin(people, chosen)
    with writing(f"in {train.parent}"):
        # In this order a stop at any place leaves the whole list somewhere.
        if train.exists():
            write_aside(whole, train.read_bytes())
        else:
            write_pairs(whole, names, pairs)
        write_pairs(validation, names, pairs[moved])
        write_pairs(train, names, pairs[~moved])
    return [CarvedList(path=path, pairs=int(part.sum()), people=len(np.unique(people[part])))
            for path, part in ((validation, moved), (train, ~moved))]


def _refuse_another(dataset: DatasetFiles, train: Path, whole: Path) -> None:
    """Only a split that was stopped, which has not changed the training list yet, is gone through
    again."""
    if whole.exists() and (not train.exists() or whole.read_bytes() == train.read_bytes()):
        return
    own = dataset.splits[VALIDATION]
    back = f"; for another one move {whole.name} back to {train.name} first" \
        if whole.exists() else ""
    if dataset.has_validation:
        there = own.pairs or own.annotations
        raise UserError(f"{there}: there is a validation list already, and nothing was touched"
                        f"{back}{' and delete this file' if back else ''}")
    if whole.exists():
        raise UserError(f"{whole} is there from an earlier split, and nothing was touched{back}")


def _people(layout: DatasetLayout, names: tuple[str, ...], pairs: np.ndarray) -> np.ndarray:
    """Who is on each image, `[N]`: the place in `sorted(names)` of the person's first image."""
    links = [pairs]
    try:
        first: dict[str, int] = {}
        same = [(first.setdefault(layout.person(name), index), index)
                for index, name in enumerate(names) if layout.person(name) not in layout.nobody]
        links.append(np.array(same, np.int64).reshape(-1, 2))
    except UserError:
        pass  # names of the user's own, which say nothing of persons: the pairs do
    one, other = np.concatenate(links).T
    labels = np.argsort(np.argsort(np.array(names)))
    while True:
        before, low = labels.copy(), np.minimum(labels[one], labels[other])
        np.minimum.at(labels, one, low)
        np.minimum.at(labels, other, low)
        if (labels == before).all():
            return labels


def _chosen(names: tuple[str, ...], people: np.ndarray, share: float) -> np.ndarray:
    """The people to move: those whose names come first by a hash, which no order of rows changes.
    A larger share has all of a smaller one."""
    there, first = np.unique(people).tolist(), sorted(names)
    ranked = sorted(there, key=lambda person: hashlib.sha256(first[person].encode()).digest())
    return np.array(ranked[:max(1, round(share * len(there)))], np.int64)
