"""`python -m posemodel.evaluate RUN`: the metrics of a trained run on test pairs."""

import argparse
import json
import sys
from pathlib import Path

from posemodel.runtime.errors import UserError
from posemodel.runtime.files import sha256, write_result
from posemodel.runtime.main import run_main

PROTOCOLS = ("paper", "patn", "market", "gfla", "cfld")
# split -> what the files of its numbers and pictures are called
_RESULTS = {"test": "evaluation", "validation": "validation"}

# Processes that share the pairs may need very different times for them.
_TIMEOUT = 6 * 3600.0


def main(argv: list[str]) -> int:
    """Prints the tables, and writes `evaluation.json` and `evaluation.png` into the run folder;
    of validation pairs `validation.json` and `validation.png`.

    The same command again continues an interrupted evaluation. Under torchrun the processes share
    the pairs.
    """
    parser = argparse.ArgumentParser(prog="python -m posemodel.evaluate", description=main.__doc__)
    parser.add_argument("run", type=Path, help="run folder, as written by posemodel.train")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="paper",
                        help="how images are measured: as the paper does, or as the scripts of "
                             "another method do (default: paper)")
    parser.add_argument("--split", choices=tuple(_RESULTS), default="test",
                        help="pairs to show results on, or those to choose settings by "
                             "(default: test)")
    parser.add_argument("--pairs", type=int, help="held-out pairs (default: as in the run)")
    parser.add_argument("--root", metavar="DIR",
                        help="the data set's folder, where it is not the run's --data.root")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--json", type=Path, metavar="FILE",
                        help="where the numbers go (default: RUN/evaluation.json, or "
                             "RUN/validation.json)")
    parser.add_argument("--picture", type=Path, metavar="FILE",
                        help="where the sample sheet goes (default: RUN/evaluation.png, or "
                             "RUN/validation.png)")
    parser.add_argument("--lpips", choices=("auto", "none", "alex", "vgg"), default="auto",
                        help="LPIPS by this net; auto: by both, as far as their weights are at "
                             "hand")
    parser.add_argument("--weights", default="", metavar="DIR",
                        help="folder of published weights, looked into before that of the variable "
                             "POSEMODEL_WEIGHTS and torch hub's cache (default: the run's)")
    arguments = parser.parse_args(argv)

    from posemodel.runtime import distributed

    try:
        with distributed.join(_TIMEOUT) as world:
            return evaluate_run(arguments, world)
    except distributed.LostProcess as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def evaluate_run(arguments: argparse.Namespace, world) -> int:
    """Load the averaged weights of the newest valid checkpoint and measure them."""
    from posemodel.data.source import open_held_out
    from posemodel.engine.run_folder import RunFolder
    from posemodel.engine.trained import load_trained
    from posemodel.evaluation import test_set
    from posemodel.runtime import environment

    # What the other processes would say, the first one says.
    log = print if world.first else lambda line: None
    run = RunFolder.open_existing(arguments.run)
    config, data = run.config, run.config.data
    _choose_pairs(data, arguments)
    device, _ = environment.choose_device(arguments.device, world)
    dtype, _ = environment.choose_precision(config.precision, device)
    model, checkpoint = load_trained(run, device, log)
    instruments = test_set.instruments_for(
        test_set.protocol_for(arguments.protocol, data.image_size), data, device,
        lpips=arguments.lpips, folder=_weights_folder(config, arguments, log), log=log)
    held_out = open_held_out(data, device, data.evaluation_pairs, split=arguments.split,
                             positions=config.flow_positions, log=log)
    about = test_set.description(
        instruments, held_out, data, step=checkpoint.step, device=device, dtype=dtype,
        weights=sha256(checkpoint.path / "averaged.safetensors"), commit=_commit(world))
    if holes := about["protocol"].get("holes"):
        log(f"behind the people: {holes}")
    row = test_set.evaluate_under(
        instruments, model, held_out, data, dtype, about=about, world=world,
        folder=run.path / "evaluation" / test_set.folder_name(about))
    if row is not None:
        _publish(row, model, config, device, dtype, arguments)
    return 0


def _choose_pairs(data, arguments: argparse.Namespace) -> None:
    """What the command says of the held-out pairs."""
    if arguments.pairs is not None:
        if arguments.pairs < 1:
            raise UserError(f"--pairs {arguments.pairs}: expected at least 1")
        data.evaluation_pairs = arguments.pairs
    if arguments.root is not None:
        if data.kind == "mannequins":
            raise UserError(f"--root {arguments.root}: this run is on mannequins, which no folder "
                            "holds")
        data.root = arguments.root


def _weights_folder(config, arguments: argparse.Namespace, log) -> str:
    """Where published weights are looked for first: as the command says, else where the run did."""
    own = config.loss.weights_folder
    if arguments.weights or not own or Path(own).is_dir():
        return arguments.weights or own
    log(f"the run's --weights {own} is not there any more; another may be given")
    return ""


def _commit(world) -> str | None:
    """The version of this code, the same in all processes; None where there is no repository."""
    from posemodel.runtime import environment

    checkout = world.from_first(environment.collect(world.size)["git"]) or {}
    commit = checkout.get("commit")
    return f"{commit}-modified" if checkout.get("dirty") else commit


def _publish(row: dict, model, config, device, dtype, arguments: argparse.Namespace) -> None:
    """The numbers and the sample sheet as files, the tables in the terminal."""
    from posemodel.evaluation.samples import write_samples
    from posemodel.evaluation.tables import evaluation_table, protocol_tables

    numbers = arguments.json or arguments.run / f"{_RESULTS[arguments.split]}.json"
    picture = arguments.picture or arguments.run / f"{_RESULTS[arguments.split]}.png"
    write_result(numbers, json.dumps(row, indent=2, allow_nan=False) + "\n")
    write_samples(model, config, device, dtype, picture, split=arguments.split,
                  title=f"step {row['step']}")
    print(f"{evaluation_table(row)}\n\n{protocol_tables(row)}\n")
    print(f"numbers: {numbers}\npicture: {picture}\nvalues of each pair: {row['values']}")


if __name__ == "__main__":
    run_main(main)
