"""Small films of generated people, and an estimator that knows what is in them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from posemodel.data.films import write_mp4
from posemodel.mannequins.pairs import Mannequins
from posemodel.pictures.pixels import to_pictures
from posemodel.poses.estimator import Person
from posemodel.poses.joints import FLIP_PAIRS, normalized_to_pixels
from posemodel.poses.layouts import Pose

SIZE = (96, 96)


@dataclass
class Frame:
    """A picture, and who is in it."""

    picture: np.ndarray
    people: list[Person]

    def without_people(self) -> "Frame":
        """The same, but nobody is found."""
        return replace(self, people=[])


def frames(count: int, *, person: int = 0) -> list[Frame]:
    """Somebody in changing poses before a background that stays."""
    return list(_frames((count + 1) // 2, person))[:count]


@cache
def _frames(pairs: int, person: int) -> tuple[Frame, ...]:
    made = Mannequins(size=SIZE, background="cluttered", seed=11).pairs(
        range(100 * person, 100 * person + pairs), persons=[person] * pairs,
        scenes=[person] * 2 * pairs)
    found = []
    for index in range(pairs):
        for view in ("source", "target"):
            joints = normalized_to_pixels(made[f"{view}_pose"][index], SIZE).numpy()
            mask = made[f"{view}_foreground"][index, 0].float().numpy()
            pose = Pose(joints=joints * joints[:, 2:], format="mediapipe33", frame=SIZE)
            found.append(Frame(to_pictures(made[view][index : index + 1])[0],
                               [Person(pose=pose, mask=mask)]))
    return tuple(found)


def beside(first: Frame, second: Frame) -> Frame:
    """Two people in one picture; who covers more of it comes first."""
    def moved(person: Person, columns: int) -> Person:
        joints = person.pose.joints.copy()
        joints[joints[:, 2] > 0, 0] += columns
        whole = np.zeros((SIZE[0], 2 * SIZE[1]), np.float32)
        whole[:, columns : columns + SIZE[1]] = person.mask
        return Person(pose=replace(person.pose, joints=joints, frame=whole.shape), mask=whole)

    people = [moved(first.people[0], 0), moved(second.people[0], SIZE[1])]
    people.sort(key=lambda person: -person.mask.sum())
    people = [replace(person, pose=replace(person.pose, person=number))
              for number, person in enumerate(people)]
    return Frame(np.hstack([first.picture, second.picture]), people)


def with_sides_exchanged(frame: Frame) -> Frame:
    """The same, but left is taken for right."""
    people = [replace(person, pose=replace(person.pose, joints=person.pose.joints[
        list(FLIP_PAIRS)])) for person in frame.people]
    return replace(frame, people=people)


def write_film(path: Path, shown: Iterable[Frame], *, fps: float = 4) -> Path:
    """The pictures as an MP4, so slow that people may take any pose in the next frame."""
    write_mp4(path, [frame.picture for frame in shown], fps=fps)
    return path


class Knowing:
    """An `Estimator` that is shown these frames in their order, as a codec leaves them."""

    def __init__(self, shown: Iterable[Frame]):
        self._coming: Iterator[Frame] = iter(list(shown))

    def __call__(self, picture: np.ndarray) -> list[Person]:
        # A frame that is there twice is shown once.
        return next(frame.people for frame in self._coming if self._is(picture, frame))

    @staticmethod
    def _is(picture: np.ndarray, frame: Frame) -> bool:
        return picture.shape == frame.picture.shape \
            and np.abs(picture.astype(int) - frame.picture).mean() < 8


def knowing(monkeypatch, shown: Iterable[Frame]) -> None:
    """In commands the estimator is one that knows these pictures."""
    estimator = Knowing(shown)

    @contextmanager
    def pose_estimator(folder=""):
        yield estimator

    monkeypatch.setattr("posemodel.poses.estimator.pose_estimator", pose_estimator)


def blurred(frame: Frame) -> Frame:
    """The same, out of focus."""
    picture = torch.from_numpy(frame.picture).permute(2, 0, 1)[None].float()
    for _ in range(6):
        picture = torch.nn.functional.avg_pool2d(picture, 5, 1, 2, count_include_pad=False)
    return replace(frame, picture=picture[0].permute(1, 2, 0).round().byte().numpy())
