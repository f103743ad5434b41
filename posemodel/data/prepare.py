"""From the downloads of a published data set to a data set folder (`layouts`).

Images of canonical size are copied byte by byte. Others are fitted to the frame with Pillow's
Lanczos filter and stored as JPEG of quality 95 without subsampling of colour. The texts are copied
as they are. The downloads are only read.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from posemodel.data.archives import extract
from posemodel.data.dataset_folder import DatasetFolder, encode_jpeg, open_folder
from posemodel.data.images import IMAGE_SUFFIXES, read_image
from posemodel.data.layouts.layout import SPLITS, VALIDATION, DatasetLayout
from posemodel.data.lists import read_list, read_pairs
from posemodel.data.reading import DatasetFiles, find_dataset
from posemodel.poses.annotations import read_annotations
from posemodel.runtime.errors import UserError
from posemodel.runtime.files import sha256, write_aside

_UNPACKED = "unpacked"  # an archive's files, in the folder to be written, until it is complete

Progress = Callable[[str, int, int], None]


def prepare(raw: Path, out: Path, *, kind: str, annotations: Path | None = None,
            password: str | None = None, progress: Progress) -> bool:
    """Write the data set into a new folder, or continue there.

    Args:
        raw: the unpacked download, or a folder with its archive, or the archive.
        out: the folder to write.
        annotations: the folder with the csv and lst files; None: `raw`, or the archive's folder.
        password: of DeepFashion's archives.
        progress: is called with what is done, how much of it, and of how much.

    Returns: False where the set was complete already.

    Raises: `UserError` for parts that are missing or damaged; `out` can then be continued.
    """
    raw, out = raw.resolve(), out.resolve()
    if not raw.exists():
        raise UserError(f"{raw}: there is no such file or folder")
    if out == raw or raw in out.parents:
        raise UserError(f"--out {out} is inside of the download {raw}; choose another folder")
    texts = find_dataset(annotations or (raw if raw.is_dir() else raw.parent), kind=kind)
    layout = texts.layout
    wanted = {split: _names(texts, split) for split in SPLITS}
    # A validation list belongs to the training images, or else to images that no download has.
    own = texts.splits[VALIDATION]
    lists = [own.pairs] if texts.validates_on_training_people else []
    lists += [file for split in SPLITS for file in (
        texts.splits[split].annotations, texts.splits[split].pairs, texts.splits[split].list)]
    copies = {file.name: file for file in lists if file is not None}
    recipe = {"made_by": "prepare", "kind": kind, "source": str(raw), "resized_by": "Lanczos",
              "texts": {name: sha256(path) for name, path in copies.items()}}
    # Nothing is written for a download that has not what is needed.
    files = _find(raw, layout, wanted) if raw.is_dir() else None
    archive = _archive(raw, layout) if files is None else None
    with open_folder(out, recipe) as folder:
        if folder.complete:
            return False
        if archive is not None:
            extract(archive, out / _UNPACKED, password=password,
                    wanted=lambda name: name.lower().endswith(IMAGE_SUFFIXES),
                    progress=lambda done, total: progress("bytes unpacked", done, total))
            files = _find(out / _UNPACKED, layout, wanted)
        if files is None:
            raise UserError(f"{archive} has no images of {kind}; get them from {layout.where}")
        total = sum(map(len, wanted.values()))
        for number, (split, name) in enumerate(
                ((split, name) for split, names in wanted.items() for name in names), 1):
            if (split, name) not in folder.rows:
                _add(folder, split, name, files[split][layout.key(name)], layout)
            progress("images", number, total)
        for name, path in copies.items():
            write_aside(out / name, path.read_bytes())
        counts = {split: {"images": len(names)} for split, names in wanted.items()}
        if (out / _UNPACKED).exists():
            shutil.rmtree(out / _UNPACKED)
        folder.finish(counts, list(copies))
    return True


# --- what is wanted -----------------------------------------------------------------------------


def _names(texts: DatasetFiles, split: str) -> list[str]:
    """Names of the images of a split: those of the list and of the pairs, else of all rows."""
    files, layout = texts.splits[split], texts.layout
    if files.annotations is None:
        raise UserError(f"{texts.root}: the annotations of the {split} split are missing; get "
                        f"them from {layout.where}; --annotations says where they are")
    if files.pairs is None and layout.listed_pairs:
        raise UserError(f"{texts.root}: the pairs of the {split} split are missing; get them from "
                        f"{layout.where}")
    rows, _ = read_annotations(files.annotations)
    names = {layout.key(name): name for name in rows}
    if files.list is None:
        return list(names.values())
    wanted = {layout.key(name): name for name in read_list(files.list)}
    if files.pairs is not None:
        used = np.unique(read_pairs(files.pairs, rows))
        wanted |= {layout.key(rows[index]): rows[index] for index in used}
    # The annotations have the last word on how a name is spelled.
    return [names.get(key, name) for key, name in wanted.items()]


# --- where it is --------------------------------------------------------------------------------


def _find(place: Path, layout: DatasetLayout,
          wanted: dict[str, list[str]]) -> dict[str, dict[str, Path]] | None:
    """For each split the files by the key of their name; None where `place` has no images. Raises:
    `UserError` where it has only some of the wanted ones."""
    files = layout.raw_files(place)
    for split, names in wanted.items() if files is not None else ():
        missing = [name for name in names if layout.key(name) not in files[split]]
        if missing:
            raise UserError(f"{len(missing):,} of the {len(names):,} images of the {split} split "
                            f"are not in {place}, the first: {', '.join(missing[:3])}; get the "
                            f"whole set from {layout.where}")
    return files


def _archive(raw: Path, layout: DatasetLayout) -> Path:
    if raw.is_file():
        return raw
    for pattern in layout.archives:
        for path in sorted(raw.rglob(pattern)):
            return path
    raise UserError(f"{raw} has neither images of {layout.kind} nor {layout.archives[0]}; get them "
                    f"from {layout.where}")


# --- one image ----------------------------------------------------------------------------------


def _add(folder: DatasetFolder, split: str, name: str, source: Path, layout: DatasetLayout) -> None:
    image = read_image(source)
    if image.shape[:2] in layout.sizes:
        folder.add_image(split, name, source.read_bytes(), how="copied")
    else:
        size = "{} x {}".format(*image.shape[:2])
        fitted = np.asarray(layout.fitted(Image.fromarray(image)))
        folder.add_image(split, name, encode_jpeg(fitted), how="resized", original=size)
