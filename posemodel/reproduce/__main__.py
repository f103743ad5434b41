"""`python -m posemodel.reproduce table1`: the paper's tables, trained and measured again."""

import argparse
import shlex
import signal
import sys

from posemodel.config.presets import FULL_SIZE, PRESETS
from posemodel.reproduce import table5
from posemodel.reproduce.commands import add_places
from posemodel.reproduce.tables import TABLES, of_preset, with_images
from posemodel.runtime.errors import UserError
from posemodel.runtime.files import write_result
from posemodel.runtime.main import run_main

PROGRAM = "python -m posemodel.reproduce"


def main(argv: list[str]) -> int:
    """Train what a table still lacks, measure every cell, write the table and its pictures.

    The same command again continues. Runs that tables share are trained once.
    """
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if argv[:1] == [table5.NAME]:
        return table5.main(argv[1:])
    arguments = _parser().parse_args(argv)
    if arguments.table == table5.NAME:
        raise UserError(f"{table5.NAME} has flags of its own: give its name first")
    # A comparison takes two pairs.
    for flag, least in (("budget", 0), ("minutes", 0), ("seeds", 0), ("pairs", 1), ("jobs", 0)):
        value = getattr(arguments, flag)
        if value is not None and not value > least:
            raise UserError(f"--{flag} {value}: expected more than {least}")
    return _reproduce(arguments, f"{PROGRAM} {shlex.join(argv)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=main.__doc__,
        epilog=f"{table5.NAME} has flags of its own: {table5.PROGRAM} --help")
    parser.add_argument("table", choices=(*TABLES, table5.NAME))
    parser.add_argument("--data", default="mannequins", metavar="mannequins|ROOT",
                        help="generated people, or the folder of a data set (default: mannequins)")
    parser.add_argument("--preset", choices=PRESETS, default="quick",
                        help="sizes and losses of all cells (default: quick)")
    parser.add_argument("--image-size", type=int, nargs=2, metavar=("H", "W"),
                        help="pixels of the images of all cells (default: the preset's)")
    parser.add_argument("--turn", type=float, metavar="DEGREES",
                        help="generated people face the camera to within this many degrees "
                             "(default: the preset's)")
    parser.add_argument("--background", choices=("white", "cluttered", "still"),
                        help="what stands behind generated people (default: the preset's)")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--budget", type=int, metavar="STEPS",
                        help="training steps of each run (default: the preset's; under those of "
                             "the paper's sizes those of each method's own paper)")
    budget.add_argument("--minutes", type=float, metavar="M",
                        help="training time of each run instead: each method gets as many steps as "
                             "a short run says that it can do in M minutes")
    parser.add_argument("--seeds", type=int, default=1, metavar="N",
                        help="runs of each cell, with seeds from 0 (default: 1)")
    parser.add_argument("--pairs", type=int, metavar="N",
                        help="test pairs (default: the preset's)")
    parser.add_argument("--image-input", action="store_true",
                        help="let the other methods of table1 see the source image, too, as their "
                             "papers do")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16", "float16"),
                        help="of all cells, in training and in measuring (default: the preset's, "
                             "auto: the fastest, which may be another one on another machine)")
    add_places(parser, weights_for="LPIPS and perceptual losses")
    parser.add_argument("--jobs", type=int, default=1, metavar="N",
                        help="runs side by side, which share the cores (default: 1)")
    parser.add_argument("--dry-run", action="store_true",
                        help="print the runs and the time that they would take, and train nothing "
                             "but the short runs that tell it")
    return parser


def _reproduce(arguments: argparse.Namespace, command: str) -> int:
    from posemodel.reproduce.pictures import write_curves, write_warps
    from posemodel.reproduce.results import TableNumbers
    from posemodel.reproduce.runs import Bench

    name, table = arguments.table, of_preset(TABLES[arguments.table], arguments.preset)
    preset = PRESETS[arguments.preset]()
    if arguments.image_input:
        name, table = f"{name}-image", with_images(table)
    steps = arguments.budget or (None if arguments.preset in FULL_SIZE else preset.steps)
    flags = _data_flags(arguments.data) + _scene_flags(arguments)
    if arguments.precision is not None:
        flags += ("--precision", arguments.precision)
    bench = Bench(out=arguments.out, preset=arguments.preset, flags=flags, steps=steps,
                  minutes=arguments.minutes, device=arguments.device,
                  pairs=arguments.pairs or preset.data.evaluation_pairs,
                  jobs=arguments.jobs, weights=arguments.weights)
    if arguments.dry_run:
        print(_forecast(bench, table.trained, arguments.seeds))
        return 0
    # The paces first, before anything runs beside them.
    paces = bench.paces(table.trained)
    numbers = TableNumbers(name, table, bench.run(table.trained, arguments.seeds))
    about = {"command": command, "preset": arguments.preset, "data": arguments.data,
             "steps": None if arguments.minutes is not None else steps,
             "minutes": arguments.minutes, "seeds": arguments.seeds,
             "threads": bench.threads, "seconds_per_step": paces}
    page = numbers.to_markdown(about)
    for ending, text in ((".csv", numbers.to_csv()), (".json", numbers.to_json(about)),
                         (".md", page)):
        write_result(arguments.out / f"{name}{ending}", text)
    write_warps(numbers, arguments.out / f"{name}.png", arguments.device)
    write_curves(numbers, arguments.out / f"{name}-curves.png")
    print(f"\n{page}\nwritten: {arguments.out / name}.md, .csv, .json, .png, -curves.png")
    return 0


def _data_flags(data: str) -> tuple[str, ...]:
    if data == "mannequins":
        return ("--data.kind", "mannequins")
    from posemodel.data.reading import find_dataset

    return ("--data.kind", find_dataset(data).kind, "--data.root", data)


def _scene_flags(arguments: argparse.Namespace) -> tuple[str, ...]:
    """What the command says of the images. Raises: `UserError`."""
    flags = ("--data.image-size", *map(str, arguments.image_size)) if arguments.image_size else ()
    for name in ("turn", "background"):
        value = getattr(arguments, name)
        if value is not None and arguments.data != "mannequins":
            raise UserError(f"--{name} {value}: of generated people, not with --data "
                            f"{arguments.data}")
        flags += (f"--data.{name}", str(value)) if value is not None else ()
    return flags


def _forecast(bench, cells: list, seeds: int) -> str:
    """The runs and their time, evaluations not counted."""
    lines = [f"{'cell':<28}{'runs':>5}{'steps':>9}{'s/step':>9}{'min/run':>9}{'done':>6}"]
    total, paces = 0.0, bench.paces(cells)
    for cell in cells:
        pace, steps = paces[cell.key], bench.steps_of(cell)
        done = sum(bench.is_done(cell, steps, seed) for seed in range(seeds))
        total += pace * steps * (seeds - done)
        lines.append(f"{cell.label:<28}{seeds:>5}{steps:>9}{pace:>9.3f}{pace * steps / 60:>9.1f}"
                     f"{done:>6}")
    lines.append(f"to train: {total / 60 / bench.jobs:.0f} min with {bench.jobs} at a time on "
                 f"{bench.threads} thread{'s' if bench.threads > 1 else ''} each; the evaluations "
                 "come on top")
    return "\n".join(lines)


if __name__ == "__main__":
    run_main(main)
