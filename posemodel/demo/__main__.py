"""`python -m posemodel.demo [RUN]`: a page in which a skeleton is dragged and a person follows."""

import argparse
from pathlib import Path

from posemodel.runtime.main import run_main


def main(argv: list[str]) -> int:
    """Serves a page on this machine in which a person takes any pose that is dragged: what the
    model makes of it, where it looked, and what it invented. Nothing leaves the machine."""
    parser = argparse.ArgumentParser(prog="python -m posemodel.demo", description=main.__doc__)
    parser.add_argument("run", type=Path, nargs="?", metavar="RUN",
                        help="run folder or .safetensors file (default: the newest folder in runs, "
                        "else the model of the package)")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    parser.add_argument("--weights", default="", metavar="DIR",
                        help="folder with the pose estimator's model file, which finds the joints "
                        "of pictures that are added")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    arguments = parser.parse_args(argv)

    from posemodel.demo.server import DemoSite
    from posemodel.demo.workbench import Workbench
    from posemodel.inference.model import PoseTransferModel
    from posemodel.poses.estimator import POSE_LANDMARKER, missing_package, pose_estimator
    from posemodel.runtime.local_server import LocalServer

    model = PoseTransferModel.choose(arguments.run, arguments.device)
    print(f"model: {model.summary}")
    why = missing_package() or POSE_LANDMARKER.missing(arguments.weights)
    if why:
        print(f"joints of added pictures come from files or are dragged: {why}")
    with pose_estimator(arguments.weights) as estimator:
        workbench = Workbench(model, None if why else estimator)
        server = LocalServer(DemoSite(workbench), port=arguments.port)
        print(f"page: {server.url}  (Ctrl-C stops it)", flush=True)
        server.serve_until_interrupted(browser=not arguments.no_browser)
    return 0


if __name__ == "__main__":
    run_main(main)
