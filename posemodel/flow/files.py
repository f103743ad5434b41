"""Flows as files: Middlebury .flo and .npy.

| file | content |
|---|---|
| `.flo` | displacements (x, y) in pixels: "PIEH", width, height, then row by row, little-endian |
| `.npy` | any float32 array `[2, H, W]`, (x, y) |

Convention: in memory a flow is `[2, H, W]` float32, NaN where it is not known. Middlebury's files
have numbers beyond 10^9 there (Baker et al., A Database and Evaluation Methodology for Optical
Flow, 2011).
"""

import io
import struct
from pathlib import Path

import numpy as np

from posemodel.runtime.files import write_aside

_MAGIC = b"PIEH"  # the float 202021.25
_HEAD = struct.Struct("<4sii")
_UNKNOWN = 1e10


def write_flo(path: str | Path, displacement: np.ndarray) -> None:
    """Write a Middlebury .flo; the file is there as a whole or not at all.

    Args:
        displacement: `[2, H, W]`, (x, y) in pixels; NaN where it is not known.
    """
    _check(displacement)
    _, height, width = displacement.shape
    known = np.isfinite(displacement).all(axis=0)
    values = np.where(known, displacement, _UNKNOWN).astype("<f4")
    content = _HEAD.pack(_MAGIC, width, height) + np.moveaxis(values, 0, -1).tobytes()
    write_aside(Path(path), content)


def write_npy(path: str | Path, flow: np.ndarray) -> None:
    """Write a flow `[2, H, W]` as float32 .npy; the file is there as a whole or not at all."""
    _check(flow)
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(flow, np.float32), allow_pickle=False)
    write_aside(Path(path), buffer.getvalue())


def _check(flow: np.ndarray) -> None:
    if flow.ndim != 3 or flow.shape[0] != 2:
        raise ValueError(f"flow: expected [2, H, W], found {flow.shape}")
