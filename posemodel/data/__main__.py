"""Command `python -m posemodel.data`: look at, prepare, generate data sets; work with poses."""

import argparse
import json
from pathlib import Path

from posemodel.cli import run_main
from posemodel.progress_bar import ProgressBar

PROGRAM = "python -m posemodel.data"


def main(argv: list[str]) -> int:
    """Run a subcommand; returns the exit code."""
    if argv[:1] == ["pose"]:
        from posemodel.data import pose_command

        return pose_command.main(argv[1:])
    arguments = _parser().parse_args(argv)
    return arguments.command(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Data sets on disk, and poses.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    one = commands.add_parser(
        "check", help="is a data set there as a whole, sound, and the published one?",
        description="Exit code 0: complete and sound; 2: something has to be mended.")
    one.set_defaults(command=_check)
    one.add_argument("root", type=Path, help="folder of the data set, or the one that contains it")
    one.add_argument("--kind", choices=("deepfashion", "market"), help="where there are both")
    one.add_argument("--frame", type=int, choices=(176, 256), metavar="COLUMNS",
                     help="frame of DeepFashion's annotation files, 176 or 256 columns "
                          "(default: told from the joints)")
    one.add_argument("--sample", type=int, default=64, metavar="N",
                     help="images of each split to decode (default: 64)")
    one.add_argument("--json", type=Path, metavar="FILE", help="write the findings there, too")

    one = commands.add_parser(
        "prepare", help="from the downloads to a data set folder",
        description="Make a data set folder of the downloads, which stay as they are. The same "
                    "command again continues.")
    one.set_defaults(command=_prepare)
    one.add_argument("raw", type=Path, help="unpacked download, folder with its zip, or the zip")
    one.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    one.add_argument("--kind", choices=("deepfashion", "market"), required=True)
    one.add_argument("--annotations", type=Path, metavar="DIR",
                     help="folder of the csv and lst files (default: where the download is)")
    one.add_argument("--password", help="of DeepFashion's zip")

    one = commands.add_parser(
        "synthesize", help="generated people in the layout of a real data set",
        description="Write generated people as a data set. The same command again continues.")
    one.set_defaults(command=_synthesize)
    one.add_argument("out", type=Path, help="folder to write")
    one.add_argument("--layout", choices=("deepfashion", "market"), required=True)
    one.add_argument("--pairs", type=int, default=200, metavar="N",
                     help="training pairs (default: 200)")
    one.add_argument("--test-pairs", type=int, default=20, metavar="N",
                     help="test pairs (default: 20)")
    one.add_argument("--seed", type=int, default=0,
                     help="other people to train on; the test split is always the same")
    one.add_argument("--frame", type=int, choices=(176, 256), default=176, metavar="COLUMNS",
                     help="deepfashion: images and annotations of 176 columns, as PATN's, or of "
                          "256 with white borders (default: 176)")
    one.add_argument("--image-rows", type=int, default=0, metavar="ROWS",
                     help="height of the image files (default: 256 or, of market, 128)")

    commands.add_parser("pose", add_help=False, help="poses of images: see `pose --help`")
    return parser


def _check(arguments: argparse.Namespace) -> int:
    from posemodel.data.check import check, describe
    from posemodel.errors import UserError
    from posemodel.files import write_result

    if arguments.sample < 0:
        raise UserError(f"--sample {arguments.sample}: expected 0 or more")
    found = check(arguments.root, kind=arguments.kind, frame=arguments.frame,
                  sample=arguments.sample)
    print(describe(found))
    if arguments.json is not None:
        write_result(arguments.json, json.dumps(found.to_dict(), indent=2) + "\n")
    return 2 if found.problems else 0


def _prepare(arguments: argparse.Namespace) -> int:
    from posemodel.data.prepare import prepare

    with ProgressBar() as bar:
        new = prepare(arguments.raw, arguments.out, kind=arguments.kind,
                      annotations=arguments.annotations, password=arguments.password,
                      progress=bar)
    _say_done(arguments.out, new)
    return 0


def _synthesize(arguments: argparse.Namespace) -> int:
    from posemodel.data.synthesize import Plan, synthesize
    from posemodel.engine.data_source import HELD_OUT_SEED, check_seed

    check_seed(arguments.seed)
    plan = Plan(layout=arguments.layout, pairs=arguments.pairs, test_pairs=arguments.test_pairs,
                seed=arguments.seed, held_out_seed=HELD_OUT_SEED, frame=arguments.frame,
                image_rows=arguments.image_rows)
    with ProgressBar() as bar:
        new = synthesize(arguments.out, plan,
                         progress=lambda done, total: bar("pairs", done, total))
    _say_done(arguments.out, new)
    return 0


def _say_done(out: Path, new: bool) -> None:
    print(f"{'written' if new else 'complete already'}: {out}")
    print(f"next: {PROGRAM} check {out}")


if __name__ == "__main__":
    run_main(main)
