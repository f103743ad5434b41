"""The person of a transfer: photographs, the joints in them, and which pixels are the person's."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from posemodel.data.images import ImageError, read_image
from posemodel.inference.background import BACKGROUNDS
from posemodel.pictures.inpainting import filling
from posemodel.poses.estimator import Estimator, Person, choose_found, people_in
from posemodel.poses.files import choose_person, people_of_image, read_poses
from posemodel.poses.layouts import Pose
from posemodel.poses.likeness import most_alike
from posemodel.poses.pictures import distance
from posemodel.runtime.errors import UserError

if TYPE_CHECKING:
    from posemodel.transfer.output import Target

# How far joints of a file may be from those that an estimator finds, in sizes of the person.
_SAME_PERSON = 0.2


@dataclass(kw_only=True, eq=False)
class Source:
    """Who is to move."""

    file: Path
    image: np.ndarray
    """`[H, W, 3]` uint8"""
    pose: Pose
    mask: np.ndarray | None
    """`[H, W]` float32, 0 to 1; None: not known"""
    plate: np.ndarray | None = None
    """the same place without them, as `image`; None: not known"""
    holes: str = ""
    """what fills the hole behind them, for people"""
    remarks: list[str] = field(default_factory=list)
    """for people, a line each"""

    @property
    def frame(self) -> tuple[int, int]:
        """(H, W) of the photograph."""
        return self.image.shape[:2]


def read_sources(arguments: argparse.Namespace, estimator: Estimator) -> list[Source]:
    """The photographs with their joints, from a file or found in them, and their masks, where these
    are at hand or asked for. All but the first, in whose frame and place everything happens, show
    the same person in other poses.

    Args:
        arguments: `image`, `source_pose`, `source_person`, `format`, `units`, `name`, `mask` and
            `background` of the command.

    Raises: `UserError`.
    """
    first, *others = arguments.image
    plate = arguments.background
    if plate in (None, *BACKGROUNDS, "model"):
        plate = None
    sources = [_read_source(first, arguments, estimator, plate)]
    sources += [_read_source(file, arguments, estimator, None) for file in others]
    return sources


def source_of_each(sources: list[Source], targets: Sequence["Target"]) -> list[Source]:
    """For each target the source whose pose is most like it."""
    chosen = most_alike(np.stack([source.pose.joints for source in sources]),
                        np.stack([target.pose.joints for target in targets]))
    return [sources[index] for index in chosen]


def _read_source(file: Path, arguments: argparse.Namespace, estimator: Estimator,
                 background: str | None) -> Source:
    """One of them; `background`: a picture of its place without the person."""
    image = read_image(file)
    mask = None if arguments.mask is None else _read_mask(arguments.mask, image.shape[:2])
    plate = None if background is None else _read_plate(background, image.shape[:2])
    if arguments.source_pose is None:
        found = people_in(image, file, estimator)
        chosen = choose_found(found, arguments.source_person, "--source-person")
        pose, people = chosen.pose, len(found)
        mask = chosen.mask if mask is None else mask
    else:
        pose, people = _read_pose(file, arguments, image.shape[:2])
        if mask is None and arguments.background not in (None, "model"):
            mask = _mask_of(pose, people_in(image, file, estimator), file, arguments)
    source = Source(file=file, image=image, pose=pose, plate=plate,
                    mask=None if arguments.background == "model" else mask,
                    holes=filling() if plate is None else f"as in {background}")
    if people > 1:
        where = f"source {file.name}" if len(arguments.image) > 1 else "source"
        source.remarks.append(f"{where}: {people} people, number {pose.person} is taken "
                              "(--source-person N takes another)")
    return source


def _read_pose(file: Path, arguments: argparse.Namespace, size: tuple[int, int],
               ) -> tuple[Pose, int]:
    """The joints of a file, and how many people it has."""
    poses = read_poses(arguments.source_pose, format=arguments.format, units=arguments.units,
                       name=arguments.name, image_size=size)
    people = people_of_image(poses, file.name, where=str(arguments.source_pose))
    return choose_person(people, arguments.source_person, flag="--source-person"), len(people)


def _mask_of(pose: Pose, found: list[Person], file: Path, arguments: argparse.Namespace,
             ) -> np.ndarray:
    """The mask of the person whose joints a file has."""
    size = found[0].mask.shape
    own = Pose(joints=pose.joints, format=pose.format, frame=size)
    nearest = min(found, key=lambda person: distance(own, person.pose))
    if distance(own, nearest.pose) > _SAME_PERSON:
        raise UserError(f"{file}: nobody was found where the joints of "
                        f"{arguments.source_pose} are, so there is no mask for --background "
                        f"{arguments.background}; give one by --mask")
    return nearest.mask


def _read_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A grey picture: white is the person."""
    mask = read_image(path)[..., 1].astype(np.float32) / 255
    if mask.shape != size:
        raise UserError(f"--mask {path}: {mask.shape[1]} x {mask.shape[0]} pixels, expected the "
                        f"photograph's {size[1]} x {size[0]}")
    if not (mask > 0.5).any():
        raise UserError(f"--mask {path}: nothing in it is white; expected white where the person "
                        "is, black elsewhere")
    return mask


def _read_plate(name: str, size: tuple[int, int]) -> np.ndarray:
    """A picture of the same place without the person."""
    try:
        plate = read_image(name)
    except ImageError as error:
        raise UserError(f"--background {name}: expected keep, white, model, or a picture of the "
                        f"same place without the person ({error})") from error
    if plate.shape[:2] != size:
        raise UserError(f"--background {name}: {plate.shape[1]} x {plate.shape[0]} pixels, "
                        f"expected the photograph's {size[1]} x {size[0]}")
    return plate
