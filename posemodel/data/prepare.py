"""From the downloads of DeepFashion or Market-1501 to a data set folder (`layouts`).

Images of canonical size are copied byte by byte. Others are resized with Pillow's Lanczos filter
and stored as JPEG of quality 95 without subsampling of colour: DeepFashion's high-resolution files
to 256 rows, in the middle of 256 white columns, which is how the benchmark made its small files;
Market's to 128 x 64. The texts are copied as they are. The downloads are only read.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from posemodel.data.annotations import (
    flatten_inshop,
    read_annotations,
    read_list,
    read_pairs,
)
from posemodel.data.archives import extract
from posemodel.data.dataset_folder import DatasetFolder, encode_jpeg, open_folder
from posemodel.data.images import read_image
from posemodel.data.layouts import (
    FRAMES,
    INNER_WIDTH,
    SPLITS,
    WHERE,
    Layout,
    find_layout,
    image_names,
)
from posemodel.errors import UserError
from posemodel.files import sha256, write_aside

_SIZES = {"deepfashion": ((256, 256), (256, INNER_WIDTH)), "market": ((128, 64),)}
_UNPACKED = "unpacked"  # an archive's files, in the folder to be written, until it is complete
# What the archives are called, the best first: DeepFashion's small files need no resizing.
_ARCHIVES = {"deepfashion": ("img.zip", "img_highres.zip"),
             "market": ("Market-1501-v15.09.15.zip", "Market-1501*.zip")}
_IMAGES = (".jpg", ".jpeg", ".png")

Progress = Callable[[str, int, int], None]


def prepare(
    raw: Path, out: Path, *, kind: str, annotations: Path | None = None,
    password: str | None = None, progress: Progress,
) -> bool:
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
    texts = find_layout(annotations or (raw if raw.is_dir() else raw.parent), kind=kind)
    wanted = {split: _names(texts, split) for split in SPLITS}
    copies = _texts(texts)
    recipe = {"made_by": "prepare", "kind": kind, "source": str(raw), "resized_by": "Lanczos",
              "texts": {name: sha256(path) for name, path in copies.items()}}
    # Nothing is written for a download that has not what is needed.
    files = _find(raw, kind, wanted) if raw.is_dir() else None
    archive = _archive(raw, kind) if files is None else None
    with open_folder(out, recipe) as folder:
        if folder.complete:
            return False
        if archive is not None:
            extract(archive, out / _UNPACKED, password=password,
                    wanted=lambda name: name.lower().endswith(_IMAGES),
                    progress=lambda done, total: progress("bytes unpacked", done, total))
            files = _find(out / _UNPACKED, kind, wanted)
        if files is None:
            raise UserError(f"{archive} has no images of {kind}; get them from {WHERE[kind]}")
        total = sum(map(len, wanted.values()))
        for number, (split, name) in enumerate(
                ((split, name) for split, names in wanted.items() for name in names), 1):
            if (split, name) not in folder.rows:
                _add(folder, split, name, files[split][_key(kind, name)], kind)
            progress("images", number, total)
        for name, path in copies.items():
            write_aside(out / name, path.read_bytes())
        counts = {split: {"images": len(names)} for split, names in wanted.items()}
        if (out / _UNPACKED).exists():
            shutil.rmtree(out / _UNPACKED)
        folder.finish(counts, list(copies))
    return True


# --- what is wanted -----------------------------------------------------------------------------


def _texts(layout: Layout) -> dict[str, Path]:
    files = [file for split in layout.splits.values()
             for file in (split.annotations, split.pairs, split.list) if file is not None]
    return {file.name: file for file in files}


def _names(layout: Layout, split: str) -> list[str]:
    """Names of the images of a split: those of the list and of the pairs, else of all rows."""
    files = layout.splits[split]
    if files.annotations is None:
        raise UserError(f"{layout.root}: the annotations of the {split} split are missing; get "
                        f"them from {WHERE[layout.kind]}; --annotations says where they are")
    if files.pairs is None and layout.kind == "deepfashion":
        raise UserError(f"{layout.root}: the pairs of the {split} split are missing; get them from "
                        f"{WHERE[layout.kind]}")
    rows, _ = read_annotations(files.annotations)
    names = {_key(layout.kind, name): name for name in rows}
    if files.list is None:
        return list(names.values())
    wanted = {_key(layout.kind, name): name for name in read_list(files.list)}
    if files.pairs is not None:
        used = np.unique(read_pairs(files.pairs, rows))
        wanted |= {_key(layout.kind, rows[index]): rows[index] for index in used}
    # The annotations have the last word on how a name is spelled.
    return [names.get(key, name) for key, name in wanted.items()]


def _key(kind: str, name: str) -> str:
    """The same for all spellings of a name."""
    if kind == "market":
        return name
    return re.sub(r"^fash?ion", "", name).replace("_", "")


# --- where it is --------------------------------------------------------------------------------


def _find(
    place: Path, kind: str, wanted: dict[str, list[str]]
) -> dict[str, dict[str, Path]] | None:
    """For each split the files by `_key`; None where `place` has no images of the kind.

    Raises: `UserError` where it has only some of the wanted ones.
    """
    files = (_inshop_files if kind == "deepfashion" else _market_files)(place)
    for split, names in wanted.items() if files is not None else ():
        missing = [name for name in names if _key(kind, name) not in files[split]]
        if missing:
            raise UserError(f"{len(missing):,} of the {len(names):,} images of the {split} split "
                            f"are not in {place}, the first: {', '.join(missing[:3])}; get the "
                            f"whole set from {WHERE[kind]}")
    return files


def _archive(raw: Path, kind: str) -> Path:
    if raw.is_file():
        return raw
    for pattern in _ARCHIVES[kind]:
        for path in sorted(raw.rglob(pattern)):
            return path
    raise UserError(f"{raw} has neither images of {kind} nor {_ARCHIVES[kind][0]}; get them from "
                    + WHERE[kind])


def _inshop_files(raw: Path) -> dict[str, dict[str, Path]] | None:
    # The folders of the two sexes stand in `img` or `img_highres`, some folders deep.
    places = [raw] + [path for depth in ("*", "*/*", "*/*/*") for path in sorted(raw.glob(depth))]
    places = [path for path in places if (path / "WOMEN").is_dir() or (path / "MEN").is_dir()]
    if not places:
        return None
    place = min(places, key=lambda path: path.name != "img")
    files = {}
    for path in sorted(place.glob("*/*/*/*")):
        if path.suffix.lower() in _IMAGES:
            name = flatten_inshop(path.relative_to(place).as_posix())
            files[_key("deepfashion", name)] = path
    return dict.fromkeys(SPLITS, files)


def _market_files(raw: Path) -> dict[str, dict[str, Path]] | None:
    for folder in (raw, *sorted(path for path in raw.iterdir() if path.is_dir())):
        if all((folder / f"bounding_box_{split}").is_dir() for split in SPLITS):
            return {split: {name: folder / f"bounding_box_{split}" / name
                            for name in image_names(folder / f"bounding_box_{split}")}
                    for split in SPLITS}
    return None


# --- one image ----------------------------------------------------------------------------------


def _add(folder: DatasetFolder, split: str, name: str, source: Path, kind: str) -> None:
    image = read_image(source)
    if image.shape[:2] in _SIZES[kind]:
        folder.add_image(split, name, source.read_bytes(), how="copied")
    else:
        size = "{} x {}".format(*image.shape[:2])
        folder.add_image(split, name, encode_jpeg(_resize(image, kind)), how="resized",
                         original=size)


def _resize(image: np.ndarray, kind: str) -> np.ndarray:
    """`[h, w, 3]` uint8 in the size of the frame."""
    rows, columns = FRAMES[kind]
    picture = Image.fromarray(image)
    if kind == "market":
        return np.asarray(picture.resize((columns, rows), Image.Resampling.LANCZOS))
    scale = min(rows / picture.height, columns / picture.width)
    size = (round(picture.width * scale), round(picture.height * scale))
    page = Image.new("RGB", (columns, rows), (255, 255, 255))
    page.paste(picture.resize(size, Image.Resampling.LANCZOS),
               ((columns - size[0]) // 2, (rows - size[1]) // 2))
    return np.asarray(page)
