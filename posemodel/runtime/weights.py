"""Weights that others have published: in torch hub's cache, downloaded, or one line that says why
not."""

import pickle
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from posemodel.runtime.errors import UserError
from posemodel.runtime.files import sha256


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """A file of weights that somebody offers for download."""

    what: str
    """what needs it, for messages"""
    url: str
    """its last part ends in -XXXXXXXX.pth, the start of the file's SHA-256"""
    otherwise: str = ""
    """what else to do where it cannot be downloaded, for messages"""

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
        """The file, downloaded if it is not there yet. Raises: `UserError` if it cannot be had or
        is damaged."""
        path = self.path
        if not path.is_file():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(self.url, str(path), hash_prefix=named_hash(path))
            except (OSError, RuntimeError) as error:
                more = f"; {self.otherwise}" if self.otherwise else ""
                raise UserError(f"{self.what} needs {path.name}: not in {path.parent}, and the "
                                f"download from {self.url} failed ({error}){more}") from error
        check_hash(path, str(path))
        return path


def named_hash(path: Path) -> str:
    """The start of the SHA-256 in a name such as `vgg19-dcbb9e9d.pth`; empty if there is none."""
    digits = re.search(r"-([0-9a-f]{8,64})\.", path.name)
    return digits[1] if digits else ""


def check_hash(path: Path, origin: str) -> None:
    """Hold a file to the hash in its name, if it has one; `origin` is what messages call it.
    Raises: `UserError`."""
    wanted = named_hash(path)
    if wanted and not (digest := sha256(path)).startswith(wanted):
        raise UserError(f"{origin}: its SHA-256 begins with {digest[:8]} and not with {wanted}, as "
                        "its name says: damaged or cut short; delete it and fetch it again")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """A state dict from a file of PyTorch weights; no code in it is run. Raises: `UserError` for
    any other file."""
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read the weights {path}: {error.strerror}") from error
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError) as error:
        raise UserError(f"{path}: no file of PyTorch weights") from error
    if not isinstance(weights, dict):
        raise UserError(f"{path}: expected a dict of weights, found {type(weights).__name__}")
    return weights
