"""A data set that this program writes: never over anything, and on where it was stopped.

    manifest.json   how the set is made; when it is complete, also counts and SHA-256 of the texts
    images.jsonl    a row for each image: split, name, bytes, sha256, and what else is known of it
    lock            held by the process that writes
    train/ test/    the images, and validation/ where it has its own; beside them the text files,
                    written last
"""

import hashlib
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from posemodel import __version__
from posemodel.data.layouts.layout import ALL_SPLITS
from posemodel.runtime.files import sha256, write_aside, writing
from posemodel.runtime.folder import OwnFolder

MANIFEST = "manifest.json"
IMAGES = "images.jsonl"
_ROW_KEYS = {"split", "name", "bytes", "sha256"}


class DatasetFolder:
    """The folder while it is written; made by `open_folder`."""

    def __init__(self, root: Path, recipe: dict, *, complete: bool, rows: dict):
        self.root, self.recipe, self.complete = root, recipe, complete
        self.rows = rows
        """(split, name) -> row of images.jsonl, of the images that are there"""

    def add_image(self, split: str, name: str, data: bytes, **more) -> None:
        """Write one image file and its row; `more` is kept in the row."""
        folder = self.root / split
        folder.mkdir(exist_ok=True)
        # No fsync: an image that a power cut tears has another size, and is written again.
        temporary = folder / (name + ".tmp")
        temporary.write_bytes(data)
        os.replace(temporary, folder / name)
        digest = hashlib.sha256(data).hexdigest()
        row = {"split": split, "name": name, "bytes": len(data), "sha256": digest, **more}
        with (self.root / IMAGES).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.rows[split, name] = row

    def finish(self, counts: dict, texts: list[str]) -> None:
        """Everything is written: put images.jsonl in order and complete the manifest.

        Args:
            counts: what the set holds, for people and for `check`.
            texts: names of the text files in the folder, to be known by their content.
        """
        rows = (json.dumps(self.rows[key]) for key in sorted(self.rows))
        write_aside(self.root / IMAGES, "".join(row + "\n" for row in rows))
        digests = {name: sha256(self.root / name) for name in (*texts, IMAGES)}
        manifest = {"recipe": self.recipe, "complete": True, "version": __version__,
                    "counts": counts, "sha256": digests}
        _own(self.root).write(manifest)
        self.complete = True


@contextmanager
def open_folder(root: Path, recipe: dict) -> Iterator[DatasetFolder]:
    """Make the folder `root`, or continue in it.

    Args:
        recipe: JSON values that say how the set is made; only the same recipe continues.

    Raises: `UserError` for a folder with other things or another recipe in it, which stays as it
        is, and for one that another process writes.
    """
    own = _own(root)
    with writing(f"in {root}"), own.lock("writing"):
        manifest = read_manifest(root) or {"recipe": recipe, "complete": False}
        own.refuse_other(manifest["recipe"], recipe)
        if not manifest["complete"]:
            own.write(manifest)
        yield DatasetFolder(root, recipe, complete=manifest["complete"], rows=_rows_of_files(root))


def read_manifest(root: Path) -> dict | None:
    """The manifest of a folder; None where there is none. Raises: `UserError` for a manifest that
    is damaged or another program's."""
    own = _own(root)
    if not own.record.exists():
        return None
    with own.reading() as manifest:
        sound = isinstance(manifest["recipe"], dict) and isinstance(manifest["complete"], bool)
        if manifest["complete"]:
            sound = sound and isinstance(manifest["counts"], dict) \
                and all(len(name) < 256 for name in manifest["sha256"].keys())
        if not sound:
            raise ValueError("not of this program")
    return manifest


def _own(root: Path) -> OwnFolder:
    return OwnFolder(root, MANIFEST, "set of images")


def read_rows(root: Path) -> list[dict]:
    """The rows of images.jsonl up to the first that a kill has torn."""
    rows = []
    if (root / IMAGES).exists():
        for line in (root / IMAGES).read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                break
            if not isinstance(row, dict) or not _ROW_KEYS <= row.keys() \
                    or row["split"] not in ALL_SPLITS or not isinstance(row["name"], str):
                break
            rows.append(row)
    return rows


def sizes_in(folder: Path) -> dict[str, int]:
    """Bytes of the files in a folder, empty where there is none."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries}


def _rows_of_files(root: Path) -> dict:
    """The rows whose image is there with the right size; the others are made again."""
    rows = read_rows(root)
    sizes = {split: sizes_in(root / split) for split in {row["split"] for row in rows}}
    good = [row for row in rows if sizes[row["split"]].get(row["name"]) == row["bytes"]]
    # A torn last line would swallow the next one.
    text = "".join(json.dumps(row) + "\n" for row in good)
    if (root / IMAGES).exists() and (root / IMAGES).read_bytes() != text.encode():
        write_aside(root / IMAGES, text)
    return {(row["split"], row["name"]): row for row in good}


def encode_png(image: np.ndarray) -> bytes:
    """`[H, W, 3]` or `[H, W]` uint8 as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def encode_jpeg(image: np.ndarray) -> bytes:
    """`[H, W, 3]` uint8 as a JPEG file of quality 95 without subsampling of colour."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()
