"""A motion carried over to another person."""

import numpy as np
import pytest

from posemodel.poses.joints import LIMBS
from posemodel.poses.retarget import carried_over

STANDING = np.array([
    (0, -60), (0, -40), (-18, -40), (-24, -12), (-26, 14), (18, -40), (24, -12), (26, 14),
    (-10, 12), (-11, 50), (-12, 88), (10, 12), (11, 50), (12, 88), (-4, -64), (4, -64),
    (-8, -62), (8, -62)], np.float32)


def person(xy: np.ndarray, *missing: int) -> np.ndarray:
    joints = np.concatenate([xy, np.ones((18, 1))], 1).astype(np.float32)
    joints[list(missing)] = 0
    return joints


def turned(xy: np.ndarray, joints: list[int], pivot: int, degrees: float) -> np.ndarray:
    """Some joints turned about another."""
    angle = np.deg2rad(degrees)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    xy = xy.copy()
    xy[joints] = (xy[joints] - xy[pivot]) @ rotation.T + xy[pivot]
    return xy


def film(frames: int = 7) -> np.ndarray:
    """An arm and a leg that swing, while the body moves on."""
    return np.stack([person(turned(turned(STANDING, [3, 4], 2, 12 * t), [9, 10], 8, -7 * t)
                            + (200 + 5 * t, 150)) for t in range(frames)])


def length(pose: np.ndarray, limb: tuple[int, int]) -> float:
    return float(np.hypot(*(pose[limb[0], :2] - pose[limb[1], :2])))


def test_between_people_of_one_shape_it_is_a_scaling() -> None:
    driver = film()
    source = driver[0].copy()
    source[:, :2] = 1.7 * source[:, :2] + (31, -8)
    wanted = driver.copy()
    wanted[..., :2] = 1.7 * wanted[..., :2] + (31, -8)
    for mode in ("absolute", "relative"):
        assert np.allclose(carried_over(driver, source, mode), wanted, atol=2e-3), mode


def test_limbs_keep_the_lengths_of_their_owner() -> None:
    driver, source = film(), person(STANDING + (300, 200))
    longer = {(8, 9): 1.25, (9, 10): 1.25, (11, 12): 1.25, (12, 13): 1.25}
    for (parent, child), factor in longer.items():
        way = (factor - 1) * (source[child] - source[parent])
        below = [child] if child in (10, 13) else [child, child + 1]
        source[below, :2] += way[:2]
    for mode in ("absolute", "relative"):
        moved = carried_over(driver, source, mode)
        for pose, theirs in zip(moved, driver, strict=True):
            for limb in LIMBS:
                factor = longer.get(limb, 1.0)
                assert length(pose, limb) == pytest.approx(factor * length(theirs, limb), 1e-3)


def test_absolute_points_as_the_driver_and_relative_turns_with_them() -> None:
    driver = film()
    source = person(turned(STANDING, [6, 7], 5, -80) + (90, 120))  # the other arm is raised
    absolute, relative = (carried_over(driver, source, mode) for mode in ("absolute", "relative"))

    def direction(pose: np.ndarray) -> np.ndarray:
        way = pose[6, :2] - pose[5, :2]
        return way / np.hypot(*way)

    # The driver's left arm hangs all the time; the source's stays up where motion is relative.
    assert all(np.allclose(direction(pose), direction(driver[0]), atol=1e-3) for pose in absolute)
    assert all(np.allclose(direction(pose), direction(source), atol=1e-3) for pose in relative)
    assert np.allclose(relative[0], source, atol=1e-3)
    # The right arm, which both have hanging, swings as the driver's.
    swung = [np.rad2deg(np.arctan2(*(pose[3, :2] - pose[2, :2])[::-1])) for pose in relative]
    assert np.allclose(np.diff(swung), 12, atol=0.1)


def test_missing_joints_are_missing_and_what_hangs_on_them_is_not_lost() -> None:
    driver = film(3)
    driver[1, 3] = 0  # an elbow
    moved = carried_over(driver, person(STANDING + (50, 60)))
    assert (moved[1, 3] == 0).all() and moved[1, 4, 2] == 1
    assert np.allclose(moved[1, 4, :2] - moved[1, 1, :2], driver[1, 4, :2] - driver[1, 1, :2],
                       atol=1e-3)
    assert (moved[[0, 2]][..., 2] == 1).all()
    # What the source does not show has the driver's shape at the source's size.
    cut = carried_over(film(3), person(2 * STANDING + (50, 60), 9, 10, 12, 13))
    assert length(cut[0], (9, 10)) == pytest.approx(2 * length(film()[0], (9, 10)), 1e-3)


def test_a_limb_that_a_photograph_shortens_does_not_become_a_stump() -> None:
    source = person(STANDING + (50, 60))
    for parent, child in ((2, 3), (3, 4), (5, 6), (6, 7)):  # both arms towards the camera
        source[child, :2] = source[parent, :2] + (1, 1)
    moved = carried_over(film(), source)
    assert length(moved[0], (2, 3)) > 0.6 * length(film()[0], (2, 3))


@pytest.mark.parametrize("driver, source, message", [
    (film(2) * 0, person(STANDING), "no limb in common"),
    (film(2), person(STANDING, 1), "neck"),
    (film(2), person(STANDING, 0, *range(2, 18)), "no limb in common"),
])
def test_people_who_cannot_be_matched(driver, source, message) -> None:
    with pytest.raises(ValueError, match=message):
        carried_over(driver, source)
    with pytest.raises(ValueError, match="mode 'other'"):
        carried_over(driver, source, "other")
