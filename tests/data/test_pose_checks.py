"""Warnings: each accident is found, and right joints give none."""


import numpy as np
import pytest

from posemodel.data.images import read_image
from posemodel.data.pose_checks import check_pose
from posemodel.poses.annotations import read_annotations
from posemodel.poses.layouts import Pose
from tests.small_datasets import SHARED, make_generated

# A standing person in a frame of 256 x 256 with borders, 18 x (x, y).
STANDING = [
    (129, 24), (122, 49), (103, 49), (95, 86), (83, 116), (141, 49), (144, 85), (155, 117),
    (112, 114), (118, 167), (125, 216), (134, 114), (126, 168), (122, 214),
    (124, 19), (132, 19), (115, 20), (137, 21),
]
WITH_BORDERS, WITHOUT = (256, 256), (256, 176)


def pose(xy=STANDING, **fields):
    xy = np.array(xy, np.float32)
    return Pose(joints=np.column_stack([xy, np.ones(len(xy), np.float32)]), format="openpose18",
                **fields)


def moved(x=0.0, y=0.0, scale=1.0):
    return np.array(STANDING) * scale + (x, y)


def only(warnings, words):
    assert len(warnings) == 1 and words in warnings[0], warnings


def test_right_joints_give_no_warning():
    assert check_pose(pose(), WITH_BORDERS) == []
    assert check_pose(pose(moved(x=-40)), WITHOUT) == []
    assert check_pose(pose(frame=WITH_BORDERS), WITH_BORDERS) == []
    bowed = np.array(STANDING)
    bowed[[0, 1, 14, 15, 16, 17]] = (90, 110)  # the head is beside the hips, above the feet
    assert check_pose(pose(bowed), WITH_BORDERS) == []


def test_x_and_y_swapped():
    swapped = np.array(STANDING)[:, ::-1]
    only(check_pose(pose(swapped), WITH_BORDERS), "swapped")
    outside, why = check_pose(pose(moved(x=-40)[:, ::-1]), WITHOUT)
    assert "outside" in outside and "swapped" in why
    # No legs, so no direction: only the frame can tell.
    half = pose(moved(scale=4)[:, ::-1])
    half.joints[8:14] = 0
    outside, why = check_pose(half, (500, 700))
    assert "outside" in outside and "with x and y swapped all joints would lie inside" in why


def test_a_person_who_stands_at_the_border_is_not_swapped():
    warnings = check_pose(pose(moved(x=90)), (300, 230))
    only(warnings, "3 of 18 joints lie outside")
    assert "left_wrist" in warnings[0] and "right" not in warnings[0].split(")")[0]


def test_frames_with_and_without_borders():
    """Without an image only those rows of a data set are named in which somebody stands more than a
    border beside the middle."""
    only(check_pose(pose(moved(x=-50), name="a.jpg"), WITH_BORDERS), "40 is to be added to x")
    only(check_pose(pose(moved(x=10), name="a.jpg"), WITHOUT), "40 is to be taken from x")
    assert check_pose(pose(moved(x=10)), WITHOUT) == []  # one of several people of a film


def before_white(x, size):
    """A white image on which a grey body stands around the joints, moved by x."""
    image = np.full((*size, 3), 255, np.uint8)
    for left, top in STANDING:
        image[max(0, top - 6):top + 7, max(0, left + x - 6):max(0, left + x + 7)] = 120
    return image


@pytest.mark.parametrize(("size", "own"), [(WITHOUT, -40), (WITH_BORDERS, 0)])
def test_an_image_shows_where_its_borders_are(size, own):
    """Who stands aside in it stands where the middle would be with borders, or without."""
    other = own + 40 if size == WITHOUT else own - 40
    for aside in (-30, 0, 30):
        image = before_white(own + aside, size)
        assert check_pose(pose(moved(x=own + aside)), size, image=image) == []
        wrong = moved(x=other + aside)
        if wrong[:, 0].max() < size[1] and wrong[:, 0].min() >= 0:
            only(check_pose(pose(wrong), size, image=image), "40 is to be")
    # Before a wall nobody can tell, and nobody is accused who stands a little aside.
    wall = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    only(check_pose(pose(moved(x=other + (10 if own else -10))), size, image=wall), "40 is to be")
    assert check_pose(pose(moved(x=own + (25 if own else -25))), size, image=wall) == []


def test_generated_rows_give_no_warning_of_borders(tmp_path):
    """Mannequins walk to the sides of the frame."""
    for columns, size in ((176, WITHOUT), (256, WITH_BORDERS)):
        root = make_generated(tmp_path / str(columns), pairs=36, test_pairs=1, frame=columns,
                              image_rows=256)
        (annotations,) = root.glob("*annotation-train.csv")
        names, joints = read_annotations(annotations)
        assert len(names) >= 48
        for name, rows in zip(names, joints, strict=True):
            image = read_image(root / "train" / name)
            for seen in (image, None):
                lines = check_pose(Pose(joints=rows, format="openpose18", name=name), size, name,
                                   seen)
                assert "borders" not in " ".join(lines), name


def test_joints_of_another_image():
    one = pose(name="b.jpg")
    only(check_pose(one, WITH_BORDERS, "a.jpg"), "names the image of these joints b.jpg, this one")
    for name in ("b.jpg", "b.png", None):
        assert check_pose(one, WITH_BORDERS, name) == []


def test_fractions_and_larger_pictures():
    only(check_pose(pose(moved(scale=1 / 256)), WITH_BORDERS), "fractions")
    warnings = check_pose(pose(moved(scale=4)), WITH_BORDERS)
    assert "outside" in warnings[0] and "larger picture" in warnings[1]


def test_the_frame_that_the_file_states():
    only(check_pose(pose(frame=(425, 640)), WITH_BORDERS), "640 x 425 pixels, this image has 256")


def test_nobody():
    nobody = Pose(joints=np.zeros((18, 3), np.float32), format="openpose18")
    assert check_pose(nobody, WITH_BORDERS) == ["no joint is present"]


def test_joints_outside_are_named():
    xy = np.array(STANDING)
    xy[4] = (-3, 116)
    only(check_pose(pose(xy), WITH_BORDERS), "1 of 18 joints lie outside")
    assert "right_wrist" in check_pose(pose(xy), WITH_BORDERS)[0]


@pytest.mark.parametrize(
    ("file", "size"),
    [("market-annotation-train.csv", (128, 64)),
     ("fasion-annotation-test.head300.csv", WITH_BORDERS)],
)
def test_published_joints_give_few_warnings_and_swapped_ones_many(file, size):
    if not (SHARED / file).exists():
        pytest.skip("the published annotations are not here")
    _, joints = read_annotations(SHARED / file)
    complete = joints[joints[..., 2].sum(1) >= 8][:500]
    right = [check_pose(Pose(joints=rows, format="openpose18"), size) for rows in complete]
    wrong = [check_pose(Pose(joints=rows[:, [1, 0, 2]], format="openpose18"), size)
             for rows in complete]
    assert sum(map(bool, right)) <= 0.02 * len(right)
    assert sum("swapped" in " ".join(lines) for lines in wrong) > 0.95 * len(wrong)
