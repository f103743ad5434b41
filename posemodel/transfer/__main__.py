"""`python -m posemodel.transfer`: a person in a photograph, in new poses."""

import argparse
import contextlib
import itertools
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from posemodel.runtime.errors import UserError
from posemodel.runtime.main import run_main
from posemodel.transfer.kinds import KINDS, chosen, size_warning

if TYPE_CHECKING:  # `--help` needs none of these
    import numpy as np

    from posemodel.inference.model import PoseTransferModel
    from posemodel.poses.layouts import Pose
    from posemodel.transfer.output import OutputFolder, Target

_POSE_FILES = (".json", ".npy", ".csv", ".txt")


def main(argv: list[str]) -> int:
    """Puts the person of a photograph into new poses. Writes a contact sheet and, for each pose,
    what --write chooses: the finished picture, the photograph moved by the flow alone, the flow,
    its picture, the visibility, the skeleton; of several poses also an animation."""
    parser = argparse.ArgumentParser(prog="python -m posemodel.transfer", description=main.__doc__)
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN",
                        help="run folder, or a .safetensors file of posemodel.export (default: the "
                        "newest run in runs/, else the model that comes with the package)")
    parser.add_argument("--image", type=Path, required=True, metavar="FILE",
                        help="photograph of the person: JPEG, PNG, WebP, BMP")
    parser.add_argument("--source-pose", type=Path, required=True, metavar="FILE",
                        help="the joints in it: OpenPose, COCO, MMPose, MediaPipe (JSON), "
                        "annotation csv, OpenPose text, arrays (.npy, text, JSON)")
    parser.add_argument("--target-pose", type=Path, required=True, nargs="+", metavar="FILE",
                        help="files of joints, or folders of such files, in the order of the film")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR",
                        help="folder for the results; new or empty")
    parser.add_argument("--overwrite", action="store_true",
                        help="replace the results of an earlier transfer in DIR")
    parser.add_argument("--write", nargs="+", choices=tuple(KINDS), metavar="WHAT",
                        help=f"files of each pose: {', '.join(KINDS)} (flow is a NumPy file, flo "
                        "one of Middlebury; default: all of one pose, refined of several)")
    parser.add_argument("--format", metavar="FORMAT",
                        help="order of the joints, where the files leave it open: openpose18, "
                        "body25, coco17, wholebody133, mediapipe33, openpose18-normalized")
    parser.add_argument("--name", metavar="ROW",
                        help="image name of the source pose in a file of many images (default: "
                        "the name of the photograph)")
    parser.add_argument("--target-name", nargs="+", metavar="ROW",
                        help="image names of the target poses in a file of many images (default: "
                        "all of them)")
    parser.add_argument("--every-person", action="store_true",
                        help="every person of a target file is a pose of its own, as in a sequence "
                        "in one file (default: the person with the most joints)")
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

    _check_numbers(arguments)
    image = read_image(arguments.image)
    frame = image.shape[:2]
    source_pose, targets = _source_pose(arguments, frame), _targets(arguments, frame)
    warnings = [check_pose(source_pose, frame),
                *(check_pose(target.pose, target.frame) for target in targets)]
    kinds = chosen(arguments.write, poses=len(targets))
    folder = OutputFolder(arguments.out, planned_files(targets, kinds),
                          overwrite=arguments.overwrite)
    model = PoseTransferModel.choose(arguments.run, arguments.device)
    print(f"model: {model.summary}")
    if model.about:
        print(model.about)
    for who, lines in zip(["source", *(t.name for t in targets)], warnings, strict=True):
        for line in lines:
            print(f"warning: {who}: {line}")
    if large := size_warning(kinds, [target.frame for target in targets], arguments.out):
        print(large)
    record = _record(arguments, model, source_pose, frame, targets, warnings)
    with folder.writing(record):
        _write(arguments, folder, model, image, source_pose, targets, kinds, record)
    poses = "pose" if len(targets) == 1 else "poses"
    print(f"{len(targets)} {poses} in {record['seconds']:.1f} s, of which the model took "
          f"{record['model_seconds']:.1f} s")
    print(f"contact sheet: {arguments.out / 'contact_sheet.png'}")
    print("files of each pose: " + ", ".join(
        str(arguments.out / place) for place in dict.fromkeys(KINDS[kind].folder
                                                              for kind in kinds)))
    return 0


def _record(arguments: argparse.Namespace, model: "PoseTransferModel", source_pose: "Pose",
            frame: tuple[int, int], targets: "list[Target]", warnings: list[list[str]]) -> dict:
    """What transfer.json says, as far as it is known before."""
    return {
        "model": {"name": model.name, "step": model.step, "image_size": list(model.size),
                  "about": model.about},
        "device": str(model.device), "fit": arguments.fit,
        "source": {"image": str(arguments.image), "pose": str(arguments.source_pose),
                   "format": source_pose.format, "person": source_pose.person,
                   "frame": list(frame), "warnings": warnings[0]},
        "targets": [{"name": target.name, "pose": str(target.file), "format": target.pose.format,
                     "person": target.pose.person, "frame": list(target.frame), "warnings": lines}
                    for target, lines in zip(targets, warnings[1:], strict=True)],
    }


def _write(arguments: argparse.Namespace, folder: "OutputFolder", model: "PoseTransferModel",
           image: "np.ndarray", source_pose: "Pose", targets: "list[Target]",
           kinds: tuple[str, ...], record: dict) -> None:
    """Compute and write all pictures; adds crops and times to the record."""
    from tqdm import tqdm

    from posemodel.transfer.output import Sheet, write_pose, write_source

    began = time.perf_counter()
    write_source(folder, image, source_pose)
    sheet = Sheet(model.aspect, poses=len(targets))
    seconds, crops = 0.0, []
    with tqdm(total=len(targets), disable=None, unit="pose") as bar, \
            _film(arguments, folder, model, targets) as film:
        for batch in _batches(targets, arguments.batch_size):
            result = model.transfer(
                image, source_pose.joints, [target.pose.joints for target in batch],
                target_size=batch[0].frame, fit=arguments.fit, batch_size=arguments.batch_size)
            for index, target in enumerate(batch):
                write_pose(folder, result, index, target, kinds)
                sheet.add(result, index, target.name)
                if film is not None:
                    film.add(result, index)
                bar.update()
            seconds += result.seconds["total"]
            crops += result.target_crops
    sheet.write(folder, f"{arguments.image.name} in new poses: {model.name}, {model.step} steps")
    record["source"]["crop"] = asdict(result.source_crop)
    for entry, crop in zip(record["targets"], crops, strict=True):
        entry["crop"] = asdict(crop)
    record["seconds"] = round(time.perf_counter() - began, 3)
    record["model_seconds"] = round(seconds, 3)


@contextlib.contextmanager
def _film(arguments: argparse.Namespace, folder: "OutputFolder", model: "PoseTransferModel",
          targets: "list[Target]"):
    """Of several poses in frames of one size, a film to add them to, which is written at the end;
    else None."""
    from posemodel.inference.crop import find_crop
    from posemodel.transfer.output import Film

    frames = {target.frame for target in targets}
    if len(targets) == 1 or len(frames) > 1:
        if len(frames) > 1:
            print("no animation: the target poses belong to frames of different sizes")
        yield None
        return
    with contextlib.closing(Film(targets[0].frame, [
            find_crop(target.pose.joints, target.frame, model.aspect, arguments.fit)
            for target in targets])) as film:
        yield film
        # Few poses are looked at one by one; many are a film.
        film.write(folder, arguments.fps or (12.0 if len(targets) >= 12 else 2.0))


def _check_numbers(arguments: argparse.Namespace) -> None:
    if arguments.batch_size < 1:
        raise UserError(f"--batch-size {arguments.batch_size}: expected at least 1")
    if arguments.fps is not None and not 0.1 <= arguments.fps <= 50:
        raise UserError(f"--fps {arguments.fps:g}: expected 0.1 to 50")
    if arguments.target_size and not all(1 <= side <= 20_000 for side in arguments.target_size):
        raise UserError(f"--target-size {arguments.target_size}: expected 1 to 20,000 pixels")


def _source_pose(arguments: argparse.Namespace, size: tuple[int, int]) -> "Pose":
    from posemodel.poses.files import choose_person, people_of_image, read_poses

    poses = read_poses(arguments.source_pose, format=arguments.format, name=arguments.name,
                       image_size=size)
    return choose_person(people_of_image(poses, arguments.image.name,
                                         where=str(arguments.source_pose)))


def _targets(arguments: argparse.Namespace, size: tuple[int, int]) -> "list[Target]":
    """All target poses in their order, under names that differ."""
    from posemodel.poses.files import choose_person, read_poses
    from posemodel.transfer.output import Target

    default, read = tuple(arguments.target_size or size), []
    for file in _pose_files(arguments.target_pose):
        poses = [pose for name in arguments.target_name or [None] for pose in
                 read_poses(file, format=arguments.format, name=name, image_size=default)]
        if not arguments.every_person:
            # In the order of the file; a file without names is of one image.
            poses = [choose_person([pose for pose in poses if pose.name == name])
                     for name in dict.fromkeys(pose.name for pose in poses)]
        read += [(file, pose) for pose in poses]
    digits = len(str(len(read) - 1))
    targets = []
    for index, (file, pose) in enumerate(read):
        stem = re.sub(r"[^\w.-]+", "_", Path(pose.name or file.name).stem)[:80] or "pose"
        name = stem if len(read) == 1 else f"{index:0{digits}d}_{stem}"
        targets.append(Target(name=name, file=file, pose=pose, frame=pose.frame or default))
    return targets


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
