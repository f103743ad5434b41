"""The hole behind a person: what fills it, against what the camera sees there at other times.

    python benchmarks/hole_bench.py data/film --weights DIR --json docs/holes.json
    python benchmarks/hole_bench.py --read docs/holes.json          # the table again

Of a data set of `posemodel.data film`, training frames of each shot, evenly spread. What is behind
the person is the median of the frames of the shot whose person stands elsewhere; where nobody ever
leaves, nothing is measured. The l1, of 255, is over the pixels of the hole, LPIPS over the picture,
which is right everywhere else.
"""

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from posemodel.data.images import read_image
from posemodel.data.pair_loader import View
from posemodel.data.reading import open_pairs
from posemodel.evaluation.lpips import Lpips
from posemodel.model.scene import Scene, continued, scene_of
from posemodel.pictures.inpainting import opencv_version
from posemodel.pictures.pixels import to_pictures, to_tensor
from posemodel.pictures.plate import clean_plate

CPU = torch.device("cpu")
COLUMNS = {"l1": "l1 in the hole", "lpips": "LPIPS-Alex", "ms": "ms a picture"}


def smooth(picture: np.ndarray, scene: Scene) -> np.ndarray:
    return to_pictures(scene.behind)[0]


def ours(picture: np.ndarray, scene: Scene) -> np.ndarray:
    return to_pictures(continued(scene).behind)[0]


def of_opencv(name: str) -> Callable[[np.ndarray, Scene], np.ndarray]:
    """One of OpenCV's two methods of a line each."""
    def fill(picture: np.ndarray, scene: Scene) -> np.ndarray:
        import cv2

        hole = (scene.hole[0, 0] > 0).numpy().astype(np.uint8)
        return cv2.inpaint(picture, hole, 5, getattr(cv2, f"INPAINT_{name}"))

    return fill


METHODS = {"smooth, without OpenCV": smooth, "Telea's": of_opencv("TELEA"),
           "Navier-Stokes": of_opencv("NS"), "continued, the default": ours}


def main() -> int:
    """Measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("root", nargs="?", help="data set of posemodel.data film")
    parser.add_argument("--read", type=Path, metavar="FILE", help="print a table that was written")
    parser.add_argument("--size", type=int, default=128, metavar="N",
                        help="rows and columns of the pictures (default: 128)")
    parser.add_argument("--frames", type=int, default=6, metavar="N",
                        help="of each shot (default: 6)")
    parser.add_argument("--weights", default="", metavar="DIR", help="folder of AlexNet's weights")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    if arguments.read is not None:
        print(table(json.loads(arguments.read.read_text())))
        return 0
    if arguments.root is None or arguments.frames < 1:
        parser.error("give the folder of a data set, and --frames of at least 1")
    if not opencv_version():
        parser.error("OpenCV is not installed: pip install opencv-contrib-python")
    content = {"command": ["python", *sys.argv], "opencv": opencv_version(), "size": arguments.size,
               **measured(arguments)}
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    print(table(content))
    return 0


def measured(arguments: argparse.Namespace) -> dict:
    """The rows, and how many pictures they are means of."""
    pairs = open_pairs(arguments.root, "train", kind="film")
    view = View(pairs, image_size=(arguments.size, arguments.size), fit="pad")
    lpips = Lpips("alex", CPU, arguments.weights)
    shots: dict[str, list[int]] = {}
    for frame, name in enumerate(pairs.names):
        shots.setdefault(re.sub(r"_\d+\.\w+$", "", name), []).append(frame)
    values: dict[str, list[dict]] = {name: [] for name in METHODS}
    shares = []
    for frames in shots.values():
        pictures = np.stack([view.picture(read_image(pairs.path(frame))) for frame in frames])
        masks = np.stack([view.picture(read_image(pairs.mask(frame)))[..., 0]
                          for frame in frames])
        plate, known = clean_plate(pictures, masks)
        for index in np.linspace(0, len(frames) - 1, arguments.frames).round().astype(int):
            picture = pictures[index]
            scene = scene_of(to_tensor(picture, CPU),
                             torch.from_numpy(masks[index])[None, None].float() / 255)
            judged = (scene.hole[0, 0] > 0).numpy() & known
            if not judged.any():
                continue
            shares.append(judged.mean())
            truth = np.where(judged[..., None], plate, picture)
            for name, fill in METHODS.items():
                start = time.perf_counter()
                made = fill(picture, scene)
                seconds = time.perf_counter() - start
                made = np.where(judged[..., None], made, picture)
                values[name].append({
                    "l1": float(np.abs(made[judged].astype(np.float32) - plate[judged]).mean()),
                    "lpips": float(lpips(to_tensor(made, CPU), to_tensor(truth, CPU))),
                    "ms": 1000 * seconds})
    rows = {name: {column: statistics.fmean(each[column] for each in of_method)
                   for column in COLUMNS} for name, of_method in values.items()}
    return {"pictures": len(shares), "share": float(np.mean(shares)), "rows": rows}


def table(content: dict) -> str:
    """In Markdown."""
    lines = ["| | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    lines += [f"| {name} | {row['l1']:.1f} | {row['lpips']:.3f} | {row['ms']:.0f} |"
              for name, row in content["rows"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
