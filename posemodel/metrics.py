"""What is measured on held-out pairs. Every function returns one value per pair, `[B]`."""

import torch
import torch.nn.functional as F
from torch import Tensor


def l1_255(image: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference on the 0..255 scale of two images `[B, 3, H, W]` in [-1, 1]."""
    return (image - target).abs().flatten(1).mean(1) * 127.5


def l1_255_at_32(image: Tensor, target: Tensor) -> Tensor:
    """The same, of both images reduced to 32 rows (the paper's l1 at 32)."""
    size = (32, max(1, round(32 * image.shape[-1] / image.shape[-2])))
    return l1_255(F.interpolate(image, size=size, mode="area"),
                  F.interpolate(target, size=size, mode="area"))


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Structural similarity, Gaussian window of sigma 1.5 (11 taps), range 2 for [-1, 1] images.

    The definition of Wang et al. as `skimage.metrics.structural_similarity(gaussian_weights=True,
    sigma=1.5, use_sample_covariance=False)` computes it: mean over channels and over the pixels
    whose window lies in the image.
    """
    taps = torch.arange(-5, 6, device=image.device, dtype=torch.float64)
    window = torch.exp(-taps.square() / (2 * 1.5**2))
    window = (window / window.sum()).to(image.dtype)
    channels = image.shape[1]
    across = window.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    along = window.view(1, 1, -1, 1).expand(channels, 1, -1, 1)

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, across, groups=channels), along, groups=channels)

    mean_x, mean_y = blur(image), blur(target)
    var_x = blur(image * image) - mean_x.square()
    var_y = blur(target * target) - mean_y.square()
    cov = blur(image * target) - mean_x * mean_y
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    values = ((2 * mean_x * mean_y + c1) * (2 * cov + c2)
              / ((mean_x.square() + mean_y.square() + c1) * (var_x + var_y + c2)))
    return values.flatten(1).mean(1)


def end_point_error(flow: Tensor, truth: Tensor) -> Tensor:
    """Distance in pixels between two flows `[B, 2, H, W]` at every pixel, `[B, H, W]`."""
    height, width = flow.shape[-2:]
    unit = flow.new_tensor([width / 2, height / 2]).view(1, 2, 1, 1)
    return ((flow - truth) * unit).norm(dim=1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `[B, H, W]` where `[B, H, W]` holds; NaN for a pair where it holds nowhere."""
    return (values * mask).flatten(1).sum(1) / mask.flatten(1).sum(1)


def roc_auc(scores: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve: the chance that a true element scores above a false one (ties
    count half). NaN when one of the two kinds is absent.

    Args:
        scores: any shape.
        labels: bool, the same shape.
    """
    scores, labels = scores.flatten().double(), labels.flatten()
    positives = int(labels.sum())
    negatives = labels.numel() - positives
    if not positives or not negatives:
        return float("nan")
    # Mann-Whitney: the mean rank of the positives, equal scores sharing their mean rank.
    _, inverse, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks = (last - (counts.double() - 1) / 2)[inverse]
    return float((ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))
