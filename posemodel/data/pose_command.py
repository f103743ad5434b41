"""`python -m posemodel.data pose IMAGE POSES --out PNG`: joints of any format on their image."""

import argparse
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

from posemodel.errors import UserError
from posemodel.files import write_result

if TYPE_CHECKING:  # `--help` needs none of these
    import numpy as np
    from PIL import Image

    from posemodel.data.joint_layouts import Pose

_OVERSAMPLING = 4
_SMALLEST_PICTURE = 384  # small images are enlarged until their longer side is about that


def main(argv: list[str]) -> int:
    """Draws the joints of a file on their image, says what was found and what looks wrong, and
    writes the 18 joints as OpenPose JSON."""
    from posemodel.data.joint_layouts import LAYOUTS

    parser = argparse.ArgumentParser(prog="python -m posemodel.data pose", description=main.__doc__)
    parser.add_argument("image", type=Path, metavar="IMAGE")
    parser.add_argument("poses", type=Path, metavar="POSES",
                        help="file of joints: OpenPose, COCO, MMPose, MediaPipe (JSON), annotation "
                        "csv, OpenPose text, arrays (.npy, text, JSON)")
    parser.add_argument("--out", type=Path, metavar="PNG", help="where the picture goes")
    parser.add_argument("--json", type=Path, metavar="FILE",
                        help="where the 18 joints of the chosen person go, as OpenPose JSON")
    parser.add_argument("--format", metavar="FORMAT",
                        help="order of the joints, where the file leaves it open: "
                        + ", ".join(LAYOUTS))
    parser.add_argument("--name", metavar="ROW",
                        help="image name in a file of many images (default: the name of IMAGE)")
    parser.add_argument("--person", type=int, metavar="N",
                        help="which person of the file (default: the one with the most joints)")
    parser.add_argument("--threshold", type=float, metavar="X",
                        help="smallest confidence of a joint that counts as seen, 0..1 (default: "
                        "as the estimator's own drawings)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    arguments = parser.parse_args(argv)
    return show_pose(arguments)


def show_pose(arguments: argparse.Namespace) -> int:
    """Read, check, draw and write. Raises: `UserError`."""
    from posemodel.data.images import read_image
    from posemodel.data.keypoint_formats import openpose_json
    from posemodel.data.keypoints import JOINTS
    from posemodel.data.pose_checks import check_pose

    _check_outputs(arguments)
    image = read_image(arguments.image)
    size = image.shape[:2]
    poses = _read(arguments, size)
    chosen = _choose(poses, arguments)

    print(f"format: {chosen.format}")
    if chosen.name:
        print(f"image named there: {chosen.name}")
    if len(poses) > 1:
        print(f"people: {len(poses)}, chosen: number {chosen.person}")
    missing = [name for name, here in zip(JOINTS, chosen.present, strict=True) if not here]
    without = f", without {', '.join(missing)}" if missing else ""
    print(f"joints: {len(JOINTS) - len(missing)} of {len(JOINTS)}{without}")
    for warning in check_pose(chosen, size):
        print(f"warning: {warning}")
    if arguments.out:
        write_result(arguments.out, _png(draw_poses(image, poses, chosen)))
        print(f"picture: {arguments.out}")
    if arguments.json:
        write_result(arguments.json, openpose_json([chosen], size).encode())
        print(f"joints as OpenPose JSON: {arguments.json}")
    return 0


def draw_poses(image: "np.ndarray", poses: "list[Pose]", chosen: "Pose") -> "Image.Image":
    """Skeletons in the colours of OpenPose on the image, which is enlarged if it is small.

    Where there are several people, the others are faint and the chosen one is framed.

    Args:
        image: `[H, W, 3]` uint8.
        poses: joints in pixels of the image.
        chosen: one of them.
    """
    from PIL import Image

    scale = max(1, round(_SMALLEST_PICTURE / max(image.shape[:2])))
    canvas = Image.fromarray(image)
    canvas = canvas.resize((canvas.width * scale, canvas.height * scale), Image.Resampling.NEAREST)
    for pose in poses:
        if pose is not chosen:
            _draw_skeleton(canvas, pose, scale, opacity=0.4)
    if len(poses) > 1:
        _draw_frame(canvas, chosen, scale)
    _draw_skeleton(canvas, chosen, scale, opacity=1.0)
    return canvas


def _read(arguments: argparse.Namespace, size: tuple[int, int]) -> "list[Pose]":
    from posemodel.data.keypoint_formats import read_poses

    name = arguments.name
    poses = read_poses(arguments.poses, format=arguments.format, name=name, image_size=size,
                       threshold=arguments.threshold)  # fmt: skip
    names = {pose.name for pose in poses}
    if len(names) == 1:
        return poses
    name = arguments.image.name
    if name not in names:
        raise UserError(f"{arguments.poses} holds joints of {len(names)} images and none of "
                        f"{name}; give one with --name")  # fmt: skip
    return [pose for pose in poses if pose.name == name]


def _choose(poses: "list[Pose]", arguments: argparse.Namespace) -> "Pose":
    from posemodel.data.joint_layouts import main_person

    if arguments.person is None:
        return main_person(poses)
    for pose in poses:
        if pose.person == arguments.person:
            return pose
    numbers = ", ".join(str(pose.person) for pose in poses)
    raise UserError(f"--person {arguments.person}: people with joints here: {numbers}")


def _draw_skeleton(canvas: "Image.Image", pose: "Pose", scale: int, *, opacity: float) -> None:
    from posemodel.data.keypoints import JOINT_COLORS, LIMB_COLORS, LIMBS

    unit = max(1.0, max(canvas.size) / 256)
    xy = (pose.joints[:, :2] + 0.5) * scale
    points = [tuple(point) for point in xy.tolist()]
    for (first, second), color in zip(LIMBS, LIMB_COLORS, strict=True):
        if pose.present[first] and pose.present[second]:
            # Limbs are darker than joints, as in OpenPose.
            dark = tuple(channel * 3 // 4 for channel in color)
            _stroke(canvas, [points[first], points[second]], unit, dark, opacity)
    for point, here, color in zip(points, pose.present, JOINT_COLORS, strict=True):
        if here:
            _stroke(canvas, [point], 1.6 * unit, color, opacity)


def _draw_frame(canvas: "Image.Image", pose: "Pose", scale: int) -> None:
    """A white frame with a dark edge around the joints of a person."""
    xy = (pose.joints[pose.present, :2] + 0.5) * scale
    margin = max(canvas.size) / 24
    (left, top), (right, bottom) = xy.min(axis=0) - margin, xy.max(axis=0) + margin
    edge = max(canvas.size) / 256
    left, top = max(left, edge), max(top, edge)
    right, bottom = min(right, canvas.width - edge), min(bottom, canvas.height - edge)
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    for radius, color in ((edge, (0, 0, 0)), (edge / 2, (255, 255, 255))):
        for start, end in zip(corners[:-1], corners[1:], strict=True):
            _stroke(canvas, [start, end], radius, color, 1.0)


def _stroke(
    canvas: "Image.Image",
    points: list[tuple[float, float]],
    radius: float,
    color: tuple[int, ...],
    opacity: float,
) -> None:
    """A smooth dot, or a line between two points with round ends.

    It is drawn finely into a mask of just its own size: one of the size of the canvas would not fit
    into memory for large photographs.
    """
    from PIL import Image, ImageDraw

    xs, ys = zip(*points, strict=True)
    left, top = (max(0, math.floor(min(values) - radius)) for values in (xs, ys))
    right = min(canvas.width, math.ceil(max(xs) + radius))
    bottom = min(canvas.height, math.ceil(max(ys) + radius))
    if left >= right or top >= bottom:
        return
    size = (right - left, bottom - top)
    fine = Image.new("L", (size[0] * _OVERSAMPLING, size[1] * _OVERSAMPLING))
    draw = ImageDraw.Draw(fine)
    # PIL counts from the centre of the first pixel, `points` from its edge.
    at = [tuple((p - o) * _OVERSAMPLING - 0.5 for p, o in zip(point, (left, top), strict=True))
          for point in points]  # fmt: skip
    thick = radius * _OVERSAMPLING
    ink = round(255 * opacity)
    if len(at) == 2:
        draw.line(at, fill=ink, width=round(2 * thick))
    for x, y in at:
        draw.ellipse((x - thick, y - thick, x + thick, y + thick), fill=ink)
    canvas.paste(color, (left, top), fine.resize(size, Image.Resampling.BOX))


def _png(picture: "Image.Image") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Before anything is read: what is asked for can be written and destroys nothing."""
    outputs = {"--out": arguments.out, "--json": arguments.json}
    outputs = {flag: path for flag, path in outputs.items() if path is not None}
    if len({path.absolute() for path in outputs.values()}) < len(outputs):
        raise UserError(f"--out and --json are the same file, {arguments.out}")
    if arguments.out and arguments.out.suffix.lower() != ".png":
        raise UserError(f"--out {arguments.out}: the picture is a PNG; give a name ending in .png")
    inputs = [path.absolute() for path in (arguments.image, arguments.poses)]
    for flag, path in outputs.items():
        if path.absolute() in inputs:
            raise UserError(f"{flag} {path} would replace what is read")
        if not path.parent.is_dir():
            raise UserError(f"{flag} {path}: there is no folder {path.parent}")
        if path.exists() and not arguments.overwrite:
            raise UserError(f"{flag} {path} exists; --overwrite replaces it")
