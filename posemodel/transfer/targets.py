"""The target poses of a transfer out of files of joints: one person, in every frame."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from posemodel.poses.files import choose_person, read_pictures, read_poses
from posemodel.poses.film import Track, choose_track, smoothed, tracks, without_gaps
from posemodel.poses.layouts import Pose
from posemodel.poses.pictures import counted
from posemodel.runtime.errors import UserError
from posemodel.transfer.output import Target

_NAMED = 8  # frames that a message names one by one


@dataclass(kw_only=True)
class Targets:
    """What is to be made, and what has been decided about it."""

    targets: list[Target]
    remarks: list[str] = field(default_factory=list)
    """for people, a line each"""
    record: dict | None = None
    """for transfer.json: of whom a film is; None for poses that are no frames"""


def read_targets(files: Sequence[Path], arguments: argparse.Namespace,
                 size: tuple[int, int]) -> Targets:
    """All target poses in their order, under names that differ.

    Args:
        files: of joints, in the order of the film.
        arguments: `format`, `units`, `target_name`, `target_size`, `person`, `every_person` and
            `smooth` of the command.
        size: (H, W) of the frame of poses whose files do not state it.

    Raises: `UserError`.
    """
    default = tuple(arguments.target_size or size)
    options = {"format": arguments.format, "units": arguments.units, "image_size": default}
    read: list[tuple[Path, list[Pose]]] = []  # each picture of each file
    film = not arguments.target_name
    for file in files:
        if arguments.target_name:
            read += [(file, read_poses(file, name=name, **options))
                     for name in arguments.target_name]
            continue
        pictures = read_pictures(file, **options)
        read += [(file, people) for people in pictures.people]
        # Pictures with names of their own are of a data set.
        film = film and (pictures.film or len(pictures.people) == 1)
    read = _with_left_out(read)
    frames = [people for _, people in read]
    if not any(frames):
        where = files[0] if len(files) == 1 else f"{files[0]} and the {len(files) - 1} after it"
        raise UserError(f"{where}: nobody was found: there is no person with a visible joint")
    result = Targets(targets=[])
    if arguments.every_person:
        poses = [(file, pose) for file, people in read for pose in people]
    elif film:
        track = choose_track(found := tracks(frames), arguments.person)
        whole = without_gaps(track)
        poses = [(file, pose) for (file, _), pose in zip(read, whole, strict=True)]
        result.remarks, result.record = _about(found, track, len(frames))
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
