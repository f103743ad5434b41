"""People in a film: who is who, gaps, jitter."""

import numpy as np
import pytest

from posemodel.poses.film import choose_track, smoothed, tracks, without_gaps
from posemodel.poses.layouts import Pose
from posemodel.poses.pictures import distances
from tests.small_datasets import refused, whole_person

BODY = np.stack([whole_person(0), whole_person(1)])
HIGH = float(np.ptp(BODY[0, :, 1]))


def person(which=0, x=0.0, y=0.0, number=0, without=(), frame=None):
    joints = BODY[which] + np.float32([x, y, 0])
    joints[list(without)] = 0
    return Pose(joints=joints.astype(np.float32), format="openpose18", person=number, frame=frame)


def nose(pose):
    return pose.joints[0, :2].tolist()


def noses(poses):
    return [nose(pose) for pose in poses]


def test_each_of_two_people_stays_who_it_is():
    """Their order changes from frame to frame, and joints drop out."""
    random = np.random.default_rng(0)
    frames = []
    for index in range(20):
        gone = [random.choice(np.arange(1, 18), 6, replace=False) for _ in range(2)]
        people = [person(0, x=index, without=gone[0]), person(1, x=150 - index, without=gone[1])]
        if random.random() < 0.5:
            people = people[::-1]
        frames.append([person_.__class__(**{**vars(person_), "person": number})
                       for number, person_ in enumerate(people)])
    first, second = tracks(frames)
    assert [first.number, second.number] == [0, 1] and set(first.shots) == {0}
    for track in (first, second):
        assert sorted(track.poses) == list(range(20))
        steps = np.diff([track.poses[index].joints[0, 0] for index in range(20)])
        assert np.abs(steps).max() <= 1, steps


def test_people_who_pass_each_other():
    frames = [[person(0, x=12 * index), person(1, x=240 - 12 * index, number=1)]
              for index in range(21)]
    first, second = tracks([people[::1 - 2 * (index % 2)] for index, people in enumerate(frames)])
    for track, which in ((first, 0), (second, 1)):
        assert noses(track.poses.values()) == [nose(people[which]) for people in frames]


def test_who_is_gone_is_not_the_other_one():
    """Only the other person is there in two frames."""
    frames = [[person(0), person(1, x=120, number=1)] for _ in range(6)]
    frames[2] = frames[3] = [person(1, x=120)]
    first, second = tracks(frames)
    assert sorted(first.poses) == [0, 1, 4, 5] and sorted(second.poses) == [0, 1, 2, 3, 4, 5]
    assert noses(without_gaps(first)) == [nose(person(0))] * 6


def test_numbers():
    """Those of the first frame are the file's; who comes later is counted on."""
    far = 3 * HIGH
    found = tracks([[], [person(0, number=2), person(1, x=far, number=5)],
                    [person(0), person(1, x=2 * far, number=1), person(1, x=far, number=2)]])
    assert [(track.number, len(track.poses)) for track in found] == [(2, 2), (5, 2), (6, 1)]
    assert choose_track(found, 5) is found[1]
    refused(r"--person 3: nobody has this number; there are 2 \(in 2 of 3 frames\), 5 .*, 6 \(in 1",
            choose_track, found, 3)
    refused("nobody was found in any of the 2 frames", tracks, [[], []])


def test_the_person_chosen_has_the_most_joints_over_the_film():
    faint = range(9, 18)
    frames = [[person(0, without=range(14, 18)), person(1, x=150, number=1)],
              *[[person(0), person(1, x=150, number=1, without=faint)] for _ in range(3)]]
    assert choose_track(tracks(frames), None).number == 0
    one = tracks([[person(0), person(1, x=300, number=1, without=[3])]])
    assert choose_track(one, None).number == 0


def test_after_a_cut_who_stands_out_is_followed():
    """Poses that have nothing to do with each other are a film, too."""
    far = 3 * HIGH
    frames = [[person(0), person(1, x=150, number=1, without=range(9))],
              [person(1, x=far, without=range(9)), person(0, x=2 * far, number=1)],
              [person(0, x=2 * far + 5)]]
    found = tracks(frames)
    assert len(found) == 2 and found[0].shots == [0, 1, 1]
    assert [pose.joints[0, 0] - BODY[0, 0, 0] for pose in found[0].poses.values()] == [
        0, 2 * far, 2 * far + 5]
    alone = tracks([[person(x=0)], [person(x=far)], [], [person(x=2 * far)]])
    assert len(alone) == 1 and alone[0].shots == [0, 1, 1, 2]


def test_pictures_of_other_sizes_are_another_shot():
    (track,) = tracks([[person(frame=(300, 300))], [person(frame=(600, 600))]])
    assert track.shots == [0, 1]
    (track,) = tracks([[person(frame=(300, 300))], [person()]])  # one that does not say
    assert track.shots == [0, 0]


def test_gaps_lie_on_the_way_and_ends_stay():
    frames = [[], [person(x=0, without=[4])], [], [], [person(x=30, y=60, without=[7])], []]
    (track,) = tracks(frames)
    poses = without_gaps(track)
    start = np.array(nose(person()))
    np.testing.assert_allclose(np.array(noses(poses)) - start,
                               [(0, 0), (0, 0), (10, 20), (20, 40), (30, 60), (30, 60)], atol=1e-3)
    # A joint that only one of the two ends has stays where it is.
    assert poses[2].joints[4].tolist() == person(x=30, y=60).joints[4].tolist()
    assert poses[3].joints[7].tolist() == person().joints[7].tolist()
    assert not poses[1].present[4] and poses[2].name is None


def test_nothing_is_put_between_two_shots():
    far = 3 * HIGH
    (track,) = tracks([[person()], [], [person(x=far)]])
    assert noses(without_gaps(track)) == noses([person(), person(), person(x=far)])


def test_smoothing_takes_jitter_and_leaves_motion():
    random = np.random.default_rng(1)
    straight = [person(x=3 * index, y=-2 * index) for index in range(40)]
    shaken = [Pose(joints=pose.joints + np.float32([1, 1, 0]) * random.normal(
        0, 2, (18, 3)).astype(np.float32), format=pose.format) for pose in straight]
    one_shot = [0] * 40
    np.testing.assert_allclose([pose.joints for pose in smoothed(straight, one_shot, 2.0)],
                               [pose.joints for pose in straight], atol=1e-3)

    def error(poses, frames):
        return np.sqrt(np.mean(np.square([(poses[index].joints - straight[index].joints)[:, :2]
                                          for index in frames])))

    calm = smoothed(shaken, one_shot, 2.0)
    assert error(calm, range(40)) < 0.5 * error(shaken, range(40))
    assert error(calm, (0, 39)) < error(shaken, (0, 39))
    jitter = [np.abs(np.diff([pose.joints[:, :2] for pose in poses], n=2, axis=0)).mean()
              for poses in (shaken, calm)]
    assert jitter[1] < 0.2 * jitter[0]


def test_smoothing_puts_back_what_drops_out_for_a_moment():
    poses = [person(x=3 * index) for index in range(9)]
    poses[3] = person(x=9, without=[4])
    for index in range(5, 9):
        poses[index] = person(x=3 * index, without=[7])
    better = smoothed(poses, [0] * 9, 1.0)
    np.testing.assert_allclose(better[3].joints[4], person(x=9).joints[4], atol=1e-3)
    assert not any(pose.present[7] for pose in better[5:]) and better[4].present[7]
    assert all(not pose.joints[~pose.present].any() for pose in better)


def test_smoothing_stops_at_a_cut():
    poses = [person(x=0)] * 4 + [person(x=500)] * 4
    better = smoothed(poses, [0] * 4 + [1] * 4, 3.0)
    np.testing.assert_allclose([pose.joints for pose in better], [pose.joints for pose in poses],
                               atol=1e-2)


@pytest.mark.parametrize("count", [1, 2])
def test_a_short_film(count):
    poses = [person(x=index) for index in range(count)]
    np.testing.assert_allclose([pose.joints for pose in smoothed(poses, [0] * count, 1.0)],
                               [pose.joints for pose in poses], atol=1e-3)


def test_distances_are_medians_in_sizes_of_the_larger_one():
    one, other = whole_person(0), whole_person(0) * np.float32([2, 2, 1])
    other[:4] = 0
    box = np.ptp(other[4:, :2], axis=0)
    expected = np.median(np.hypot(*(other - one)[4:, :2].T)) / np.hypot(*box)
    apart = distances(np.stack([one, other]), np.stack([other, one, one]))
    np.testing.assert_allclose(apart, [[expected, 0, 0], [0, expected, expected]], rtol=1e-5)
    head, feet = one.copy(), one.copy()
    head[10:14], feet[:10], feet[14:] = 0, 0, 0  # nothing in common: their middles
    middles = [part[part[:, 2] > 0, :2].mean(axis=0) for part in (head, feet)]
    size = np.hypot(*np.ptp(head[head[:, 2] > 0, :2], axis=0))
    np.testing.assert_allclose(distances(head[None], feet[None])[0, 0],
                               np.hypot(*(middles[0] - middles[1])) / size, rtol=1e-5)
