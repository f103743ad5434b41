"""Who a mannequin is: proportions, hair and wardrobe, drawn from one row of numbers per sample.

Everything here runs on the host in NumPy on arrays `[B, ...]`; the arrays are small. Lengths are
in metres.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Uniform numbers drawn per sample; every sample uses the same ones for the same purpose.
DRAWS = 352

SKIN = np.array([[0.98, 0.85, 0.75], [0.95, 0.78, 0.66], [0.88, 0.69, 0.54], [0.78, 0.58, 0.43],
                 [0.64, 0.45, 0.32], [0.50, 0.34, 0.24], [0.38, 0.26, 0.19]])
HAIR = np.array([[0.10, 0.08, 0.08], [0.22, 0.14, 0.10], [0.38, 0.23, 0.13], [0.55, 0.34, 0.16],
                 [0.85, 0.68, 0.36], [0.65, 0.27, 0.12], [0.55, 0.54, 0.54]])
CLOTH = np.array([[0.80, 0.13, 0.16], [0.93, 0.42, 0.13], [0.96, 0.78, 0.20], [0.20, 0.58, 0.29],
                  [0.08, 0.36, 0.34], [0.15, 0.38, 0.74], [0.10, 0.16, 0.36], [0.45, 0.67, 0.88],
                  [0.45, 0.22, 0.55], [0.93, 0.55, 0.68], [0.88, 0.86, 0.82], [0.13, 0.13, 0.15],
                  [0.48, 0.48, 0.50], [0.72, 0.60, 0.44], [0.42, 0.27, 0.18], [0.43, 0.47, 0.25]])
LOWER = np.array([[0.16, 0.22, 0.40], [0.28, 0.40, 0.62], [0.12, 0.12, 0.14], [0.40, 0.40, 0.43],
                  [0.74, 0.64, 0.48], [0.38, 0.40, 0.25], [0.45, 0.20, 0.20], [0.85, 0.84, 0.80]])
SHOES = np.array([[0.12, 0.11, 0.11], [0.42, 0.25, 0.14], [0.75, 0.73, 0.72], [0.72, 0.16, 0.16],
                  [0.20, 0.28, 0.50]])

HAIR_STYLES = ("bald", "short", "bob", "long", "bun", "ponytail", "cap")
TOPS = ("tank", "tee", "shirt", "sweater", "jacket", "coat", "dress")
BOTTOMS = ("trousers", "leggings", "capri", "shorts", "skirt")
PATTERNS = ("plain", "stripes", "vertical", "checker", "gingham", "dots", "diagonal", "block")


class Draws:
    """Hands out the columns of `[B, DRAWS]` uniform numbers in a fixed order."""

    def __init__(self, seed: int, indices: Sequence[int]) -> None:
        # Four 32-bit words of fixed meaning: two streams are the same only for the same seed and
        # index.
        mask = 0xFFFFFFFF
        self.values = np.empty((len(indices), DRAWS))
        for row, index in enumerate(indices):
            words = [seed & mask, seed >> 32, index & mask, index >> 32]
            self.values[row] = np.random.default_rng(words).random(DRAWS)
        self.used = 0

    def uniform(self, low: float, high: float, *shape: int) -> np.ndarray:
        """`[B, *shape]` uniform in [low, high)."""
        count = math.prod(shape)
        block = self.values[:, self.used : self.used + count]
        self.used += count
        return low + (high - low) * block.reshape(len(block), *shape)

    def pick(self, weights: Sequence[float], *shape: int) -> np.ndarray:
        """`[B, *shape]` indices into `weights`, with those odds."""
        edges = np.cumsum(weights)
        return np.searchsorted(edges[:-1] / edges[-1], self.uniform(0.0, 1.0, *shape), side="right")

    def color(self, palette: np.ndarray, jitter: float = 0.04) -> np.ndarray:
        """`[B, 3]` a colour of the palette, a little off."""
        choice = self.pick(np.ones(len(palette)))
        return np.clip(palette[choice] + self.uniform(-jitter, jitter, 3), 0.0, 1.0)


@dataclass
class Person:
    """One person per sample; arrays `[B]` (colours `[B, 3]`)."""

    height: np.ndarray
    girth: np.ndarray
    shoulders: np.ndarray  # widths as factors of the average
    waist: np.ndarray
    hips: np.ndarray
    legs: np.ndarray  # lengths as factors of the average
    arms: np.ndarray
    head: np.ndarray
    hair_style: np.ndarray
    hair_length: np.ndarray
    top: np.ndarray
    bottom: np.ndarray
    # Where the sleeve ends, as a fraction of the arm's length from shoulder to wrist.
    sleeve: np.ndarray
    # Where the trouser leg ends, as a fraction of the leg's length from hip to ankle.
    leg_end: np.ndarray
    boot_top: np.ndarray  # where the boot begins, in the same unit (above 1: no boot)
    hem: np.ndarray  # where the top ends, below the shoulders, as a fraction of the height
    skirt: np.ndarray  # length of the skirt part below the hip, metres; 0 = none
    looseness: np.ndarray  # of trouser legs and sleeves
    draws: Draws  # the rest of the row, for colours and poses

    def has_top(self, *names: str) -> np.ndarray:
        return _among(self.top, TOPS, names)

    def has_bottom(self, *names: str) -> np.ndarray:
        return _among(self.bottom, BOTTOMS, names)

    def has_hair(self, *names: str) -> np.ndarray:
        return _among(self.hair_style, HAIR_STYLES, names)


def _among(codes: np.ndarray, known: tuple[str, ...], names: tuple[str, ...]) -> np.ndarray:
    return np.array([name in names for name in known])[codes]


def draw_person(draws: Draws) -> Person:
    """The person of each sample."""
    height = draws.uniform(1.56, 1.90)
    figure = draws.uniform(-1.0, 1.0)  # -1: narrow shoulders and wide hips, +1: the reverse
    girth = draws.uniform(0.90, 1.16) * draws.uniform(0.97, 1.05)
    top = draws.pick([1.0, 2.5, 2.0, 1.5, 1.6, 0.9, 1.3])
    bottom = draws.pick([3.0, 1.0, 0.7, 1.3, 1.4])
    slot = draws.uniform(0.0, 1.0, 4)

    def by(codes: np.ndarray, spans: Sequence[tuple[float, float]], column: int) -> np.ndarray:
        low, high = np.array(spans)[codes].T
        return low + (high - low) * slot[:, column]

    full = (0.96, 1.02)
    sleeve = by(top, [(-1, -1), (0.22, 0.45), (0.9, 1.02), full, full, full, (-0.4, 0.5)], 0)
    leg_end = by(bottom, [(0.94, 1.02), (0.9, 1.0), (0.6, 0.75), (0.25, 0.5), (-1, -1)], 1)
    tucked, loose = (0.216, 0.232), (0.262, 0.330)
    hem = by(top, [tucked, loose, tucked, loose, loose, tucked, tucked], 2)
    skirted = by(bottom, [(0, 0), (0, 0), (0, 0), (0, 0), (0.20, 0.50)], 3)
    is_top = [top == TOPS.index(name) for name in ("coat", "dress")]
    skirted = np.where(is_top[0], 0.18 + 0.28 * slot[:, 3], skirted)
    skirted = np.where(is_top[1], 0.22 + 0.36 * slot[:, 3], skirted)
    leg_end = np.where(is_top[1], -1.0, leg_end)  # bare legs under a dress
    boots = draws.uniform(0.0, 1.0)
    return Person(height=height, girth=girth, shoulders=1.0 + 0.07 * figure,
                  waist=1.0 + 0.09 * figure + draws.uniform(-0.04, 0.06), hips=1.0 - 0.07 * figure,
                  legs=draws.uniform(0.96, 1.05), arms=draws.uniform(0.96, 1.05),
                  head=draws.uniform(1.06, 1.16),
                  hair_style=draws.pick([0.4, 2.4, 1.3, 1.6, 0.7, 0.9, 0.7]),
                  hair_length=draws.uniform(0.0, 1.0), top=top, bottom=bottom, sleeve=sleeve,
                  leg_end=leg_end, boot_top=np.where(boots < 0.22, 0.66 + boots, 2.0), hem=hem,
                  skirt=skirted, looseness=draws.uniform(1.0, 1.22), draws=draws)
