import math

import pytest
import torch

from posemodel.poses.joints import JOINTS, LIMBS
from posemodel.poses.limb_maps import body_map, limb_maps

COUNT = len(LIMBS)
LIMB = LIMBS.index((3, 4))                                     # right elbow to right wrist


def centre(row, column, size):
    """The middle of a pixel, normalised."""
    return (2 * column + 1) / size[1] - 1, (2 * row + 1) / size[0] - 1


def limb_between(first, second):
    pose = torch.zeros(1, len(JOINTS), 3)
    pose[0, 3] = torch.tensor([*first, 1.0])
    pose[0, 4] = torch.tensor([*second, 1.0])
    return pose


def maps_of(pose, size, sigma):
    """`[3, L, H, W]`"""
    return limb_maps(pose, size, sigma)[0].view(3, COUNT, *size)


@pytest.mark.parametrize("size", [(64, 64), (128, 64)])
def test_a_limb_is_an_envelope_and_two_coordinates(size):
    sigma = 3.0 * 256 / size[0]                                # three pixels
    pose = limb_between(centre(20, 30, size), centre(44, 30, size))
    envelope, along, across = maps_of(pose, size, sigma)[:, LIMB]
    # On the bone; beside it; beyond its ends.
    for row, column, off, side in ((20, 30, 0, 0), (44, 30, 0, 0), (32, 30, 0, 0), (32, 34, 4, 4),
                                   (40, 28, 2, 2), (48, 30, 4, 0), (17, 26, 5, 4)):
        expected = math.exp(-((off / 3) ** 2) / 2)
        assert envelope[row, column] == pytest.approx(expected, rel=1e-4)
        assert abs(across[row, column]) == pytest.approx(expected * side / 3, rel=1e-4, abs=1e-6)
    assert across[32, 34] * across[32, 26] < 0
    assert torch.allclose(across[:, 31:41], -across[:, 20:30].flip(1), atol=1e-5)
    ratio = 24 / (24 + 0.1 * size[0] / 2)                      # of the whole range, in a long limb
    for row, expected in ((20, -ratio), (32, 0.0), (38, ratio / 2), (44, ratio)):
        assert along[row, 30] == pytest.approx(expected, abs=1e-5)
    others = [limb for limb in range(COUNT) if limb != LIMB]
    assert not maps_of(pose, size, sigma)[:, others].any()


def test_the_coordinates_move_with_the_limb():
    # Two limbs of one length in a narrow image; the second is the first, turned by 90 degrees.
    size = (96, 48)
    maps = maps_of(limb_between(centre(30, 20, size), centre(50, 20, size)), size, 20.0)[:, LIMB]
    turned = maps_of(limb_between(centre(60, 10, size), centre(60, 30, size)), size, 20.0)[:, LIMB]
    # (row, column) from the elbow becomes (-column, row).
    for row, column in ((0, 0), (5, 3), (12, -4), (20, 2), (25, 0), (-4, 5)):
        torch.testing.assert_close(turned[:, 60 - column, 10 + row], maps[:, 30 + row, 20 + column])


@pytest.mark.parametrize("missing", [3, 4])
def test_a_limb_without_one_of_its_joints_is_empty(missing):
    pose = limb_between((0.0, 0.0), (0.3, 0.3))
    pose[0, missing] = 0
    assert not limb_maps(pose, (32, 32), 15.0).any() and not body_map(pose, (32, 32), 15.0).any()


def test_a_limb_that_points_at_the_camera_is_a_spot():
    size = (32, 32)
    maps = maps_of(limb_between(centre(10, 12, size), centre(10, 12, size)), size, 16.0)[:, LIMB]
    assert maps.isfinite().all()
    assert maps[0, 10, 12] == 1 and torch.allclose(maps[0], _spot(10, 12, size), atol=1e-5)


def _spot(row, column, size):
    rows, columns = torch.meshgrid(*map(torch.arange, size), indexing="ij")
    return torch.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * 2.0**2))


def test_the_body_is_one_on_every_bone_and_nothing_far_away():
    size = (64, 64)
    pose = torch.zeros(1, len(JOINTS), 3)
    corner = {2: (20, 20), 3: (30, 20), 4: (30, 40)}
    for joint, place in corner.items():
        pose[0, joint] = torch.tensor([*centre(*place, size), 1.0])
    body = body_map(pose, size, 8.0)
    assert body.shape == (1, 1, *size)
    assert torch.allclose(body[0, 0, 20:31, 20], torch.ones(11), atol=1e-5)
    assert torch.allclose(body[0, 0, 30, 20:41], torch.ones(21), atol=1e-5)
    assert body[0, 0, 50:].max() < 1e-6 and body.max() <= 1
    envelopes = limb_maps(pose, size, 8.0)[:, :COUNT]
    assert torch.equal(body, envelopes.amax(1, keepdim=True))


def test_no_pose_gives_no_maps():
    assert limb_maps(torch.zeros(0, 18, 3), (16, 8), 15.0).shape == (0, 3 * COUNT, 16, 8)


def test_no_number_below_the_normal_ones():
    """With those a CPU takes many times as long."""
    envelope, along, across = maps_of(limb_between((-0.9, -0.9), (-0.8, -0.9)), (256, 256), 3.0)
    for kind in (envelope, along, across):
        assert ((kind[LIMB] == 0) | (kind[LIMB].abs() >= torch.finfo(torch.float32).tiny)).all()
    assert 0 < envelope[LIMB, -1, -1] < 1e-15
