"""Joints and masks of the people in a picture, by an estimator that others have trained.

`Estimator` is the face that any of them has; MediaPipe's PoseLandmarker stands behind it.
"""

import contextlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from posemodel.poses.files import choose_person
from posemodel.poses.layouts import Pose, from_array
from posemodel.runtime.errors import UserError
from posemodel.runtime.weights import PublishedWeights

_MOST_PEOPLE = 16
_LANDMARKS = "mediapipe33"

POSE_LANDMARKER = PublishedWeights(
    what="finding joints in pictures", plain="pose_landmarker_full.task",
    url="https://storage.googleapis.com/mediapipe-models/pose_landmarker/pose_landmarker_full/"
        "float16/1/pose_landmarker_full.task",
    otherwise="or give a file of joints")


@dataclass(frozen=True, kw_only=True, eq=False)
class Person:
    """Somebody in a picture."""

    pose: Pose
    """joints in pixels of the picture"""
    mask: np.ndarray
    """`[H, W]` float32, 0 to 1: how much of each pixel is this person"""


Estimator = Callable[[np.ndarray], list[Person]]
"""A picture `[H, W, 3]` uint8 -> everybody in it with at least one joint, who covers most of it
first; their `pose.person` counts from 0 in this order. Nobody: an empty list."""


@contextlib.contextmanager
def pose_estimator(folder: str | Path = "") -> Iterator[Estimator]:
    """An estimator for as long as the block lasts; it starts with the first picture.

    Args:
        folder: of `--weights`, see `PublishedWeights`.

    The first picture raises: `UserError` where its package or its model cannot be had, or the model
    is damaged.
    """
    with contextlib.ExitStack() as stack:
        started: list[Estimator] = []

        def found(picture: np.ndarray) -> list[Person]:
            if not started:
                started.append(stack.enter_context(_mediapipe(folder)))
            return started[0](picture)

        yield found


@contextlib.contextmanager
def _mediapipe(folder: str | Path) -> Iterator[Estimator]:
    why = missing_package()
    if why:
        raise UserError(f"finding joints in pictures needs MediaPipe: {why}; or give a file of "
                        "joints")
    path = POSE_LANDMARKER.find(folder)
    with _without_its_log():
        import mediapipe
        from mediapipe.tasks.python import BaseOptions, vision

        options = vision.PoseLandmarkerOptions(
            base_options=BaseOptions(model_asset_path=str(path)),
            num_poses=_MOST_PEOPLE, output_segmentation_masks=True)
        try:
            landmarker = vision.PoseLandmarker.create_from_options(options)
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"{path}: no model of MediaPipe's PoseLandmarker, or a damaged one; "
                            "delete it and fetch it again") from error

    def found(picture: np.ndarray) -> list[Person]:
        image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB,
                                data=np.ascontiguousarray(picture))
        with _without_its_log():
            result = landmarker.detect(image)
            # The masks are views of memory that goes with the result.
            masks = [mask.numpy_view().reshape(picture.shape[:2]).astype(np.float32)
                     for mask in result.segmentation_masks or ()]
        rows = [np.array([[mark.x, mark.y, mark.z, mark.visibility] for mark in marks])
                for marks in result.pose_landmarks]
        return people(rows, masks, picture.shape[:2])

    try:
        yield found
    finally:
        # Left to the interpreter's exit, it complains.
        with _without_its_log():
            landmarker.close()


def people(landmarks: list[np.ndarray], masks: list[np.ndarray],
           size: tuple[int, int]) -> list[Person]:
    """What MediaPipe says of a picture, in the order of `Estimator`.

    Args:
        landmarks: of each person `[33, 4]`: x, y as fractions of the picture, depth, visibility.
        masks: of each person `[H, W]`.
        size: (H, W).
    """
    both = sorted(zip(landmarks, masks, strict=True), key=lambda one: -float(one[1].sum()))
    poses = [from_array(rows, _LANDMARKS, image_size=size) for rows, _ in both]
    seen = [(pose, mask) for pose, (_, mask) in zip(poses, both, strict=True)
            if pose.present.any()]
    return [Person(pose=replace(pose, person=number, units="pixels"), mask=mask)
            for number, (pose, mask) in enumerate(seen)]


def people_in(image: np.ndarray, path: Path, estimator: Estimator) -> list[Person]:
    """Everybody in a picture. Raises: `UserError` where there is nobody."""
    found = estimator(image)
    if not found:
        raise UserError(f"{path}: nobody was found in this picture; try one that shows a person as "
                        "a whole, or give a file of joints")
    return found


def choose_found(found: list[Person], number: int | None, flag: str) -> Person:
    """Person `number`, or where that is None the one who covers most of the picture. Raises:
    `UserError` where nobody has that number."""
    if number is None:
        return found[0]
    pose = choose_person([person.pose for person in found], number, flag=flag)
    return next(person for person in found if person.pose is pose)


def missing_package() -> str:
    """Why pictures cannot be looked at; empty if they can."""
    if importlib.util.find_spec("mediapipe") is None:
        return "the package mediapipe is not installed (pip install -e '.[pose]')"
    return ""


@contextlib.contextmanager
def _without_its_log() -> Iterator[None]:
    """Keeps off the terminal what C++ code writes to stderr at every start; it is shown where the
    block fails for a reason that nobody foresaw."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        except UserError:
            raise
        except BaseException:
            log.seek(0)
            os.write(kept, log.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
