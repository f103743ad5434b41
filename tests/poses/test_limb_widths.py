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


def whole(pose, at=None):
    """With all joints: those that are missing at (row, column), or in the middle of the arm."""
    if at is None:
        place = (pose[:, 3, :2] + pose[:, 4, :2]) / 2
    else:
        place = pose_of(joint_0=at)[:, 0, :2]
    missing = pose[..., 2:] == 0
    filled = torch.cat([place[:, None].expand(-1, len(JOINTS), -1), torch.ones_like(missing)], -1)
    return torch.where(missing, filled, pose)


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
    widths = limb_widths(figure(), person(1, 1, *SIZE))
    assert not widths.mean.any()
    least, most = cover_bounds(widths, figure(), SIZE)
    assert (least == 0).all() and (most == 1).all()


def test_the_person_is_around_the_limbs_of_the_other_pose():
    widths = limb_widths(whole(arm(UPRIGHT)), capsule(*UPRIGHT, 9.0))
    least, most = cover_bounds(widths, whole(arm(ACROSS)), SIZE)
    person = capsule(*ACROSS, 9.0)
    assert least.shape == most.shape == (1, 1, *SIZE) and (least <= most).all()
    assert (least[~person] == 0).all() and (most[person] == 1).all()
    # Within a third of the radius is the person, half as far again away is nobody.
    assert (least[capsule(*ACROSS, 3.0)] == 1).all()
    assert (most[~capsule(*ACROSS, 13.5)] == 0).all()
    assert 0.05 < least.mean() < person.float().mean() < most.mean() < 0.6


def test_somebody_nearer_is_wider_up_to_a_point():
    widths = limb_widths(whole(arm(UPRIGHT)), capsule(*UPRIGHT, 9.0))
    areas = {}
    for columns in (16, 20, 23, 30):  # half the length; of 20 in the source
        pose = whole(arm(((50, 32 - columns), (50, 32 + columns))))
        areas[columns] = [float(bound[0, 0, :, 32].sum())  # of a cut
                          for bound in cover_bounds(widths, pose, SIZE)]
    for which in (0, 1):
        narrow, same, wide, widest = (areas[columns][which] for columns in areas)
        assert narrow == pytest.approx(0.8 * same, rel=0.1)
        assert wide == pytest.approx(1.15 * same, rel=0.1)
        assert widest == pytest.approx(1.25 * same, rel=0.1)


# A person of 18 joints, in pixels: arms to the sides, the lower ones hanging.
FIGURE = {0: (14, 32), 1: (22, 32), 2: (24, 26), 3: (24, 16), 4: (34, 16), 5: (24, 38), 6: (24, 48),
          7: (34, 48), 8: (48, 28), 9: (64, 28), 10: (80, 28), 11: (48, 36), 12: (64, 36),
          13: (80, 36), 14: (12, 30), 15: (12, 34), 16: (13, 28), 17: (13, 36)}
FIGURE_MASK = torch.stack([capsule(FIGURE[a], FIGURE[b], 3.0) for a, b in LIMBS]).any(0)


def figure(*missing):
    """The pose of that person without some joints."""
    return pose_of(**{f"joint_{joint}": at for joint, at in FIGURE.items() if joint not in missing})


def reach_of(widths, limb):
    """How far the person may be from a limb, in pixels."""
    mean = widths.mean[0, [limb, OTHER_ARM if limb == ARM else limb]].max()
    return 2.2 * float(mean if mean > 0 else widths.mean.max()) * SIZE[0] + 1


def within_of(joint, radius):
    return capsule(FIGURE[joint], (FIGURE[joint][0], FIGURE[joint][1] + 1e-3), radius)


@pytest.mark.parametrize("shown", [True, False])
def test_a_limb_without_one_joint_is_no_further_from_the_other_than_it_is_long(shown):
    """Whether the source shows all of it or not: its twin says how long it is."""
    widths = limb_widths(figure() if shown else figure(4), FIGURE_MASK)
    least, most = cover_bounds(widths, figure(4), SIZE)
    reach, (all_least, all_most) = reach_of(widths, ARM), cover_bounds(widths, figure(), SIZE)
    disc = within_of(3, 10 + reach - 1)
    assert (most[disc] == 1).all() and (all_most[disc] < 1).any()
    outside = ~within_of(3, 10 + reach + 1)
    assert torch.equal(most[outside], all_most[outside]) and (most[outside] < 1).any()
    assert (least <= all_least).all() and (least[within_of(4, 2.0)] == 0).all()


@pytest.mark.parametrize(("missing", "joint", "way"),
                         [((3, 4), 2, 20), ((2, 3, 4), 1, 20 + math.sqrt(40))])
def test_a_limb_between_missing_joints_is_as_far_as_the_limbs_on_the_way(missing, joint, way):
    """Without elbow and wrist the forearm is two limbs away from the shoulder at most, without the
    shoulder three from the neck."""
    widths = limb_widths(figure(), FIGURE_MASK)
    _, most = cover_bounds(widths, figure(*missing), SIZE)
    reach = reach_of(widths, ARM)
    assert (most[within_of(joint, way + reach - 1)] == 1).all()
    outside = ~within_of(joint, way + reach + 1)
    _, all_most = cover_bounds(widths, figure(), SIZE)
    assert torch.equal(most[outside], all_most[outside]) and outside.any()


def test_a_limb_that_lacks_a_joint_is_as_much_shorter_as_the_others():
    widths = limb_widths(figure(), FIGURE_MASK)
    smaller = torch.tensor([0.9, 0.9, 1])
    (_, most), (_, all_most) = (cover_bounds(widths, pose * smaller, SIZE)
                                for pose in (figure(4), figure()))
    row, column = ((at - (side - 1) / 2) * 0.9 + (side - 1) / 2
                   for at, side in zip(FIGURE[3], SIZE, strict=True))
    radius = 0.9 * (10 + reach_of(widths, ARM) - 1) + 1
    outside = ~capsule((row, column), (row, column + 1e-3), radius + 1.2)
    torch.testing.assert_close(most[outside], all_most[outside], atol=1e-4, rtol=0)
    assert (most[capsule((row, column), (row, column + 1e-3), radius - 1.2)] == 1).all()


def test_somebody_whom_the_frame_cuts_off_keeps_their_thighs():
    """Of hips without knees, in source and target, the thighs are seen all the same."""
    half = figure(9, 10, 12, 13)
    thighs = capsule((48, 28), (68, 28), 3.0) | capsule((48, 36), (68, 36), 3.0)
    person = capsule((24, 32), (48, 32), 9.0) | thighs
    _, most = cover_bounds(limb_widths(half, person), half, SIZE)
    assert (most[thighs] == 1).all() and (most[~within_of(8, 64) & ~within_of(11, 64)] == 0).all()


def test_somebody_without_joints_may_be_anywhere():
    least, most = cover_bounds(limb_widths(figure(), FIGURE_MASK), figure(*FIGURE), SIZE)
    assert (least == 0).all() and (most == 1).all()


def test_a_limb_that_only_the_target_shows_is_as_wide_as_its_twin_or_the_widest():
    widths = limb_widths(arm(UPRIGHT), capsule(*UPRIGHT, 9.0))
    for joints in ((6, 7), (9, 10)):  # the other forearm; a shin
        there = (80, 14), (80, 50)
        ends = {f"joint_{joint}": end for joint, end in zip(joints, there, strict=True)}
        least, most = cover_bounds(widths, whole(arm(ACROSS, **ends)), SIZE)
        assert (most[capsule(*there, 9.0)] == 1).all() and (most[..., :20, :] == 0).all()
        assert (least[capsule(*there, 3.0) & ~capsule(*ACROSS, 9.0)] == 0).all()


def test_the_narrower_of_two_is_certain_and_the_wider_possible():
    """One may be hidden by the body in front of it."""
    pose = whole(arm(((20, 46), (80, 46)), joint_5=(20, 14), joint_6=(20, 14), joint_7=(80, 14)),
                 at=(20, 46))
    widths = limb_widths(pose, capsule((20, 14), (80, 14), 4.0) | capsule((20, 46), (80, 46), 7.0))
    least, most = cover_bounds(widths, pose, SIZE)
    for bound, radius in ((least, 0.8 * mean_of(60, 4)), (most, 2.2 * mean_of(60, 7) + 1)):
        for columns in (slice(0, 30), slice(30, 60)):  # a cut through each
            assert float(bound[0, 0, 50, columns].sum()) == pytest.approx(2 * radius, abs=1)


def test_one_source_and_many_targets():
    widths = limb_widths(figure(3), FIGURE_MASK)
    targets = torch.cat([figure(4), figure(), figure(9, 17)])
    for together, alone in zip(cover_bounds(widths, targets, (48, 32)), zip(*(
            cover_bounds(widths, target[None], (48, 32)) for target in targets), strict=True),
            strict=True):
        torch.testing.assert_close(together, torch.cat(alone))
