"""ROC curves of more pixels than memory holds."""

import numpy as np
import torch
from torch import Tensor

from posemodel.evaluation.accumulators import Accumulator


class RocAccumulator(Accumulator):
    """Scores and labels of a whole test set, counted by score; memory stays bounded.

    As long as there are at most `limit` different scores the result is exact. Beyond that, scores
    are counted in cells: those whose float32 bits agree but for the last k, with the smallest k
    that leaves at most `limit` cells. The cells depend on the scores alone, not on their order, so
    accumulators of two halves merge to the accumulator of the whole, to the bit.
    """

    def __init__(self, limit: int = 1 << 17):
        self.limit = limit
        self._dropped = 0                                  # k: bits that cells do not see
        self._cell = np.zeros(0, dtype=np.int64)           # sorted
        self._count = np.zeros((2, 0), dtype=np.int64)     # negatives and positives per cell
        self._new: list[tuple[np.ndarray, np.ndarray]] = []     # the same, not yet merged

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Add elements: scores of any shape, counted in float32, and bool labels of the same.
        Raises: `ValueError` if a score is NaN."""
        scores = scores.detach().flatten().float() + 0.0   # -0 becomes 0, which equals it
        if scores.isnan().any():
            raise ValueError("a score is NaN")
        bits = scores.view(torch.int32)
        # Bits of negative floats grow with their size: turned round, the order is that of values.
        order = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long() >> self._dropped
        cell, index = torch.unique(order, return_inverse=True)
        index = index + len(cell) * labels.flatten().long()
        count = torch.bincount(index, minlength=2 * len(cell)).view(2, -1)
        self._new.append((cell.cpu().numpy(), count.cpu().numpy()))
        if sum(len(cell) for cell, _ in self._new) > self.limit:
            self._settle()

    def merge(self, other: "RocAccumulator") -> None:
        """Add the elements of another one. Raises: `ValueError` if it has another limit."""
        if other.limit != self.limit:
            raise ValueError(f"accumulators of limit {self.limit} and {other.limit} do not merge")
        self._settle()
        other._settle()
        self._drop(max(0, other._dropped - self._dropped))
        self._new.append((other._cell >> (self._dropped - other._dropped), other._count))
        self._settle()

    def auc(self) -> float:
        """Area under the curve: the chance that a positive scores above a negative (ties count
        half). NaN where one of the two kinds is absent."""
        self._settle()
        negatives, positives = (int(total) for total in self._count.sum(1))
        if not negatives or not positives:
            return float("nan")
        below = np.cumsum(self._count[0]) - self._count[0] / 2
        return float((self._count[1] * below).sum() / (negatives * positives))

    def auc_error(self) -> float:
        """How far at most `auc` is from that of the scores themselves, in either direction."""
        self._settle()
        if not self._dropped:
            return 0.0
        negatives, positives = self._count.sum(1)
        with np.errstate(invalid="ignore"):
            return float((self._count[0] / negatives * (self._count[1] / positives)).sum() / 2)

    def curve(self, points: int = 101) -> dict[str, list[float]]:
        """At most `points` points of the curve, from (0, 0) to (1, 1).

        Returns: `false_positive_rate`, `true_positive_rate`; both empty where one of the two kinds
        is absent.
        """
        self._settle()
        rates = np.zeros((2, 0))
        if self._count.sum(1).all():
            falling = np.cumsum(self._count[:, ::-1], 1) / self._count.sum(1, keepdims=True)
            rates = np.concatenate([np.zeros((2, 1)), falling], 1)
            # Evenly along the curve, whose two rates together grow from 0 to 2.
            wanted = np.linspace(0, 2, points)
            rates = rates[:, np.unique(np.searchsorted(rates.sum(0), wanted - 1e-12))]
        return {"false_positive_rate": rates[0].tolist(), "true_positive_rate": rates[1].tolist()}

    def state(self) -> dict[str, np.ndarray]:
        self._settle()
        return {"limit": np.array(self.limit), "dropped": np.array(self._dropped),
                "cell": self._cell, "count": self._count}

    def load(self, state: dict[str, np.ndarray]) -> "RocAccumulator":
        if state:
            self.limit, self._dropped = int(state["limit"]), int(state["dropped"])
            self._cell, self._count, self._new = state["cell"], state["count"], []
        return self

    def _settle(self) -> None:
        """Merge what is new. Once for many updates, since it sorts all cells."""
        if not self._new:
            return
        cells, counts = zip((self._cell, self._count), *self._new, strict=True)
        self._cell, self._count = np.concatenate(cells), np.concatenate(counts, 1)
        self._new = []
        self._drop(0)
        while len(self._cell) > self.limit:
            self._drop(1)

    def _drop(self, bits: int) -> None:
        """Leave out the lowest bits of all cells; those that are then the same become one."""
        self._dropped += bits
        self._cell, index = np.unique(self._cell >> bits, return_inverse=True)
        size = len(self._cell)
        self._count = np.stack([                           # float64 counts exactly up to 2^53
            np.bincount(index, weights=row, minlength=size).astype(np.int64)
            for row in self._count])
