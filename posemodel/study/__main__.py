"""`python -m posemodel.study new|serve|report DIR`: which of two results do people prefer?"""

import argparse
import json
from pathlib import Path

from posemodel.runtime.main import run_main


def main(argv: list[str]) -> int:
    """The paper's user study (Appendix D): results of the first method beside those of each other
    one, blinded and shuffled. Two questions: which shows the new pose better, and which fills in
    better what the given picture does not show."""
    parser = argparse.ArgumentParser(prog="python -m posemodel.study", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    new = commands.add_parser("new", help="choose pairs and copy their pictures, blinded",
                              description=create.__doc__)
    new.add_argument("folder", type=Path, metavar="DIR", help="a new folder for the study")
    new.add_argument("--methods", nargs="+", required=True, metavar="NAME=RUN_OR_FOLDER",
                     help="at least two; each run folder is asked for its test pairs, a folder "
                     "of images holds results under the same file names (beside a run: the number "
                     "of the test pair, 000000.png, ...)")
    new.add_argument("--pairs", type=int, default=80, metavar="N",
                     help="pairs that every volunteer sees of each comparison (default: 80, as in "
                     "the paper)")
    new.add_argument("--volunteers", type=int, default=6, metavar="N",
                     help="how many are expected; more may come (default: 6, as in the paper)")
    new.add_argument("--seed", type=int, default=0, help="of the choice and the order (default: 0)")
    new.add_argument("--repeats", type=float, default=0.1, metavar="SHARE",
                     help="share of comparisons that come a second time, sides exchanged, to see "
                     "how consistent answers are (default: 0.1)")
    new.add_argument("--show", choices=("refined", "warped"), default="warped",
                     help="which picture of a run (default: warped)")
    new.add_argument("--source", type=Path, metavar="FOLDER",
                     help="the persons as given, where no method is a run")
    new.add_argument("--target", type=Path, metavar="FOLDER",
                     help="the real pictures in the new pose, where no method is a run")
    new.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")

    serve = commands.add_parser("serve", help="the page for volunteers",
                                description=serve_study.__doc__)
    serve.add_argument("folder", type=Path, metavar="DIR")
    serve.add_argument("--port", type=int, default=0, help="default: a free one")
    serve.add_argument("--address", default="127.0.0.1", metavar="IP",
                       help="address of this machine to listen on; another one than 127.0.0.1 lets "
                       "volunteers on other machines in (default: 127.0.0.1)")
    serve.add_argument("--no-browser", action="store_true", help="only print the address")

    report = commands.add_parser("report", help="Table 6 from the answers so far",
                                 description=report_study.__doc__)
    report.add_argument("folder", type=Path, metavar="DIR")
    report.add_argument("--json", type=Path, metavar="FILE",
                        help="where the numbers go (default: DIR/report.json)")
    arguments = parser.parse_args(argv)
    return {"new": create, "serve": serve_study, "report": report_study}[arguments.command](
        arguments)


def create(arguments: argparse.Namespace) -> int:
    """Makes a study: pairs chosen at random, their pictures under names that say nothing."""
    from posemodel.runtime.files import refuse_existing
    from posemodel.study.pairs import collect_pairs, parse_methods
    from posemodel.study.study import create_study
    from posemodel.study.trials import plan_trials

    refuse_existing(arguments.folder)
    methods = parse_methods(arguments.methods)
    pairs = collect_pairs(methods, count=arguments.pairs, seed=arguments.seed, show=arguments.show,
                          source=arguments.source, target=arguments.target, device=arguments.device)
    study = create_study(arguments.folder, methods=methods, pairs=pairs, seed=arguments.seed,
                         repeats=arguments.repeats, show=arguments.show,
                         volunteers=arguments.volunteers)
    print(f"{len(study.pairs)} pairs, {len(plan_trials(study, 'anybody'))} comparisons with two "
          f"questions for each of {study.volunteers} volunteers\n"
          f"next: python -m posemodel.study serve {study.folder}")
    return 0


def serve_study(arguments: argparse.Namespace) -> int:
    """Serves the page for volunteers until Ctrl-C. Answers are on the disk before the page goes on;
    whoever comes back under the same name continues."""
    from posemodel.runtime.errors import UserError
    from posemodel.runtime.local_server import LocalServer
    from posemodel.study.server import StudySite
    from posemodel.study.study import open_study

    if arguments.address == "0.0.0.0":
        raise UserError("--address 0.0.0.0: give the one address that volunteers will type")
    study = open_study(arguments.folder)
    server = LocalServer(StudySite(study), port=arguments.port, address=arguments.address)
    print(f"page: {server.url}  (Ctrl-C stops it)", flush=True)
    server.serve_until_interrupted(browser=not arguments.no_browser)
    return 0


def report_study(arguments: argparse.Namespace) -> int:
    """Prints Table 6: how often the first method is preferred, with 95 % intervals; what the
    answers of each volunteer look like, and how many are still to come; and what is known of the
    paper's numbers."""
    from posemodel.runtime.files import write_result
    from posemodel.study.report import report_text, summarize
    from posemodel.study.study import open_study

    study = open_study(arguments.folder)
    summary = summarize(study)
    path = arguments.json or study.folder / "report.json"
    write_result(path, json.dumps(summary, indent=2, allow_nan=False) + "\n")
    print(report_text(summary))
    print(f"numbers: {path}")
    return 0


if __name__ == "__main__":
    run_main(main)
