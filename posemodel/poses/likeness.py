"""Which of some poses is most like another: whom a picture of that pose is best made from."""

import numpy as np

_NECK = 1
# A film that changes from one photograph to another and back flickers: another one is taken where
# it is so much more like.
_WORTH_IT = 0.7


def unlikeness(poses: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """How far poses `[N, 18, 3]` are from another one, `[18, 3]`, all about their middle and of one
    size: the mean square distance of the joints that both have, in mean square distances of these
    from their middle, `[N]`; infinite where they share too few, or no neck."""
    costs = np.full(len(poses), np.inf)
    for index, each in enumerate(poses):
        both = (each[:, 2] > 0) & (pose[:, 2] > 0)
        if both.sum() < 3 or not both[_NECK]:
            continue
        shapes = [person[both, :2] - person[both, :2].mean(0) for person in (each, pose)]
        shapes = [shape / (np.sqrt(np.square(shape).mean()) + 1e-9) for shape in shapes]
        costs[index] = np.square(shapes[0] - shapes[1]).mean()
    return costs


def most_alike(poses: np.ndarray, film: np.ndarray) -> list[int]:
    """For each pose of a film, `[T, 18, 3]`, which of the poses `[N, 18, 3]` is most like it; the
    one of the frame before, unless another is much more like."""
    chosen: list[int] = []
    for pose in film:
        costs = unlikeness(poses, pose)
        best = int(costs.argmin())
        if chosen and costs[best] >= _WORTH_IT * costs[chosen[-1]]:
            best = chosen[-1]
        chosen.append(best)
    return chosen
