"""What is behind the person of a shot, as files of a data set of films (see `pictures.plate`)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from posemodel.data.dataset_folder import encode_png
from posemodel.data.images import read_image
from posemodel.pictures.inpainting import completed
from posemodel.pictures.plate import clean_plate, unsteadiness
from posemodel.runtime.files import write_aside

_FRAMES = 75  # of a shot, at most, evenly spread
_STEADY = 8.0  # of 255: by which the background of a frame may be off where a camera stands still


def write_plate(shot: Path, images: Sequence[Path], masks: Sequence[Path]) -> bool:
    """Write what is behind the person of some frames, if they say so.

    Args:
        shot: the name of the files without their ends, `.png` and `_known.png`.
        images, masks: files of the frames.

    Returns: whether the camera stands so still that it is known.
    """
    chosen = np.linspace(0, len(images) - 1, min(len(images), _FRAMES)).round().astype(int)
    pictures = np.stack([read_image(images[at]) for at in chosen])
    people = np.stack([read_image(masks[at])[..., 0] for at in chosen])
    plate, known = clean_plate(pictures, people)
    if unsteadiness(pictures, people, plate, known) > _STEADY:
        return False
    shot.parent.mkdir(exist_ok=True)
    plate = completed(plate, ~known)  # for people: nothing of it is taken to be known
    for file, picture in zip(plate_files(shot), (plate, 255 * known.astype(np.uint8)), strict=True):
        write_aside(file, encode_png(picture))
    return True


def plate_files(shot: Path) -> tuple[Path, Path]:
    """The picture, and where it is known."""
    return shot.with_name(f"{shot.name}.png"), shot.with_name(f"{shot.name}_known.png")
