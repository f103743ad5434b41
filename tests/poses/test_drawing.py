"""Skeletons: joints where they are, in their colours."""

import pytest
import torch

from posemodel.poses.drawing import draw_skeleton
from posemodel.poses.joints import JOINT_COLORS, JOINTS


def pose_with(**joints: tuple[float, float]) -> torch.Tensor:
    pose = torch.zeros(len(JOINTS), 3)
    for name, (x, y) in joints.items():
        pose[JOINTS.index(name)] = torch.tensor([x, y, 1.0])
    return pose


def test_missing_joints_are_not_drawn():
    assert draw_skeleton(torch.zeros(18, 3), (64, 48)).shape == (64, 48, 3)
    assert not draw_skeleton(torch.zeros(18, 3), (64, 48)).any()


def test_a_joint_is_drawn_where_it_is_in_its_colour():
    image = draw_skeleton(pose_with(right_wrist=(0.5, -0.5)), (128, 64))
    rows, columns = image.any(axis=2).nonzero()
    # x = .5 of 64 columns is column 47.5, y = -.5 of 128 rows is row 31.5.
    assert (rows.mean(), columns.mean()) == \
        pytest.approx((31.5, 47.5), abs=0.6)
    assert len(rows) < 60
    assert tuple(image[31, 47].tolist()) == JOINT_COLORS[JOINTS.index("right_wrist")]


def test_a_limb_needs_both_joints():
    ends = pose_with(right_elbow=(-0.6, 0.0), right_wrist=(0.6, 0.0))
    apart = pose_with(right_elbow=(-0.6, 0.0), left_wrist=(0.6, 0.0))
    assert draw_skeleton(ends, (64, 64))[31, 32].any()
    assert not draw_skeleton(apart, (64, 64))[31, 32].any()


def test_skeleton_may_leave_the_frame():
    draw_skeleton(pose_with(nose=(3.0, -4.0), neck=(0.0, 0.0)), (64, 64))
