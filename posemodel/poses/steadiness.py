"""What no body does from one frame of a film to the next: its left and right change places, or it
jumps away and back. Estimators of joints look at each frame anew and say such things.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from posemodel.poses.film import Track
from posemodel.poses.joints import FLIP_PAIRS
from posemodel.poses.layouts import Pose
from posemodel.poses.pictures import middles_and_sizes

SOON = 0.2
"""seconds, after which nobody has turned around: frames further apart do not tell left from
right"""
# Lengths are in sizes of the person (the diagonal of their box), times in seconds.
_SIDES = ((2, 5), (8, 11))  # shoulders and hips; arms and legs do change places, as in walking
_CLEAR = 0.06  # by so much nearer to the frame before with the sides exchanged
# Of each frame whose sides are exchanged: where all else is equal the estimator is right, and of
# two parts of a film that contradict each other the longer one.
_DOUBT = 1e-3
_NEXT = 0.1  # both neighbours of a frame are nearer than that, or nobody can say that it jumps
_UNKNOWN = 0.15  # between two frames whose film does not say how fast it is
_SEEN = 4  # joints, for that their box says how large a person is
_JUMP = 0.04  # away from the way between the neighbours, mean over the joints
_FASTEST = 50.0  # a second squared: ten times gravity, for somebody two metres tall


@dataclass(frozen=True, kw_only=True, eq=False)
class Steadied:
    """A person through a film, without what no body does."""

    track: Track
    exchanged: list[int]
    """frames of the track whose left and right were exchanged"""
    jumps: list[int]
    """frames that were left out: there the joints jump away, and back in the next"""


def seconds(frames: Sequence[int], fps: float) -> list[float]:
    """When the frames of a film were taken; `fps` 0: nobody knows how many there are a second.
    Then left and right are looked at and jumps are not, which may be fast motion as well."""
    return [frame / fps if fps else frame * _UNKNOWN for frame in frames]


def steadied(track: Track, times: Sequence[float]) -> Steadied:
    """Left and right as most of the frames of a shot have them, and no jumps.

    Args:
        track: a person.
        times: seconds, of each frame of the film.

    What is too far apart in time says nothing; nor do shoulders and hips seen from the side, where
    left and right lie on each other.
    """
    exchanged = _exchanged(track, times)
    poses = track.poses | {frame: _with_sides_exchanged(track.poses[frame]) for frame in exchanged}
    track = replace(track, poses=poses)
    jumps = []
    while found := _furthest_jumps(track, times):
        jumps += found
        poses = {frame: pose for frame, pose in track.poses.items() if frame not in found}
        track = replace(track, poses=poses)
    exchanged = [frame for frame in exchanged if frame in track.poses]
    return Steadied(track=track, exchanged=exchanged, jumps=sorted(jumps))


def _exchanged(track: Track, times: Sequence[float]) -> list[int]:
    """The frames whose left and right have to change places so that the torso turns least over the
    film: the cheapest way through two states (Viterbi)."""
    frames, joints, size = _joints(track)
    cost, before = np.array([0.0, _DOUBT]), [np.arange(2)]
    for here in range(1, len(frames)):
        nearer = _nearer_when_exchanged(joints[here - 1], joints[here]) / size
        if abs(nearer) < _CLEAR or not _joined(track, times, frames[here - 1:here + 1], SOON):
            nearer = 0.0
        same, other = max(0.0, nearer), max(0.0, -nearer)
        ways = cost + np.array([[same, other], [other, same]])  # [state here, state before]
        before.append(ways.argmin(axis=1))
        cost = ways.min(axis=1) + (0.0, _DOUBT)
    state, exchanged = int(cost.argmin()), []
    for frame, came_from in zip(frames[::-1], before[::-1], strict=True):
        if state:
            exchanged.append(frame)
        state = int(came_from[state])
    return exchanged[::-1]


def _nearer_when_exchanged(first: np.ndarray, second: np.ndarray) -> float:
    """By how much the torso's sides of one frame are nearer to those of the other, `[18, 3]`, if
    they change places, wherever the person stands; 0 where they are not seen."""
    nearer = []
    for side in map(list, _SIDES):
        if (first[side, 2] > 0).all() and (second[side, 2] > 0).all():
            width, other = (np.subtract(*joints[side, :2]) / 2 for joints in (first, second))
            nearer.append(np.linalg.norm(width - other) - np.linalg.norm(width + other))
    return float(np.mean(nearer)) if nearer else 0.0


def _furthest_jumps(track: Track, times: Sequence[float]) -> list[int]:
    """Frames that lie away from the straight way between their neighbours, more than a body can be
    accelerated, and further than those do from theirs."""
    frames, joints, size = _joints(track)
    away = np.zeros(len(frames))
    for here in range(1, len(frames) - 1):
        near = frames[here - 1:here + 2]
        first, middle, last = joints[here - 1:here + 2]
        seen = (joints[here - 1:here + 2, :, 2] > 0).all(axis=0)
        if seen.sum() < _SEEN or not _joined(track, times, near, _NEXT):
            continue
        before, after = times[near[1]] - times[near[0]], times[near[2]] - times[near[1]]
        way = (after * first + before * last) / (before + after)
        distance = _apart(middle[seen], way[seen])
        # Or one of the neighbours has jumped, at the end of a shot.
        back = distance > _apart(first[seen], last[seen])
        if back and distance / size > max(_JUMP, _FASTEST * before * after / 2):
            away[here] = distance
    return [frames[here] for here in range(1, len(frames) - 1)
            if away[here] >= away[here - 1] and away[here] > away[here + 1]]


def _joints(track: Track) -> tuple[list[int], np.ndarray, float]:
    """The frames of a track, their joints `[N, 18, 3]`, and the size of the person."""
    joints = np.stack([pose.joints for pose in track.poses.values()]).astype(np.float64)
    return list(track.poses), joints, max(float(np.median(middles_and_sizes(joints)[1])), 1e-6)


def _joined(track: Track, times: Sequence[float], frames: list[int], most: float) -> bool:
    """Whether frames are of one shot, and each at most so long after the one before."""
    return len({track.shots[frame] for frame in frames}) == 1 and all(
        times[later] - times[earlier] <= most + 1e-6
        for earlier, later in zip(frames[:-1], frames[1:], strict=True))


def _apart(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.linalg.norm(first[:, :2] - second[:, :2], axis=1).mean())


def _with_sides_exchanged(pose: Pose) -> Pose:
    return replace(pose, joints=pose.joints[list(FLIP_PAIRS)])
