"""`python -m posemodel.evaluate RUN`: the metrics of a trained run on held-out pairs."""

import argparse
import json
from pathlib import Path

from posemodel.cli import run_main


def main(argv: list[str]) -> int:
    """Prints the table, and writes `evaluation.json` and `evaluation.png` into the run folder."""
    parser = argparse.ArgumentParser(prog="python -m posemodel.evaluate", description=main.__doc__)
    parser.add_argument("run", type=Path, help="run folder, as written by posemodel.train")
    parser.add_argument("--pairs", type=int, help="held-out pairs (default: as in the run)")
    parser.add_argument("--root", metavar="DIR",
                        help="the data set's folder, where it is not the run's --data.root")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--json", type=Path, metavar="FILE",
                        help="where the numbers go (default: RUN/evaluation.json)")
    parser.add_argument("--picture", type=Path, metavar="FILE",
                        help="where the sample sheet goes (default: RUN/evaluation.png)")
    parser.add_argument("--lpips", choices=("auto", "none", "alex", "vgg"), default="auto",
                        help="LPIPS by this net; auto: alex if its weights are at hand")
    arguments = parser.parse_args(argv)
    return evaluate_run(arguments)


def evaluate_run(arguments: argparse.Namespace) -> int:
    """Load the averaged weights of the newest valid checkpoint and measure them."""
    from posemodel import lpips_metric
    from posemodel.engine import checkpoint, environment
    from posemodel.engine.evaluation import evaluate
    from posemodel.engine.report import evaluation_table
    from posemodel.engine.run_folder import RunFolder
    from posemodel.engine.samples import write_samples
    from posemodel.errors import UserError
    from posemodel.model.pose_transfer import build_generator

    run = RunFolder.open_existing(arguments.run)
    config = run.config
    if arguments.pairs is not None:
        if arguments.pairs < 1:
            raise UserError(f"--pairs {arguments.pairs}: expected at least 1")
        config.data.evaluation_pairs = arguments.pairs
    if arguments.root is not None:
        if config.data.kind == "mannequins":
            raise UserError(f"--root {arguments.root}: this run is on mannequins, which no folder "
                            "holds")
        config.data.root = arguments.root
    found = checkpoint.load_latest(run.checkpoints)
    if found is None:
        raise UserError(f"{arguments.run} has no checkpoint yet; train it first")
    for line in found.skipped:
        print(f"warning: {line}")
    device, _ = environment.choose_device(arguments.device)
    dtype, _ = environment.choose_precision(config.precision, device)
    model = build_generator(config.model, config.data.image_size).to(device)
    model.load_state_dict(found.weights["averaged"])

    distances = {}
    net = "alex" if arguments.lpips == "auto" else arguments.lpips
    why = lpips_metric.missing(net) if arguments.lpips == "auto" else ""
    if why:
        print(f"LPIPS left out: {why}")
    elif net != "none":
        distances[f"lpips_{net}"] = lpips_metric.Lpips(net, device)
    row = {"step": found.step, **evaluate(model, config, device, dtype, distances)}
    numbers = arguments.json or run.path / "evaluation.json"
    picture = arguments.picture or run.path / "evaluation.png"
    _write(numbers, json.dumps(row, indent=2, allow_nan=False) + "\n")
    write_samples(model, config, device, dtype, picture, title=f"step {found.step}")
    print(evaluation_table(row))
    print(f"numbers: {numbers}\npicture: {picture}")
    return 0


def _write(path: Path, text: str) -> None:
    from posemodel.errors import UserError

    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


if __name__ == "__main__":
    run_main(main)
