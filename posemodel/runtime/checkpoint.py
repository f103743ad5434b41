"""Checkpoints that a crash, a full disk or a flipped bit cannot take away.

    checkpoints/
      LATEST                      name of the newest one, for people and scripts
      step_000500/
        averaged.safetensors ...  one file for each set of weights, the run's config in its header
        train.pt                  optimisers and the rest, read by `weights_only=True` alone
        meta.json                 sizes and SHA-256 of the other files; written last

A checkpoint is written beside its place, forced to the disk, and moved into place by one rename:
it is there entirely or not at all. Reading trusts nothing but the hashes.
"""

import hashlib
import io
import json
import os
import pickle
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from posemodel.runtime.errors import UserError

_TEMPORARY = ".tmp-"
# A checkpoint of the same step makes room under this ending, and counts until the new one stands.
_REPLACED = ".replaced"
_NAME = re.compile(r"step_(\d+)(\.replaced)?")

_UNREADABLE = (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, ValueError,
               EOFError)


@dataclass
class Checkpoint:
    """What `save` was given, and which newer checkpoints could not be used."""

    step: int
    weights: dict[str, dict[str, Tensor]]
    state: dict
    path: Path
    skipped: list[str] = field(default_factory=list)


class _Invalid(Exception):
    """Why a checkpoint cannot be used."""


def save(directory: str | Path, step: int, *, weights: dict[str, dict[str, Tensor]], state: dict,
         config: dict) -> Path:
    """Write checkpoint `step`, then drop all but the two newest valid ones.

    `state` may hold tensors, numbers, strings and containers of them: what could not be read back
    without running code from the file is refused here, not at the resume.
    """
    directory = Path(directory)
    files = {"train.pt": _state_bytes(state)}
    metadata = {"config": json.dumps(config), "step": str(step)}
    for name, tensors in weights.items():
        # Copies on the CPU, contiguous and sharing nothing, as safetensors demands.
        separate = {key: tensor.detach().to("cpu", copy=True).contiguous()
                    for key, tensor in tensors.items()}
        files[f"{name}.safetensors"] = safetensors.torch.save(separate, metadata)
    meta = {"step": step, "files": {name: {"bytes": len(content), "sha256": _hash(content)}
                                    for name, content in files.items()}}
    files["meta.json"] = json.dumps(meta, indent=2).encode()

    final = directory / f"step_{step:06d}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _sweep(directory)
        _put_in_place(final, files)
        _retain(directory)
    except OSError as error:
        _sweep(directory)
        raise UserError(f"cannot write checkpoint {final}: {error.strerror or error}; "
                        "earlier checkpoints are as they were") from error
    return final


def _put_in_place(final: Path, files: dict[str, bytes]) -> None:
    """The folder `final` with `files`, of which the last one is written last."""
    directory = final.parent
    temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=directory))
    temporary.chmod(0o755)  # mkdtemp's 0700 would keep the group out
    for name, content in files.items():
        _write(temporary / name, content)
    _sync(temporary)
    if final.exists():
        final.rename(final.with_name(final.name + _REPLACED))
    temporary.rename(final)
    _sync(directory)
    _write(directory / "LATEST.tmp", f"{final.name}\n".encode())
    os.replace(directory / "LATEST.tmp", directory / "LATEST")
    _sync(directory)


def load_latest(directory: str | Path) -> Checkpoint | None:
    """The newest valid checkpoint; None if there is none at all. Raises: `UserError` if there are
    some and none can be used. Nothing is ever deleted here."""
    skipped = []
    for path in _candidates(Path(directory)):
        try:
            content = _verified(path)
            weights = {name.removesuffix(".safetensors"): safetensors.torch.load(data)
                       for name, data in content.items() if name.endswith(".safetensors")}
            state = torch.load(io.BytesIO(content["train.pt"]), map_location="cpu",
                               weights_only=True)
            return Checkpoint(_step(path), weights, state, path, skipped)
        except _Invalid as reason:
            skipped.append(f"checkpoint {path.name} skipped: {reason}")
        except _UNREADABLE as error:  # the hashes are right, but the content is not ours
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            skipped.append(f"checkpoint {path.name} skipped: {reason}")
    if skipped:
        raise UserError(f"no checkpoint in {directory} can be used ({skipped[0]}); nothing was "
                        "deleted; choose another --out, or remove the folder to start anew")
    return None


def newest(run: Path, log: Callable[[str], None]) -> Checkpoint:
    """That of a run folder, which has to have one; `log` is given a line for each that is damaged.
    Raises: `UserError`."""
    saved = load_latest(run / "checkpoints")
    if saved is None:
        raise UserError(f"{run} has no checkpoint yet; train it first")
    for line in saved.skipped:
        log(f"warning: {line}")
    return saved


def _state_bytes(state: dict) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    torch.load(buffer, map_location="cpu", weights_only=True)
    return buffer.getvalue()


def _candidates(directory: Path) -> list[Path]:
    """Checkpoint folders, newest first; whole or not."""
    if not directory.is_dir():
        return []
    folders = [path for path in directory.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    # Of one step, the one in place comes before the one that it replaced.
    return sorted(folders, key=lambda path: (-_step(path), path.name))


def _step(path: Path) -> int:
    return int(_NAME.fullmatch(path.name)[1])


def _verified(path: Path) -> dict[str, bytes]:
    """Name and content of every file, after checking them against meta.json."""
    try:
        meta = json.loads((path / "meta.json").read_bytes())
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in meta["files"].items()}
    except FileNotFoundError:
        raise _Invalid("meta.json is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _Invalid(f"meta.json is unreadable ({error})") from None
    if "train.pt" not in files:
        raise _Invalid("meta.json names no train.pt")
    content = {}
    for name, (size, digest) in files.items():
        if Path(name).name != name:
            raise _Invalid(f"meta.json names a file outside of the checkpoint ({name})")
        try:
            data = (path / name).read_bytes()
        except OSError as error:
            raise _Invalid(f"{name}: {error.strerror or error}") from None
        if len(data) != size:
            raise _Invalid(f"{name} has {len(data)} bytes instead of {size}")
        if _hash(data) != digest:
            raise _Invalid(f"{name} has changed since it was written (SHA-256)")
        content[name] = data
    return content


def _is_valid(path: Path) -> bool:
    try:
        _verified(path)
    except _Invalid:
        return False
    return True


def _retain(directory: Path) -> None:
    """Delete what is older than the two newest valid checkpoints; broken newer ones stay."""
    valid = 0
    for path in _candidates(directory):
        if valid >= 2 or path.name.endswith(_REPLACED):
            shutil.rmtree(path, ignore_errors=True)
        else:
            valid += _is_valid(path)


def _sweep(directory: Path) -> None:
    """Remove what killed saves left behind. The run folder's lock keeps other writers out."""
    for path in directory.glob(_TEMPORARY + "*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in directory.glob("step_*" + _REPLACED):
        original = path.with_name(path.name.removesuffix(_REPLACED))
        if original.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:  # killed between making room and moving in
            path.rename(original)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    """Force a folder's entries to the disk: a rename alone may not survive a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
