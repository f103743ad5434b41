"""What a file of joints holds: the people of one picture, of many pictures, or of a film."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from posemodel.poses.layouts import Pose

# From one frame of a film to the next a person moves less than this share of its size; people
# beside each other in a picture are further apart.
_STEP = 0.3


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The people of each picture of a file, in its order; a picture may have nobody."""

    people: list[list[Pose]]
    film: bool = False
    """the pictures are frames, one after the other"""

    def mapped(self, change: Callable[[list[Pose]], list[Pose]]) -> "Pictures":
        """The same with the poses of all pictures, in one list, changed."""
        changed = iter(change([pose for picture in self.people for pose in picture]))
        return Pictures(people=[[next(changed) for _ in picture] for picture in self.people],
                        film=self.film)


def by_image(poses: Sequence[Pose]) -> Pictures:
    """Poses by the image that they name, in the order of the first of each. Where the names count,
    as those of a film's frames do, it is a film, and numbers left out are frames with nobody."""
    images: dict[str | None, list[Pose]] = {}
    for pose in poses:
        images.setdefault(pose.name, []).append(pose)
    if images.keys() == {None}:
        return people_or_frames(list(poses))
    people = list(images.values()) or [[]]
    order = counted([name or "" for name in images])
    if order is None:
        return Pictures(people=people)
    return Pictures(people=[[] if index is None else people[index] for index in order], film=True)


def counted(names: list[str]) -> list[int | None] | None:
    """`in_step` of names that differ in one number alone."""
    words = [re.split(r"(\d+)", name) for name in names]
    if len(names) < 2 or len({len(word) for word in words}) > 1:
        return None
    differing = [column for column in zip(*words, strict=True) if len(set(column)) > 1]
    if len(differing) != 1 or not all(word.isdecimal() for word in differing[0]):
        return None
    return in_step([int(word) for word in differing[0]])


def people_or_frames(poses: list[Pose]) -> Pictures:
    """What a list of poses is that says nothing about it: people of one picture, or one person in
    the frames of a film. Of the people of a picture no three lie on top of each other, and nobody
    who is not there stands between two."""
    places = [place for place, pose in enumerate(poses) if pose.present.any()]
    seen = [poses[place] for place in places]
    if places and places[-1] - places[0] > 1 and all(
            distance(first, second) < _STEP
            for first, second in zip(seen[:-1], seen[1:], strict=True)):
        return Pictures(people=[[pose] for pose in poses], film=True)
    return Pictures(people=[poses])


def in_step(numbers: Sequence[int]) -> list[int | None] | None:
    """The frames of a film by their numbers: for each place the index of its frame, None for one
    that was left out. Every fifth frame is a film too, with nothing left out. Where the numbers do
    not rise, or less than half of them are there, they count something else: None."""
    steps = [later - earlier for earlier, later in zip(numbers[:-1], numbers[1:], strict=True)]
    if not steps or min(steps) <= 0:
        return None
    step = math.gcd(*steps)
    places = [(number - numbers[0]) // step for number in numbers]
    if places[-1] + 1 > 2 * len(numbers):
        return None
    film: list[int | None] = [None] * (places[-1] + 1)
    for index, place in enumerate(places):
        film[place] = index
    return film


def distance(first: Pose, second: Pose) -> float:
    """How far two poses are from each other, as `distances`; infinite for nobody, and for pictures
    of different sizes."""
    frames = {first.frame, second.frame} - {None}
    if len(frames) > 1 or not (first.present.any() and second.present.any()):
        return math.inf
    return float(distances(first.joints[None], second.joints[None])[0, 0])


def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How far poses are from each other, in sizes (diagonals of the box) of the larger one: the
    median over the joints that both have, of those without any between their middles.

    Args:
        first, second: `[N, 18, 3]` and `[M, 18, 3]`, with at least one joint each.

    Returns: `[N, M]`.
    """
    first, second = first.astype(np.float64), second.astype(np.float64)
    both = (first[:, None, :, 2] > 0) & (second[None, :, :, 2] > 0)
    apart = _lengths(first[:, None, :, :2] - second[None, :, :, :2])
    count = np.maximum(both.sum(axis=-1), 1)[..., None]
    rising = np.sort(np.where(both, apart, np.inf), axis=-1)
    median = sum(np.take_along_axis(rising, place, axis=-1)[..., 0] / 2
                 for place in ((count - 1) // 2, count // 2))
    (middle, size), (other_middle, other_size) = map(middles_and_sizes, (first, second))
    between = _lengths(middle[:, None] - other_middle[None])
    larger = np.maximum(np.maximum(size[:, None], other_size[None]), 1e-6)
    return np.where(both.any(axis=-1), median, between) / larger


def prominence(pose: Pose) -> tuple[int, float]:
    """What makes one person stand out among several: the number of joints, then their box."""
    xy = pose.joints[pose.present, :2]
    return len(xy), math.prod(np.ptp(xy, axis=0).tolist()) if len(xy) else 0.0


def middles_and_sizes(joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`[N, 2]` and `[N]`, the mean of the joints and the diagonal of the box around them."""
    here, xy = joints[..., 2:] > 0, joints[..., :2]
    low = np.where(here, xy, np.inf).min(axis=1)
    high = np.where(here, xy, -np.inf).max(axis=1)
    return (xy * here).sum(axis=1) / here.sum(axis=1), _lengths(high - low)


def _lengths(vectors: np.ndarray) -> np.ndarray:
    return np.sqrt((vectors ** 2).sum(axis=-1))
