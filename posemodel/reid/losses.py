"""What the baseline minimises beside the cross-entropy."""

import torch
from torch import Tensor


def batch_hard_triplet(features: Tensor, persons: Tensor, margin: float) -> Tensor:
    """Triplet loss with the hardest positive and negative of the batch (Hermans et al. 2017,
    "In defense of the triplet loss", Eq. 5), a mean over the batch.

    Args:
        features: `[B, C]`; distances are Euclidean.
        persons: `[B]` int64, each identity at least twice, at least two identities.
    """
    square = features.square().sum(1)
    distances = square[:, None] + square - 2 * features @ features.T
    distances = distances.clamp_min(1e-12).sqrt()
    same = persons[:, None] == persons
    hardest_positive = distances.where(same, -torch.inf).amax(1)
    hardest_negative = distances.where(~same, torch.inf).amin(1)
    return (margin + hardest_positive - hardest_negative).clamp_min(0).mean()
