"""What is measured on held-out pairs. Every function returns one value per pair, `[B]`."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from posemodel.flow.units import to_cells

ImageDistance = Callable[[Tensor, Tensor], Tensor]
"""Two images `[B, 3, H, W]` in [-1, 1] -> `[B]`"""


def l1(image: Tensor, target: Tensor, *, scale: float, rows: int | None = None) -> Tensor:
    """Mean absolute difference of two images `[B, 3, H, W]`, times `scale`.

    Args:
        rows: of both images, reduced by area to so many rows (the paper's l1 at 32).
    """
    if rows is not None:
        size = (rows, max(1, round(rows * image.shape[-1] / image.shape[-2])))
        image, target = (F.interpolate(x, size=size, mode="area") for x in (image, target))
    return (image - target).abs().flatten(1).mean(1) * scale


def mae(image: Tensor, target: Tensor) -> Tensor:
    """Sum of absolute differences over sum of values, of images whose black is 0."""
    return (image - target).abs().flatten(1).sum(1) / (image + target).flatten(1).sum(1)


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of two images `[B, C, H, W]` in [-1, 1], Gaussian window of sigma 1.5
    (11 taps), as most have it; the paper does not say which it has.

    Measured on [0, 1]: the index compares means, so it depends on where black is.
    """
    return structural_similarity((image.double() + 1) / 2, (target.double() + 1) / 2,
                                 data_range=1.0)


def structural_similarity(image: Tensor, target: Tensor, *, data_range: float | Tensor,
                          sigma: float = 1.5, uniform: int | None = None,
                          sample_covariance: bool = False, border: str = "crop") -> Tensor:
    """The index of Wang et al. 2004: mean over channels and pixels, computed in float64.

    Equal to `skimage.metrics.structural_similarity` with `gaussian_weights=True, sigma=sigma`, or
    with `win_size=uniform` where `uniform` is given.

    Args:
        image, target: `[B, C, H, W]` of any range.
        data_range: difference of the largest and the smallest possible value; `[B]` for one per
            pair. Where it is 0 the result is NaN on flat images, as scikit-image's is.
        sigma: of a Gaussian window of 2 int(3.5 sigma + 0.5) + 1 taps.
        uniform: side of a flat window instead, odd.
        sample_covariance: divide by n - 1, not n.
        border: "crop", only pixels whose window lies in the image, or "reflect", all pixels of an
            image continued by reflection.

    Raises: `ValueError` for a window that is larger than the image. Returns: `[B]` float64.
    """
    image, target = image.double(), target.double()
    window = _gaussian(sigma) if uniform is None \
        else torch.full((uniform,), 1 / uniform, dtype=torch.float64)
    if min(image.shape[-2:]) < len(window):
        raise ValueError(f"a window of {len(window)} pixels does not fit into images of "
                         f"{image.shape[-2]} x {image.shape[-1]}")
    # Filtering is linear: two small matrix products do it faster than any convolution in float64.
    along, across = (_filter_matrix(size, window, border).to(image.device)
                     for size in image.shape[-2:])

    def blur(x: Tensor) -> Tensor:
        return along @ x @ across.T

    samples = len(window) ** 2
    scale = samples / (samples - 1) if sample_covariance else 1.0
    mean_x, mean_y = blur(image), blur(target)
    var_x = scale * (blur(image * image) - mean_x.square())
    var_y = scale * (blur(target * target) - mean_y.square())
    cov = scale * (blur(image * target) - mean_x * mean_y)
    span = torch.as_tensor(data_range, dtype=torch.float64, device=image.device).view(-1, 1, 1, 1)
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    values = ((2 * mean_x * mean_y + c1) * (2 * cov + c2)
              / ((mean_x.square() + mean_y.square() + c1) * (var_x + var_y + c2)))
    return values.flatten(1).mean(1)


def _gaussian(sigma: float) -> Tensor:
    radius = int(3.5 * sigma + 0.5)
    taps = torch.arange(-radius, radius + 1, dtype=torch.float64)
    window = torch.exp(-taps.square() / (2 * sigma**2))
    return window / window.sum()


def _filter_matrix(size: int, window: Tensor, border: str) -> Tensor:
    """The matrix that filters a line of `size` pixels: `[size - taps + 1, size]`, or `[size, size]`
    where the border is reflected."""
    radius = len(window) // 2
    inside = torch.zeros(size, size + 2 * radius, dtype=torch.float64)
    for tap, weight in enumerate(window):
        inside.diagonal(tap).fill_(weight)
    if border == "crop":
        return inside[radius:size - radius, radius:size + radius].contiguous()
    position = torch.arange(-radius, size + radius).abs()
    position = torch.minimum(position, 2 * (size - 1) - position)
    return torch.zeros(size, size, dtype=torch.float64).index_add_(1, position, inside)


def psnr(image: Tensor, target: Tensor, *, data_range: float) -> Tensor:
    """Peak signal-to-noise ratio in dB, `[B]` float64; infinite for equal images."""
    error = (image.double() - target.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(data_range**2 / error)


def end_point_error(flow: Tensor, truth: Tensor) -> Tensor:
    """Distance in pixels between two flows `[B, 2, H, W]` at every pixel, `[B, H, W]`."""
    return to_cells(flow - truth).norm(dim=1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `[B, H, W]` where `[B, H, W]` holds; NaN for a pair where it holds nowhere."""
    return (values * mask).flatten(1).sum(1) / mask.flatten(1).sum(1)


IMAGE_METRICS: dict[str, ImageDistance] = {
    "l1": partial(l1, scale=127.5),
    "l1_32": partial(l1, scale=127.5, rows=32),
}
"""Of images as they are, whatever the protocol, on 0..255; the columns are named copy_l1,
warped_l1, refined_l1 and so on. (`ssim` is measured, too: its columns have names of their own.)"""
