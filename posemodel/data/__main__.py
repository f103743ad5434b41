"""Command `python -m posemodel.data`: look at, prepare, split, generate data sets; work with
poses."""

import argparse
import json
from pathlib import Path

from posemodel.data.layouts import FILE_WIDTHS, LAYOUTS, PUBLISHED
from posemodel.runtime.main import run_main
from posemodel.runtime.progress_bar import ProgressBar

PROGRAM = "python -m posemodel.data"


def main(argv: list[str]) -> int:
    """Run a subcommand; returns the exit code."""
    if argv[:1] == ["pose"]:
        from posemodel.data import pose_command

        return pose_command.main(argv[1:])
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Data sets on disk, and poses.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_check(commands)
    _add_prepare(commands)
    _add_split(commands)
    _add_synthesize(commands)
    _add_film(commands)
    commands.add_parser("pose", add_help=False, help="poses of images: see `pose --help`")
    arguments = parser.parse_args(argv)
    return arguments.command(arguments)


def _add_check(commands) -> None:
    parser = commands.add_parser(
        "check", help="is a data set there as a whole, sound, and the published one?",
        description="Exit code 0: complete and sound; 2: something has to be mended.")
    parser.set_defaults(command=_check)
    parser.add_argument("root", type=Path,
                        help="folder of the data set, or the one that contains it")
    parser.add_argument("--kind", choices=tuple(LAYOUTS), help="where there are both")
    parser.add_argument("--frame", type=int, choices=FILE_WIDTHS, metavar="COLUMNS",
                        help="frame of DeepFashion's annotation files, "
                             f"{' or '.join(map(str, FILE_WIDTHS))} columns "
                             "(default: told from the joints)")
    parser.add_argument("--sample", type=int, default=64, metavar="N",
                        help="images of each split to decode (default: 64)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the findings there, too")


def _add_prepare(commands) -> None:
    parser = commands.add_parser(
        "prepare", help="from the downloads to a data set folder",
        description="Make a data set folder of the downloads, which stay as they are. The same "
                    "command again continues.")
    parser.set_defaults(command=_prepare)
    parser.add_argument("raw", type=Path, help="unpacked download, folder with its zip, or the zip")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--kind", choices=PUBLISHED, required=True)
    parser.add_argument("--annotations", type=Path, metavar="DIR",
                        help="folder of the csv and lst files (default: where the download is)")
    parser.add_argument("--password", help="of DeepFashion's zip")


def _add_split(commands) -> None:
    parser = commands.add_parser(
        "split", help="from the training list of a data set a validation list",
        description="Move the pairs of some people from the training list to a validation list, "
                    "which training then measures itself on. Images stay where they are, and the "
                    "training list as it was is kept beside.")
    parser.set_defaults(command=_split)
    parser.add_argument("root", type=Path, help="folder of the data set")
    parser.add_argument("--validation", type=float, default=0.05, metavar="SHARE",
                        help="of the people in the training list (default: 0.05)")
    parser.add_argument("--kind", choices=tuple(LAYOUTS), help="where there are several")


def _add_synthesize(commands) -> None:
    inner, whole = FILE_WIDTHS[0], FILE_WIDTHS[-1]
    parser = commands.add_parser(
        "synthesize", help="generated people in the layout of a real data set",
        description="Write generated people as a data set. The same command again continues.")
    parser.set_defaults(command=_synthesize)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--layout", choices=PUBLISHED, required=True)
    parser.add_argument("--pairs", type=int, default=200, metavar="N",
                        help="training pairs (default: 200)")
    parser.add_argument("--test-pairs", type=int, default=20, metavar="N",
                        help="test pairs (default: 20)")
    parser.add_argument("--validation-pairs", type=int, default=0, metavar="N",
                        help="validation pairs (default: 0, no validation list)")
    parser.add_argument("--seed", type=int, default=0,
                        help="other people to train on; the others are always the same")
    parser.add_argument("--frame", type=int, choices=FILE_WIDTHS, default=inner, metavar="COLUMNS",
                        help=f"deepfashion: images and annotations of {inner} columns, as PATN's, "
                             f"or of {whole} with white borders (default: {inner})")
    parser.add_argument("--image-rows", type=int, default=0, metavar="ROWS",
                        help="height of the image files (default: 256 or, of market, 128)")


def _add_film(commands) -> None:
    parser = commands.add_parser(
        "film", help="from films of a person to a data set of frames",
        description="Find joints and masks in films and write them as a data set, one fixed square "
                    "for each shot; --data.kind film trains on it.")
    parser.set_defaults(command=_film)
    parser.add_argument("clips", type=Path, nargs="+", metavar="CLIP",
                        help="films: MP4, MOV, WebM, MKV, AVI, GIF")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR",
                        help="folder to write; new")
    parser.add_argument("--frames", type=int, default=400, metavar="N",
                        help="most frames of a clip to look at, evenly spread (default: 400)")
    parser.add_argument("--as-found", action="store_true",
                        help="joints as they are found in each frame: neither are left and right "
                        "exchanged where they change places, nor frames left out where joints jump")
    parser.add_argument("--weights", default="", metavar="DIR",
                        help="folder with the pose estimator's model file")


def _check(arguments: argparse.Namespace) -> int:
    from posemodel.data.check import check, describe
    from posemodel.runtime.errors import UserError
    from posemodel.runtime.files import write_result

    if arguments.sample < 0:
        raise UserError(f"--sample {arguments.sample}: expected 0 or more")
    findings = check(arguments.root, kind=arguments.kind, frame=arguments.frame,
                  sample=arguments.sample)
    print(describe(findings))
    if arguments.json is not None:
        write_result(arguments.json, json.dumps(findings.to_dict(), indent=2) + "\n")
    return 2 if findings.problems else 0


def _prepare(arguments: argparse.Namespace) -> int:
    from posemodel.data.prepare import prepare

    with ProgressBar() as bar:
        new = prepare(arguments.raw, arguments.out, kind=arguments.kind,
                      annotations=arguments.annotations, password=arguments.password, progress=bar)
    return _say_done(arguments.out, new)


def _split(arguments: argparse.Namespace) -> int:
    from posemodel.data.validation import WHOLE, carve_validation

    validation, train = carve_validation(arguments.root, share=arguments.validation,
                                         kind=arguments.kind)
    for name, each in (("validation", validation), ("training", train)):
        print(f"{name} list: {each.path}: {each.pairs:,} pairs of {each.people:,} people")
    print(f"the training list as it was: {train.path}{WHOLE}")
    print(f"next: {PROGRAM} check {arguments.root}")
    return 0


def _synthesize(arguments: argparse.Namespace) -> int:
    from posemodel.data.source import HELD_OUT_SEEDS, check_seed
    from posemodel.data.synthesize import SynthesisPlan, synthesize

    check_seed(arguments.seed)
    plan = SynthesisPlan(layout=arguments.layout, pairs=arguments.pairs, seed=arguments.seed,
                         test_pairs=arguments.test_pairs, held_out_seed=HELD_OUT_SEEDS["test"],
                         validation_pairs=arguments.validation_pairs,
                         validation_seed=HELD_OUT_SEEDS["validation"],
                         frame=arguments.frame, image_rows=arguments.image_rows)
    with ProgressBar() as bar:
        new = synthesize(arguments.out, plan,
                         progress=lambda done, total: bar("pairs", done, total))
    return _say_done(arguments.out, new)


def _film(arguments: argparse.Namespace) -> int:
    from posemodel.data.film_dataset import make_film_data
    from posemodel.poses.estimator import pose_estimator
    from posemodel.runtime.errors import UserError
    from posemodel.runtime.files import refuse_existing

    if arguments.frames < 1:
        raise UserError(f"--frames {arguments.frames}: expected at least 1")
    refuse_existing(arguments.out)
    with pose_estimator(arguments.weights) as estimator, ProgressBar() as bar:
        reports = make_film_data(arguments.clips, arguments.out, estimator,
                                 most=arguments.frames, as_found=arguments.as_found,
                                 progress=bar)
    for report in reports:
        print(report.line())
    print(f"written: {arguments.out}")
    print(f"next: python -m posemodel.train person --data.root {arguments.out}")
    return 0


def _say_done(out: Path, new: bool) -> int:
    print(f"{'written' if new else 'complete already'}: {out}")
    print(f"next: {PROGRAM} check {out}")
    return 0


if __name__ == "__main__":
    run_main(main)
