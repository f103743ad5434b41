"""A trained model as a file of its own: weights, a torch.export program, an AOTInductor package.

A program takes source `[B, 3, H, W]` in [-1, 1], source pose and target pose `[B, 18, 3]` (x, y,
presence; normalised), with any B from 1, and returns the refined image `[B, 3, H, W]`, the flow
`[B, 2, h, w]` and the warped source `[B, 3, H, W]`. It needs `import pose_kernels`, whose
operators are inside, and nothing of this package.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from posemodel.inference.model import PoseTransferModel
from posemodel.mannequins.pairs import Mannequins
from posemodel.model.pose_transfer import PoseTransfer

_REPETITIONS = 9

Program = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


class InferencePath(nn.Module):
    """What is exported: the generator in evaluation, with a tuple as its result."""

    def __init__(self, generator: PoseTransfer):
        super().__init__()
        self.generator = generator

    def forward(self, source: Tensor, source_pose: Tensor, target_pose: Tensor
                ) -> tuple[Tensor, Tensor, Tensor]:
        """See the module."""
        warping = self.generator.warping
        if warping.has_correlation:
            flow = warping.flow_from(warping.features(source_pose), warping.features(target_pose))
        else:
            flow = self.generator.flow(source, source_pose, target_pose)
        result = self.generator.transfer(source, flow, target_pose)
        return result.image, result.flow, result.warped


def write_weights(model: PoseTransferModel, path: Path, *, about: str, half: bool = False) -> None:
    """Weights, and in the metadata the configuration, the training steps and what is said about
    the model. Paths of the machine that trained it are left out.

    Args:
        half: float16; whoever reads the file computes in float32 again.
    """
    config = json.loads(model.metadata["config"])
    config["out"] = config["init"] = config["data"]["root"] = ""
    config["loss"]["weights_folder"] = ""
    metadata = {"config": json.dumps(config), "step": str(model.step), "about": about}
    weights = {name: (tensor.half() if half and tensor.is_floating_point() else tensor)
               .cpu().contiguous() for name, tensor in model.generator.state_dict().items()}
    path.write_bytes(safetensors.torch.save(weights, metadata))


def write_program(model: PoseTransferModel, path: Path, *, compiled: bool) -> None:
    """The inference path as one graph with a dynamic batch, for the device that the model is on.

    Args:
        path: ends in .pt2.
        compiled: by AOTInductor, to machine code.
    """
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        program = torch.export.export(InferencePath(model.generator), example_inputs(model, 2),
                                      dynamic_shapes=({0: batch}, {0: batch}, {0: batch}))
    if compiled:
        # Headers compiled in advance are of use from the second program on.
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(path),
            inductor_configs={"aot_inductor.precompile_headers": False})
    else:
        torch.export.save(program, path)


def load_program(path: Path, *, compiled: bool) -> Program:
    """What `write_program` wrote, ready to be called."""
    if compiled:
        return torch._inductor.aoti_load_package(str(path))
    return torch.export.load(path).module()


def example_inputs(model: PoseTransferModel, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Generated people in the model's size, on its device."""
    pairs = Mannequins(size=model.size, device=model.device).pairs(range(batch))
    return pairs["source"], pairs["source_pose"], pairs["target_pose"]


class Differences(NamedTuple):
    """Largest absolute differences of a program's outputs from those of the model."""

    flow: float
    at_its_flow: float
    """of both images, where the model samples at the program's flow"""
    end_to_end: float
    """of both images; at an edge a difference of the flow is multiplied by half the image's size"""


@torch.no_grad()
def largest_differences(model: PoseTransferModel, program: Program, batch: int) -> Differences:
    """On generated people."""
    inputs = example_inputs(model, batch)
    image, flow, warped = program(*inputs)
    expected_image, expected_flow, expected_warped = InferencePath(model.generator)(*inputs)
    same_flow = model.generator.transfer(inputs[0], flow, inputs[2])
    return Differences(
        flow=_largest(flow - expected_flow),
        at_its_flow=max(_largest(image - same_flow.image), _largest(warped - same_flow.warped)),
        end_to_end=max(_largest(image - expected_image), _largest(warped - expected_warped)))


@torch.no_grad()
def milliseconds(model: PoseTransferModel, program: Program, batch: int) -> float:
    """The median time of a call."""
    inputs = example_inputs(model, batch)
    times = []
    for _ in range(_REPETITIONS + 2):  # the first ones warm up
        start = time.perf_counter()
        program(*inputs)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[2:])


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max())
