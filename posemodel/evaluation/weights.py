"""Weights that others have published: in torch hub's cache, downloaded, or one line that says why
not."""

import hashlib
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from posemodel.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """A file of weights that somebody offers for download."""

    what: str
    """what needs it, for messages"""
    url: str
    """its last part ends in -XXXXXXXX.pth, the start of the file's SHA-256"""

    @property
    def path(self) -> Path:
        """Where torch hub keeps it."""
        return Path(torch.hub.get_dir()) / "checkpoints" / self.url.rpartition("/")[2]

    def missing(self) -> str:
        """Why the weights cannot be had without a download; empty if they can."""
        if self.path.is_file():
            return ""
        return f"no {self.path.name} in {self.path.parent}; get it from {self.url}"

    def find(self) -> Path:
        """The file, downloaded if it is not there yet.

        Raises: `UserError` if it cannot be had or is damaged.
        """
        path = self.path
        digest = path.stem.rpartition("-")[2]
        if not path.is_file():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(self.url, str(path), hash_prefix=digest)
            except (OSError, RuntimeError) as error:
                raise UserError(f"{self.what} needs {path.name}: not in {path.parent}, and the "
                                f"download from {self.url} failed ({error})") from error
        found = sha256(path)
        if not found.startswith(digest):
            raise UserError(f"{path} is damaged (SHA-256 {found[:8]}..., expected {digest}...): "
                            f"delete it and get it again from {self.url}")
        return path


def sha256(path: Path) -> str:
    """Of the content of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """A state dict from a file of PyTorch weights; no code in it is run.

    Raises: `UserError` for any other file.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read the weights {path}: {error.strerror}") from error
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError) as error:
        raise UserError(f"{path}: no file of PyTorch weights") from error
    if not isinstance(weights, dict):
        raise UserError(f"{path}: expected a dict of weights, found {type(weights).__name__}")
    return weights
