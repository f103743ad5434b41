"""`python -m posemodel.data pose IMAGE [POSES] --out PNG`: joints of any format on their image, or
those that are found in it."""

import argparse
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from posemodel.runtime.errors import UserError
from posemodel.runtime.files import write_result

if TYPE_CHECKING:  # it imports the estimator's packages where they are needed
    from posemodel.poses.estimator import Person


def main(argv: list[str]) -> int:
    """Draws the joints of a file on their image, or finds them in it; says what was found and what
    looks wrong, and writes the 18 joints as OpenPose JSON."""
    from posemodel.poses.layouts import LAYOUTS

    parser = argparse.ArgumentParser(prog="python -m posemodel.data pose", description=main.__doc__)
    parser.add_argument("image", type=Path, metavar="IMAGE")
    parser.add_argument("poses", type=Path, nargs="?", metavar="POSES",
                        help="file of joints: OpenPose, COCO, AlphaPose, MMPose, Ultralytics, "
                        "MediaPipe (JSON), annotation csv, OpenPose's and Ultralytics' text, "
                        "arrays (.npy, .npz, text, JSON) (default: they are found in the image)")
    parser.add_argument("--out", type=Path, metavar="PNG", help="where the picture goes")
    parser.add_argument("--json", type=Path, metavar="FILE",
                        help="where the 18 joints of the chosen person go, as OpenPose JSON")
    parser.add_argument("--mask", type=Path, metavar="PNG",
                        help="where the mask of the chosen person goes, who was found in the image")
    parser.add_argument("--weights", default="", metavar="DIR",
                        help="folder with the pose estimator's model file")
    parser.add_argument("--format", metavar="FORMAT",
                        help="order of the joints, where the file leaves it open: "
                        + ", ".join(LAYOUTS))
    parser.add_argument("--units", metavar="UNITS",
                        help="what the joints are counted in, where the file leaves it open: "
                        "pixels, fractions (of the image, 0..1), centred (-1..1)")
    parser.add_argument("--name", metavar="ROW",
                        help="image name in a file of many images (default: the name of IMAGE)")
    parser.add_argument("--frame", type=int, metavar="N",
                        help="which frame of a file that is a film, from 0")
    parser.add_argument("--person", type=int, metavar="N",
                        help="which person of the file (default: the one with the most joints)")
    parser.add_argument("--threshold", type=float, metavar="X",
                        help="smallest confidence of a joint that counts as seen, 0..1 (default: "
                        "as the estimator's own drawings)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    return show_pose(parser.parse_args(argv))


def show_pose(arguments: argparse.Namespace) -> int:
    """Read, check, draw and write. Raises: `UserError`."""
    from posemodel.data.images import read_image
    from posemodel.data.pose_checks import check_pose
    from posemodel.poses.files import choose_person, openpose_json, people_of_image, read_poses
    from posemodel.poses.joints import JOINTS

    _check_outputs(arguments)
    image = read_image(arguments.image)
    size = image.shape[:2]
    found = []
    if arguments.poses is None:
        found, person = _find(arguments, image)
        poses, chosen = [each.pose for each in found], person.pose
    else:
        poses = read_poses(arguments.poses, format=arguments.format, units=arguments.units,
                           name=arguments.name, frame=arguments.frame, image_size=size,
                           threshold=arguments.threshold)
        poses = people_of_image(poses, arguments.image.name, where=str(arguments.poses))
        chosen = choose_person(poses, arguments.person)

    in_units = f", in {chosen.units}" if chosen.units != "pixels" else ""
    print(f"format: {chosen.format}{in_units}")
    if chosen.name:
        print(f"image named there: {chosen.name}")
    if len(poses) > 1:
        print(f"people: {len(poses)}, chosen: number {chosen.person}")
    missing = [name for name, here in zip(JOINTS, chosen.present, strict=True) if not here]
    without = f", without {', '.join(missing)}" if missing else ""
    print(f"joints: {len(JOINTS) - len(missing)} of {len(JOINTS)}{without}")
    by_choice = any(each is not None for each in (arguments.name, arguments.frame)) or bool(found)
    for warning in check_pose(chosen, size, None if by_choice else arguments.image.name, image):
        print(f"warning: {warning}")
    if arguments.out:
        from posemodel.poses.drawing import draw_poses

        buffer = io.BytesIO()
        draw_poses(image, poses, chosen).save(buffer, format="PNG")
        write_result(arguments.out, buffer.getvalue())
        print(f"picture: {arguments.out}")
    if arguments.mask:
        buffer = io.BytesIO()
        Image.fromarray((person.mask * 255).round().astype(np.uint8)).save(buffer, format="PNG")
        write_result(arguments.mask, buffer.getvalue())
        print(f"mask: {arguments.mask}")
    if arguments.json:
        write_result(arguments.json, openpose_json([chosen], size).encode())
        print(f"joints as OpenPose JSON: {arguments.json}")
    return 0


def _find(arguments: argparse.Namespace, image: np.ndarray) -> "tuple[list[Person], Person]":
    """Everybody in the image, and who is chosen. Raises: `UserError` where there is nobody."""
    from posemodel.poses.estimator import choose_found, people_in, pose_estimator

    of_files = {"--name": arguments.name, "--frame": arguments.frame,
                "--format": arguments.format, "--units": arguments.units,
                "--threshold": arguments.threshold}
    given = [flag for flag, value in of_files.items() if value is not None]
    if given:
        raise UserError(f"{given[0]} says how a file of joints is read, and none is given")
    with pose_estimator(arguments.weights) as estimator:
        found = people_in(image, arguments.image, estimator)
    return found, choose_found(found, arguments.person, "--person")


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Before anything is read: what is asked for can be written and destroys nothing."""
    outputs = {"--out": arguments.out, "--json": arguments.json, "--mask": arguments.mask}
    outputs = {flag: path for flag, path in outputs.items() if path is not None}
    places = [path.absolute() for path in outputs.values()]
    for flag, path in outputs.items():
        if places.count(path.absolute()) > 1:
            other = next(name for name, place in outputs.items()
                         if name != flag and place.absolute() == path.absolute())
            raise UserError(f"{flag} and {other} are the same file, {path}")
    for flag in ("--out", "--mask"):
        if flag in outputs and outputs[flag].suffix.lower() != ".png":
            raise UserError(f"{flag} {outputs[flag]}: the picture is a PNG; give a name ending in "
                            ".png")
    if arguments.mask and arguments.poses is not None:
        raise UserError("--mask goes with joints that are found in the image; a file of joints has "
                        "no mask")
    inputs = [path.absolute() for path in (arguments.image, arguments.poses) if path is not None]
    for flag, path in outputs.items():
        if path.absolute() in inputs:
            raise UserError(f"{flag} {path} would replace what is read")
        if not path.parent.is_dir():
            raise UserError(f"{flag} {path}: there is no folder {path.parent}")
        if path.exists() and not arguments.overwrite:
            raise UserError(f"{flag} {path} exists; --overwrite replaces it")
