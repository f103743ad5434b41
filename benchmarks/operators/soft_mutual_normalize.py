"""Ratios to both maxima (Eq. 9), then unit length over the sources (Eq. 2)."""

import torch
import torch.nn.functional as F
from operation import EPS, Operation, random

import pose_kernels


def literal(correlation):
    C = correlation.flatten(2)
    a = C.max(dim=1, keepdim=True).values.clamp(min=EPS)
    b = C.max(dim=2, keepdim=True).values.clamp(min=EPS)
    Q = (C / a) * (C / b) * C  # Eq. 9
    norm = torch.linalg.vector_norm(Q, dim=1, keepdim=True)
    return (Q / torch.maximum(norm, EPS / a)).unflatten(2, correlation.shape[2:])  # Eq. 2


def ncnet(correlation):
    """With NCNet's formulas: maxima + eps instead of a floor, and + 1e-6 inside the norm."""
    C = correlation.flatten(2)  # its [B, 1, hs, ws, ht, wt], the same in memory
    over_sources, _ = torch.max(C, dim=1, keepdim=True)
    over_targets, _ = torch.max(C, dim=2, keepdim=True)
    C = C * ((C / (over_targets + EPS)) * (C / (over_sources + EPS)))
    norm = torch.pow(torch.sum(torch.pow(C, 2), 1) + 1e-6, 0.5).unsqueeze(1).expand_as(C)
    return torch.div(C, norm).view_as(correlation)


class SoftMutualNormalize(Operation):
    name = "soft_mutual_normalize"
    fields = ("batch", "grid", "dtype")
    eager = oracle = staticmethod(literal)
    ncnet = staticmethod(ncnet)
    ours_maps = (1, 2)

    def shapes(self, size, form=None):
        result = (size.batch, size.grid**2, size.grid, size.grid)
        return {"correlation": result}, result

    def inputs(self, size, generator):
        """A correlation of unit vectors, not noise: its maxima are what they are in the network."""
        shape = (2, size.batch, size.features, size.grid, size.grid)
        source, target = F.normalize(random(shape, generator), dim=2)
        return {"correlation": pose_kernels.correlation_4d(source, target)}

    def operations(self, size, backward, form=None):
        return 0  # no products: bound by bytes


OPERATOR = SoftMutualNormalize()
