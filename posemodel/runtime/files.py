"""Files written as a whole or not at all, and known by their content."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from posemodel.runtime.errors import UserError


def write_aside(path: Path, content: str | bytes) -> None:
    """Write a file under another name, then rename it: it is there as a whole or not at all."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_result(path: Path, content: str | bytes) -> None:
    """`write_aside` for a place that the user has named. Raises: `UserError` where nothing can be
    written."""
    with writing(path):
        write_aside(path, content)


@contextmanager
def writing(place: Path | str, then: str = "") -> Iterator[None]:
    """Around all that writes to a place: what goes wrong there is one line.

    Args:
        place: what the message names: a path, "into runs/quick".
        then: what it says after that.

    Raises: `UserError`.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {place}: {error.strerror or error}{then}") from error


def sha256(path: Path) -> str:
    """Of the content of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `out` when all went well and disappears otherwise.
    Raises: `UserError` where there is something already, and for what cannot be written."""
    refuse_existing(out)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        temporary.chmod(0o755)  # mkdtemp's 0700 would keep the group out
        try:
            yield temporary
            temporary.rename(out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def refuse_existing(out: Path) -> None:
    """Raises: `UserError` where there is something already."""
    if out.exists():
        raise UserError(f"{out} is there already: nothing was touched; choose another folder")
