"""Files of joints, of any common pose estimator or data set, read into the 18 OpenPose joints.

| file | content | of a film |
|---|---|---|
| OpenPose JSON | `people[].pose_keypoints_2d`; ControlNet's, DWPose's, tf-pose's | a list of them |
| OpenPose text | `NAME_candidate.txt` and `NAME_subset.txt` side by side | |
| COCO JSON | `annotations`, or a list of results by image | numbered images |
| AlphaPose JSON | a list of results by image | numbered images |
| MMPose JSON | `predictions`, `instances` | a list, also in `instance_info` |
| Ultralytics | JSON of `to_json`, text of `save_txt` | a list of the JSON lists |
| MediaPipe JSON | lists of 33 `{"x", "y", "visibility"}`, at any depth | a list of results |
| annotation csv | PATN's, see `annotations` | numbered images |
| `.npy`, `.npz`, text, JSON | `[K, 2..4]`, `[P, K, 2..4]` | `[T, P, K, 2..4]`, `[T, K, 2..4]` |

What a file is, its content says. How the joints of an array are ordered, its number of rows says;
`format` (a key of `layouts.LAYOUTS`) decides where it does not. What its numbers count in, they
show; `units` (one of `units.UNITS`) decides where they do not.
"""

import difflib
import json
import math
import tokenize
import zipfile
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from posemodel.poses.annotations import read_annotations
from posemodel.poses.json_files import from_json
from posemodel.poses.layouts import Pose, as_stated, in_pixels, split_format
from posemodel.poses.pictures import Pictures, by_image, prominence
from posemodel.poses.text_files import from_rows, from_text, read_text
from posemodel.runtime.errors import UserError

# What the arrays of a .npz file are called.
_KEYPOINTS = ("keypoints", "keypoints_2d", "kpts", "joints", "poses", "pose")
_SCORES = ("scores", "keypoint_scores", "confidence", "conf", "score")


def read_pictures(path: str | Path, *, format: str | None = None, units: str | None = None,
                  image_size: tuple[int, int] | None = None,
                  threshold: float | None = None) -> Pictures:
    """Everybody with a visible joint in each picture of a file, which may be nobody.

    Args:
        path: see the table of this module.
        format: key of `layouts.LAYOUTS`; None: as the content says, refused where it does
            not.
        units: one of `units.UNITS`; None: as the numbers show, refused where they do not.
        image_size: (H, W) of the image; needed where the joints are no pixels.
        threshold: smallest confidence of a joint that counts as seen, 0..1. None: as the
            estimator's own drawings.

    Raises: `UserError` with the file and the place in it.
    """
    pictures = _read(Path(path), format, units, image_size, threshold)
    return replace(pictures, people=[[pose for pose in people if pose.present.any()]
                                     for people in pictures.people])


def read_poses(path: str | Path, *, format: str | None = None, units: str | None = None,
               name: str | None = None, frame: int | None = None,
               image_size: tuple[int, int] | None = None,
               threshold: float | None = None) -> list[Pose]:
    """Everybody in a file of joints of one picture, or of pictures with names, in its order.

    Args:
        name: only those of this image, for files of many images.
        frame: only those of this frame, from 0, for films.
        path, format, units, image_size, threshold: see `read_pictures`.

    Returns: at least one pose; people without any joint are left out.

    Raises: `UserError` with the file and the place in it; also for a film without `frame`.
    """
    pictures = _read(Path(path), format, units, image_size, threshold)
    chosen = pictures.people
    if frame is not None:
        if not 0 <= frame < len(chosen):
            raise UserError(f"{path}: has no frame {frame}; expected 0 to {len(chosen) - 1}")
        chosen = [chosen[frame]]
    elif pictures.film and any(chosen) and not any(
            pose.name for people in chosen for pose in people):
        raise UserError(
            f"{path}: is a film of {len(chosen)} frames, where the joints of one picture are "
            f"expected; write one of its frames (0 to {len(chosen) - 1}) to a file of its own: "
            "python -m posemodel.data pose IMAGE FILM --frame N --json FILE")
    poses = [pose for people in chosen for pose in people]
    if name is not None:
        poses = _named(path, poses, name)
    where = f" in frame {frame}" if frame is not None else f" in {name}" if name is not None else ""
    seen = [pose for pose in poses if pose.present.any()]
    if not seen:
        why = "no person with a visible joint" if poses else "the list of people is empty"
        raise UserError(f"{path}: nobody was found{where}: {why}")
    return seen


def people_of_image(poses: list[Pose], image: str, *, where: str,
                    otherwise: str = "give one with --name") -> list[Pose]:
    """Those of a file's poses that belong to an image; those of a file of one image, whatever it
    calls it: `data.pose_checks.check_pose` warns of another name.

    Args:
        image: its name.
        where: what messages call the file.
        otherwise: what to do where the file has other images only, for that message.

    Raises: `UserError` in that case.
    """
    names = {pose.name for pose in poses}
    if len(names) == 1:
        return poses
    people = [pose for pose in poses if pose.name == image] or [
        pose for pose in poses if pose.name and same_image(pose.name, image)]
    if not people:
        raise UserError(f"{where} holds joints of {len(names)} images and none of {image}; "
                        + otherwise)
    return people


def same_image(name: str, image: str) -> bool:
    """Whether a file of joints means this image: it may name it with folders, with another ending,
    or by its number, as COCO's results do."""
    first, second = (PurePosixPath(each.replace("\\", "/")) for each in (name, image))
    stems = {path.stem for path in (first, second)}
    return len({int(stem) if stem.isdecimal() else stem.lower() for stem in stems}) == 1


def choose_person(poses: list[Pose], number: int | None = None, flag: str = "--person") -> Pose:
    """Person `number` of a file or, where that is None, the one with the most joints; among equals
    the one that fills the larger box. Raises: `UserError`, which calls the number `flag`, where
    nobody has it."""
    if number is None:
        return max(poses, key=prominence)
    for pose in poses:
        if pose.person == number:
            return pose
    numbers = ", ".join(str(pose.person) for pose in poses)
    raise UserError(f"{flag} {number}: people with joints here: {numbers}")


def openpose_json(poses: list[Pose], size: tuple[int, int]) -> str:
    """OpenPose JSON with 18 joints a person; confidences are 0 or 1.

    Args:
        poses: people of one picture.
        size: (H, W) of that picture; kept as `canvas_height` and `canvas_width`.
    """
    people = [{"person_id": [-1], "pose_keypoints_2d": [float(v) for v in pose.joints.ravel()]}
              for pose in poses]
    document = {"version": 1.3, "people": people, "canvas_height": size[0], "canvas_width": size[1]}
    return json.dumps(document) + "\n"


# --- what kind of file it is ----------------------------------------------------------------------


def _read(path: Path, format: str | None, units: str | None, image_size: tuple[int, int] | None,
          threshold: float | None) -> Pictures:
    """As `read_pictures`, with people without joints."""
    format, units = split_format(format, units)
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    convert = partial(as_stated, format=format, threshold=threshold)
    pictures = _as_stated(path, content, format, convert)
    return pictures.mapped(partial(in_pixels, units=units, image_size=image_size, where=str(path)))


def _as_stated(path: Path, content: bytes, format: str | None, convert) -> Pictures:
    if content.startswith(b"\x93NUMPY"):
        return from_rows(_from_npy(path), str(path), convert)
    if content.startswith(b"PK"):
        return from_rows(_from_npz(path), str(path), convert)
    text = read_text(path, content)
    if not text:
        if path.suffix == ".txt":  # Ultralytics' labels of a picture without anybody
            return Pictures(people=[[]])
        raise UserError(f"{path}: is empty")
    if text[0] in "{[":
        return from_json(_parse(text, str(path)), str(path), format, convert)
    if "keypoints_" in text.split("\n", 1)[0]:
        return _from_patn(path, format)
    return from_text(path, text, format, convert)


def _parse(text: str, where: str):
    def constant(word: str) -> float:
        if word == "NaN":  # Python's own; a joint that is missing
            return math.nan
        raise UserError(f"{where}: {word} is no JSON number")

    def parsed(part: str, place: str):
        try:
            return json.loads(part, parse_constant=constant)
        except UserError:
            raise
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: broken JSON ({error})") from error

    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    # A document on every line, one for each frame of a film.
    if len(lines) > 1 and all(line.strip().startswith("{") and line.strip().endswith("}")
                              for _, line in lines):
        return [parsed(line, f"{where}, line {number}") for number, line in lines]
    return parsed(text, where)


def _from_npy(path: Path) -> np.ndarray:
    try:
        # A mapped file is not read beyond its end, whatever size its header claims.
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError, TypeError, KeyError, OverflowError,
            tokenize.TokenError) as error:
        raise UserError(f"{path}: broken .npy file ({error})") from error


def _from_npz(path: Path) -> np.ndarray:
    """The joints of an archive, with their confidences as the last column where it has some."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = archive.files
            found = [name for name in _KEYPOINTS if name in names] or names[:len(names) == 1]
            arrays = [archive[name] for name in
                      (*found[:1], *(name for name in _SCORES if name in names))]
    except (ValueError, OSError, EOFError, SyntaxError, TypeError, KeyError, OverflowError,
            tokenize.TokenError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError,
            MemoryError) as error:
        raise UserError(f"{path}: broken .npz file ({error})") from error
    if not found:
        raise UserError(f"{path}: has the arrays {', '.join(names[:10]) or 'none'}; expected "
                        f"joints under one of the names {', '.join(_KEYPOINTS)}")
    joints, *scores = arrays
    if not scores or not all(array.dtype.kind in "iuf" for array in arrays):
        return joints
    confidence = scores[0][..., 0] if scores[0].ndim == joints.ndim else scores[0]
    if confidence.shape != joints.shape[:-1]:
        raise UserError(f"{path}: joints of the shape {joints.shape} with scores of the shape "
                        f"{scores[0].shape}")
    return np.concatenate([joints[..., :2], confidence[..., None]], axis=-1)


def _from_patn(path: Path, format: str | None) -> Pictures:
    if format not in (None, "openpose18"):
        raise UserError(f"{path}: an annotation file holds openpose18, not {format}")
    names, joints = read_annotations(path)
    poses = [Pose(joints=rows, format="openpose18", name=row_name)
             for row_name, rows in zip(names, joints, strict=True)]
    if not poses:
        raise UserError(f"{path}: has a header but no rows")
    return by_image(poses)


# --- names ----------------------------------------------------------------------------------------


def _named(path: Path, poses: list[Pose], name: str) -> list[Pose]:
    if all(pose.name is None for pose in poses):
        raise UserError(f"{path}: names no images, so there is no {name} to find")
    matching = [pose for pose in poses if pose.name == name]
    if not matching:
        near = difflib.get_close_matches(name, [pose.name for pose in poses if pose.name], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{path}: no joints of {name}{hint}")
    return matching
