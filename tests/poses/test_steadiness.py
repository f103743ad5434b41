"""Left and right that change places from frame to frame, and joints that jump."""

import numpy as np
import pytest

from posemodel.poses.film import Track
from posemodel.poses.joints import FLIP_PAIRS
from posemodel.poses.layouts import Pose
from posemodel.poses.steadiness import seconds, steadied
from tests.small_datasets import whole_person

BODY = whole_person().astype(np.float32)
SIZE = float(np.hypot(*np.ptp(BODY[:, :2], axis=0)))
EXCHANGED = list(FLIP_PAIRS)


def film(count=30, *, turn=0.0, shots=None, noise=0.0):
    """Joints `[T, 18, 3]` of a person who moves on slowly and turns by `turn` radians a frame about
    the vertical, as a track."""
    random = np.random.default_rng(0)
    joints = np.repeat(BODY[None], count, axis=0)
    middle = BODY[1, 0]
    joints[..., 0] = (middle + (BODY[:, 0] - middle) * np.cos(turn * np.arange(count))[:, None]
                      + 0.004 * SIZE * np.arange(count)[:, None])
    joints[..., :2] += noise * SIZE * random.standard_normal(joints[..., :2].shape)
    return joints, shots or [0] * count


def track_of(joints, shots, gone=()):
    poses = {frame: Pose(joints=rows.astype(np.float32), format="openpose18")
             for frame, rows in enumerate(joints) if frame not in gone}
    return Track(number=0, poses=poses, shots=list(shots))


def put_right(joints, shots, fps=25.0, gone=()):
    """Frames exchanged and left out, and the joints that remain."""
    steady = steadied(track_of(joints, shots, gone), seconds(range(len(joints)), fps))
    return steady.exchanged, steady.jumps, steady.track


def exchange(joints, frames):
    wrong = joints.copy()
    wrong[frames] = wrong[frames][:, EXCHANGED]
    return wrong


def test_a_film_that_is_right_stays_as_it_is():
    for turn in (0.0, 0.1, -0.3):  # to 0.3: more than once around, as fast as a pirouette
        joints, shots = film(turn=turn, noise=0.003)
        exchanged, jumps, track = put_right(joints, shots)
        assert (exchanged, jumps) == ([], [])
        assert all(np.array_equal(pose.joints, joints[frame].astype(np.float32))
                   for frame, pose in track.poses.items())


@pytest.mark.parametrize("wrong", [[7], [0], [29], [3, 4, 5, 6, 9, 20, 21], [*range(16, 30)]])
def test_left_and_right_as_most_frames_have_them(wrong):
    joints, shots = film(noise=0.003)
    exchanged, jumps, track = put_right(exchange(joints, wrong), shots)
    assert exchanged == wrong and jumps == []
    assert np.array_equal(np.stack([pose.joints for pose in track.poses.values()]), joints)


def test_of_a_person_who_turns_the_right_side_stays_the_right_one():
    joints, shots = film(count=60, turn=0.1)
    wrong = [8, 9, 10, 30, 31, 52]
    assert put_right(exchange(joints, wrong), shots)[:2] == (wrong, [])


def test_seen_from_the_side_the_estimator_is_believed():
    """Shoulders and hips lie on each other there; the legs change places with every step."""
    joints, shots = film(noise=0.003)
    joints[..., 0] = joints[:, :1, 0] + 0.05 * (joints[..., 0] - joints[:, :1, 0])
    legs = np.sin(np.arange(30))[:, None]
    joints[:, [9, 10], 0] += 0.15 * SIZE * legs
    joints[:, [12, 13], 0] -= 0.15 * SIZE * legs
    assert put_right(joints, shots)[0] == []


def test_each_shot_has_its_own_majority():
    """From one shot to the next anything may be."""
    joints, _ = film()
    shots = [0] * 15 + [1] * 15
    turned = exchange(joints, [*range(15, 30)])
    assert put_right(turned, shots)[0] == []
    wrong = [3, 18]
    assert put_right(exchange(turned, wrong), shots)[0] == wrong


def test_what_is_far_apart_in_time_says_nothing():
    joints, shots = film()
    wrong = exchange(joints, [10, 11, 12])
    assert put_right(wrong, shots, fps=5)[0] == [10, 11, 12]
    assert put_right(wrong, shots, fps=4)[0] == []
    assert put_right(wrong, shots, fps=0)[0] == [10, 11, 12]  # nobody knows
    # Five frames in which nobody was found.
    assert put_right(wrong, shots, gone=range(13, 17))[0] == [10, 11, 12]
    halves = exchange(joints, [*range(12)])
    assert put_right(halves, shots, gone=range(12, 17))[0] == []
    assert put_right(halves, shots, gone=range(12, 16))[0] == [*range(12)]


def test_missing_shoulders_or_hips_leave_the_others():
    joints, shots = film()
    wrong = exchange(joints, [4, 5])
    wrong[:, [2, 8, 11]] = 0
    assert put_right(wrong, shots)[0] == []
    wrong = exchange(joints, [4, 5])
    wrong[:, [2]] = 0
    assert put_right(wrong, shots)[0] == [4, 5]


def test_a_frame_that_jumps_away_and_back_is_left_out():
    joints, shots = film(noise=0.003)
    joints[[8, 20], :, 0] += 0.06 * SIZE
    exchanged, jumps, track = put_right(joints, shots)
    assert (exchanged, jumps) == ([], [8, 20])
    assert sorted(track.poses) == [frame for frame in range(30) if frame not in (8, 20)]


def test_only_what_comes_back_at_once_is_a_jump():
    joints, shots = film()
    gone_on = joints.copy()
    gone_on[8:, :, 0] += 0.06 * SIZE
    assert put_right(gone_on, shots)[1] == []
    fast = joints.copy()
    fast[8, :, 0] += 0.3 * SIZE
    assert put_right(fast, shots, fps=10)[1] == [8]
    assert put_right(fast, shots, fps=9)[1] == []
    assert put_right(fast, shots, fps=0)[1] == []
    cut = [0] * 8 + [1] * 22
    assert put_right(fast, cut)[1] == []


def test_what_a_body_can_do_is_no_jump():
    """Down and up again at five times gravity, as whoever lands; in two metres of body."""
    for fps in (10, 25, 60):
        joints, shots = film(count=20)
        joints[8, :, 1] += 0.5 * 24 * SIZE / fps ** 2
        assert put_right(joints, shots, fps=fps)[1] == []
        joints[8, :, 1] += max(0.05, 0.5 * 30 / fps ** 2) * SIZE
        assert put_right(joints, shots, fps=fps)[1] == [8]


def test_little_is_no_jump_however_fast():
    joints, shots = film()
    joints[8, :, 0] += 0.03 * SIZE
    assert put_right(joints, shots, fps=60)[1] == []
    joints[8, :, 0] += 0.02 * SIZE
    assert put_right(joints, shots, fps=60)[1] == [8]


def test_what_lies_between_two_jumps_stays():
    joints, shots = film()
    joints[[8, 10], :, 0] += [[0.2 * SIZE], [0.1 * SIZE]]
    assert put_right(joints, shots)[1] == [8, 10]


def test_frames_that_are_missing_make_no_jump():
    """Two sizes a second, steadily: the frame before is two frames away, the next one five."""
    joints, shots = film(count=20)
    joints[..., 0] += 2 / 60 * SIZE * np.arange(20)[:, None]
    assert put_right(joints, shots, fps=60, gone=[7, 9, 10, 11, 12])[1] == []


def test_what_jumps_is_not_exchanged_too():
    joints, shots = film(noise=0.003)
    joints[8, :, 0] += 0.06 * SIZE
    assert put_right(exchange(joints, [8, 9]), shots)[:2] == ([9], [8])


def test_joints_that_are_missing_for_a_moment_do_not_jump():
    joints, shots = film()
    joints[8, [3, 4, 9, 10]] = 0
    assert put_right(joints, shots)[1] == []


def test_of_a_nose_alone_nothing_is_said():
    joints, shots = film(noise=0.003)
    joints[:, 1:] = 0
    assert put_right(joints, shots)[:2] == ([], [])


def test_a_frame_of_which_only_the_legs_are_exchanged_is_a_jump():
    joints, shots = film()
    joints[:, [9, 10], 0] -= 0.2 * SIZE
    joints[12, [8, 9, 10, 11, 12, 13]] = joints[12, [11, 12, 13, 8, 9, 10]]
    assert put_right(joints, shots)[:2] == ([], [12])


def test_a_track_of_one_frame():
    joints, shots = film(count=1)
    assert put_right(joints, shots)[:2] == ([], [])
