"""`python -m posemodel.transfer`: a person in a photograph, in new poses."""

import argparse
import itertools
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from posemodel.runtime.errors import UserError
from posemodel.runtime.main import run_main

if TYPE_CHECKING:  # `--help` needs none of these
    import numpy as np

    from posemodel.inference.model import PoseTransferModel
    from posemodel.poses.layouts import Pose
    from posemodel.transfer.output import OutputFolder, Target
    from posemodel.transfer.targets import Targets

_WARNED = 3  # target poses whose warnings are said one by one
_POSE_FILES = (".json", ".jsonl", ".npy", ".npz", ".csv", ".txt")


def main(argv: list[str]) -> int:
    """Puts the person of a photograph into new poses. Writes a contact sheet and, for each pose,
    the finished picture, the photograph moved by the flow alone, the flow, its picture, the
    visibility and the skeleton; of several poses also an animation."""
    parser = argparse.ArgumentParser(prog="python -m posemodel.transfer", description=main.__doc__)
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN",
                        help="run folder, or a .safetensors file of posemodel.export (default: the "
                        "newest run in runs/, else the model that comes with the package)")
    parser.add_argument("--image", type=Path, required=True, metavar="FILE",
                        help="photograph of the person: JPEG, PNG, WebP, BMP")
    parser.add_argument("--source-pose", type=Path, required=True, metavar="FILE",
                        help="the joints in it: OpenPose, COCO, AlphaPose, MMPose, Ultralytics, "
                        "MediaPipe (JSON), annotation csv, OpenPose's and Ultralytics' text, "
                        "arrays (.npy, .npz, text, JSON)")
    parser.add_argument("--target-pose", type=Path, required=True, nargs="+", metavar="FILE",
                        help="files of joints, of pictures or of films, or folders of such files, "
                        "in the order of the film")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR",
                        help="folder for the results; new or empty")
    parser.add_argument("--overwrite", action="store_true",
                        help="replace the results of an earlier transfer in DIR")
    parser.add_argument("--format", metavar="FORMAT",
                        help="order of the joints, where the files leave it open: openpose18, "
                        "body25, coco17, halpe26, wholebody133, halpe136, mediapipe33")
    parser.add_argument("--units", metavar="UNITS",
                        help="what the joints are counted in, where the files leave it open: "
                        "pixels, fractions (of the picture, 0..1), centred (-1..1)")
    parser.add_argument("--name", metavar="ROW",
                        help="image name of the source pose in a file of many images (default: "
                        "the name of the photograph)")
    parser.add_argument("--target-name", nargs="+", metavar="ROW",
                        help="image names of the target poses in a file of many images (default: "
                        "all of them)")
    parser.add_argument("--person", type=int, metavar="N",
                        help="which person of the target poses, by its number in the first of "
                        "them; it is followed through the film (default: the one with the most "
                        "joints)")
    parser.add_argument("--source-person", type=int, metavar="N",
                        help="which person of the source pose (default: the one with the most "
                        "joints)")
    parser.add_argument("--every-person", action="store_true",
                        help="every person of a target file is a pose of its own")
    parser.add_argument("--smooth", type=float, nargs="?", const=1.0, metavar="FRAMES",
                        help="less jitter: joints are smoothed over time by that many frames (1 "
                        "where no number is given)")
    parser.add_argument("--target-size", type=int, nargs=2, metavar=("H", "W"),
                        help="frame of the target poses whose files do not state it (default: that "
                        "of the photograph)")
    parser.add_argument("--fit", choices=("person", "frame"), default="person",
                        help="person: who is small in the picture is cut out for the model; frame: "
                        "it sees the whole picture (default: person)")
    parser.add_argument("--fps", type=float, metavar="N",
                        help="pictures per second of the animation (default: 2, from 12 poses on "
                        "12)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N",
                        help="poses worked on at a time (default: 8)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    return transfer(parser.parse_args(argv))


def transfer(arguments: argparse.Namespace) -> int:
    """Read, check, compute, write. Raises: `UserError`; nothing is written before all is read."""
    from posemodel.data.images import read_image
    from posemodel.data.pose_checks import check_pose
    from posemodel.inference.model import PoseTransferModel
    from posemodel.transfer.output import OutputFolder, planned_files
    from posemodel.transfer.targets import read_targets

    _check_numbers(arguments)
    image = read_image(arguments.image)
    frame = image.shape[:2]
    source_pose, people = _source_pose(arguments, frame)
    chosen = read_targets(_pose_files(arguments.target_pose), arguments, frame)
    targets = chosen.targets
    named = None if arguments.name else arguments.image.name
    warnings = [check_pose(source_pose, frame, named, image),
                *(check_pose(target.pose, target.frame) for target in targets)]
    folder = OutputFolder(arguments.out, planned_files(targets), overwrite=arguments.overwrite)
    model = PoseTransferModel.choose(arguments.run, arguments.device)
    print(f"model: {model.summary}")
    if model.about:
        print(model.about)
    for line in [*_said(warnings, targets), *_of_several(source_pose, people), *chosen.remarks]:
        print(line)
    record = _record(arguments, model, source_pose, frame, chosen, warnings)
    with folder.writing(record):
        _write(arguments, folder, model, image, source_pose, targets, record)
    poses = "pose" if len(targets) == 1 else "poses"
    print(f"{len(targets)} {poses} in {record['seconds']:.2f} s")
    print(f"contact sheet: {arguments.out / 'contact_sheet.png'}")
    print(f"pictures: {arguments.out / 'refined'} and the folders beside it")
    return 0


def _record(arguments: argparse.Namespace, model: "PoseTransferModel", source_pose: "Pose",
            frame: tuple[int, int], chosen: "Targets", warnings: list[list[str]]) -> dict:
    """What transfer.json says, as far as it is known before."""
    return {
        "model": {"name": model.name, "step": model.step, "image_size": list(model.size),
                  "about": model.about},
        "device": str(model.device), "fit": arguments.fit,
        "source": {"image": str(arguments.image), "pose": str(arguments.source_pose),
                   "format": source_pose.format, "person": source_pose.person,
                   "units": source_pose.units, "frame": list(frame), "warnings": warnings[0]},
        "film": chosen.record,
        "targets": [{"name": target.name, "pose": str(target.file), "format": target.pose.format,
                     "units": target.pose.units, "person": target.pose.person,
                     "frame": list(target.frame), "warnings": lines}
                    for target, lines in zip(chosen.targets, warnings[1:], strict=True)],
    }


def _write(arguments: argparse.Namespace, folder: "OutputFolder", model: "PoseTransferModel",
           image: "np.ndarray", source_pose: "Pose", targets: "list[Target]", record: dict) -> None:
    """Compute and write all pictures; adds crops and time to the record."""
    from tqdm import tqdm

    from posemodel.transfer.output import Sheet, write_animation, write_pose, write_source

    write_source(folder, image, source_pose)
    sheet = Sheet(model.aspect, poses=len(targets))
    seconds, crops = 0.0, []
    with tqdm(total=len(targets), disable=None, unit="pose") as bar:
        for batch in _batches(targets, arguments.batch_size):
            result = model.transfer(
                image, source_pose.joints, [target.pose.joints for target in batch],
                target_size=batch[0].frame, fit=arguments.fit, batch_size=arguments.batch_size)
            for index, target in enumerate(batch):
                write_pose(folder, result, index, target)
                sheet.add(result, index, target.name)
                bar.update()
            seconds += result.seconds["total"]
            crops += result.target_crops
    record["source"]["crop"] = asdict(result.source_crop)
    record["seconds"] = round(seconds, 3)
    for entry, crop in zip(record["targets"], crops, strict=True):
        entry["crop"] = asdict(crop)
    sheet.write(folder, f"{arguments.image.name} in new poses: {model.name}, {model.step} steps")
    if len(targets) > 1:
        # Few poses are looked at one by one; many are a film.
        fps = arguments.fps or (12.0 if len(targets) >= 12 else 2.0)
        write_animation(folder, targets, crops, fps)


def _check_numbers(arguments: argparse.Namespace) -> None:
    if arguments.batch_size < 1:
        raise UserError(f"--batch-size {arguments.batch_size}: expected at least 1")
    if arguments.fps is not None and not 0.1 <= arguments.fps <= 50:
        raise UserError(f"--fps {arguments.fps:g}: expected 0.1 to 50")
    if arguments.smooth is not None and not 0.1 <= arguments.smooth <= 100:
        raise UserError(f"--smooth {arguments.smooth:g}: expected 0.1 to 100 frames")
    if arguments.every_person and arguments.person is not None:
        raise UserError("--every-person takes all of them, --person one: give one of the two")
    if arguments.target_size and not all(1 <= side <= 20_000 for side in arguments.target_size):
        raise UserError(f"--target-size {arguments.target_size}: expected 1 to 20,000 pixels")


def _source_pose(arguments: argparse.Namespace, size: tuple[int, int]) -> "tuple[Pose, int]":
    """The joints of the photograph, and how many people its file has."""
    from posemodel.poses.files import choose_person, people_of_image, read_poses

    poses = read_poses(arguments.source_pose, format=arguments.format, units=arguments.units,
                       name=arguments.name, image_size=size)
    people = people_of_image(poses, arguments.image.name, where=str(arguments.source_pose))
    return choose_person(people, arguments.source_person, flag="--source-person"), len(people)


def _said(warnings: list[list[str]], targets: "list[Target]") -> list[str]:
    """The warnings of the source and, of a film, of the first frames that have some."""
    doubtful = [(target.name, lines) for target, lines in zip(targets, warnings[1:], strict=True)
                if lines]
    said = [f"warning: {who}: {line}"
            for who, lines in [("source", warnings[0]), *doubtful[:_WARNED]] for line in lines]
    if len(doubtful) > _WARNED:
        said.append(f"warning: {len(doubtful) - _WARNED} more of {len(targets)} target poses have "
                    "warnings: see transfer.json")
    return said


def _of_several(source_pose: "Pose", people: int) -> list[str]:
    if people == 1:
        return []
    return [f"source: {people} people, number {source_pose.person} is taken "
            "(--source-person N takes another)"]


def _pose_files(paths: list[Path]) -> list[Path]:
    """The files, and those of the folders, frame 2 before frame 10."""
    files = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        # OpenPose's two text files of a picture are read as one.
        inside = [file for file in path.iterdir() if file.suffix.lower() in _POSE_FILES
                  and not file.name.startswith(".") and not file.name.endswith("_subset.txt")]
        if not inside:
            raise UserError(f"--target-pose {path}: no files of joints in this folder "
                            f"({', '.join(_POSE_FILES)})")
        files += sorted(inside, key=lambda file: [
            (0, int(part), "") if part.isdecimal() else (1, 0, part)
            for part in re.split(r"(\d+)", file.name)])
    return files


def _batches(targets: "list[Target]", size: int):
    """Neighbours of the same frame, at most `size` at a time."""
    for _, group in itertools.groupby(targets, key=lambda target: target.frame):
        group = list(group)
        for start in range(0, len(group), size):
            yield group[start:start + size]


if __name__ == "__main__":
    run_main(main)
