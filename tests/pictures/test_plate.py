"""What a camera sees without the person who moves before it."""

import numpy as np
import pytest

from posemodel.pictures.plate import background, clean_plate, unsteadiness

FRAMES, SIZE = 12, 128


@pytest.fixture
def shot():
    """A room of noise, its frames and masks: somebody walks through it, and never leaves the
    floor; a pixel on the right is seen so many times as it is away from column 120."""
    room = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    masks = np.zeros((FRAMES, SIZE, SIZE), np.uint8)
    masks[:, 100:] = 255
    for frame in range(FRAMES):
        masks[frame, 20:100, 8 * frame : 8 * frame + 30] = 255
    for times in range(8):
        masks[times:, :20, 120 + times] = 255
    return room, np.where(masks[..., None] > 0, np.uint8(7), room[None]), masks


def test_the_room_without_the_person(shot):
    room, pictures, masks = shot
    plate, known = clean_plate(pictures, masks)
    assert np.array_equal(plate[known], room[known]) and known[:98].mean() > 0.9
    assert known[5, 120:].tolist() == [times >= 3 for times in range(8)]
    assert not known[100:].any() and not plate[~known].any()
    assert unsteadiness(pictures, masks, plate, known) == 0


def test_each_pixel_is_the_median_of_where_the_person_is_not(shot):
    _, pictures, masks = shot
    noise = np.random.default_rng(1).integers(0, 60, pictures.shape)
    pictures = np.minimum(pictures.astype(int) + noise, 255).astype(np.uint8)
    plate, known = clean_plate(pictures, masks)
    away = background(masks)
    for row, column in ((0, 0), (50, 64), (97, 127), (31, 33)):
        times = away[:, row, column]
        assert known[row, column] == (times.sum() >= 3)
        if known[row, column]:
            expected = np.median(pictures[times, row, column], 0)
            assert np.array_equal(plate[row, column], expected.astype(np.uint8))


def test_a_tenth_of_a_mask_is_nobody():
    assert background(np.array([[[0, 25, 26, 255]]], np.uint8)).tolist() == [[[True, True, False,
                                                                              False]]]


def test_a_camera_that_moves(shot):
    room, _, masks = shot
    pictures = np.stack([np.roll(room, 5 * frame, 1) for frame in range(FRAMES)])
    assert unsteadiness(pictures, masks, *clean_plate(pictures, masks)) > 50
    whole = np.full_like(masks, 255)
    assert unsteadiness(pictures, whole, *clean_plate(pictures, whole)) == float("inf")
