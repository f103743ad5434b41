"""Joints of other estimators: order, missing joints, units, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from posemodel.poses.layouts import LAYOUTS, as_stated, from_array, in_pixels
from posemodel.poses.units import UNITS
from posemodel.runtime.errors import UserError
from tests.small_datasets import refused

# For each of the 18 joints the row of the other format, written out by hand; the neck is the mean
# of two rows.
ROWS = {
    "openpose18": list(range(18)),
    "body25": [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18],
    "coco17": [0, (5, 6), 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3],
    "halpe26": [0, (5, 6), 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3],
    "wholebody133": [0, (5, 6), 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3],
    "halpe136": [0, (5, 6), 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3],
    "mediapipe33": [0, (11, 12), 12, 14, 16, 11, 13, 15, 24, 26, 28, 23, 25, 27, 5, 2, 8, 7],
}
COUNTS = {"openpose18": 18, "body25": 25, "coco17": 17, "halpe26": 26, "wholebody133": 133,
          "halpe136": 136, "mediapipe33": 33}
NECK, LEFT_SHOULDER = 1, 5
SIZE = (200, 400)  # (H, W)


def pixels(name):
    """`[K, 2]`: row r lies at (20 + r, 30 + r / 2)."""
    row = np.arange(COUNTS[name], dtype=float)
    return np.stack([20 + row, 30 + row / 2], 1)


def stated(name, units, xy):
    """Pixels as a file of that format states them in these units."""
    if units == "pixels":
        return xy
    if units == "centred":
        return (2 * xy + 1) / (SIZE[1], SIZE[0]) - 1
    return (xy + (0.5 if name == "mediapipe33" else 0)) / (SIZE[1], SIZE[0])


def as_file(name, xy):
    """Pixels as the format states them."""
    return stated(name, LAYOUTS[name].units, xy)


def with_column(xy, values):
    return np.column_stack([xy, np.broadcast_to(values, len(xy))])


def assert_valid(pose):
    assert pose.joints.shape == (18, 3) and pose.joints.dtype == np.float32
    assert np.isfinite(pose.joints).all()
    assert np.isin(pose.joints[:, 2], (0, 1)).all()
    assert not pose.joints[~pose.present].any()


def test_every_format_is_tested():
    assert set(ROWS) == set(COUNTS) == set(LAYOUTS)


@pytest.mark.parametrize("columns", [2, 3])
@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("name", ROWS)
def test_every_joint_comes_from_its_row(name, units, columns):
    xy = pixels(name)
    array = stated(name, units, xy)
    array = with_column(array, 0.9) if columns == 3 else array
    pose = from_array(array, name, units=units, image_size=SIZE)
    expected = [xy[list(row)].mean(0) if isinstance(row, tuple) else xy[row] for row in ROWS[name]]
    np.testing.assert_allclose(pose.joints[:, :2], expected, atol=1e-4)
    assert pose.present.all() and (pose.format, pose.units) == (name, units)
    assert pose.frame == (None if units == "pixels" else SIZE)
    assert_valid(pose)


# --- units ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "units"), [
    (name, units) for name in ROWS for units in UNITS
    # MediaPipe's own fractions reach beyond the picture, to both sides.
    if (name, units) != ("mediapipe33", "centred")])
def test_the_numbers_show_their_units(name, units):
    array = stated(name, units, pixels(name) * (1, 3))
    array[3] = 0  # a joint that was not found
    assert from_array(array, image_size=SIZE).units == units


def test_units_that_were_named_with_the_layout():
    xy = pixels("openpose18")
    pose = from_array(stated("openpose18", "fractions", xy), "openpose18-normalized",
                      image_size=SIZE)
    np.testing.assert_allclose(pose.joints[:, :2], xy, atol=1e-4)
    assert pose.format == "openpose18"
    assert from_array(xy, "openpose18-normalized", units="pixels").units == "pixels"


def test_units_are_asked_for_where_they_are_open():
    xy = np.zeros((18, 2))
    xy[[0, 2]] = (0.4, 0.3), (0.5, 0.5)
    refused("all 2 joints lie within two pixels.*give --units fractions", from_array, xy)
    aside = stated("openpose18", "fractions", pixels("openpose18"))
    aside[4] = (-0.1, 0.6)
    refused("between -0.1 and .*give --units fractions .*, --units centred", from_array, aside)
    for units in UNITS:  # the advice works
        for array in (xy, aside):
            assert from_array(array, units=units, image_size=SIZE).units == units


def test_units_are_those_of_all_people():
    """One of them has too few joints to tell."""
    whole = stated("openpose18", "fractions", pixels("openpose18"))
    part = np.where(np.arange(18)[:, None] < 2, whole, 0)
    refused("give --units", from_array, part)
    poses = in_pixels([as_stated(part), as_stated(whole)], units=None, image_size=SIZE, where="a")
    np.testing.assert_allclose(poses[0].joints[:2], poses[1].joints[:2])
    assert [pose.units for pose in poses] == ["fractions"] * 2


def test_mediapipe_in_pixels():
    xy = pixels("mediapipe33")
    pose = from_array(xy)
    assert pose.units == "pixels" and pose.joints[0].tolist() == [20, 30, 1]


# --- order and presence ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROWS)
def test_the_number_of_rows_says_the_format(name):
    assert from_array(as_file(name, pixels(name)), image_size=SIZE).format == name


@pytest.mark.parametrize("mark", [(-1, -1), (-1, 50), (50, -1), (0, 0), (np.nan, np.nan)])
def test_missing_without_confidence(mark):
    xy = pixels("openpose18")
    xy[4] = mark
    xy[7] = (0, 50)  # on the border of the image, not missing
    pose = from_array(xy, "openpose18")
    assert np.flatnonzero(~pose.present).tolist() == [4]
    assert pose.joints[7].tolist() == [0, 50, 1]
    assert_valid(pose)


@pytest.mark.parametrize(
    ("confidence", "threshold", "here"),
    [(0.0, None, False), (0.0, 0.0, False), (0.04, None, False), (0.05, None, True),
     (0.6, 0.7, False), (0.7, 0.7, True), (-1, 0.0, False), (1e-6, 0.0, True)],
)
def test_missing_by_confidence(confidence, threshold, here):
    array = with_column(pixels("openpose18"), 1.0)
    array[4] = (7, 8, confidence)
    array[0] = (np.nan, np.nan, 1.0)
    pose = from_array(array, threshold=threshold)
    assert pose.present[4] == here and not pose.present[0] and pose.present.sum() == 16 + here
    assert_valid(pose)


def test_the_corner_is_no_joint_whatever_its_confidence():
    """Where estimators put what they did not find, some of them with a score."""
    array = with_column(pixels("coco17"), 0.9)
    array[[9, 10], :2] = (0, 0), (-1, -1)
    assert np.flatnonzero(~from_array(array).present).tolist() == [4, 7]


def test_coco_flags():
    """0 is absent, 1 hidden and 2 visible: the last two count as present."""
    flags = np.full(17, 2)
    flags[[9, 10]] = 0, 1  # left and right wrist
    pose = from_array(with_column(pixels("coco17"), flags))
    assert np.flatnonzero(~pose.present).tolist() == [7]


@pytest.mark.parametrize("name", ["coco17", "wholebody133", "mediapipe33"])
def test_the_neck_needs_both_shoulders(name):
    array = with_column(as_file(name, pixels(name)), 0.9)
    array[ROWS[name][LEFT_SHOULDER], 2] = 0
    pose = from_array(array, image_size=SIZE)
    assert np.flatnonzero(~pose.present).tolist() == [NECK, LEFT_SHOULDER]


def test_a_given_neck_needs_no_shoulders():
    array = with_column(pixels("body25"), 0.9)
    array[[2, 5], 2] = 0
    assert from_array(array).joints[NECK].tolist() == [21, 30.5, 1]


def test_mediapipe_depth_and_visibility():
    xy = as_file("mediapipe33", pixels("mediapipe33"))
    depth = np.linspace(-0.5, 0.5, 33)
    visibility = np.ones(33)
    visibility[0] = 0.4
    assert from_array(with_column(xy, depth), image_size=SIZE).present.all()
    assert not from_array(with_column(xy, visibility), image_size=SIZE).present[0]
    four = np.column_stack([xy, depth, visibility])
    pose = from_array(four, image_size=SIZE)
    assert np.flatnonzero(~pose.present).tolist() == [0]


@pytest.mark.parametrize(("array", "format", "message"), [
    (np.ones((19, 3)), None, "19 joints; formats"),
    (pixels("openpose18"), "coco17", "18 x 2 numbers, expected 17 x 2 or 17 x 3"),
    (np.ones((17, 4)), None, "17 x 4 numbers"),
    (pixels("openpose18"), "openpose", "no format is called 'openpose'"),
    (pixels("openpose18"), "openpose18-normalized", "lies at .20, 30.; expected frac.*--units"),
    (with_column(pixels("coco17"), 812.0), None, "confidence 812, expected about 0 to 1"),
    (with_column(pixels("coco17"), np.nan), None, "joint 0 has no confidence"),
    (np.where(np.arange(33)[:, None] % 2, 1, -1) * (0.1, 0, 0) + (0, 0, 1), None,
     "world landmarks"),
    (np.array([["a", "b"]] * 18), None, "expected numbers"),
    (np.ones((2, 18, 3)), None, "shape"),
    (np.zeros((0, 3)), None, "0 joints"),
    (np.float64(3.0), None, "shape"),
    (np.ones((18, 2), complex), None, "expected numbers"),
    (pixels("openpose18") * 1e9, None, "joint 0 lies at"),
    (np.where(np.arange(18)[:, None] == 3, np.inf, pixels("openpose18")), None,
     "row 3 is infinite"),
    (np.where(np.arange(36).reshape(18, 2) == 7, np.nan, pixels("openpose18")), None,
     "joint 3 lies at"),
])
def test_refused(array, format, message):
    refused(message, from_array, array, format, image_size=SIZE, where="joints.npy")


def test_fractions_need_the_size():
    refused("give its size", from_array, as_file("mediapipe33", pixels("mediapipe33")))


def test_refused_units():
    refused("no units are called 'inches'; units: pixels", from_array, pixels("coco17"),
            units="inches")


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_refused_threshold(threshold):
    refused("threshold", from_array, pixels("openpose18"), threshold=threshold)


@settings(derandomize=True, deadline=None, database=None, max_examples=200)
@given(
    st_numpy.arrays(st.sampled_from([np.float64, np.float16, np.int32, np.uint8]),
                    st.tuples(st.sampled_from([0, 1, *COUNTS.values()]), st.integers(0, 5)),
                    fill=st.sampled_from([0, 1])),
    st.sampled_from([None, *LAYOUTS]),
    st.sampled_from([None, *UNITS]),
)
def test_any_array_is_a_pose_or_refused(array, format, units):
    try:
        pose = from_array(array, format, units=units, image_size=SIZE)
    except UserError:
        return
    assert_valid(pose)
