"""`python -m posemodel.evaluation pckh`: measures of images that others have looked at."""

import argparse
import json
import re
from pathlib import Path

from posemodel.runtime.errors import UserError
from posemodel.runtime.files import write_result
from posemodel.runtime.main import run_main

# PATN names what it makes SOURCE___TARGET_vis.ENDING.
_GENERATED = re.compile(r"(?:.*___)?(?P<target>.+?)(?:_vis\.\w+)?")


def main(argv: list[str]) -> int:
    """Measure what the tools of other projects have found in generated images."""
    parser = argparse.ArgumentParser(prog="python -m posemodel.evaluation",
                                     description=main.__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "pckh", help="how often joints are found where they should be",
        description="PCKh as PATN defines it: the share of the target's joints that a pose "
        "estimator finds in the generated images, less than half a head away.")
    command.add_argument("found", type=Path, metavar="FOUND.csv",
                         help="joints found in generated images (name:keypoints_y:keypoints_x), "
                         "whose names are those of their targets, or SOURCE___TARGET_vis.jpg")
    command.add_argument("--targets", type=Path, required=True, metavar="FILE.csv",
                         help="annotation file of the data set, in the same pixels")
    command.add_argument("--json", type=Path, metavar="FILE",
                         help="write the numbers of each image")
    return measure_pckh(parser.parse_args(argv))


def measure_pckh(arguments: argparse.Namespace) -> int:
    """Prints the share and what it counts. Raises: `UserError`."""
    import numpy as np

    from posemodel.evaluation.pckh import pckh
    from posemodel.poses.annotations import read_annotations

    names, found = read_annotations(arguments.found)
    if not names:
        raise UserError(f"{arguments.found} has no rows; expected one for each generated image")
    target_names, targets = read_annotations(arguments.targets)
    rows = {name: row for row, name in enumerate(target_names)}
    result = pckh(found, targets[np.array([_row(name, rows, arguments) for name in names])])
    if result.joints.sum() == 0:
        raise UserError(f"{arguments.targets}: none of these {len(names)} targets has two points "
                        "of a head, which PCKh is measured by")
    left_out = int((~result.measured).sum())
    print(f"PCKh {result.value:.4f}: {result.right.sum()} of {result.joints.sum()} joints in "
          f"{len(names) - left_out} images; {left_out} left out, whose target shows no head")
    if arguments.json is not None:
        numbers = {"pckh": result.value, "images": [
            {"name": name, "right": right, "joints": joints} for name, right, joints in
            zip(names, result.right.tolist(), result.joints.tolist(), strict=True)]}
        write_result(arguments.json, json.dumps(numbers, indent=1) + "\n")
    return 0


def _row(name: str, rows: dict[str, int], arguments: argparse.Namespace) -> int:
    target = _GENERATED.fullmatch(name)["target"]
    if target not in rows:
        raise UserError(f"{arguments.found}: {name} has the target {target}, which "
                        f"{arguments.targets} does not have; expected names of targets, or "
                        "SOURCE___TARGET_vis.jpg")
    return rows[target]


if __name__ == "__main__":
    run_main(main)
