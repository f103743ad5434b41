"""`python -m posemodel.evaluate RUN`: the metrics of a trained run on held-out pairs."""

import argparse
import json
import sys
from pathlib import Path

from posemodel.cli import run_main

PROTOCOLS = ("paper", "patn", "market", "gfla", "cfld")

# Processes that share the pairs may need very different times for them.
_TIMEOUT = 6 * 3600.0


def main(argv: list[str]) -> int:
    """Prints the tables, and writes `evaluation.json` and `evaluation.png` into the run folder.

    The same command again continues an interrupted evaluation. Under torchrun the processes share
    the pairs.
    """
    parser = argparse.ArgumentParser(prog="python -m posemodel.evaluate", description=main.__doc__)
    parser.add_argument("run", type=Path, help="run folder, as written by posemodel.train")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="paper",
                        help="how images are measured: as the paper does, or as the scripts of "
                             "another method do (default: paper)")
    parser.add_argument("--pairs", type=int, help="held-out pairs (default: as in the run)")
    parser.add_argument("--root", metavar="DIR",
                        help="the data set's folder, where it is not the run's --data.root")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--json", type=Path, metavar="FILE",
                        help="where the numbers go (default: RUN/evaluation.json)")
    parser.add_argument("--picture", type=Path, metavar="FILE",
                        help="where the sample sheet goes (default: RUN/evaluation.png)")
    parser.add_argument("--lpips", choices=("auto", "none", "alex", "vgg"), default="auto",
                        help="LPIPS by this net; auto: by the nets of the protocol and alex, as "
                             "far as their weights are at hand")
    arguments = parser.parse_args(argv)

    from posemodel.engine import distributed

    try:
        with distributed.join(_TIMEOUT) as world:
            return evaluate_run(arguments, world)
    except distributed.LostProcess as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def evaluate_run(arguments: argparse.Namespace, world) -> int:
    """Load the averaged weights of the newest valid checkpoint and measure them."""
    from posemodel.engine import environment
    from posemodel.engine.data_source import HeldOutPairs
    from posemodel.engine.protocol_evaluation import (
        Measures,
        evaluate_under,
        folder_name,
        protocol_for,
    )
    from posemodel.engine.report import evaluation_table, protocol_tables
    from posemodel.engine.run_folder import RunFolder
    from posemodel.engine.samples import write_samples
    from posemodel.engine.trained import load_trained
    from posemodel.errors import UserError
    from posemodel.files import sha256, write_result

    say = print if world.first else _nothing
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
    device, _ = environment.choose_device(arguments.device, world)
    dtype, _ = environment.choose_precision(config.precision, device)
    model, found = load_trained(run, device, say)

    protocol = protocol_for(arguments.protocol, config)
    measures = Measures(protocol=protocol, lpips=_lpips(arguments.lpips, protocol, device, say),
                        inception=_inception(protocol, config, device, say))
    held_out = HeldOutPairs(config, device, config.data.evaluation_pairs, say)
    checkout = world.from_first(environment.collect(world.size)["git"]) or {}
    commit = checkout.get("commit")
    if checkout.get("dirty"):
        commit += "-modified"
    # What "auto" chooses depends on the machine, and the images on what it chose.
    record = {**protocol.record(pairs=config.data.evaluation_pairs, commit=commit),
              "device": device.type, "precision": str(dtype).removeprefix("torch.")}
    about = {
        "protocol": record, "step": found.step,
        "weights": sha256(found.path / "averaged.safetensors"),
        "data": {name: value for name, value in vars(config.data).items()
                 if name not in ("root", "workers")}, "list": held_out.fingerprint(),
        "lpips": sorted(measures.lpips),
        "fid": measures.inception.digest if measures.inception is not None else None}
    folder = run.path / "evaluation" / folder_name(about)
    row = evaluate_under(measures, model, held_out, config, dtype, folder=folder, about=about,
                         world=world)
    if row is None:
        return 0
    for name in ("fid_images", "fid_reference_images"):
        record[name] = row.pop(name, None)
    row = {"step": found.step, **row, "protocol": {**record, "pairs": row["pairs"]},
           "values": str(folder)}
    numbers = arguments.json or run.path / "evaluation.json"
    picture = arguments.picture or run.path / "evaluation.png"
    write_result(numbers, json.dumps(row, indent=2, allow_nan=False) + "\n")
    write_samples(model, config, device, dtype, picture, title=f"step {found.step}")
    print(f"{evaluation_table(row)}\n\n{protocol_tables(row)}\n")
    print(f"numbers: {numbers}\npicture: {picture}\nvalues of each pair: {folder}")
    return 0


def _lpips(wanted: str, protocol, device, say) -> dict:
    """LPIPS networks by their net, and a line for each that is left out."""
    from posemodel import lpips_metric

    if wanted in ("alex", "vgg"):
        return {wanted: lpips_metric.Lpips(wanted, device)}
    networks = {}
    for net in sorted({"alex", *protocol.lpips}) if wanted == "auto" else ():
        why = lpips_metric.missing(net)
        if why:
            say(f"LPIPS-{net} left out: {why}")
        else:
            networks[net] = lpips_metric.Lpips(net, device)
    return networks


def _inception(protocol, config, device, say):
    """The network of the protocol's FID, if it has one, or a line that says why not."""
    from posemodel.evaluation import fid

    if protocol.fid_weights is None:
        return None
    why = "generated people have no list of training images to compare with" \
        if config.data.kind == "mannequins" else fid.missing(protocol.fid_weights)
    if why:
        say(f"FID left out: {why}")
        return None
    return fid.InceptionFeatures(protocol.fid_weights, device)


def _nothing(_line: str) -> None:
    """What the other processes say: the first one has said it."""


if __name__ == "__main__":
    run_main(main)
