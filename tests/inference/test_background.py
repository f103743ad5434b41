"""A person laid over the background of their photograph, or over white."""

import numpy as np
import pytest

from posemodel.inference.background import behind_person, checked_mask
from posemodel.inference.model import PoseTransferModel
from tests.small_datasets import refused
from tests.small_films import frames
from tests.small_runs import write_tiny_run

ROOM = (120, 160)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return PoseTransferModel.from_run(write_tiny_run(tmp_path_factory.mktemp("runs") / "tiny"),
                                      "cpu")


@pytest.fixture(scope="module")
def scene():
    """Somebody in a room: the picture, their joints, the mask, and another pose of theirs."""
    first, second = frames(2)
    picture = np.zeros((*ROOM, 3), np.uint8)
    picture[..., 0] = np.linspace(40, 200, ROOM[1])[None]
    picture[..., 1] = np.linspace(220, 60, ROOM[0])[:, None]
    mask = np.zeros(ROOM, np.float32)
    mask[12:108, 30:126] = first.people[0].mask
    picture = np.where(mask[..., None] > 0, 250, picture).astype(np.uint8)

    def placed(frame):
        joints = frame.people[0].pose.joints
        return joints + np.float32([30, 12, 0]) * joints[:, 2:]

    return picture, placed(first), mask, placed(second)


def test_the_room_stays_and_the_person_is_gone_from_where_they_were(model, scene):
    picture, pose, mask, other = scene
    result = model.transfer(picture, pose, [other], mask=mask)
    assert result.behind.shape == picture.shape
    far = np.ones(ROOM, bool)
    rows, columns = np.nonzero(mask)
    far[rows.min() - 3 : rows.max() + 4, columns.min() - 3 : columns.max() + 4] = False
    assert np.array_equal(result.behind[far], picture[far])
    # The person is all of one colour, which the room has nowhere.
    assert (picture == 250).all(-1).sum() > 500 and not (result.behind > 240).all(-1).any()
    for made in (result.refined(0), result.warped(0)):
        crop = result.target_crops[0]
        outside = np.ones(ROOM, bool)
        outside[max(crop.top, 0) : crop.top + crop.height,
                max(crop.left, 0) : crop.left + crop.width] = False
        assert np.array_equal(made[outside], result.behind[outside])
        assert made.shape == picture.shape


def test_the_moved_mask_says_whose_each_pixel_is(model, scene):
    picture, pose, mask, other = scene
    free = model.transfer(picture, pose, [other])
    nobody = model.transfer(picture, pose, [other], mask=np.zeros(ROOM, bool))
    whole = model.transfer(picture, pose, [other], mask=np.ones(ROOM, np.uint8) * 255,
                           background="white")
    assert np.array_equal(nobody.warped(0), picture)       # there is nobody to move
    crop = free.target_crops[0]
    inside = (slice(max(crop.top, 0), crop.top + crop.height),
              slice(max(crop.left, 0), crop.left + crop.width))
    assert np.abs(whole.warped(0)[inside].astype(int) - free.warped(0)[inside]).max() <= 1
    assert np.array_equal(free.coarse_flow, whole.coarse_flow)


def test_white(model, scene):
    picture, pose, mask, other = scene
    result = model.transfer(picture, pose, [pose, other], mask=mask, background="white",
                            batch_size=1)
    assert (result.behind == 255).all() and len(result) == 2
    assert (result.refined(0) == 255).all(-1).mean() > 0.4


def test_more_pixels_show_the_same(model, scene):
    picture, pose, mask, other = scene
    small = model.transfer(picture, pose, [other], mask=mask)
    large = model.transfer(picture.repeat(3, 0).repeat(3, 1),
                           pose * [3, 3, 1] + [1, 1, 0] * pose[:, 2:],
                           [other * [3, 3, 1] + [1, 1, 0] * other[:, 2:]],
                           mask=mask.repeat(3, 0).repeat(3, 1))
    difference = np.abs(large.warped(0)[1::3, 1::3].astype(int) - small.warped(0))
    assert np.median(difference) <= 3


def test_a_large_picture_is_as_the_view_and_has_no_colours_of_its_own(model, scene):
    """R is trained at the size of the view: what it changed is enlarged before the person is laid
    over the room, so that an edge that moves leaves no bright line."""
    picture, pose, mask, other = scene
    result = model.transfer(picture, pose, [other], mask=mask)
    large = result.refined_at(0, (128, 128)).astype(float)       # of a view of 32 x 32
    view = result.refined_view[0].astype(float)
    assert np.abs(large.reshape(32, 4, 32, 4, 3).mean((1, 3)) - view).mean() < 6
    assert np.abs(view - result.warped_view[0]).mean() > 2        # there is something to see
    alone = np.where(result.cover_view[0][..., None] == 0, np.nan, result.person_view[0])
    behind = result.target_crops[0].cut(result.behind)
    for extreme, least in ((np.nanmax, -1), (np.nanmin, 1)):
        bound = least * extreme([extreme(alone, (0, 1)), extreme(behind, (0, 1))], 0)
        assert (least * large >= bound - 25).all()


@pytest.mark.parametrize("change, says", [
    ({"mask": np.zeros((3, 3), bool)}, r"mask: expected numbers \[120, 160\], found \(3, 3\) bool"),
    ({"mask": np.full(ROOM, 2.0)}, "mask: expected values from 0 to 1, found some from 2 to 2"),
    ({"background": "black"}, "background 'black': expected keep or white"),
])
def test_what_is_refused(model, scene, change, says):
    picture, pose, mask, other = scene
    with pytest.raises(ValueError, match=says):
        model.transfer(picture, pose, [other], **{"mask": mask, **change})


def test_a_frame_of_another_size_has_another_background(model, scene):
    picture, pose, mask, other = scene
    refused("a picture of the source's size, 160 x 120; theirs is 90 x 80", model.transfer,
            picture, pose, [other], mask=mask, target_size=(80, 90))
    result = model.transfer(picture, pose, [other], mask=mask, target_size=(80, 90),
                            background="white")
    assert result.refined(0).shape == (80, 90, 3)


def test_masks_of_every_type():
    values = np.array([[0, 1]], np.float64)
    for mask in (values, values.astype(bool), (values * 255).astype(np.uint8)):
        assert checked_mask(mask, (1, 2)).tolist() == [[0.0, 1.0]]
    picture = np.full((30, 40, 3), 9, np.uint8)
    assert np.array_equal(behind_person(picture, np.zeros((30, 40), np.float32), (30, 40),
                                        "keep"), picture)
