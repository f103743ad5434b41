"""How well queries find their own identity in a gallery: the protocol of Market-1501.

For each query the gallery is sorted by distance. What is junk, or of the query's own identity and
camera, is taken out first; distractors stay in. Two conventions are in use, and both are computed:

- **step**, of torchreid, fast-reid and reid-strong-baseline: the average precision is the mean of
  the precision at each hit; averages are taken over the queries that have a match in the gallery.
- **trapezoid**, of the data set's own Matlab code, which the baseline of Zheng et al. and DG-Net++
  follow: the precision before and at each hit are averaged; averages are taken over all queries,
  and one without a match counts 0.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from posemodel.reid.market import JUNK
from posemodel.runtime.errors import UserError

RANKS = (1, 5, 10)
CONVENTIONS = ("step", "trapezoid")

_AT_ONCE = 1 << 20  # distances that are in memory at a time


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranking:
    """What became of each of Q queries."""

    matches: np.ndarray
    """`[Q]` int64, gallery images that would be right; 0: the query cannot be answered"""
    first_hit: np.ndarray
    """`[Q]` int64, place of the first right one, from 0; meaningless without a match"""
    precision: dict[str, np.ndarray]
    """average precision by convention, `[Q]` float64, 0 without a match"""

    def scores(self, convention: str) -> dict[str, float]:
        """`mAP`, `rank1`, `rank5`, `rank10`, all 0 to 1. Raises: `UserError` where no query has a
        match."""
        answered = self.matches > 0
        if not answered.any():
            raise UserError("no query has a match of its identity under another camera in the "
                            "gallery")
        counted = answered if convention == "step" else np.ones_like(answered)
        found = {"mAP": self.precision[convention][counted].mean()}
        for rank in RANKS:
            found[f"rank{rank}"] = (answered & (self.first_hit < rank))[counted].mean()
        return {name: float(value) for name, value in found.items()}


def rank_features(query: Tensor, gallery: Tensor, *, query_persons: np.ndarray,
                  query_cameras: np.ndarray, gallery_persons: np.ndarray,
                  gallery_cameras: np.ndarray) -> Ranking:
    """Rank by the cosine of features, some queries at a time: memory does not grow with Q.

    Args:
        query, gallery: `[Q, C]` and `[G, C]`, of any length, on one device.
        query_persons, ...: `[Q]` and `[G]` int64.
    """
    query, gallery = (torch.nn.functional.normalize(features.float(), dim=1)
                      for features in (query, gallery))
    step = max(1, _AT_ONCE // max(1, len(gallery)))
    parts = []
    for start in range(0, len(query), step):
        some = slice(start, start + step)
        distances = 1 - query[some] @ gallery.T
        parts.append(rank_distances(
            distances.cpu().numpy(), query_persons=query_persons[some],
            query_cameras=query_cameras[some], gallery_persons=gallery_persons,
            gallery_cameras=gallery_cameras))
    return Ranking(
        matches=np.concatenate([part.matches for part in parts]),
        first_hit=np.concatenate([part.first_hit for part in parts]),
        precision={name: np.concatenate([part.precision[name] for part in parts])
                   for name in CONVENTIONS})


def rank_distances(distances: np.ndarray, *, query_persons: np.ndarray, query_cameras: np.ndarray,
                   gallery_persons: np.ndarray, gallery_cameras: np.ndarray) -> Ranking:
    """Rank by distances `[Q, G]`; among equal ones the gallery's order decides."""
    order = np.argsort(distances, axis=1, kind="stable")
    persons, cameras = gallery_persons[order], gallery_cameras[order]              # [Q, G]
    same = persons == query_persons[:, None]
    kept = (persons != JUNK) & ~(same & (cameras == query_cameras[:, None]))
    hits = same & kept
    place = np.cumsum(kept, axis=1)  # from 1
    found = np.cumsum(hits, axis=1)
    matches = found[:, -1]
    at_hit = found / np.maximum(place, 1)
    # Before the first place the precision is taken to be 1.
    before = np.where(place > 1, (found - 1) / np.maximum(place - 1, 1), 1.0)
    divisor = np.maximum(matches, 1)
    return Ranking(
        matches=matches,
        first_hit=np.take_along_axis(place, hits.argmax(axis=1)[:, None], axis=1)[:, 0] - 1,
        precision={"step": (at_hit * hits).sum(axis=1) / divisor,
                   "trapezoid": ((before + at_hit) / 2 * hits).sum(axis=1) / divisor})
