"""Files written as a whole or not at all, and known by their content."""

import hashlib
import os
from pathlib import Path

from posemodel.errors import UserError


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
    """`write_aside` for a place that the user has named.

    Raises: `UserError` where nothing can be written.
    """
    try:
        write_aside(path, content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def sha256(path: Path) -> str:
    """Of the content of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
