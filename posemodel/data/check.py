"""Whether a data set on disk is there as a whole, sound, and the published one."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from posemodel.data.annotations import fashion_person, has_torso, market_person, read_list
from posemodel.data.dataset_folder import (
    IMAGES,
    MANIFEST,
    read_manifest,
    read_rows,
    sizes_in,
)
from posemodel.data.images import ImageError, read_image
from posemodel.data.layouts import (
    BORDER,
    FRAMES,
    INNER_WIDTH,
    SPLITS,
    TITLES,
    WHERE,
    Layout,
    Reading,
    find_layout,
    image_names,
    read_split,
)
from posemodel.errors import UserError
from posemodel.files import sha256

# Of PATN's split of DeepFashion, which the paper uses, and of Market-1501.
PUBLISHED = {
    "deepfashion": {"train": {"images": 48_674, "pairs": 101_966},
                    "test": {"images": 4_038, "pairs": 8_570}},
    "market": {"train": {"images": 12_936, "rows": 12_936, "pairs": 263_632},
               "test": {"images": 19_732, "rows": 19_732, "pairs": 12_000}},
}
# Counts of other splits in use, and what they mean.
_OTHER_SPLITS = {
    ("deepfashion", "test", 8_670):
        "the test pairs of Siarohin et al. (2018), an older split than PATN's 8,570: numbers on it "
        "do not compare with the paper's, and PATN's training set has people of it",
}
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


def check(
    root: Path, *, kind: str | None = None, frame: int | None = None, sample: int = 64
) -> Findings:
    """Look at everything; `kind` and `frame` as in `layouts.open_pairs`.

    Args:
        sample: images of each split to decode.

    Raises: `UserError` where no data set is found.
    """
    layout = find_layout(root, kind=kind)
    found = Findings(kind=layout.kind, root=str(layout.root), made_by="")
    expected = PUBLISHED[layout.kind]
    digests = {}
    try:
        manifest = read_manifest(layout.root)
        if manifest is not None:
            found.made_by = str(manifest["recipe"].get("made_by"))
            digests = _check_manifest(layout.root, manifest, found)
            if found.made_by == "synthesize":
                expected = manifest.get("counts")
    except UserError as error:
        found.problems.append(str(error))
    names = {}
    for split in SPLITS:
        try:
            reading = read_split(layout, split, frame=frame)
        except UserError as error:
            found.problems.append(f"{split}: {error}")
            continue
        names[split] = reading.pairs.names
        found.problems += [f"{split}: {note}" for note in reading.notes]
        found.splits[split] = _count(reading)
        _check_list(layout, split, found)
        _check_place(reading, found)
        _check_sample(reading, sample, digests, found)
        if expected is not None:
            _compare(layout.kind, split, expected[split], found)
    _check_overlap(layout.kind, names, found)
    return found


# --- the parts ----------------------------------------------------------------------------------


def _count(reading: Reading) -> dict:
    pairs, present = reading.pairs, reading.pairs.joints[..., 2]
    persons = _persons(pairs.kind, pairs.names)
    return {
        "images": reading.images,
        "rows": reading.rows,
        "empty_rows": int((present.sum(1) == 0).sum()),
        "torso_rows": int(has_torso(pairs.joints).sum()),
        "joints_per_row": round(float(present.sum(1).mean()), 1),
        "persons": None if persons is None else len(persons - {"-1", "0000"}),
        "pairs": len(pairs.pairs),
        "self_pairs": int((pairs.pairs[:, 0] == pairs.pairs[:, 1]).sum()),
        "file_frame": "{} x {}".format(*reading.file_frame),
    }


def _persons(kind: str, names: tuple[str, ...]) -> set[str] | None:
    try:
        return {(market_person if kind == "market" else fashion_person)(name) for name in names}
    except UserError:
        return None  # names of the user's own, which say nothing of persons


def _compare(kind: str, split: str, expected: dict, found: Findings) -> None:
    counts = found.splits[split]
    other = _OTHER_SPLITS.get((kind, split, counts["pairs"]))
    if other is not None:
        found.notes.append(f"{split}: {counts['pairs']:,} pairs are {other}")
        return
    wrong = ", ".join(f"{counts[name]:,} {name} instead of {wanted:,}"
                      for name, wanted in expected.items() if counts[name] != wanted)
    if counts["pairs"] != expected["pairs"]:
        found.problems.append(f"{split}: {wrong}: this is not the published split, and numbers on "
                              f"it do not compare; get it from {WHERE[kind]}")
    elif wrong:
        found.notes.append(f"{split}: {wrong}; the pairs are all there")


def _check_list(layout: Layout, split: str, found: Findings) -> None:
    files = layout.splits[split]
    if files.list is not None:
        missing = sorted(set(read_list(files.list)) - set(image_names(files.images)))
        if missing:
            found.notes.append(f"{split}: {len(missing):,} names in {files.list.name} have no "
                               f"image, the first: {', '.join(missing[:3])}")


def _check_place(reading: Reading, found: Findings) -> None:
    """People stand in the middle; in the wrong frame they stand 40 columns beside it."""
    necks = reading.pairs.joints[:, 1]
    x = necks[necks[:, 2] > 0, 0]
    if reading.pairs.kind == "deepfashion" and len(x) >= 10:
        aside = float(np.median(x)) - (FRAMES["deepfashion"][1] - 1) / 2
        if abs(aside) > BORDER / 2:
            side = "left" if aside < 0 else "right"
            found.problems.append(
                f"{reading.pairs.split}: the people stand {abs(aside):.0f} columns {side} of the "
                f"middle: the joints are not in the frame of {reading.file_frame[1]} columns; try "
                "another --frame")


def _check_sample(reading: Reading, count: int, digests: dict, found: Findings) -> None:
    pairs, counts = reading.pairs, found.splits[reading.pairs.split]
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
        if not _fits(pairs.kind, shape):
            bad.append(f"{path}: {shape[0]} x {shape[1]} is not the shape of a {pairs.kind} image")
        elif digests.get((pairs.split, path.name), "") not in ("", sha256(path)):
            bad.append(f"{path}: is not the file that was written")
    counts["sampled"], counts["bad"] = len(chosen), len(bad)
    counts["sizes"] = ", ".join(size for size, _ in sizes.most_common(3))
    if bad:
        more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
        found.problems.append(f"{pairs.split}: {len(bad)} of {len(chosen)} images looked at are "
                              f"bad: {'; '.join(bad[:3])}{more}")


def _fits(kind: str, shape: tuple[int, int]) -> bool:
    """Whether an image shows the frame or, of DeepFashion, its inner part."""
    rows, columns = FRAMES[kind]
    widths = (columns, INNER_WIDTH) if kind == "deepfashion" else (columns,)
    # The high-resolution files, 1101 x 750, are one hundredth narrower than the inner part.
    return any(abs(shape[1] * rows / (shape[0] * width) - 1) <= 0.01 for width in widths)


def _check_manifest(root: Path, manifest: dict, found: Findings) -> dict[tuple[str, str], str]:
    """Compare texts and sizes of images with what was written; SHA-256 by split and name."""
    if not manifest["complete"]:
        found.problems.append(f"{root / MANIFEST}: {found.made_by} was stopped before the set was "
                              "complete; give its command again")
        return {}
    for name, digest in manifest["sha256"].items():
        if not (root / name).is_file():
            found.problems.append(f"{root / name} is missing; it was there when the set was made")
        elif sha256(root / name) != digest:
            found.problems.append(f"{root / name} is not the file that was written")
    rows = read_rows(root)
    sizes = {split: sizes_in(root / split) for split in SPLITS}
    changed = [f"{row['split']}/{row['name']}" for row in rows
               if sizes.get(row["split"], {}).get(row["name"]) != row["bytes"]]
    if changed:
        found.problems.append(f"{len(changed):,} images are missing or of another size than "
                              f"{IMAGES} says, the first: {', '.join(changed[:3])}")
    return {(row["split"], row["name"]): row["sha256"] for row in rows}


def _check_overlap(kind: str, names: dict[str, tuple[str, ...]], found: Findings) -> None:
    if len(names) < 2:
        return
    both = sorted(set(names["train"]) & set(names["test"]))
    if both:
        found.problems.append(f"{len(both):,} images are in both splits, the first: "
                              + ", ".join(both[:3]))
    train, test = (_persons(kind, names[split]) for split in SPLITS)
    shared = (train or set()) & (test or set()) - {"-1", "0000"}
    if shared and not both:
        found.notes.append(f"{len(shared):,} persons are in both splits, one of them "
                           + min(shared))


# --- for people to read -------------------------------------------------------------------------


def describe(found: Findings) -> str:
    """A table of the counts, then the problems, then what to do next."""
    made_by = f" (made by {found.made_by})" if found.made_by else ""
    lines = [f"{TITLES[found.kind]} in {found.root}{made_by}"]
    published = PUBLISHED[found.kind] if found.made_by != "synthesize" else {}
    columns = []
    for split, counts in found.splits.items():
        columns.append([split, *(_cell(counts.get(key)) for key, _ in _ROWS)])
        if published:
            columns.append(["published", *(_cell(published[split].get(key), "")
                                           for key, _ in _ROWS)])
    if columns:
        titles = ["", *(title for _, title in _ROWS)]
        widths = [max(map(len, column)) for column in columns]
        lines += ["  ".join([f"  {title:<26}", *(f"{cell:>{width}}" for cell, width
                                              in zip(cells, widths, strict=True))]).rstrip()
                  for title, *cells in zip(titles, *columns, strict=True)]
    lines += ["", "problems" if found.problems else "problems: none; all is there and sound",
              *(f"  {problem}" for problem in found.problems)]
    if found.notes:
        lines += ["", "notes", *(f"  {note}" for note in found.notes)]
    if found.problems:
        following = f"mend the above, then: python -m posemodel.data check {found.root}"
    else:
        preset = "paper" if found.kind == "deepfashion" else "market"
        following = f"python -m posemodel.train {preset} --data.root {found.root}"
    return "\n".join([*lines, "", "next", f"  {following}"])


def _cell(value, nothing: str = "-") -> str:
    if value is None:
        return nothing
    return f"{value:,}" if isinstance(value, int) else str(value)
