"""What is behind the person of a shot, as files."""

import numpy as np
from PIL import Image

from posemodel.data.plates import plate_files, write_plate


def shot(folder, pictures, masks):
    """Files of some frames."""
    for name, frames in (("image", pictures), ("mask", masks)):
        for index, frame in enumerate(frames):
            Image.fromarray(frame).save(folder / f"{name}{index}.png")
    return tuple([folder / f"{name}{index}.png" for index in range(len(pictures))]
                 for name in ("image", "mask"))


def test_what_nobody_has_seen_is_made_up_and_marked(tmp_path) -> None:
    room = np.full((64, 64, 3), (90, 140, 200), np.uint8)
    masks = np.zeros((4, 64, 64), np.uint8)
    masks[:, 20:40, 20:30] = 255
    pictures = np.where(masks[..., None] > 0, np.uint8(7), room)
    files = shot(tmp_path, pictures, masks)
    assert write_plate(tmp_path / "plates" / "dance.v2_s0", *files)
    picture, known = plate_files(tmp_path / "plates" / "dance.v2_s0")
    assert {file.name for file in picture.parent.iterdir()} == {picture.name, known.name} == {
        "dance.v2_s0.png", "dance.v2_s0_known.png"}
    assert np.array_equal(np.asarray(Image.open(known)), 255 - masks[0])
    assert np.abs(np.asarray(Image.open(picture)).astype(int) - room).max() < 12


def test_a_camera_that_moves_leaves_nothing(tmp_path) -> None:
    room = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    masks = np.zeros((6, 64, 64), np.uint8)
    files = shot(tmp_path, np.stack([np.roll(room, index, 0) for index in range(6)]), masks)
    assert not write_plate(tmp_path / "plates" / "walk_s0", *files)
    assert not (tmp_path / "plates").exists()


def test_of_many_frames_some_are_looked_at(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("posemodel.data.plates._FRAMES", 4)
    room = np.full((32, 32, 3), 90, np.uint8)
    images, masks = shot(tmp_path, np.stack([room] * 10), np.zeros((10, 32, 32), np.uint8))
    for index in (1, 2, 4, 5, 7, 8):
        images[index].unlink()
    assert write_plate(tmp_path / "plates" / "long_s0", images, masks)
