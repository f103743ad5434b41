"""People in a film: who is who from frame to frame, frames without them, and less jitter.

A frame is the list of its people, in whatever order its estimator has put them; an empty one is a
frame in which nobody was found. All films come as such lists, whatever files they were.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from posemodel.poses.layouts import Pose
from posemodel.poses.pictures import distances, prominence
from posemodel.runtime.errors import UserError

# How far a person may have moved, in its own sizes: from one frame to the next, more for each frame
# in which it was not found, and at most. Who is further away is somebody else.
_STEP, _STEP_MORE, _STEP_MOST = 0.5, 0.1, 1.0


@dataclass(kw_only=True, eq=False)
class Track:
    """One person through a film."""

    number: int
    """what `--person` calls it: its number in the first frame that has anybody; who comes later
    is counted on"""
    poses: dict[int, Pose] = field(default_factory=dict)
    """by frame, in order, where it was found"""
    shots: list[int]
    """of each frame of the film, the shot that it belongs to: from one to the next nobody is near
    where anybody was"""
    way: np.ndarray = field(default_factory=lambda: np.zeros(2))
    """`[2]`, pixels a frame, that it last went"""

    @property
    def joints(self) -> int:
        """found in all frames"""
        return sum(int(pose.present.sum()) for pose in self.poses.values())

    @property
    def last(self) -> int:
        """the last frame in which it was found"""
        return next(reversed(self.poses))

    def add(self, index: int, pose: Pose, *, cut: bool) -> None:
        """It was found in another frame, after a cut or not."""
        self.way = np.zeros(2)
        if self.poses and not cut:
            before = self.poses[self.last]
            both = pose.present & before.present
            if both.any():
                moved = (pose.joints - before.joints)[both, :2].mean(axis=0)
                self.way = moved / (index - self.last)
        self.poses[index] = pose


def tracks(frames: Sequence[Sequence[Pose]]) -> list[Track]:
    """Who is who: everybody is the nearest one of the frames before. Where nobody is near, the film
    has been cut, and the person who stands out stays the person who stands out.

    Args:
        frames: people with joints, in pixels.

    Returns: in the order in which they appear. Raises: `UserError` where all frames are empty.
    """
    found: list[Track] = []
    shots: list[int] = []
    shot = 0
    for index, people in enumerate(frames):
        links = _near(found, people, index)
        cut = bool(people and found and not links)
        if cut:
            shot += 1
            links = dict(zip(sorted(range(len(people)), key=lambda n: prominence(people[n]))[::-1],
                             sorted(found, key=lambda track: track.joints)[::-1], strict=False))
        for number, pose in enumerate(people):
            track = links.get(number)
            if track is None:
                first = all(next(iter(other.poses)) == index for other in found)
                track = Track(shots=shots, number=pose.person if first else
                              max(other.number for other in found) + 1)
                found.append(track)
            track.add(index, pose, cut=cut)
        shots.append(shot)
    if not found:
        raise UserError(f"nobody was found in any of the {len(frames)} frames")
    return found


def choose_track(found: Sequence[Track], number: int | None) -> Track:
    """Track `number` or, where that is None, the one with the most joints. Raises: `UserError`
    where nobody has that number."""
    if number is None:
        return max(found, key=lambda track: (track.joints,
                                             max(map(prominence, track.poses.values()))))
    for track in found:
        if track.number == number:
            return track
    numbers = ", ".join(f"{track.number} (in {len(track.poses)} of {len(track.shots)} frames)"
                        for track in found[:10])
    raise UserError(f"--person {number}: nobody has this number; there are {numbers}"
                    + (f" and {len(found) - 10} more" if len(found) > 10 else ""))


def without_gaps(track: Track) -> list[Pose]:
    """A pose for every frame. Where the person was not found, joints lie on the straight way from
    where they were last to where they are next, or stay where the film or the shot ends, or where
    only one of the two is known."""
    known = list(track.poses)
    poses = []
    for index, shot in enumerate(track.shots):
        if index in track.poses:
            poses.append(track.poses[index])
            continue
        place = bisect.bisect(known, index)
        sides = known[max(place - 1, 0):place + 1]
        same = [other for other in sides if track.shots[other] == shot]
        pose = track.poses[(same or sides)[0]]
        if len(same) == 2:
            share = (index - same[0]) / (same[1] - same[0])
            pose = _between(pose, track.poses[same[1]], share)
        poses.append(replace(pose, name=None, score=None))
    return poses


def smoothed(poses: Sequence[Pose], shots: Sequence[int], width: float) -> list[Pose]:
    """Joints that jitter less: each lies on the line that fits its neighbours in time best, so that
    a steady motion stays what it is. A joint that is gone for a moment is put back.

    Args:
        poses: of each frame.
        shots: of each frame; nothing is smoothed across a cut.
        width: standard deviation in frames of the weights of the neighbours.
    """
    joints = np.stack([pose.joints for pose in poses]).astype(np.float64)  # [T, 18, 3]
    result = np.zeros_like(joints)
    reach = math.ceil(3 * width)
    for index in range(len(poses)):
        near = slice(max(0, index - reach), index + reach + 1)
        time = np.arange(len(poses))[near] - index
        same = np.array(shots)[near] == shots[index]
        weights = (np.exp(-0.5 * (time / width) ** 2) * same)[:, None] * (joints[near, :, 2] > 0)
        close = (np.abs(time) <= width) & same
        here = joints[near, :, 2] > 0
        there = here[time == 0][0] | (
            here[close & (time < 0)].any(axis=0) & here[close & (time > 0)].any(axis=0))
        result[index, there, :2] = _fitted(joints[near, :, :2], weights, time)[there]
        result[index, there, 2] = 1
    return [replace(pose, joints=rows.astype(np.float32))
            for pose, rows in zip(poses, result, strict=True)]


def _fitted(xy: np.ndarray, weights: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Where the lines through `[T, 18, 2]` points with `[T, 18]` weights are at time 0,
    `[18, 2]`."""
    total = np.maximum(weights.sum(axis=0), 1e-12)[:, None]
    mean_time = (weights * time[:, None]).sum(axis=0)[:, None] / total
    mean = (weights[..., None] * xy).sum(axis=0) / total
    away = time[:, None] - mean_time[:, 0]
    spread = (weights * away ** 2).sum(axis=0)[:, None]
    slope = (weights[..., None] * away[..., None] * (xy - mean)).sum(axis=0)
    return mean - mean_time * np.where(spread > 1e-9, slope / np.maximum(spread, 1e-9), 0.0)


def _near(found: Sequence[Track], people: Sequence[Pose], index: int) -> dict[int, Track]:
    """Which people of a frame are which of the tracks so far: the nearest two first. A person is
    near where it was last, or where it would be if it had gone on in the same way."""
    if not found or not people:
        return {}
    since = np.array([index - track.last for track in found])
    last = [track.poses[track.last] for track in found]
    known, seen = (np.stack([pose.joints for pose in poses]) for poses in (last, people))
    gone_on = known.copy()
    gone_on[..., :2] += since[:, None, None] * np.stack([track.way for track in found])[:, None]
    apart = np.minimum(distances(known, seen), distances(gone_on, seen))
    sizes = [{pose.frame for pose in poses} - {None} for poses in (last, people)]
    if len(sizes[0] | sizes[1]) > 1:
        other = [[len({one.frame, two.frame} - {None}) > 1 for two in people] for one in last]
        apart[np.array(other)] = np.inf
    apart[apart > np.minimum(_STEP + _STEP_MORE * (since - 1), _STEP_MOST)[:, None]] = np.inf
    links: dict[int, Track] = {}
    for place in np.argsort(apart, axis=None, kind="stable")[:np.isfinite(apart).sum()].tolist():
        track, number = found[place // len(people)], place % len(people)
        if number not in links and track not in links.values():
            links[number] = track
    return links


def _between(first: Pose, second: Pose, share: float) -> Pose:
    """The pose at a share of the way; a joint that only one of the two has stays where it is."""
    both = (first.present & second.present)[:, None]
    way = (1 - share) * first.joints + share * second.joints
    one = np.where(first.present[:, None], first.joints, second.joints)
    return replace(first, joints=np.where(both, way, one).astype(np.float32))
