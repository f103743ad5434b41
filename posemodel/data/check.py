"""Whether a data set on disk is there as a whole, sound, and the published one."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np

from posemodel.data.dataset_folder import IMAGES, MANIFEST, read_manifest, read_rows, sizes_in
from posemodel.data.images import ImageError, image_names, read_image
from posemodel.data.layouts import LAYOUTS
from posemodel.data.layouts.layout import ALL_SPLITS, SPLITS, VALIDATION, DatasetLayout
from posemodel.data.lists import read_list
from posemodel.data.pair_set import PairSet
from posemodel.data.reading import DatasetFiles, Reading, find_dataset, read_split
from posemodel.data.validation import WHOLE
from posemodel.poses.annotations import has_torso
from posemodel.runtime.errors import UserError
from posemodel.runtime.files import sha256

_ROWS = (
    ("images", "images"), ("rows", "rows of joints"), ("empty_rows", "  without any joint"),
    ("torso_rows", "  with the whole torso"), ("joints_per_row", "joints in a row"),
    ("persons", "persons"), ("pairs", "pairs"), ("self_pairs", "  of an image with itself"),
    ("sampled", "images decoded"), ("bad", "  that are bad"), ("sizes", "  sizes, rows x columns"),
    ("file_frame", "frame of the joints' file"),
)


@dataclass(kw_only=True)
class Findings:
    """What `check` found."""

    kind: str
    root: str
    made_by: str
    """prepare, synthesize, or nothing: not by this program"""
    splits: dict[str, dict] = field(default_factory=dict)
    """for each split that could be read: counts, by the names in `_ROWS`"""
    problems: list[str] = field(default_factory=list)
    """what must be mended, a line each"""
    notes: list[str] = field(default_factory=list)
    """what to know, a line each"""

    def to_dict(self) -> dict:
        """For JSON."""
        return {"ok": not self.problems, **asdict(self)}


def check(root: Path, *, kind: str | None = None, frame: int | None = None,
          sample: int = 64) -> Findings:
    """Look at everything; `kind` and `frame` as in `reading.open_pairs`.

    Args:
        sample: images of each split to decode.

    Raises: `UserError` where no data set is found.
    """
    dataset = find_dataset(root, kind=kind)
    layout = dataset.layout
    findings = Findings(kind=layout.kind, root=str(dataset.root), made_by="")
    expected, complete = layout.published, False
    digests = {}
    try:
        manifest = read_manifest(dataset.root)
        if manifest is not None:
            findings.made_by = str(manifest["recipe"].get("made_by"))
            digests = _check_manifest(dataset.root, manifest, findings)
            # Only what this program has made says that it is all there.
            complete = bool(manifest["complete"])
            if findings.made_by == "synthesize":
                expected = manifest.get("counts")
    except UserError as error:
        findings.problems.append(str(error))
    readings: dict[str, Reading] = {}
    for split in ALL_SPLITS if dataset.has_validation else SPLITS:
        try:
            reading = read_split(dataset, split, frame=frame)
        except UserError as error:
            findings.problems.append(f"{split}: {error}")
            continue
        readings[split] = reading
        findings.problems += [f"{split}: {note}" for note in reading.notes]
        findings.splits[split] = _count(reading)
        _check_list(dataset, split, findings)
        _check_place(reading, findings)
        _check_sample(reading, sample, digests, findings)
    for split in readings if expected else ():
        if split in expected:
            _compare(dataset, split, expected[split], complete, findings)
    for one, other in combinations(readings, 2):
        _check_overlap(readings[one].pairs, readings[other].pairs, findings)
    return findings


# --- the parts ----------------------------------------------------------------------------------


def _count(reading: Reading) -> dict:
    pairs, present = reading.pairs, reading.pairs.joints[..., 2]
    persons = _persons(pairs.layout, pairs.names)
    return {"images": reading.images, "rows": reading.rows,
            "empty_rows": int((present.sum(1) == 0).sum()),
            "torso_rows": int(has_torso(pairs.joints).sum()),
            "joints_per_row": round(float(present.sum(1).mean()), 1),
            "persons": None if persons is None else len(persons - pairs.layout.nobody),
            "pairs": len(pairs.pairs),
            "self_pairs": int((pairs.pairs[:, 0] == pairs.pairs[:, 1]).sum()),
            "file_frame": "{} x {}".format(*reading.file_frame)}


def _persons(layout: DatasetLayout, names: tuple[str, ...]) -> set[str] | None:
    try:
        return {layout.person(name) for name in names}
    except UserError:
        return None  # names of the user's own, which say nothing of persons


def _compare(dataset: DatasetFiles, split: str, expected: dict, complete: bool,
             findings: Findings) -> None:
    """Fewer or more than there should be is a fault of a set that is complete by its own word. Any
    other may be somebody's own, in this layout."""
    layout, counts = dataset.layout, dict(findings.splits[split])
    if split == "train" and dataset.validates_on_training_people and VALIDATION in findings.splits:
        counts["pairs"] += findings.splits[VALIDATION]["pairs"]
    other = layout.other_splits.get((split, counts["pairs"]))
    if other is not None:
        findings.notes.append(f"{split}: {counts['pairs']:,} pairs are {other}")
        return
    wrong = ", ".join(f"{counts[name]:,} {name} instead of {wanted:,}"
                      for name, wanted in expected.items() if counts[name] != wanted)
    if not wrong:
        return
    if counts["pairs"] == expected["pairs"]:
        findings.notes.append(f"{split}: {wrong}; the pairs are all there")
    elif complete:
        findings.problems.append(f"{split}: {wrong}: this is not the published split, and numbers "
                                 f"on it do not compare; get it from {layout.where}")
    else:
        findings.notes.append(f"{split}: {wrong}: a set of your own, or a part of the published "
                              f"one; numbers on it do not compare with those of {layout.title}")


def _check_list(dataset: DatasetFiles, split: str, findings: Findings) -> None:
    files = dataset.splits[split]
    if files.list is not None:
        missing = sorted(set(read_list(files.list)) - set(image_names(files.images)))
        if missing:
            findings.notes.append(f"{split}: {len(missing):,} names in {files.list.name} have no "
                                  f"image, the first: {', '.join(missing[:3])}")


def _check_place(reading: Reading, findings: Findings) -> None:
    """People stand in the middle; in the wrong frame they stand a border beside it."""
    layout, necks = reading.pairs.layout, reading.pairs.joints[:, 1]
    x = necks[necks[:, 2] > 0, 0]
    if layout.border and len(x) >= 10:
        aside = float(np.median(x)) - (layout.frame[1] - 1) / 2
        if abs(aside) > layout.border / 2:
            side = "left" if aside < 0 else "right"
            findings.problems.append(
                f"{reading.pairs.split}: the people stand {abs(aside):.0f} columns {side} of the "
                f"middle: the joints are not in the frame of {reading.file_frame[1]} columns; try "
                "another --frame")


def _check_sample(reading: Reading, count: int, digests: dict, findings: Findings) -> None:
    pairs, counts = reading.pairs, findings.splits[reading.pairs.split]
    chosen = np.unique(np.linspace(0, len(pairs.names) - 1, min(count, len(pairs.names)))
                       .astype(int))
    sizes, bad = Counter(), []
    for index in chosen.tolist():
        path = pairs.path(index)
        try:
            shape = read_image(path).shape[:2]
        except ImageError as error:
            bad.append(str(error))
            continue
        sizes["{} x {}".format(*shape)] += 1
        if pairs.layout.covered(shape) is None:
            bad.append(f"{path}: {shape[0]} x {shape[1]} is not the shape of a {pairs.kind} image")
        elif digests.get((pairs.split, path.name), "") not in ("", sha256(path)):
            bad.append(f"{path}: is not the file that was written")
    counts["sampled"], counts["bad"] = len(chosen), len(bad)
    counts["sizes"] = ", ".join(size for size, _ in sizes.most_common(3))
    if bad:
        more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
        findings.problems.append(f"{pairs.split}: {len(bad)} of {len(chosen)} images looked at are "
                                 f"bad: {'; '.join(bad[:3])}{more}")


def _check_manifest(root: Path, manifest: dict, findings: Findings) -> dict[tuple[str, str], str]:
    """Compare texts and sizes of images with what was written; SHA-256 by split and name."""
    if not manifest["complete"]:
        findings.problems.append(f"{root / MANIFEST}: {findings.made_by} was stopped before the "
                                 "set was complete; give its command again")
        return {}
    for name, digest in manifest["sha256"].items():
        # Out of which a validation list was taken.
        if name != IMAGES and (root / (name + WHOLE)).is_file():
            name += WHOLE
        if not (root / name).is_file():
            findings.problems.append(f"{root / name} is missing; it was there when the set was "
                                     "made")
        elif sha256(root / name) != digest:
            findings.problems.append(f"{root / name} is not the file that was written")
    rows = read_rows(root)
    sizes = {split: sizes_in(root / split) for split in ALL_SPLITS}
    changed = [f"{row['split']}/{row['name']}" for row in rows
               if sizes.get(row["split"], {}).get(row["name"]) != row["bytes"]]
    if changed:
        findings.problems.append(f"{len(changed):,} images are missing or of another size than "
                                 f"{IMAGES} says, the first: {', '.join(changed[:3])}")
    return {(row["split"], row["name"]): row["sha256"] for row in rows}


def _check_overlap(one: PairSet, other: PairSet, findings: Findings) -> None:
    where = f"in both splits, {one.split} and {other.split}"
    names = [pairs.names for pairs in (one, other)]
    if VALIDATION in (one.split, other.split):
        # Training and validation may have their images together: what is paired counts.
        names = [tuple(pairs.names[index] for index in np.unique(pairs.pairs))
                 for pairs in (one, other)]
    both = sorted(set(names[0]) & set(names[1]))
    if both:
        findings.problems.append(f"{len(both):,} images are {where}, the first: "
                                 + ", ".join(both[:3]))
    first, second = (_persons(one.layout, each) or set() for each in names)
    shared = first & second - one.layout.nobody
    if shared and not both:
        findings.notes.append(f"{len(shared):,} persons are {where}, one of them {min(shared)}")


# --- for people to read -------------------------------------------------------------------------


def describe(findings: Findings) -> str:
    """A table of the counts, then the problems, then what to do next."""
    made_by = f" (made by {findings.made_by})" if findings.made_by else ""
    layout = LAYOUTS[findings.kind]
    lines = [f"{layout.title} in {findings.root}{made_by}"]
    published = layout.published if findings.made_by != "synthesize" else {}
    columns = []
    for split, counts in findings.splits.items():
        columns.append([split, *(_cell(counts.get(key)) for key, _ in _ROWS)])
        if split in published:
            columns.append(["published", *(_cell(published[split].get(key), "")
                                           for key, _ in _ROWS)])
    if columns:
        titles = ["", *(title for _, title in _ROWS)]
        widths = [max(map(len, column)) for column in columns]
        lines += ["  ".join([f"  {title:<26}", *(f"{cell:>{width}}" for cell, width
                                              in zip(cells, widths, strict=True))]).rstrip()
                  for title, *cells in zip(titles, *columns, strict=True)]
    lines += ["", "problems" if findings.problems else "problems: none; all is there and sound",
              *(f"  {problem}" for problem in findings.problems)]
    if findings.notes:
        lines += ["", "notes", *(f"  {note}" for note in findings.notes)]
    if findings.problems:
        following = f"mend the above, then: python -m posemodel.data check {findings.root}"
    else:
        following = f"python -m posemodel.train {layout.preset} --data.root {findings.root}"
    return "\n".join([*lines, "", "next", f"  {following}"])


def _cell(value, nothing: str = "-") -> str:
    if value is None:
        return nothing
    return f"{value:,}" if isinstance(value, int) else str(value)
