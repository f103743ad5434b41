"""A person laid over the background of their photograph, or over white."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from posemodel.inference import background as backgrounds
from posemodel.inference.background import (
    behind_person,
    checked_mask,
    person_in_front,
    scene_of_views,
)
from posemodel.inference.model import PoseTransferModel
from posemodel.model.scene import bounds_of
from posemodel.pictures.inpainting import opencv_version
from posemodel.pictures.pixels import resized, to_pictures
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


def test_of_the_room_nothing_comes_along(model, scene):
    """In the view and in the size of the picture."""
    picture, pose, mask, other = scene
    result = model.transfer(picture, pose, [other], mask=mask)
    assert result.front.shape == result.source.shape and (result.front >= 249).all()
    for shown in (result.warped_view[0], result.warped_at(0, (96, 96))):
        room = result.target_crops[0].cut(result.behind)
        room = resized(room, shown.shape[:2]).astype(float)
        # Each pixel lies between the room that is behind it and the person, who has one colour.
        share = (shown - room) / (250 - room)
        assert np.abs(share - share.mean(-1, keepdims=True))[room.max(-1) < 200].max() < 0.03
        assert share.max() > 0.9
    seen = scene_of_views(result.mask, result.front, result.behind, result.target_crops,
                          (result.source_pose, result.target_poses), model.size,
                          torch.device("cpu"))
    assert np.array_equal(to_pictures(seen.front)[0], resized(result.front, model.size))
    assert model.transfer(picture, pose, [other]).front is None


def test_a_person_in_front_is_as_sharp_as_in_the_picture():
    picture = np.random.default_rng(0).integers(0, 256, (600, 400, 3), dtype=np.uint8)
    mask = np.zeros((600, 400), np.float32)
    mask[100:500, 100:300] = 1
    front = person_in_front(picture, mask)
    assert np.array_equal(front[110:490, 110:290], picture[110:490, 110:290])
    assert front[:90].std() < 0.5 * picture[:90].std()            # continued, so it is smooth


def test_limbs_bound_what_the_person_covers_in_a_large_picture_too(model, scene):
    picture, pose, mask, other = scene
    result = model.transfer(picture, pose, [pose, other], mask=mask, batch_size=1)

    def bounds(target, size):
        there = F.interpolate(torch.from_numpy(result.mask)[None, None], size, mode="bilinear",
                              antialias=True)
        found = bounds_of(there, result.source_pose[None], target[None])
        least, most = (bound[0, 0].numpy() for bound in found)
        assert 0.01 < least.mean() < most.mean() < 0.9
        return least - 0.02, most + 0.02

    for index, target in enumerate(result.target_poses):
        least, most = bounds(target, model.size)
        cover = result.cover_view[index]
        assert (cover >= least).all() and (cover <= most).all()
        least, most = bounds(target, (128, 128))
        for share in (0.0, 1.0):  # whatever R says
            made = replace(grey(result, np.full_like(result.cover_view, share)),
                           target_poses=result.target_poses).refined_at(index, (128, 128))
            cover = (made[..., 0] - 100.0) / 100
            assert (cover >= least).all() and (cover <= most).all()


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
    assert np.abs(large.reshape(32, 4, 32, 4, 3).mean((1, 3)) - view).mean() < 7
    assert np.abs(view - result.warped_view[0]).mean() > 2        # there is something to see
    alone = np.where(result.cover_view[0][..., None] == 0, np.nan, result.person_view[0])
    behind = result.target_crops[0].cut(result.behind)
    for extreme, least in ((np.nanmax, -1), (np.nanmin, 1)):
        bound = least * extreme([extreme(alone, (0, 1)), extreme(behind, (0, 1))], 0)
        assert (least * large >= bound - 25).all()


def test_the_view_is_the_person_over_what_is_behind(model, scene):
    picture, pose, mask, other = scene
    result = model.transfer(picture, pose, [other], mask=mask)
    behind = resized(result.target_crops[0].cut(result.behind), model.size).astype(float)
    cover = result.cover_view[0][..., None]
    laid = behind + cover * (result.person_view[0] - behind)
    assert np.abs(laid - result.refined_view[0]).max() <= 2
    assert 0.1 < cover.mean() < 0.9 and np.abs(result.person_view[0] - behind).mean() > 20
    free = model.transfer(picture, pose, [other])
    assert (free.cover_view == 1).all() and np.array_equal(free.person_view, free.refined_view)


def grey(result, cover, person=200):
    """The same of somebody who is all grey, before a darker grey, and whose limbs say nothing of
    how much they cover."""
    def full(image, value):
        return np.full_like(image, value)

    return replace(result, source=full(result.source, 200), behind=full(result.behind, 100),
                   front=full(result.front, 200),
                   target_poses=torch.zeros_like(result.target_poses),
                   source_view=full(result.source_view, 200), cover_view=cover,
                   person_view=np.broadcast_to(np.uint8(person), result.person_view.shape))


def test_r_says_in_a_large_picture_too_how_much_the_person_covers(model, scene):
    picture, pose, mask, other = scene
    result = model.transfer(picture, pose, [other], mask=mask)
    for share, wanted in ((0.0, 100), (1.0, 200)):
        cover = np.full_like(result.cover_view, share)
        made = grey(result, cover).refined_at(0, (128, 128)).astype(float)
        # The mask is finer than the view, so that its edge is not met to the pixel.
        assert made.min() >= 100 and made.max() <= 200 and abs(made.mean() - wanted) < 8


def test_what_r_makes_of_a_pixel_that_nobody_covers_is_seen_nowhere(model, scene):
    picture, pose, _, other = scene
    result = model.transfer(picture, pose, [other], mask=np.ones(ROOM), background="white")
    cover = np.zeros_like(result.cover_view)
    cover[:, :, :16] = 1
    made = grey(result, cover, person=200 * (cover[..., None] > 0)).refined_at(0, (128, 128))
    share = F.interpolate(torch.from_numpy(cover)[None], (128, 128), mode="bilinear")[0, 0].numpy()
    # Where next to nobody is, next to nothing of them is known.
    known = (share == 0) | (share > 0.1)
    assert np.abs(made - (100 + 100 * share[..., None]))[known].max() <= 1


@pytest.mark.skipif(not opencv_version(), reason="OpenCV is not installed")
def test_the_pattern_of_a_wall_goes_on_behind_the_person(scene):
    _, _, mask, _ = scene
    wall = np.zeros((*ROOM, 3), np.uint8)
    wall[:, np.arange(ROOM[1]) % 12 < 6] = 220
    behind = behind_person(np.where(mask[..., None] > 0, np.uint8(120), wall), mask, ROOM, "keep")
    assert np.abs(behind.astype(float) - wall)[mask > 0].mean() < 40       # a smooth wall: 110


def test_behind_the_person_is_what_another_picture_shows(scene):
    _, _, mask, _ = scene
    room = np.random.default_rng(0).integers(60, 160, (*ROOM, 3), dtype=np.uint8)
    light = np.linspace(10, 50, ROOM[1])[None, :, None]              # of the hour of the photograph
    picture = np.where(mask[..., None] > 0, 200, room + light).astype(np.uint8)
    behind = behind_person(picture, mask, ROOM, "keep", room)
    assert np.array_equal(behind[mask == 0][:50], picture[mask == 0][:50])
    assert np.abs(behind - (room + light))[mask > 0].max() < 4
    assert np.abs(behind_person(picture, mask, ROOM, "keep") - (room + light))[mask > 0].mean() > 15
    large = [np.kron(each, np.ones((4, 4, *[1] * (each.ndim - 2)), each.dtype))
             for each in (picture, mask, room)]
    sharp = behind_person(large[0], large[1], large[1].shape, "keep", large[2])
    brighter = np.kron(room + light, np.ones((4, 4, 1)))
    assert np.abs(sharp - brighter)[large[1] > 0].mean() < 4         # nothing of it is made smooth


def test_a_hole_is_filled_at_a_size_of_its_own(monkeypatch):
    """However large the photograph is."""
    sizes = []
    monkeypatch.setattr(backgrounds, "continued", lambda scene: sizes.append(
        tuple(scene.behind.shape[-2:])) or scene)
    picture, mask = np.zeros((1500, 600, 3), np.uint8), np.zeros((1500, 600), np.float32)
    mask[100:900, 200:300] = 1                                   # 800 rows and a margin are 1000
    assert behind_person(picture, mask, picture.shape[:2], "keep").shape == picture.shape
    assert sizes == [(384, 154)]
    behind_person(picture[:120, :60], mask[80:200, 190:250], (120, 60), "keep")
    assert sizes[1:] == [(120, 60)]


@pytest.mark.parametrize("change, says", [
    ({"mask": np.zeros((3, 3), bool)}, r"mask: expected numbers \[120, 160\], found \(3, 3\) bool"),
    ({"mask": np.full(ROOM, 2.0)}, "mask: expected values from 0 to 1, found some from 2 to 2"),
    ({"background": "black"}, "background 'black': expected keep, white or a picture"),
    ({"background": np.zeros((3, 3, 3), np.uint8)},
     r"background: expected a picture of the target frame, \[120, 160, 3\] uint8"),
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
