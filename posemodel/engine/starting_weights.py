"""Weights to start a new run from: those of another run, or of a file."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from posemodel.model.detail import DetailRefinement
from posemodel.model.pose_transfer import PoseTransfer
from posemodel.runtime import checkpoint
from posemodel.runtime.errors import UserError
from posemodel.runtime.folder import run_folder
from posemodel.runtime.weights import SHIPPED, shipped_file


def read_weights(path: Path, log: Callable[[str], None]) -> dict[str, Tensor]:
    """The averaged weights of a run folder's newest valid checkpoint, or those of a file of
    `posemodel.export`; by name, float32. `log` is given a line for each damaged checkpoint.

    Args:
        path: "shipped", where nothing has that name: the model that comes with the package.

    Raises: `UserError`."""
    if path == Path(SHIPPED) and not path.exists():
        path = shipped_file()
    if path.is_file():
        try:
            weights = load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"--init {path}: no readable safetensors file ({error})") from error
    else:
        run_folder(path).require()
        weights = checkpoint.newest(path, log).weights["averaged"]
    return {name: value.float() if value.is_floating_point() else value
            for name, value in weights.items()}


@torch.no_grad()
def start_from(generator: PoseTransfer, weights: dict[str, Tensor], origin: str) -> list[str]:
    """Give each network of the generator (M, C_l, R, or the method in the place of W) the weights
    that lie under its name, where those are of its shapes; another one stays as it is. An R that
    sees the target pose also takes those of one that does not, and starts with the same images.

    Returns: a line for people on every network. Raises: `UserError` where not one of them fits.
    """
    warping = generator.warping
    networks = {**(warping.blocks() or {"the flow's network": warping}), "R": generator.refinement}
    places = {module: name for name, module in generator.named_modules()}
    lines, fitting = [], 0
    for name, network in networks.items():
        prefix = f"{places[network]}."
        own = network.state_dict()
        found = {key.removeprefix(prefix): value for key, value in weights.items()
                 if key.startswith(prefix)}
        if isinstance(network, DetailRefinement):
            for key, place in network.of_the_blind().items():
                if key in found and found[key].shape == own[key][place].shape:
                    blind, found[key] = found[key], torch.zeros_like(own[key])
                    found[key][place] = blind
        different = [key for key in own.keys() | found.keys()
                     if key not in own or key not in found or own[key].shape != found[key].shape]
        if different:
            lines.append(f"{name} starts anew: {len(different)} of its weights are not in {origin} "
                         "or of other shapes")
        elif own:
            network.load_state_dict(found)
            fitting += 1
            lines.append(f"{name} starts from {origin}")
    if not fitting:
        raise UserError(f"--init {origin}: it has the weights of none of these networks; give the "
                        "--model settings that it was trained with")
    return lines
