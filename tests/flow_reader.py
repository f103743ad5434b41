"""Reads what `write_flo` wrote, by Middlebury's description of the format."""

import struct

import numpy as np


def read_flo(path) -> np.ndarray:
    """`[2, H, W]` float32, NaN where the flow is not known."""
    content = path.read_bytes()
    magic, width, height = struct.unpack_from("<fii", content)
    assert magic == 202021.25 and len(content) == 12 + 8 * width * height
    flow = np.frombuffer(content, "<f4", offset=12).reshape(height, width, 2).transpose(2, 0, 1)
    return np.where((np.abs(flow) <= 1e9).all(axis=0), flow, np.nan)
