"""The best matches both ways (k = 1), beside the maxima of a stored map. Forward only."""

import torch

import pose_kernels
from operators import correlation_4d


def literal(source, target):
    C = correlation_4d.literal(source, target).flatten(2)
    return torch.cat([C.max(dim=1).values, C.max(dim=2).values], dim=1)


def matched(source, target, impl=None):
    """The correlations that were found, of which the places are part: for the check."""
    found = pose_kernels.mutual_matches(source, target, impl=impl)
    values = found.correlations, found.target_correlations
    return torch.cat([x.flatten(1) for x in values], dim=1)


class MutualMatches(correlation_4d.Correlation4d):
    name = "mutual_matches"
    eager = oracle = staticmethod(literal)
    backward = False
    has_memory_format = False
    eager_maps, ours_maps, oracle_maps = (1, 1), (0.2, 0.2), 2

    def shapes(self, size, form=None):
        features = (size.batch, size.features, size.grid, size.grid)
        return {"source": features, "target": features}, (size.batch, 2 * size.grid**2)

    def function(self):
        return matched


OPERATOR = MutualMatches()
