"""Weights that others have published: in a folder of one's own, in torch hub's cache, downloaded,
or one line that says why not."""

import hashlib
import os
import re
import socket
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from posemodel.runtime.errors import UserError
from posemodel.runtime.files import sha256

FLAG = "--weights"
SHIPPED = "shipped"
"""what `--init` calls the model that comes with the package"""
VARIABLE = "POSEMODEL_WEIGHTS"
"""variable of the environment that names a folder, which is looked into after that of the flag"""
# Seconds that a server may stay silent in the middle of a download.
_SILENCE = 60.0


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """A file of weights that somebody offers for download.

    It is looked for in the folder of `--weights`, in that of `POSEMODEL_WEIGHTS` and in torch hub's
    cache, in this order.
    """

    what: str
    """what needs it, for messages"""
    url: str
    """its last part ends in -XXXXXXXX.pth, the start of the file's SHA-256"""
    plain: str = ""
    """another name that it may have in a folder of one's own; such a file has no hash in its name,
    and may lack what is not needed of it"""
    otherwise: str = ""
    """what else to do where it cannot be downloaded, for messages"""

    @property
    def name(self) -> str:
        """Of the file, as it is offered."""
        return self.url.rpartition("/")[2]

    def look(self, folder: str | Path = "") -> Path | None:
        """The file, if it is somewhere here; nothing is downloaded.

        Args:
            folder: of `--weights`; empty: there is none.

        Raises: `UserError` for a folder that is not there.
        """
        names = [self.name, *filter(None, [self.plain])]
        files = [place / name for place in own_folders(folder) for name in names]
        files.append(_hub_folder() / self.name)
        return next((file for file in files if file.is_file()), None)

    def missing(self, folder: str | Path = "") -> str:
        """Why the weights cannot be had without a download; empty if they can. Raises: as `look`.
        """
        if self.look(folder) is not None:
            return ""
        return f"{self._not_here(folder)}; get it from {self.url}, or name its folder by {FLAG}"

    def find(self, folder: str | Path = "") -> Path:
        """The file, downloaded if it is not here yet. Raises: `UserError` if it cannot be had, or
        has not the hash that its name says; as `look`."""
        path = self.look(folder)
        if path is None:
            path = _hub_folder() / self.name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with _sockets_that_answer():
                    torch.hub.download_url_to_file(self.url, str(path),
                                                   hash_prefix=named_hash(path))
            except (OSError, RuntimeError) as error:
                more = f"; {self.otherwise}" if self.otherwise else ""
                raise UserError(f"{self.what} needs {self.name}: {self._not_here(folder)}, and the "
                                f"download from {self.url} failed ({error}); name its folder by "
                                f"{FLAG}{more}") from error
        check_hash(path, str(path))
        return path

    def _not_here(self, folder: str | Path) -> str:
        own = own_folders(folder)
        names = f"{self.name} or {self.plain}" if own and self.plain else self.name
        return f"no {names} in {', '.join(map(str, [*own, _hub_folder()]))}"


def own_folders(folder: str | Path = "") -> list[Path]:
    """The folder of `--weights`, if one is given, and that of `POSEMODEL_WEIGHTS`, if it is set.
    Raises: `UserError` for one that is not there."""
    named = {f"{FLAG} {folder}": folder, f"{VARIABLE}={os.environ.get(VARIABLE)}":
             os.environ.get(VARIABLE)}
    found = []
    for origin, place in named.items():
        if not place:
            continue
        if not Path(place).is_dir():
            raise UserError(f"{origin}: no such folder; expected one with files of weights, named "
                            "as torchvision names them or as docs/training.md says")
        found.append(Path(place))
    return found


@contextmanager
def _sockets_that_answer() -> Iterator[None]:
    """torch's download has no limit of its own, and sockets by default none either."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SILENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _hub_folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def shipped_file() -> Path:
    """The small model that comes with the package. Raises: `UserError` where the installation has
    none."""
    folder = Path(str(resources.files("posemodel") / "pretrained"))
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError("no model comes with this installation; train one with "
                        "python -m posemodel.train and give its run folder")
    return files[0]


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
    any other file, and for one that was changed after it was written."""
    try:
        # torch does not look at the check sums that it writes. A hash in the name is the better
        # check, and may have been made already.
        if not named_hash(Path(path)) and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:
                if file.testzip():
                    raise RuntimeError("a check sum is wrong")
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read the weights {path}: {error.strerror}") from error
    except Exception as error:  # whatever a damaged or foreign file does to the reader
        raise UserError(f"{path}: no file of PyTorch weights, or a damaged one; delete it and "
                        "fetch it again") from error
    if not isinstance(weights, dict):
        raise UserError(f"{path}: expected a dict of weights, found {type(weights).__name__}")
    return weights


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors by themselves: the same from whatever file or device they came.

    For each in its order: its name, a space, its shape as `64x3x11x11`, a newline, and its values
    as little-endian float32 in row-major order.
    """
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {'x'.join(map(str, tensor.shape))}\n".encode())
        values = tensor.detach().cpu().float().contiguous().numpy()
        digest.update(values.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()
