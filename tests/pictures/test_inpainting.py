"""Holes that are filled by what lies around: edges go on, what is known stays."""

import numpy as np
import pytest
import torch

from posemodel.model import scene as scenes
from posemodel.pictures import inpainting
from posemodel.pictures.pixels import to_tensor

needs_opencv = pytest.mark.skipif(not inpainting.opencv_version(), reason="OpenCV is not installed")


def stripes(rows: int = 96, columns: int = 120) -> np.ndarray:
    """A wall with a pattern that a smooth filling loses."""
    wave = 120 + 90 * np.sign(np.sin(np.arange(columns) * 2 * np.pi / 12))
    return np.stack([np.tile(wave, (rows, 1)), np.full((rows, columns), 60.0),
                     np.tile(255 - wave, (rows, 1))], -1).astype(np.uint8)


def hole_of(picture: np.ndarray) -> np.ndarray:
    hole = np.zeros(picture.shape[:2], bool)
    hole[30:60, 40:70] = True
    return hole


@needs_opencv
def test_a_pattern_goes_on_and_what_is_known_stays():
    picture = stripes()
    hole = hole_of(picture)
    damaged = np.where(hole[..., None], np.uint8(200), picture)
    filled = inpainting.inpaint(damaged, hole)
    assert np.array_equal(filled[~hole], picture[~hole])
    error = np.abs(filled[hole].astype(float) - picture[hole]).mean((0,))
    scene = scenes.scene_of(to_tensor(damaged, torch.device("cpu")),
                            torch.from_numpy(hole)[None, None].float())
    smooth = (scene.behind[0].movedim(0, -1).numpy() + 1) * 127.5
    assert error.max() < 25 < np.abs(smooth[hole] - picture[hole]).mean(0)[0]


@needs_opencv
@pytest.mark.parametrize("more", [0, 1, 7, 15])
@pytest.mark.parametrize("turned", [False, True])
def test_a_hole_at_the_edge_of_the_picture_has_no_other_colours(more, turned):
    """OpenCV works on whole blocks and left the rest of the last ones green: the background below
    somebody whom the picture's edge cuts off."""
    wave = 120 + 60 * np.sin(np.arange(120) / 6)
    picture = np.tile(wave[:, None], (96 + more, 1, 3)).astype(np.uint8)
    hole = np.zeros(picture.shape[:2], bool)
    hole[60:, 40:70] = True
    if turned:
        picture, hole = picture.transpose(1, 0, 2), hole.T
    filled = inpainting.inpaint(np.where(hole[..., None], np.uint8(200), picture), hole)
    assert np.ptp(filled, axis=-1).max() <= 2


@needs_opencv
def test_what_was_in_the_hole_has_no_say():
    picture, hole = stripes(), hole_of(stripes())
    made = [inpainting.inpaint(np.where(hole[..., None], np.uint8(value), picture), hole)
            for value in (0, 255)]
    assert np.array_equal(*made)


@needs_opencv
@pytest.mark.parametrize("rows, columns", [(2, 3), (9, 8), (17, 33)])
def test_small_pictures_and_holes_at_the_edge(rows, columns):
    picture = np.full((rows, columns, 3), 90, np.uint8)
    hole = np.zeros((rows, columns), bool)
    hole[: rows // 2 + 1, 1:] = True
    assert np.array_equal(inpainting.inpaint(np.where(hole[..., None], np.uint8(0), picture), hole),
                          picture)


@needs_opencv
def test_a_distant_part_of_a_large_picture_changes_nothing_and_is_not_looked_at():
    near = stripes(200, 120)
    far = np.concatenate([near, np.zeros((4000, 120, 3), np.uint8)])
    hole = np.zeros((4200, 120), bool)
    hole[30:60, 40:70] = True
    assert np.array_equal(inpainting.inpaint(far, hole)[:200], inpainting.inpaint(near, hole[:200]))


@needs_opencv
def test_the_same_hole_is_filled_once():
    picture, hole = stripes()[:, :100], hole_of(stripes()[:, :100])
    before = inpainting._filled.cache_info()
    assert np.array_equal(inpainting.inpaint(picture, hole), inpainting.inpaint(picture, hole))
    after = inpainting._filled.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == (1, 1)


@needs_opencv
def test_scenes_of_a_batch_one_with_nobody_and_one_with_nothing_else():
    sources = to_tensor(stripes(), torch.device("cpu")).repeat(3, 1, 1, 1)
    masks = torch.zeros(3, 1, *sources.shape[-2:])
    masks[0, 0, 30:60, 40:70] = 1
    masks[2] = 1
    smooth = scenes.scene_of(sources, masks)
    made = scenes.continued(smooth)
    assert torch.equal(made.behind[1:], smooth.behind[1:])
    known = (smooth.hole[:1] == 0).expand(1, 3, -1, -1)
    assert torch.equal(made.behind[:1][known], smooth.behind[:1][known])
    assert (made.behind[0] - sources[0]).abs().mean() < (smooth.behind[0]
                                                         - sources[0]).abs().mean() / 2


def test_a_picture_is_completed_with_and_without_opencv(monkeypatch):
    picture, hole = stripes(), hole_of(stripes())
    known = np.where(hole[..., None], np.uint8(0), picture)
    for version in (inpainting.opencv_version(), ""):
        monkeypatch.setattr(inpainting, "opencv_version", lambda version=version: version)
        made = inpainting.completed(known, hole)
        assert np.array_equal(made[~hole], picture[~hole])
        assert np.abs(made.astype(float) - picture)[hole].mean() < 90   # of nothing: 120
        for nothing in (np.zeros_like(hole), np.ones_like(hole)):
            assert np.array_equal(inpainting.completed(known, nothing), known)


def test_without_opencv_holes_are_smooth_and_records_say_so(monkeypatch):
    monkeypatch.setattr(scenes, "opencv_version", lambda: "")
    monkeypatch.setattr(inpainting, "opencv_version", lambda: "")
    sources = to_tensor(stripes(), torch.device("cpu"))
    mask = torch.from_numpy(hole_of(stripes()))[None, None].float()
    smooth = scenes.scene_of(sources, mask)
    assert torch.equal(scenes.continued(smooth).behind, smooth.behind)
    assert "pip install opencv-contrib-python" in inpainting.filling()
    assert inpainting.filling(plate=True).endswith(inpainting.filling())
