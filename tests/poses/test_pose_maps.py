import math

import pytest
import torch

from posemodel.poses.maps import pose_maps


def pose_at(x, y, presence=1.0):
    pose = torch.zeros(1, 18, 3)
    pose[0, 4] = torch.tensor([x, y, presence])
    return pose


@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 64)])
def test_peak_is_one_at_the_joint_and_falls_as_a_gaussian(height, width):
    row, column, sigma = 20, 33, 6.0
    x, y = (2 * column + 1) / width - 1, (2 * row + 1) / height - 1
    maps = pose_maps(pose_at(x, y), (height, width), sigma)
    assert maps.shape == (1, 18, height, width)
    assert maps[0, 4, row, column] == pytest.approx(1.0, abs=1e-5)
    pixels = sigma * height / 256
    for dy, dx in ((0, 2), (3, 0), (2, -1)):
        expected = math.exp(-(dx**2 + dy**2) / (2 * pixels**2))
        assert maps[0, 4, row + dy, column + dx] == pytest.approx(expected, rel=1e-3)
    assert maps[0, [j for j in range(18) if j != 4]].abs().max() == 0


def test_missing_joint_is_an_empty_map():
    assert pose_maps(pose_at(0.1, 0.2, presence=0.0), (32, 32), 6.0).abs().max() == 0


def test_a_joint_between_pixels_stays_there():
    maps = pose_maps(pose_at(0.0, 0.0), (64, 64), 6.0)[0, 4]
    assert torch.equal(maps, maps.flip(0)) and torch.equal(maps, maps.flip(1))


@pytest.mark.parametrize(("x", "column"), [(-1.0, 0), (0.0, 16), (0.03125, 16), (1.0, 31)])
def test_a_dot_is_the_nearest_pixel_also_at_the_edge(x, column):
    maps = pose_maps(pose_at(x, -0.5), (16, 32), 0.0)
    assert maps.sum() == 1 and maps[0, 4, 4, column] == 1
    assert pose_maps(pose_at(x, -0.5, presence=0.0), (16, 32), 0.0).sum() == 0


def test_no_number_below_the_normal_ones():
    """With those a CPU takes many times as long."""
    maps = pose_maps(pose_at(-0.9, -0.9), (256, 256), 3.0)
    assert (maps[0, 4] >= torch.finfo(torch.float32).tiny).all()
    assert maps[0, 4, -1, -1] < 1e-30
