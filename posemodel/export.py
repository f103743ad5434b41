"""`python -m posemodel.export RUN --out FILE`: a trained model for use without the training code.

| FILE | content |
|---|---|
| `.safetensors` | the weights, the configuration in the metadata: `PoseTransferModel.from_file` |
| `.pt2` | a `torch.export` program with the operators of `pose_kernels` inside |
| `.pt2` with `--compile` | the same as machine code by AOTInductor, for this kind of processor |
"""

import argparse
import os
from pathlib import Path

from posemodel.runtime.compilers import check_aot_inductor
from posemodel.runtime.errors import UserError
from posemodel.runtime.files import writing
from posemodel.runtime.main import run_main

#: Largest difference of a program from the model on a CPU, of the flow and of images at one flow.
TOLERANCE = 1e-5
_CHECKED_BATCHES = (1, 3)
_TIMED_BATCHES = (1, 8)
_ENDINGS = (".safetensors", ".pt2")


def main(argv: list[str]) -> int:
    """Writes a trained model to one file: its weights (.safetensors), or a program (.pt2) that is
    checked against the model and timed."""
    parser = argparse.ArgumentParser(prog="python -m posemodel.export", description=main.__doc__)
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN",
                        help="run folder or .safetensors file (default: the newest run in runs/, "
                        "else the model that comes with the package)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE",
                        help=".safetensors: weights and configuration; .pt2: a torch.export "
                        "program")
    parser.add_argument("--compile", action="store_true",
                        help="compile the program with AOTInductor, for this kind of processor; "
                        "takes a C++ compiler and a while")
    parser.add_argument("--half", action="store_true",
                        help="weights in 16 bits, for half the file; says what that changes")
    parser.add_argument("--about", default="", metavar="TEXT",
                        help="what the model is, and is not, good for; kept in a .safetensors "
                        "file, and the first line shown by the commands that use it")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    return export(parser.parse_args(argv))


def export(arguments: argparse.Namespace) -> int:
    """Load, write, read again, compare. Raises: `UserError`."""
    _check_request(arguments)
    from posemodel.inference.model import PoseTransferModel

    out = arguments.out
    model = PoseTransferModel.choose(arguments.run, arguments.device)
    print(f"model: {model.summary}")
    # Written beside its place and moved there when it has been checked.
    temporary = out.with_name(f"{out.stem}.tmp{out.suffix}")
    try:
        with writing(out):
            if out.suffix == ".pt2":
                _write_program(model, temporary, compiled=arguments.compile)
            else:
                _write_weights(model, temporary, arguments.about or model.about,
                               half=arguments.half)
            os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    print(f"{out}: {out.stat().st_size / 2**20:.1f} MiB")
    if out.suffix == ".pt2":
        load = f"torch._inductor.aoti_load_package({str(out)!r})" if arguments.compile \
            else f"torch.export.load({str(out)!r}).module()"
        print(f"to use it: import torch, pose_kernels; program = {load}")
    return 0


def _check_request(arguments: argparse.Namespace) -> None:
    out = arguments.out
    if out.suffix not in _ENDINGS:
        raise UserError(f"--out {out}: expected a name ending in {' or '.join(_ENDINGS)}")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    if out.is_dir() or (out.exists() and not arguments.overwrite):
        raise UserError(f"--out {out} exists; --overwrite replaces a file")
    if out.suffix == ".safetensors" and arguments.compile:
        raise UserError(f"--compile makes a program: give --out a name ending in .pt2, not {out}")
    if out.suffix == ".pt2" and (arguments.about or arguments.half):
        flag = "--about" if arguments.about else "--half"
        raise UserError(f"{flag} is for weights: give --out a name ending in .safetensors")
    if arguments.compile:
        check_aot_inductor()


def _write_weights(model, path: Path, about: str, *, half: bool) -> None:
    from posemodel.inference import programs
    from posemodel.inference.model import PoseTransferModel

    programs.write_weights(model, path, about=about, half=half)
    again = PoseTransferModel.from_file(path, str(model.device))
    difference = programs.largest_differences(
        model, programs.InferencePath(again.generator), batch=1)
    if half:
        print(f"in 16 bits: largest difference from the model {difference.flow:.1e} (flow), "
              f"{difference.at_its_flow:.1e} (images at the same flow)")
    elif any(difference):
        raise RuntimeError(f"the weights that were read back differ: {difference}")


def _write_program(model, path: Path, *, compiled: bool) -> None:
    from posemodel.inference import programs

    programs.write_program(model, path, compiled=compiled)
    program = programs.load_program(path, compiled=compiled)
    for batch in _CHECKED_BATCHES:
        apart = programs.largest_differences(model, program, batch)
        print(f"batch {batch}: largest difference from the model {apart.flow:.1e} (flow), "
              f"{apart.at_its_flow:.1e} (images at the same flow), {apart.end_to_end:.1e} (images)")
        # A GPU may take other algorithms, in TF32.
        if model.device.type == "cpu" and max(apart.flow, apart.at_its_flow) > TOLERANCE:
            raise RuntimeError(f"the program differs from the model by more than {TOLERANCE}")
    eager = programs.InferencePath(model.generator)
    for batch in _TIMED_BATCHES:
        print(f"batch {batch}: {programs.milliseconds(model, program, batch):.1f} ms, the model "
              f"itself {programs.milliseconds(model, eager, batch):.1f} ms")


if __name__ == "__main__":
    run_main(main)
