"""Command `python -m posemodel.reid`: the paper's Appendix C, from data set to table."""

import argparse
from dataclasses import fields
from functools import partial
from pathlib import Path

from posemodel.reid.config import ReidConfig, require
from posemodel.runtime.main import run_main
from posemodel.runtime.progress_bar import ProgressBar

PROGRAM = "python -m posemodel.reid"


def main(argv: list[str]) -> int:
    """Run a subcommand; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Re-identification: multiply a training set by the flow, and "
        "measure what it is worth. Every command can be given again.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_synthesize, _add_augment, _add_export, _add_train, _add_evaluate, _add_table):
        add(commands)
    arguments = parser.parse_args(argv)
    arguments.command(arguments)
    return 0


def _add_synthesize(commands) -> None:
    parser = commands.add_parser(
        "synthesize", help="generated people in the layout of Market-1501",
        description="Write a new folder of generated people: identities under several cameras.")
    parser.set_defaults(command=_synthesize)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--identities", type=int, default=100, metavar="N",
                        help="of the train split, and as many others of the test (default: 100)")
    parser.add_argument("--cameras", type=int, default=6, metavar="N", help="2 to 6 (default: 6)")
    parser.add_argument("--images", type=int, default=2, metavar="N",
                        help="of each identity under each camera (default: 2)")
    parser.add_argument("--turn", type=float, default=180.0, metavar="DEGREES",
                        help="bodies face the camera to within this much (default: 180, any way)")
    parser.add_argument("--seed", type=int, default=0)


def _add_augment(commands) -> None:
    parser = commands.add_parser(
        "augment", help="every training image in other poses, on grey",
        description="Write each training image in poses drawn from the training set, the same for "
        "all images, sampled at the flow of a trained run without its refinement. The same command "
        "again continues.")
    parser.set_defaults(command=_augment)
    parser.add_argument("run", type=Path,
                        help="run folder of posemodel.train, or a safetensors file")
    parser.add_argument("--root", type=Path, required=True, metavar="MARKET",
                        help="Market-1501 with market-annotation-train.csv")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--poses", type=int, default=25, metavar="N",
                        help="drawn once and given to every image (default: 25)")
    parser.add_argument("--on-missing", choices=("skip", "copy"), default="skip",
                        help="images without a single joint: leave them out, or copy each as often "
                        "as there are poses (default: skip)")
    parser.add_argument("--seed", type=int, default=0, help="other poses")
    parser.add_argument("--batch-size", type=int, default=100, metavar="N",
                        help="images that the model makes at a time (default: 100)")
    _add_machine(parser, "writers", "decode, encode and write")


def _add_export(commands) -> None:
    parser = commands.add_parser(
        "export", help="real and generated images as other code reads them",
        description="Copy real and generated images into a new folder, as torchreid and fast-reid "
        "(market) or DG-Net++ (folders) read it.")
    parser.set_defaults(command=_export)
    parser.add_argument("--root", type=Path, required=True, metavar="MARKET")
    parser.add_argument("--augmented", type=Path, metavar="DIR",
                        help="folder of augment (default: real images only)")
    parser.add_argument("--layout", choices=("market", "folders"), required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")


def _add_train(commands) -> None:
    parser = commands.add_parser(
        "train", help="a ResNet baseline on real, or real and generated images",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Train the baseline of Luo et al. (2019) once for each seed. The same command "
        "again trains the seeds that are missing.")
    parser.set_defaults(command=_train)
    parser.add_argument("--root", required=True, metavar="MARKET")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="run folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    for flag in fields(ReidConfig)[1:]:
        several = isinstance(flag.default, tuple)
        parser.add_argument("--" + flag.name.replace("_", "-"), default=flag.default,
                            type=type(flag.default[0] if several else flag.default),
                            nargs=len(flag.default) if several else None, **flag.metadata)
    _add_machine(parser)


def _add_evaluate(commands) -> None:
    parser = commands.add_parser(
        "evaluate", help="mAP and rank 1, 5, 10 of a run of train",
        description="Rank the gallery for each query with every seed of a run.")
    parser.set_defaults(command=_evaluate)
    parser.add_argument("run", type=Path, help="run folder of train")
    parser.add_argument("--root", type=Path, metavar="MARKET",
                        help="another data set than the run was trained on")
    _add_machine(parser)


def _add_machine(parser: argparse.ArgumentParser, workers: str = "workers",
                 do: str = "read") -> None:
    """Flags for what a command runs on: its threads, and what they do, and its device."""
    parser.add_argument(f"--{workers}", type=int, default=4, metavar="N",
                        help=f"threads that {do} (default: %(default)s)")
    parser.add_argument("--device", default="auto",
                        help="auto, cpu, cuda, ... (default: %(default)s)")


def _add_table(commands) -> None:
    parser = commands.add_parser(
        "table", help="the paper's Table 5 of two evaluated runs",
        description="Print mean and spread over the seeds of two runs, beside the paper's numbers.")
    parser.set_defaults(command=_table)
    parser.add_argument("real", type=Path, help="run on real images")
    parser.add_argument("augmented", type=Path, help="run on real and generated images")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the numbers go, of every "
                        "seed (default: nowhere)")


def _synthesize(arguments: argparse.Namespace) -> None:
    from posemodel.reid.synthesize import MarketPlan, synthesize

    plan = MarketPlan(identities=arguments.identities, cameras=arguments.cameras,
                      images=arguments.images, turn=arguments.turn, seed=arguments.seed)
    with ProgressBar() as bar:
        counts = synthesize(arguments.out, plan, progress=partial(bar, "images"))
    _print_counts(arguments.out, counts)


def _augment(arguments: argparse.Namespace) -> None:
    from posemodel.inference.model import PoseTransferModel
    from posemodel.reid.augment import AugmentPlan, augment

    plan = AugmentPlan(poses=arguments.poses, on_missing=arguments.on_missing, seed=arguments.seed,
                       batch_size=arguments.batch_size)
    model = PoseTransferModel.choose(arguments.run, arguments.device)
    with ProgressBar() as bar:
        outcome = augment(model, arguments.root, arguments.out, plan, writers=arguments.writers,
                          progress=partial(bar, "images"))
    print(f"generated {outcome.generated:,}, copied {outcome.copied:,}: "
          f"{outcome.generated + outcome.copied:,} images in {arguments.out}")
    if outcome.skipped:
        print(f"skipped: {outcome.skipped:,} images without a joint; --on-missing copy would add "
              f"{outcome.skipped * plan.poses:,}")
    if outcome.written:
        waits = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in outcome.waited.items())
        print(f"{outcome.written / outcome.seconds:.0f} images/s, bound by {outcome.bound} "
              f"(waited for: {waits})")


def _export(arguments: argparse.Namespace) -> None:
    from posemodel.reid.export import export

    with ProgressBar() as bar:
        counts = export(arguments.root, arguments.out, layout=arguments.layout,
                        augmented=arguments.augmented, progress=partial(bar, "images"))
    _print_counts(arguments.out, counts)


def _train(arguments: argparse.Namespace) -> None:
    from posemodel.reid.runs import train

    require(arguments.workers >= 1, "workers", arguments.workers, "at least 1")
    values = {flag.name: getattr(arguments, flag.name) for flag in fields(ReidConfig)}
    config = ReidConfig(**{**values, "image_size": tuple(arguments.image_size)})
    train(config, arguments.out, seeds=arguments.seeds, device=arguments.device,
          workers=arguments.workers, say=partial(print, flush=True))
    print(f"next: {PROGRAM} evaluate {arguments.out}")


def _evaluate(arguments: argparse.Namespace) -> None:
    from posemodel.reid.runs import evaluate

    require(arguments.workers >= 1, "workers", arguments.workers, "at least 1")
    evaluate(arguments.run, root=arguments.root, device=arguments.device,
             workers=arguments.workers, say=partial(print, flush=True))


def _table(arguments: argparse.Namespace) -> None:
    import json

    from posemodel.reid.table import compare_runs, table
    from posemodel.runtime.files import write_result

    compared = compare_runs(arguments.real, arguments.augmented)
    page = table(compared)
    if arguments.json:
        values = {**compared, "table": page}
        write_result(arguments.json, json.dumps(values, indent=2, allow_nan=False) + "\n")
    print(f"{page}\n\n{compared['note']}")


def _print_counts(out: Path, counts: dict[str, int]) -> None:
    for name, count in counts.items():
        print(f"{out / name}: {count:,} images")


if __name__ == "__main__":
    run_main(main)
