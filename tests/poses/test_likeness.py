"""Which of some poses is most like another."""

import numpy as np
import pytest

from posemodel.poses.joints import normalized_to_pixels
from posemodel.poses.likeness import most_alike, unlikeness
from tests.tiny import random_poses


@pytest.fixture(scope="module")
def poses() -> np.ndarray:
    """`[6, 18, 3]`, every joint of which is there."""
    whole = random_poses(6, seed=3)
    whole[..., 2] = 1
    return normalized_to_pixels(whole, (100, 80)).numpy().astype(np.float64)


def test_place_and_size_do_not_matter(poses) -> None:
    moved = poses * [3, 3, 1] + [50, -20, 0]
    assert np.allclose(unlikeness(poses, poses[2]), unlikeness(moved, poses[2]))
    assert np.isclose(unlikeness(moved, poses[2])[2], 0)
    assert unlikeness(poses, poses[2]).argmin() == 2


def test_who_faces_the_other_way_is_not_alike(poses) -> None:
    middle = poses[0, :, 0].mean()
    mirrored = poses[0] * [-1, 1, 1] + [2 * middle, 0, 0]
    assert unlikeness(mirrored[None], poses[0])[0] > 0.1


def test_only_joints_that_both_have_count(poses) -> None:
    part = poses[1].copy()
    part[[4, 7]] = 0
    assert np.isclose(unlikeness(part[None], poses[1])[0], 0)
    part[1, 2] = 0                                               # the neck
    assert np.isinf(unlikeness(part[None], poses[1])[0])
    few = np.zeros((18, 3))
    few[:2] = poses[1, :2]
    assert np.isinf(unlikeness(few[None], poses[1])[0])


def test_a_film_stays_with_a_photograph_until_another_is_much_more_like(poses) -> None:
    first, second = poses[:2]
    film = np.stack([first * (1 - share) + second * share for share in np.linspace(0, 1, 21)])
    chosen = most_alike(np.stack([first, second]), film)
    assert chosen[0] == 0 and chosen[-1] == 1 and sorted(chosen) == chosen
    back = most_alike(np.stack([first, second]), film[::-1])[::-1]
    assert chosen.index(1) > back.index(1)                       # each stays for a while
    # Who shares too little with any is made from the one before.
    nobody = np.zeros((1, 18, 3))
    assert most_alike(poses, np.concatenate([poses[3:4], nobody, poses[5:6]])) == [3, 3, 5]
