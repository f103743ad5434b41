"""The mask of a person from joints: where it is, how large, and against the true one."""

import re
from pathlib import Path

import torch

from posemodel.mannequins.pairs import Mannequins
from posemodel.reid.foreground import foreground

ROOT = Path(__file__).resolve().parents[2]
SIZE = (128, 64)


def people(count=24, **more):
    return Mannequins(size=SIZE, turn=180.0, seed=11, **more).pairs(range(count))


def test_covers_the_mannequins():
    """By the shares that the page has."""
    batch = people()
    mask, true = foreground(batch["target_pose"], SIZE), batch["target_foreground"].float()
    both = (mask * true).sum((1, 2, 3))
    page = " ".join((ROOT / "docs" / "reid.md").read_text().split())
    kept, person = map(int, re.search(
        r"more than (\d+) % of the person is kept, and that more than (\d+) %", page).groups())
    assert 100 > 100 * (both / true.sum((1, 2, 3))).mean() > kept == 88
    assert 100 > 100 * (both / mask.sum((1, 2, 3))).mean() > person == 78


def test_whole_where_joints_are():
    batch = people()
    mask = foreground(batch["target_pose"], SIZE)
    for pose, one in zip(batch["target_pose"], mask, strict=True):
        for joint in (1, 2, 4, 8, 9, 10):
            x, y, here = pose[joint].tolist()
            if here:
                row, column = int((y + 1) * 64), int((x + 1) * 32)
                assert one[0, min(row, 127), min(column, 63)] > 0.5


def test_grows_with_the_image():
    pose = people(4)["target_pose"]
    small, large = foreground(pose, SIZE), foreground(pose, (256, 128))
    reduced = torch.nn.functional.avg_pool2d(large, 2)
    assert (reduced - small).abs().mean() < 0.01


def test_moves_with_the_person():
    pose = people(4)["target_pose"]
    moved = pose.clone()
    moved[..., 1] += 8 / 64 * pose[..., 2]  # eight rows down
    at, below = foreground(pose, SIZE), foreground(moved, SIZE)
    torch.testing.assert_close(below[:, :, 8:], at[:, :, :-8], atol=1e-4, rtol=0)


def test_nothing_without_joints_and_less_without_a_limb():
    pose = people(6)["target_pose"]
    assert (foreground(torch.zeros(2, 18, 3), SIZE) == 0).all()
    armless = pose.clone()
    armless[:, (3, 4)] = 0
    whole, rest = foreground(pose, SIZE), foreground(armless, SIZE)
    assert (rest <= whole).all() and (rest < whole).any()


def test_a_leg_that_leaves_the_image_goes_on():
    pose = torch.zeros(1, 18, 3)
    # Shoulders at row 32, hips at row 96: the knees would be at row 160 of 128.
    for joint, x, y in ((1, 0.0, -0.5), (2, -0.3, -0.5), (5, 0.3, -0.5), (8, -0.2, 0.5),
                        (11, 0.2, 0.5)):
        pose[0, joint] = torch.tensor([x, y, 1.0])
    mask = foreground(pose, SIZE)
    assert (mask[0, 0, -1, 24:40] == 1).all() and (mask[0, 0, -1, (0, 63)] == 0).all()


def test_one_shoulder_and_one_hip_stand_for_both():
    pose = people(6)["target_pose"]
    half = pose.clone()
    half[:, (5, 11)] = 0
    mask = foreground(half, SIZE)
    middle = (half[:, 2, :2] + half[:, 8, :2]) / 2
    for (x, y), one in zip(middle.tolist(), mask, strict=True):
        assert one[0, int((y + 1) * 64), int((x + 1) * 32)] == 1


def test_a_person_is_the_same_in_any_batch():
    pose = people(6)["target_pose"]
    torch.testing.assert_close(foreground(pose, SIZE)[2:3], foreground(pose[2:3], SIZE))
