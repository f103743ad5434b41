"""Command `python -m posemodel.reid`: the paper's Appendix C, from data set to table."""

import argparse
from functools import partial
from pathlib import Path

from posemodel.cli import run_main
from posemodel.progress_bar import ProgressBar

PROGRAM = "python -m posemodel.reid"


def main(argv: list[str]) -> int:
    """Run a subcommand; returns the exit code."""
    arguments = _parser().parse_args(argv)
    return arguments.command(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Re-identification: multiply a training set by the flow, and "
        "measure what it is worth. Every command can be given again.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_synthesize(commands)
    _add_augment(commands)
    _add_export(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_table(commands)
    return parser


def _add_synthesize(commands) -> None:
    one = commands.add_parser(
        "synthesize", help="generated people in the layout of Market-1501",
        description="Write a new folder of generated people: identities under several cameras.")
    one.set_defaults(command=_synthesize)
    one.add_argument("out", type=Path, help="folder to write")
    one.add_argument("--identities", type=int, default=100, metavar="N",
                     help="of the train split, and as many others of the test (default: 100)")
    one.add_argument("--cameras", type=int, default=6, metavar="N", help="2 to 6 (default: 6)")
    one.add_argument("--images", type=int, default=2, metavar="N",
                     help="of each identity under each camera (default: 2)")
    one.add_argument("--turn", type=float, default=180.0, metavar="DEGREES",
                     help="bodies face the camera to within this much (default: 180, any way)")
    one.add_argument("--seed", type=int, default=0)


def _add_augment(commands) -> None:
    one = commands.add_parser(
        "augment", help="every training image in other poses, on grey",
        description="Write each training image in poses drawn from the training set, sampled at "
        "the flow of a trained run without its refinement. The same command again continues.")
    one.set_defaults(command=_augment)
    one.add_argument("run", type=Path, help="run folder of posemodel.train, or a safetensors file")
    one.add_argument("--root", type=Path, required=True, metavar="MARKET",
                     help="Market-1501 with market-annotation-train.csv")
    one.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    one.add_argument("--poses", type=int, default=25, metavar="N",
                     help="of each image (default: 25)")
    one.add_argument("--on-missing", choices=("skip", "copy"), default="skip",
                     help="images without a single joint: leave them out, or copy each as often as "
                     "it would have got poses (default: skip)")
    one.add_argument("--seed", type=int, default=0, help="other poses")
    one.add_argument("--batch-size", type=int, default=100, metavar="N",
                     help="images that the model makes at a time (default: 100)")
    one.add_argument("--writers", type=int, default=4, metavar="N",
                     help="threads that decode, encode and write (default: 4)")
    one.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")


def _add_export(commands) -> None:
    one = commands.add_parser(
        "export", help="real and generated images as other code reads them",
        description="Copy real and generated images into a new folder, as torchreid and fast-reid "
        "(market) or DG-Net++ (folders) read it.")
    one.set_defaults(command=_export)
    one.add_argument("--root", type=Path, required=True, metavar="MARKET")
    one.add_argument("--augmented", type=Path, metavar="DIR",
                     help="folder of augment (default: real images only)")
    one.add_argument("--layout", choices=("market", "folders"), required=True)
    one.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")


def _add_train(commands) -> None:
    one = commands.add_parser(
        "train", help="a ResNet baseline on real, or real and generated images",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Train the baseline of Luo et al. (2019) once for each seed. The same command "
        "again trains the seeds that are missing.")
    one.set_defaults(command=_train)
    one.add_argument("--root", required=True, metavar="MARKET")
    one.add_argument("--out", type=Path, required=True, metavar="DIR", help="run folder")
    one.add_argument("--augmented", default="", metavar="DIR",
                     help="folder of augment; none: real images only")
    one.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    one.add_argument("--steps", type=int, default=24_000, metavar="N",
                     help="about 120 epochs of Market-1501")
    one.add_argument("--backbone", default="resnet50", metavar="NAME",
                     help="resnet50, resnet18, or resnet10 for a CPU")
    one.add_argument("--weights", default="auto", metavar="FILE",
                     help="ImageNet weights of the backbone; auto: from torch hub's cache, if "
                     "there; none: from scratch")
    one.add_argument("--image-size", type=int, nargs=2, default=(256, 128),
                     metavar=("HEIGHT", "WIDTH"))
    one.add_argument("--batch-identities", type=int, default=16, metavar="P")
    one.add_argument("--batch-images", type=int, default=4, metavar="K",
                     help="of each identity of a batch")
    one.add_argument("--generated-share", type=float, default=0.5, metavar="X",
                     help="of a batch, where there are generated images")
    one.add_argument("--max-images", type=int, default=0, metavar="N",
                     help="real images of each identity, spread over the cameras; 0: all")
    one.add_argument("--max-poses", type=int, default=0, metavar="N",
                     help="generated images of each real one; 0: all")
    one.add_argument("--lr", type=float, default=3.5e-4, metavar="X")
    one.add_argument("--label-smoothing", type=float, default=0.1, metavar="X")
    one.add_argument("--margin", type=float, default=0.3, metavar="X", help="of the triplet loss")
    one.add_argument("--erase", type=float, default=0.5, metavar="X",
                     help="share of images with a random rectangle erased")
    one.add_argument("--workers", type=int, default=4, metavar="N", help="threads that read")
    one.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")


def _add_evaluate(commands) -> None:
    one = commands.add_parser(
        "evaluate", help="mAP and rank 1, 5, 10 of a run of train",
        description="Rank the gallery for each query with every seed of a run.")
    one.set_defaults(command=_evaluate)
    one.add_argument("run", type=Path, help="run folder of train")
    one.add_argument("--root", type=Path, metavar="MARKET",
                     help="another data set than the run was trained on")
    one.add_argument("--workers", type=int, default=4, metavar="N",
                     help="threads that read (default: 4)")
    one.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")


def _add_table(commands) -> None:
    one = commands.add_parser(
        "table", help="the paper's Table 5 of two evaluated runs",
        description="Print mean and spread over the seeds of two runs, beside the paper's numbers.")
    one.set_defaults(command=_table)
    one.add_argument("real", type=Path, help="run on real images")
    one.add_argument("augmented", type=Path, help="run on real and generated images")


def _synthesize(arguments: argparse.Namespace) -> int:
    from posemodel.reid.synthesize import Plan, synthesize

    plan = Plan(identities=arguments.identities, cameras=arguments.cameras,
                images=arguments.images, turn=arguments.turn, seed=arguments.seed)
    with ProgressBar() as bar:
        counts = synthesize(arguments.out, plan, progress=partial(bar, "images"))
    _print_counts(arguments.out, counts)
    return 0


def _augment(arguments: argparse.Namespace) -> int:
    from posemodel.inference import PoseTransferModel
    from posemodel.reid.augment import Plan, augment

    plan = Plan(poses=arguments.poses, on_missing=arguments.on_missing, seed=arguments.seed,
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
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from posemodel.reid.export import export

    with ProgressBar() as bar:
        counts = export(arguments.root, arguments.out, layout=arguments.layout,
                        augmented=arguments.augmented, progress=partial(bar, "images"))
    _print_counts(arguments.out, counts)
    return 0


def _train(arguments: argparse.Namespace) -> int:
    from posemodel.reid.runs import ReidConfig, train

    _check_workers(arguments.workers)
    names = ("root", "augmented", "backbone", "weights", "batch_identities", "batch_images",
             "generated_share", "max_images", "max_poses", "steps", "lr", "label_smoothing",
             "margin", "erase")
    config = ReidConfig(image_size=tuple(arguments.image_size),
                        **{name: getattr(arguments, name) for name in names})
    train(config, arguments.out, seeds=arguments.seeds, device=arguments.device,
          workers=arguments.workers, say=_say)
    print(f"next: {PROGRAM} evaluate {arguments.out}")
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from posemodel.reid.runs import evaluate

    _check_workers(arguments.workers)
    evaluate(arguments.run, root=arguments.root, device=arguments.device,
             workers=arguments.workers, say=_say)
    return 0


def _table(arguments: argparse.Namespace) -> int:
    from posemodel.reid.table import table

    print(table(arguments.real, arguments.augmented))
    return 0


def _check_workers(workers: int) -> None:
    from posemodel.errors import UserError

    if workers < 1:
        raise UserError(f"--workers {workers}: expected at least 1")


def _print_counts(out: Path, counts: dict[str, int]) -> None:
    for name, count in counts.items():
        print(f"{out / name}: {count:,} images")


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    run_main(main)
