"""`python -m posemodel.transfer`: a person in a photograph, in new poses."""

import argparse
import contextlib
import itertools
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from posemodel.runtime.errors import UserError
from posemodel.runtime.main import run_main
from posemodel.transfer.kinds import KINDS, chosen_kinds, size_warning

if TYPE_CHECKING:  # `--help` needs none of these
    from posemodel.inference.model import PoseTransferModel
    from posemodel.transfer.output import OutputFolder, Target
    from posemodel.transfer.source import Source
    from posemodel.transfer.targets import Targets

_WARNED = 3  # target poses whose warnings are said one by one


def main(argv: list[str]) -> int:
    """Puts the person of a photograph into new poses. Writes a contact sheet and, for each pose,
    what --write chooses: the finished picture, the photograph moved by the flow alone, the flow,
    its picture, the visibility, the skeleton; of several poses also an animation."""
    parser = argparse.ArgumentParser(prog="python -m posemodel.transfer", description=main.__doc__)
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN",
                        help="run folder, or a .safetensors file of posemodel.export (default: the "
                        "newest run in runs/, else the model that comes with the package)")
    parser.add_argument("--image", type=Path, nargs="+", required=True, metavar="FILE",
                        help="photograph of the person: JPEG, PNG, WebP, BMP; of several each pose "
                        "is made from the one that is most like it, before the background of the "
                        "first")
    parser.add_argument("--source-pose", type=Path, metavar="FILE",
                        help="the joints in it: OpenPose, COCO, AlphaPose, MMPose, Ultralytics, "
                        "MediaPipe (JSON), annotation csv, OpenPose's and Ultralytics' text, "
                        "arrays (.npy, .npz, text, JSON) (default: they are found in the "
                        "photograph)")
    parser.add_argument("--target-pose", type=Path, nargs="+", metavar="FILE",
                        help="files of joints, of pictures or of films, or folders of such files, "
                        "in the order of the film; or pictures and films themselves")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR",
                        help="folder for the results; new or empty")
    parser.add_argument("--overwrite", action="store_true",
                        help="replace the results of an earlier transfer in DIR")
    parser.add_argument("--write", nargs="+", choices=tuple(KINDS), metavar="WHAT",
                        help=f"files of each pose: {', '.join(KINDS)} (flow is a NumPy file, flo "
                        "one of Middlebury; default: all of one pose, refined of several)")
    _add_reading(parser)
    parser.add_argument("--fit", choices=("person", "frame"), default="person",
                        help="person: who is small in the picture is cut out for the model; frame: "
                        "it sees the whole picture (default: person)")
    parser.add_argument("--fps", type=float, metavar="N",
                        help="pictures per second of the animation (default: 2, from 12 poses on "
                        "12)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N",
                        help="poses worked on at a time (default: 8)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    _add_driver_and_background(parser)
    return transfer(parser.parse_args(argv))


def _add_reading(parser: argparse.ArgumentParser) -> None:
    """How files of joints are read."""
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
    parser.add_argument("--as-found", action="store_true",
                        help="the joints of a film as they are found in each frame: neither are "
                        "left and right exchanged where they change places, nor joints put back "
                        "that jump away for one frame")
    parser.add_argument("--smooth", type=float, nargs="?", const=1.0, metavar="FRAMES",
                        help="less jitter: joints are smoothed over time by that many frames (1 "
                        "where no number is given)")
    parser.add_argument("--target-size", type=int, nargs=2, metavar=("H", "W"),
                        help="frame of the target poses whose files do not state it (default: that "
                        "of the photograph)")


def _add_driver_and_background(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--drive", type=Path, nargs="+", metavar="FILE",
                        help="the same of another person, whose motion is carried over to the "
                        "limbs and the place of the one in the photograph")
    parser.add_argument("--drive-as", choices=("absolute", "relative"), default="absolute",
                        help="absolute: limbs point where the driver's do; relative: they turn as "
                        "the driver's do from where they are in the photograph (default: absolute)")
    parser.add_argument("--background", metavar="keep|white|model|FILE",
                        help="keep: that of the photograph stays, what is behind the person made "
                        "up; FILE: it is taken from a picture of the same place, of the same size, "
                        "without them; white; model: the model moves all there is (default: keep "
                        "where the person's mask is at hand)")
    parser.add_argument("--mask", type=Path, metavar="FILE",
                        help="grey picture, white where the person is (default: found together "
                        "with the joints)")
    parser.add_argument("--weights", default="", metavar="DIR",
                        help="folder with the pose estimator's model file")


def transfer(arguments: argparse.Namespace) -> int:
    """Read, check, compute, write. Raises: `UserError`; nothing is written before all is read."""
    from posemodel.data.pose_checks import check_pose
    from posemodel.inference.model import PoseTransferModel
    from posemodel.poses.estimator import pose_estimator
    from posemodel.transfer.output import OutputFolder, planned_files
    from posemodel.transfer.source import read_sources

    _check(arguments)
    with pose_estimator(arguments.weights) as estimator:
        sources = read_sources(arguments, estimator)
        chosen = _read_targets(arguments, sources, estimator)
    source = sources[0]
    if _background(arguments, source) == "keep":
        source.remarks.append(f"background: kept; behind the person {source.holes}")
    targets = chosen.targets
    named = None if arguments.name or arguments.source_pose is None else source.file.name
    warnings = [check_pose(source.pose, source.frame, named, source.image),
                *(check_pose(target.pose, target.frame) for target in targets)]
    kinds = chosen_kinds(arguments.write, poses=len(targets))
    folder = OutputFolder(arguments.out, planned_files(targets, kinds),
                          overwrite=arguments.overwrite)
    model = PoseTransferModel.choose(arguments.run, arguments.device)
    print(f"model: {model.summary}")
    if model.about:
        print(model.about.splitlines()[0])
    remarks = [line for each in sources for line in each.remarks]
    if len(sources) > 1:
        remarks.append(f"source: {len(sources)} photographs; each pose is made from the one that "
                       "is most like it")
    remarks += [f"warning: {each.file.name}: {line}" for each in sources[1:]
                for line in check_pose(each.pose, each.frame, None, each.image)]
    for line in [*_said(warnings, targets), *remarks, *chosen.remarks]:
        print(line)
    if large := size_warning(kinds, [target.frame for target in targets], arguments.out):
        print(large)
    record = _record(arguments, model, source, chosen, warnings)
    with folder.writing(record):
        _write(arguments, folder, model, sources, chosen, kinds, record)
    poses = "pose" if len(targets) == 1 else "poses"
    print(f"{len(targets)} {poses} in {record['seconds']:.1f} s, of which the model took "
          f"{record['model_seconds']:.1f} s")
    print(f"contact sheet: {arguments.out / 'contact_sheet.png'}")
    print("files of each pose: " + ", ".join(
        str(arguments.out / place) for place in dict.fromkeys(KINDS[kind].folder
                                                              for kind in kinds)))
    return 0


def _read_targets(arguments: argparse.Namespace, sources: "list[Source]", estimator) -> "Targets":
    """The target poses; leaves the sources without masks where no background can be kept."""
    from posemodel.transfer.targets import carried, pose_files, read_targets

    source = sources[0]
    if arguments.drive:
        chosen = read_targets(pose_files(arguments.drive, "--drive"), arguments, source.frame,
                              estimator)
        return carried(chosen, source.pose, source.frame, arguments.drive_as)
    chosen = read_targets(pose_files(arguments.target_pose, "--target-pose"), arguments,
                          source.frame, estimator)
    elsewhere = any(target.frame != source.frame for target in chosen.targets)
    if elsewhere and arguments.background not in (None, "model", "white"):
        raise UserError(f"--background {arguments.background}: the target poses are of pictures of "
                        "another size than the photograph; carry them over by --drive")
    if source.mask is not None and arguments.background is None and elsewhere:
        for each in sources:
            each.mask = None
        source.remarks.append("background: moved by the model, for the target poses are of "
                              "pictures of another size (--drive carries them over)")
    return chosen


def _background(arguments: argparse.Namespace, source: "Source") -> str:
    """What the moved person is laid over."""
    if source.mask is None:
        return "model"
    return "white" if arguments.background == "white" else "keep"


def _record(arguments: argparse.Namespace, model: "PoseTransferModel", source: "Source",
            chosen: "Targets", warnings: list[list[str]]) -> dict:
    """What transfer.json says, as far as it is known before."""
    pose = source.pose
    background = _background(arguments, source)
    return {
        "model": {"name": model.name, "step": model.step, "image_size": list(model.size),
                  "about": model.about},
        "device": str(model.device), "fit": arguments.fit,
        "background": background, "holes": source.holes if background == "keep" else None,
        "drive": arguments.drive_as if arguments.drive else None,
        "source": {"image": str(source.file), "pose": str(arguments.source_pose or "found"),
                   "mask": str(arguments.mask or "found") if source.mask is not None else None,
                   "format": pose.format, "person": pose.person, "units": pose.units,
                   "frame": list(source.frame), "warnings": warnings[0]},
        "film": chosen.record,
        "targets": [{"name": target.name, "pose": str(target.file), "format": target.pose.format,
                     "units": target.pose.units, "person": target.pose.person,
                     "frame": list(target.frame), "warnings": lines}
                    for target, lines in zip(chosen.targets, warnings[1:], strict=True)],
    }


def _write(arguments: argparse.Namespace, folder: "OutputFolder", model: "PoseTransferModel",
           sources: "list[Source]", chosen: "Targets", kinds: tuple[str, ...],
           record: dict) -> None:
    """Compute and write all pictures; adds crops, times and sources to the record."""
    from tqdm import tqdm

    from posemodel.inference.background import behind_person
    from posemodel.transfer.output import Sheet, write_pose, write_source
    from posemodel.transfer.source import source_of_each

    began, targets, first = time.perf_counter(), chosen.targets, sources[0]
    write_source(folder, first.image, first.pose)
    own = source_of_each(sources, targets)
    background = record["background"]
    if background == "keep":
        background = behind_person(first.image, first.mask, first.frame, "keep", first.plate)
    sheet = Sheet(model.aspect, poses=len(targets), every_source=len(sources) > 1)
    seconds, entries, crops = 0.0, iter(record["targets"]), {}
    with tqdm(total=len(targets), disable=None, unit="pose") as bar, \
            _film(arguments, folder, model, first, chosen) as film:
        for source, batch in _batches(own, targets, arguments.batch_size):
            result = model.transfer(
                source.image, source.pose.joints, [target.pose.joints for target in batch],
                target_size=batch[0].frame, fit=arguments.fit, mask=source.mask,
                background=background, batch_size=arguments.batch_size)
            for index, target in enumerate(batch):
                write_pose(folder, result, index, target, kinds)
                sheet.add(result, index, target.name)
                if film is not None:
                    film.add(result, index, source.image)
                next(entries).update(source=str(source.file),
                                     crop=asdict(result.target_crops[index]))
                bar.update()
            seconds += result.seconds["total"]
            crops[source.file] = asdict(result.source_crop)
    names = f"{first.file.name} and {len(sources) - 1} more" if sources[1:] else first.file.name
    sheet.write(folder, f"{names} in new poses: {model.name}, {model.step} steps")
    record["source"]["crop"] = crops.get(first.file)
    record["other_sources"] = [{"image": str(each.file), "person": each.pose.person,
                                "frame": list(each.frame), "crop": crops.get(each.file)}
                               for each in sources[1:]]
    record["seconds"] = round(time.perf_counter() - began, 3)
    record["model_seconds"] = round(seconds, 3)


@contextlib.contextmanager
def _film(arguments: argparse.Namespace, folder: "OutputFolder", model: "PoseTransferModel",
          source: "Source", chosen: "Targets"):
    """Of several poses in frames of one size, a film to add them to, which is written at the end;
    else None."""
    from posemodel.inference.crop import find_crop
    from posemodel.transfer.output import Film

    targets = chosen.targets
    frames = {target.frame for target in targets}
    if len(targets) == 1 or len(frames) > 1:
        if len(frames) > 1:
            print("no animation: the target poses belong to frames of different sizes")
        yield None
        return
    crops = None if source.mask is not None else [
        find_crop(target.pose.joints, target.frame, model.aspect, arguments.fit)
        for target in targets]
    with contextlib.closing(Film(source.image, targets[0].frame, crops)) as film:
        yield film
        # Few poses are looked at one by one; many are a film.
        film.write(folder, arguments.fps or chosen.fps or (12.0 if len(targets) >= 12 else 2.0))


def _check(arguments: argparse.Namespace) -> None:
    if (arguments.target_pose is None) == (arguments.drive is None):
        raise UserError("give either --target-pose, poses as they are, or --drive, those of "
                        "another person, carried over")
    if arguments.drive and (arguments.target_size or arguments.every_person):
        raise UserError("--drive takes one person's motion into the photograph's own frame; "
                        "--target-size and --every-person go with --target-pose")
    alone = [flag for flag, value in (("--source-pose", arguments.source_pose),
                                      ("--mask", arguments.mask)) if value is not None]
    if len(arguments.image) > 1 and alone:
        raise UserError(f"{' and '.join(alone)}: of one photograph; in several the joints and "
                        "masks are found")
    if arguments.source_pose is None and arguments.name:
        raise UserError("--name is a row of the file of --source-pose, which is not given")
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


def _batches(sources: "list[Source]", targets: "list[Target]", size: int):
    """The source, and neighbours of the same frame that have it, at most `size` at a time."""
    pairs = zip(sources, targets, strict=True)
    for _, group in itertools.groupby(pairs, key=lambda pair: (pair[0].file, pair[1].frame)):
        group = list(group)
        for start in range(0, len(group), size):
            yield group[0][0], [target for _, target in group[start:start + size]]


if __name__ == "__main__":
    run_main(main)
