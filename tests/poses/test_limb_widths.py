"""How wide limbs are in a mask, and where their person can be in another pose."""

import math

import pytest
import torch

from posemodel.poses.joints import JOINTS, LIMBS
from posemodel.poses.limb_widths import cover_bounds, limb_widths

SIZE = (96, 64)
ARM, OTHER_ARM = LIMBS.index((3, 4)), LIMBS.index((6, 7))


def pose_of(**ends):
    """`joint_3=(row, column)`, in pixels; all other joints are missing."""
    pose = torch.zeros(1, len(JOINTS), 3)
    for name, (row, column) in ends.items():
        pose[0, int(name.removeprefix("joint_"))] = torch.tensor(
            [(2 * column + 1) / SIZE[1] - 1, (2 * row + 1) / SIZE[0] - 1, 1.0])
    return pose


def capsule(first, second, radius):
    """`[1, 1, H, W]` bool: pixels within `radius` pixels of the line between two (row, column)."""
    at = torch.stack(torch.meshgrid(*(torch.arange(side) for side in SIZE), indexing="ij"), -1)
    first, second = torch.tensor(first).float(), torch.tensor(second).float()
    bone = second - first
    share = ((at - first) @ bone / (bone @ bone)).clamp(0, 1)
    return ((at - first - share[..., None] * bone).norm(dim=-1) <= radius)[None, None]


UPRIGHT, ACROSS = ((30, 30), (70, 30)), ((50, 12), (50, 52))


def arm(place, **more):
    return pose_of(joint_3=place[0], joint_4=place[1], **more)


def mean_of(length, radius):
    """Of the distances of a capsule's points from its line, in pixels."""
    return ((length * radius**2 + 2 / 3 * math.pi * radius**3)
            / (2 * length * radius + math.pi * radius**2))


def test_the_mean_distance_of_an_even_limb():
    widths = limb_widths(arm(UPRIGHT), capsule(*UPRIGHT, 9.0))
    assert widths.mean[0, ARM] * SIZE[0] == pytest.approx(mean_of(40, 9), rel=0.05)
    assert widths.length[0, ARM] * SIZE[0] == pytest.approx(40, rel=1e-5)
    others = [limb for limb in range(len(LIMBS)) if limb != ARM]
    for part in widths:
        assert not part[0, others].any() and part[0, ARM] > 0


def test_each_pixel_counts_for_the_nearest_limb():
    ends = (20, 14), (80, 14)
    both = arm(((20, 46), (80, 46)), joint_6=ends[0], joint_7=ends[1])
    widths = limb_widths(both, capsule(*ends, 4.0) | capsule((20, 46), (80, 46), 10.0))
    mean = widths.mean[0] * SIZE[0]
    assert mean[OTHER_ARM] == pytest.approx(mean_of(60, 4), rel=0.1)
    assert mean[ARM] == pytest.approx(mean_of(60, 10), rel=0.05)


@pytest.mark.parametrize("person", [torch.zeros, torch.ones])
def test_nothing_is_known_of_nobody_and_of_somebody_who_fills_the_picture(person):
    widths = limb_widths(arm(UPRIGHT), person(1, 1, *SIZE))
    assert not widths.mean.any()
    least, most = cover_bounds(widths, arm(ACROSS), SIZE)
    assert (least == 0).all() and (most == 1).all()


def test_the_person_is_around_the_limbs_of_the_other_pose():
    widths = limb_widths(arm(UPRIGHT), capsule(*UPRIGHT, 9.0))
    least, most = cover_bounds(widths, arm(ACROSS), SIZE)
    person = capsule(*ACROSS, 9.0)
    assert least.shape == most.shape == (1, 1, *SIZE) and (least <= most).all()
    assert (least[~person] == 0).all() and (most[person] == 1).all()
    # Within a third of the radius is the person, half as far again away is nobody.
    assert (least[capsule(*ACROSS, 3.0)] == 1).all()
    assert (most[~capsule(*ACROSS, 13.5)] == 0).all()
    assert 0.05 < least.mean() < person.float().mean() < most.mean() < 0.6


def test_somebody_nearer_is_wider_up_to_a_point():
    widths = limb_widths(arm(UPRIGHT), capsule(*UPRIGHT, 9.0))
    areas = {}
    for columns in (16, 20, 23, 30):  # half the length; of 20 in the source
        bounds = cover_bounds(widths, arm(((50, 32 - columns), (50, 32 + columns))), SIZE)
        areas[columns] = [float(bound[0, 0, :, 32].sum()) for bound in bounds]  # of a cut
    for which in (0, 1):
        narrow, same, wide, widest = (areas[columns][which] for columns in areas)
        assert narrow == pytest.approx(0.8 * same, rel=0.1)
        assert wide == pytest.approx(1.15 * same, rel=0.1)
        assert widest == pytest.approx(1.25 * same, rel=0.1)


TWO_ARMS = arm(UPRIGHT, joint_6=(20, 50), joint_7=(40, 50))
PERSON = capsule(*UPRIGHT, 6.0) | capsule((20, 50), (40, 50), 6.0)


def test_a_limb_that_only_the_source_shows_may_be_anywhere():
    least, most = cover_bounds(limb_widths(TWO_ARMS, PERSON), arm(ACROSS), SIZE)
    assert (most == 1).all() and (least[capsule(*ACROSS, 1.0)] == 1).all()


@pytest.mark.parametrize(("joint", "lacking"), [("joint_6", "joint_7"), ("joint_7", "joint_6")])
def test_a_limb_that_lacks_a_joint_is_no_further_from_the_other_than_it_is_long(joint, lacking):
    """As long as the longer of the two arms, 40 pixels, for this one may point at the camera."""
    target = arm(((80, 20), (80, 60)), **{joint: (10, 10)})
    assert not target[0, int(lacking.removeprefix("joint_"))].any()
    widths = limb_widths(TWO_ARMS, PERSON)
    least, most = cover_bounds(widths, target, SIZE)
    reach = 2.2 * float(widths.mean.max()) * SIZE[0] + 1
    around = capsule((10, 10), (10, 10.001), 40 + reach - 1)
    arms = capsule((80, 20), (80, 60), reach + 1)
    assert (most[around] == 1).all()
    assert (most[~capsule((10, 10), (10, 10.001), 40 + reach + 1) & ~arms] == 0).all()
    assert 0.3 < float(most.mean()) < 0.8
    # Nothing of it is certain.
    assert (least[~capsule((80, 20), (80, 60), 6.0)] == 0).all() and least.any()


def test_a_limb_that_only_the_target_shows_is_as_wide_as_its_twin_or_the_widest():
    widths = limb_widths(arm(UPRIGHT), capsule(*UPRIGHT, 9.0))
    for joints in ((6, 7), (9, 10)):  # the other forearm; a shin
        there = (80, 14), (80, 50)
        ends = {f"joint_{joint}": end for joint, end in zip(joints, there, strict=True)}
        least, most = cover_bounds(widths, arm(ACROSS, **ends), SIZE)
        assert (most[capsule(*there, 9.0)] == 1).all()
        assert (least[capsule(*there, 3.0) & ~capsule(*ACROSS, 9.0)] == 0).all()


def test_the_narrower_of_two_is_certain_and_the_wider_possible():
    """One may be hidden by the body in front of it."""
    pose = arm(((20, 46), (80, 46)), joint_6=(20, 14), joint_7=(80, 14))
    widths = limb_widths(pose, capsule((20, 14), (80, 14), 4.0) | capsule((20, 46), (80, 46), 7.0))
    least, most = cover_bounds(widths, pose, SIZE)
    for bound, radius in ((least, 0.8 * mean_of(60, 4)), (most, 2.2 * mean_of(60, 7) + 1)):
        for columns in (slice(0, 30), slice(30, 60)):  # a cut through each
            assert float(bound[0, 0, 50, columns].sum()) == pytest.approx(2 * radius, abs=1)


def test_one_source_and_many_targets():
    widths = limb_widths(arm(UPRIGHT), capsule(*UPRIGHT, 9.0))
    targets = torch.cat([arm(ACROSS), arm(UPRIGHT)])
    for together, alone in zip(cover_bounds(widths, targets, (48, 32)), zip(*(
            cover_bounds(widths, target[None], (48, 32)) for target in targets), strict=True),
            strict=True):
        torch.testing.assert_close(together, torch.cat(alone))
