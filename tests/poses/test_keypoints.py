"""Key points: tables, coordinates, mirror."""

from __future__ import annotations

import pytest
import torch

from posemodel.poses import joints as kp


def test_tables_belong_together() -> None:
    assert len(kp.JOINTS) == len(set(kp.JOINTS)) == 18
    assert len(kp.LIMBS) == len(kp.LIMB_COLORS) == 17
    assert len(kp.JOINT_COLORS) == 18
    # A tree: 17 limbs that reach all 18 joints.
    reached = {kp.JOINTS.index("neck")}
    for _ in kp.LIMBS:
        reached |= {joint for limb in kp.LIMBS if reached & set(limb) for joint in limb}
    assert reached == set(range(18))
    assert len(set(kp.JOINT_COLORS)) == 18
    assert all(0 <= channel <= 255 for color in kp.JOINT_COLORS + kp.LIMB_COLORS
               for channel in color)


def test_flip_swaps_the_names_of_left_and_right() -> None:
    for joint, mirrored in enumerate(kp.FLIP_PAIRS):
        name = kp.JOINTS[joint]
        swapped = name.replace("left", "?").replace("right", "left").replace("?", "right")
        assert kp.JOINTS[mirrored] == swapped


def test_flip_pose_twice_is_the_pose() -> None:
    pose = torch.rand(3, 18, 3) * 2 - 1
    pose[..., 2] = (pose[..., 2] > 0).float()
    flipped = kp.flip_pose(pose)
    torch.testing.assert_close(kp.flip_pose(flipped), pose)
    torch.testing.assert_close(flipped[:, 3, 0], -pose[:, 6, 0])
    torch.testing.assert_close(flipped[:, 3, 1:], pose[:, 6, 1:])


@pytest.mark.parametrize("size", [(64, 64), (256, 176)])
def test_pixel_centres(size: tuple[int, int]) -> None:
    height, width = size
    pixels = torch.tensor([[0.0, 0.0, 1.0], [width - 1.0, height - 1.0, 1.0], [-1.0, -1.0, 0.0]])
    pose = kp.pixels_to_normalized(pixels, size)
    expected = torch.tensor(
        [[1 / width - 1, 1 / height - 1, 1.0], [1 - 1 / width, 1 - 1 / height, 1.0],
         [0.0, 0.0, 0.0]]
    )
    torch.testing.assert_close(pose, expected)
    back = kp.normalized_to_pixels(pose, size)
    torch.testing.assert_close(back[:2], pixels[:2], atol=1e-4, rtol=0)
    assert back[2].eq(0).all()


def test_a_missing_joint_marked_by_nan_becomes_zero() -> None:
    pose = kp.pixels_to_normalized(torch.tensor([[float("nan"), float("nan"), 0.0]]), (64, 64))
    assert pose.eq(0).all()
