"""`python -m posemodel.doctor`: what is here, what works, and what to do about what does not.

Text to paste into a bug report: no name of a person or machine, `~` for the home directory. It
changes nothing and downloads nothing.

Exit code 0: training works, whatever else is missing; 2: a problem that stops it, or a data set
given by --data that has to be mended.
"""

import argparse
import json
import time
from pathlib import Path

from posemodel.doctor.checkup import Checkup, Problem, hide_home
from posemodel.doctor.computation import kernels, training_steps, two_processes
from posemodel.doctor.installation import data, machine, packages, torch_and_devices, weights
from posemodel.runtime.errors import UserError
from posemodel.runtime.files import write_result
from posemodel.runtime.main import run_main


def main(argv: list[str]) -> int:
    """Examines everything, prints it, and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m posemodel.doctor", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=[], metavar="ROOT",
                        help="folders of data sets to check, too")
    parser.add_argument("--weights", default="", metavar="DIR",
                        help="folder of published weights, looked into before that of the variable "
                             "POSEMODEL_WEIGHTS and torch hub's cache")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the findings there, too")
    arguments = parser.parse_args(argv)
    if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
        raise UserError(f"--json {arguments.json}: there is no folder {arguments.json.parent}")

    start = time.monotonic()
    checkup = Checkup()
    checkup.examine("packages", packages)
    checkup.examine("machine", machine)
    if checkup.examine("torch", torch_and_devices):
        checkup.examine("kernels", kernels)
        checkup.examine("a training step", training_steps)
        checkup.examine("two processes", two_processes)
        checkup.examine("published weights (none is needed by the preset quick)",
                        lambda checkup: weights(checkup, arguments.weights))
        for root in arguments.data:
            checkup.examine(f"data in {hide_home(root)}",
                            lambda checkup, root=root: data(checkup, root))
    print()
    print(conclusion(checkup.problems))
    print(f"({time.monotonic() - start:.0f} s)")
    if arguments.json is not None:
        write_result(arguments.json, json.dumps(checkup.to_dict(), indent=2) + "\n")
    return 2 if checkup.stopped else 0


def conclusion(problems: list[Problem]) -> str:
    """The last words: what is wrong, and what to do."""
    if not problems:
        return "all well"
    lines = []
    for number, problem in enumerate(problems, 1):
        effect = "stops training: " if problem.stops else ""
        lines += [f"{number}. {effect}{problem.what}", f"   do: {problem.remedy}"]
    return "\n".join(["problems", *lines])


if __name__ == "__main__":
    run_main(main)
