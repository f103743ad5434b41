"""The target poses of a transfer out of files of joints, pictures and films: one person, in every
frame."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from posemodel.data.films import Film, is_film
from posemodel.data.images import is_picture, read_image
from posemodel.poses.estimator import Estimator
from posemodel.poses.files import choose_person, read_pictures, read_poses
from posemodel.poses.film import Track, choose_track, smoothed, tracks, without_gaps
from posemodel.poses.layouts import Pose
from posemodel.poses.pictures import counted
from posemodel.poses.retarget import Mode, carried_over
from posemodel.poses.steadiness import Steadied, seconds, steadied
from posemodel.runtime.errors import UserError
from posemodel.transfer.output import Target

_POSE_FILES = (".json", ".jsonl", ".npy", ".npz", ".csv", ".txt")
_NAMED = 8  # frames that a message names one by one


@dataclass(kw_only=True)
class Targets:
    """What is to be made, and what has been decided about it."""

    targets: list[Target]
    fps: float = 0.0
    """frames per second of the film that they come from; 0: not known"""
    remarks: list[str] = field(default_factory=list)
    """for people, a line each"""
    record: dict | None = None
    """for transfer.json: of whom a film is; None for poses that are no frames"""


def read_targets(files: Sequence[Path], arguments: argparse.Namespace, size: tuple[int, int],
                 estimator: Estimator) -> Targets:
    """All target poses in their order, under names that differ.

    Args:
        files: of joints, or pictures and films in which the estimator finds them, in the order of
            the film.
        arguments: `format`, `units`, `target_name`, `target_size`, `person`, `every_person`,
            `as_found` and `smooth` of the command.
        size: (H, W) of the frame of poses whose files do not state it.

    Raises: `UserError`.
    """
    default = tuple(arguments.target_size or size)
    read, film, fps = _read(files, arguments, default, estimator)
    frames = [people for _, people in read]
    if not any(frames):
        where = files[0] if len(files) == 1 else f"{files[0]} and the {len(files) - 1} after it"
        raise UserError(f"{where}: nobody was found: there is no person with a visible joint")
    result = Targets(targets=[], fps=fps)
    if arguments.every_person:
        poses = [(file, pose) for file, people in read for pose in people]
    elif film:
        track = choose_track(found := tracks(frames), arguments.person)
        result.remarks, result.record = _about(found, track, len(frames))
        if not arguments.as_found:
            steady = steadied(track, seconds(range(len(frames)), fps))
            track = steady.track
            _note_steadied(steady, result)
        whole = without_gaps(track)
        poses = [(file, pose) for (file, _), pose in zip(read, whole, strict=True)]
    else:
        poses = [(file, choose_person(people, arguments.person)) for file, people in read if people]
    if arguments.smooth:
        # Of others than a film, too, only those that lie near each other belong together.
        shots = track.shots if film and not arguments.every_person else tracks(
            [[pose] for _, pose in poses])[0].shots
        better = smoothed([pose for _, pose in poses], shots, arguments.smooth)
        poses = [(file, pose) for (file, _), pose in zip(poses, better, strict=True)]
        result.remarks.append(f"joints smoothed over {arguments.smooth:g} frames")
    result.targets = _named(poses, default)
    units = {pose.units for _, pose in poses if pose.frame == default} - {"pixels"}
    if units and not arguments.target_size:
        result.remarks.append(
            f"target: joints in {' and '.join(sorted(units))} of a picture whose size is not "
            f"stated, taken for that of the photograph, {default[1]} x {default[0]} "
            "(--target-size H W says another)")
    return result


def _read(files: Sequence[Path], arguments: argparse.Namespace, size: tuple[int, int],
          estimator: Estimator) -> tuple[list[tuple[Path, list[Pose]]], bool, float]:
    """The people of each picture of each file, whether they are frames, and how many a second."""
    options = {"format": arguments.format, "units": arguments.units, "image_size": size}
    read: list[tuple[Path, list[Pose]]] = []
    film, fps = not arguments.target_name, 0.0
    for file in files:
        if is_film(file) or is_picture(file):
            seen, fps = _look_at(file, estimator)
            read += seen
        elif arguments.target_name:
            read += [(file, read_poses(file, name=name, **options))
                     for name in arguments.target_name]
        else:
            pictures = read_pictures(file, **options)
            read += [(file, people) for people in pictures.people]
            # Pictures with names of their own are of a data set.
            film = film and (pictures.film or len(pictures.people) == 1)
    return _with_left_out(read), film, fps


def _look_at(file: Path, estimator: Estimator) -> tuple[list[tuple[Path, list[Pose]]], float]:
    """Everybody in a picture, or in each frame of a film, and its frames per second."""
    film = Film(file) if is_film(file) else None
    frames = [read_image(file)] if film is None else film.frames()
    seen = []
    for index, frame in enumerate(frames):
        found = [person.pose for person in estimator(frame)]
        name = file.stem if film is None else f"{file.stem}_{index:04d}"
        seen.append((file.with_name(name), found))
    return seen, film.fps if film is not None else 0.0


def carried(chosen: Targets, source: Pose, frame: tuple[int, int], mode: Mode) -> Targets:
    """The same motion as the source person would make it, in the source's frame (H, W).
    Raises: `UserError` where it cannot be carried over."""
    driver = np.stack([target.pose.joints for target in chosen.targets])
    try:
        joints = carried_over(driver, source.joints, mode)
    except ValueError as error:
        raise UserError(f"--drive: {error}") from error
    targets = [replace(target, pose=replace(target.pose, joints=rows, frame=frame), frame=frame)
               for target, rows in zip(chosen.targets, joints, strict=True)]
    return replace(chosen, targets=targets)


def pose_files(paths: Sequence[Path], flag: str) -> list[Path]:
    """The files, and those of the folders, frame 2 before frame 10. Raises: `UserError` for a
    folder without any, naming the flag."""
    files = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        # OpenPose's two text files of a picture are read as one.
        inside = [file for file in path.iterdir() if file.suffix.lower() in _POSE_FILES
                  and not file.name.startswith(".") and not file.name.endswith("_subset.txt")]
        if not inside:
            raise UserError(f"{flag} {path}: no files of joints in this folder "
                            f"({', '.join(_POSE_FILES)})")
        files += sorted(inside, key=lambda file: [
            (0, int(part), "") if part.isdecimal() else (1, 0, part)
            for part in re.split(r"(\d+)", file.name)])
    return files


def _with_left_out(read: list[tuple[Path, list[Pose]]]) -> list[tuple[Path, list[Pose]]]:
    """Ultralytics writes no text file for a frame without anybody: there the numbers tell."""
    poses = [pose for _, people in read for pose in people]
    files = list(dict.fromkeys(file for file, _ in read))
    if not all(file.suffix == ".txt" for file in files) or len(files) < len(read) or not all(
            pose.format == "coco17" and pose.units == "fractions" for pose in poses):
        return read
    film = []
    for index in counted([file.name for file in files]) or range(len(read)):
        film.append(read[index] if index is not None else (film[-1][0], []))
    return film


def _about(found: list[Track], track: Track, frames: int) -> tuple[list[str], dict | None]:
    """Of whom the film is, and of which frames that is made up, for people and for the record."""
    gaps = [index for index in range(frames) if index not in track.poses]
    cuts = [index for index in range(1, frames) if track.shots[index] != track.shots[index - 1]]
    remarks = []
    if len(found) > 1 and frames == 1:
        remarks.append(f"target: {len(found)} people, number {track.number} is taken (--person N "
                       "takes another, --every-person all)")
    elif len(found) > 1:
        remarks.append(f"film: {len(found)} people in {frames} frames, number {track.number} is "
                       f"followed, found in {len(track.poses)} (--person N follows another)")
    if len(found) > 1 and cuts:
        remarks.append(f"film: cut before frame {_list(cuts)}, where nobody is near where anybody "
                       "was; who stands out most is followed on")
    if gaps:
        who = f"number {track.number}" if len(found) > 1 else "the person"
        remarks.append(f"film: {who} was not found in {len(gaps)} of {frames} frames "
                       f"({_list(gaps)}); filled from those around")
    if frames == 1:
        return remarks, None
    return remarks, {"frames": frames, "people": len(found), "person": track.number,
                     "found_in": len(track.poses), "filled": gaps, "cuts": cuts}


def _note_steadied(steady: Steadied, result: Targets) -> None:
    """What was put right in a film, for people and for the record."""
    for frames, what in ((steady.exchanged, "left and right, found the wrong way round, were "
                          "exchanged"), (steady.jumps, "the joints jump away and back; they were "
                                         "put between those around")):
        if frames:
            result.remarks.append(f"film: in {len(frames)} frames ({_list(frames)}) {what} "
                                  "(--as-found leaves them)")
    if result.record is not None:
        result.record |= {"exchanged": steady.exchanged, "jumps": steady.jumps}


def _list(numbers: list[int]) -> str:
    words = ", ".join(map(str, numbers[:_NAMED]))
    return f"{words} and {len(numbers) - _NAMED} more" if len(numbers) > _NAMED else words


def _named(poses: list[tuple[Path, Pose]], default: tuple[int, int]) -> list[Target]:
    digits = len(str(len(poses) - 1))
    targets = []
    for index, (file, pose) in enumerate(poses):
        stem = re.sub(r"[^\w.-]+", "_", Path(pose.name or file.name).stem)[:80] or "pose"
        name = stem if len(poses) == 1 else f"{index:0{digits}d}_{stem}"
        targets.append(Target(name=name, file=file, pose=pose, frame=pose.frame or default))
    return targets
