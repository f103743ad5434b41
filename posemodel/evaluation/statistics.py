"""What the numbers of a table allow to say: spread over seeds, and paired comparisons.

No method is called better than another without one of these beside it.
"""

from dataclasses import dataclass

import numpy as np

_AT_ONCE = 1 << 24  # random numbers that are in memory at a time


@dataclass(frozen=True)
class Spread:
    """Runs of one configuration that differ in their seed."""

    mean: float
    deviation: float
    """standard deviation of single runs (n - 1); NaN for one run"""
    count: int

    def text(self, digits: int) -> str:
        """For a table: mean ± deviation, the mean alone of one run."""
        deviation = f" ± {self.deviation:.{digits}f}" if self.count > 1 else ""
        return f"{self.mean:.{digits}f}{deviation}"


def spread(values) -> Spread:
    """Mean and standard deviation over seeds. Raises: `ValueError` if there is no value, or one is
    not finite."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"expected finite values of at least one run; got {values.tolist()}")
    deviation = values.std(ddof=1) if len(values) > 1 else np.nan
    return Spread(float(values.mean()), float(deviation), len(values))


@dataclass(frozen=True)
class Comparison:
    """First minus second, over the same pairs."""

    difference: float
    """mean over pairs"""
    low: float
    high: float
    """95 % interval of the difference (bootstrap, percentiles)"""
    p: float
    """two-sided, of the hypothesis that first and second could change places (sign flips)"""
    pairs: int
    """that have both values"""
    groups: int
    """that were drawn as a whole; equal to `pairs` where each pair is its own"""


def compare(first, second, *, groups=None, seed: int = 0, resamples: int = 10_000) -> Comparison:
    """Is one method better than another on the pairs of a test set?

    A pair in which one of the two has no finite value is left out. The same seed gives the same
    result. With few groups all sign flips are tried instead of random ones.

    Args:
        first, second: `[N]`, one value per pair and method, in the same order.
        groups: `[N]`, which pairs belong together (pairs of one person share images): they are
            drawn, and change sign, together. None: every pair stands alone.
        resamples: of the bootstrap, and of the random sign flips.

    Raises: `ValueError` for arrays of different shape, or with fewer than two groups.
    """
    first, second = (np.asarray(values, dtype=np.float64) for values in (first, second))
    groups = np.arange(len(first)) if groups is None else np.asarray(groups)
    if first.ndim != 1 or not first.shape == second.shape == groups.shape:
        raise ValueError(f"expected arrays of one shape [N]; got {first.shape}, {second.shape} and "
                         f"groups {groups.shape}")
    both = np.isfinite(first) & np.isfinite(second)
    difference = (first - second)[both]
    _, index = np.unique(groups[both], return_inverse=True)
    count = np.bincount(index)
    if len(count) < 2:
        raise ValueError(f"{len(count)} groups of pairs with both values; a comparison takes 2")
    total = np.bincount(index, weights=difference)
    mean = difference.mean()
    random = np.random.default_rng(seed)

    means = np.concatenate([total[draw].sum(1) / count[draw].sum(1)
                            for draw in (random.integers(len(total), size=(rows, len(total)))
                                         for rows in _parts(resamples, len(total)))])
    low, high = np.percentile(means, [2.5, 97.5])

    # Flipping a group's sign leaves the number of pairs as it is, so sums may stand for means.
    # The tolerance makes the flip that changes nothing count as equal, whatever the rounding.
    observed = abs(total.sum()) * (1 - 1e-12)
    if 2 ** len(total) <= resamples:
        signs = 1 - 2 * (np.arange(2 ** len(total))[:, None] >> np.arange(len(total)) & 1)
        p = np.mean(np.abs(signs @ total) >= observed)
    else:
        extreme = sum(
            int((np.abs((1 - 2 * random.integers(2, size=(rows, len(total)))) @ total)
                 >= observed).sum())
            for rows in _parts(resamples, len(total)))
        p = (1 + extreme) / (1 + resamples)
    return Comparison(float(mean), float(low), float(high), float(p), len(difference), len(total))


def rejected(p, alpha: float = 0.05) -> np.ndarray:
    """Which hypotheses of a family are rejected, so that the chance to reject any true one is at
    most `alpha`: Holm, "A Simple Sequentially Rejective Multiple Test Procedure" (1979). The
    smallest p is held against alpha / n, the next against alpha / (n - 1), up to the first that is
    too large.

    Args:
        p: `[n]`.

    Returns: `[n]` bool.
    """
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    passed = np.logical_and.accumulate(p[order] <= alpha / (len(p) - np.arange(len(p))))
    rejections = np.zeros(len(p), bool)
    rejections[order] = passed
    return rejections


def _parts(rows: int, columns: int) -> list[int]:
    """`rows` cut so that a part of `columns` columns fits into memory."""
    step = max(1, _AT_ONCE // columns)
    return [min(step, rows - start) for start in range(0, rows, step)]
