"""The flow that samples every pixel at its own place: x_j = (2j + 1)/w - 1, y_i likewise."""

import torch

from . import _checks


def pixel_centres(size: int, dtype: torch.dtype, device=None) -> torch.Tensor:
    """Normalised pixel centres, ``(2j + 1 - size) / size``, correctly rounded to ``dtype``.

    Computed in float64 and rounded once: the same bits on every device and under torch.compile,
    also where a division is a multiplication by the reciprocal. Sampling subtracts these very
    numbers, so an identity flow leaves a displacement of exactly zero.
    """
    j = torch.arange(size, dtype=torch.float64, device=device)
    return ((2 * j + (1 - size)) / size).to(dtype)


def identity_flow(height: int, width: int, *, dtype: torch.dtype | None = None,
                  device: torch.device | str | None = None) -> torch.Tensor:
    """Flow ``[2, height, width]`` that maps every position to itself.

    ``flow[0, i, j] = (2j + 1)/width - 1``, ``flow[1, i, j] = (2i + 1)/height - 1``.

    Args:
        height, width: size of the grid.
        dtype: floating dtype, torch's default when None.
        device: where to put it, torch's default when None.

    Convention:
        Channels (x, y); absolute normalised locations in [-1, 1]; pixel centres
        (``align_corners=False``).
    Precision: Correctly rounded to ``dtype``, and symmetric about 0.
    Memory: The result.
    Raises:
        TypeError, ValueError: a size that is not a positive integer, a dtype that is not floating.
    """
    height, width = _checks.plain_size(height), _checks.plain_size(width)
    for name, size in (("height", height), ("width", width)):
        if not isinstance(size, (int, torch.SymInt)) or isinstance(size, bool):
            raise TypeError(f"{name}: expected a positive integer, got {type(size).__name__}")
        if size < 1:
            raise ValueError(f"{name}: expected a positive integer, got {size}")
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if dtype not in _checks.DTYPES:
        raise TypeError(f"dtype: expected float32, float64, float16 or bfloat16, got {dtype}")
    x = pixel_centres(width, dtype, device).expand(height, width)
    y = pixel_centres(height, dtype, device).unsqueeze(1).expand(height, width)
    return torch.stack((x, y))
