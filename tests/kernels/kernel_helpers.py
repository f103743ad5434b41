"""Shared by the kernel tests: what can run here, a case per operator, errors against float64."""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

import pose_kernels
from pose_kernels import _library

#: Relative error (norm of the difference / norm) of value and gradients, per dtype of the inputs.
TOLERANCE = {torch.float64: (1e-13, 1e-12), torch.float32: (2e-6, 1e-5),
             torch.float16: (1e-3, 2e-2), torch.bfloat16: (5e-3, 4e-2)}
DTYPES = list(TOLERANCE)
#: B, m, source, target.
FEATURE_SHAPES = [(2, 35, (6, 5), (4, 7)), (1, 1, (3, 3), (3, 3)), (3, 8, (1, 1), (5, 2)),
                  (1, 7, (4, 3), (1, 1)), (1, 40, (13, 5), (9, 23))]


#: For `Case.unusual`: 4.2 MiB in float32, an odd number of targets.
LARGE_MAP = {"m": 7, "source": (32, 34), "target": (31, 33)}
MANY_FEATURES = tuple({"m": m, "source": (9, 11), "target": (10, 7)} for m in (130, 1024))


@dataclass(frozen=True)
class Case:
    """What the tests of every operator need to know of one. `CASE` in test_<operator>.py is its."""

    #: (batch, dtype, **sizes): inputs, by default so small that a program is more than enough.
    inputs: Callable[..., list[torch.Tensor]]
    #: (ops, new, batch, m, source_size, target_size, channels_last): name and arguments of every
    # call into torch that the operator is made of, for features of these sizes. `new(*shape)` makes
    # a tensor, `ops` has the operators: a namespace of torch.ops or a module of Triton.
    calls: Callable
    #: Sizes for `inputs` with a few blocks, and with more than a thread takes.
    medium: dict = field(default_factory=dict)
    large: dict = field(default_factory=dict)
    #: Sizes that programs notice and other tests have not, for float32: a result above 4 MiB, whose
    # pages are brought in beforehand, and many features.
    unusual: tuple[dict, ...] = ()
    #: How many inputs come from a layer of a network, so that their gradients keep its layout.
    activations: int = 2
    #: Without a gradient the result is a tuple, some of it indices, and inputs are whole numbers:
    # every implementation must find the same.
    differentiable: bool = True
    #: Inputs and result take autocast's dtype.
    follows_autocast: bool = False
    #: It has a second derivative and a rule for torch.func.vmap.
    differentiable_twice: bool = False
    #: How often the error may be TOLERANCE where inputs have 16 bits.
    slack: int = 2


def cases() -> dict[str, Case]:
    return {op: importlib.import_module(f"test_{op}").CASE for op in pose_kernels.implementations()}


def narrower(dtype: torch.dtype) -> torch.dtype:
    """What a map of such inputs may be rounded to."""
    return torch.float32 if dtype == torch.float64 else torch.bfloat16


def takes(op: str, argument: str) -> bool:
    """Whether an operator has such an argument."""
    return argument in inspect.signature(getattr(pose_kernels, op)).parameters


def implementations(op: str, device: str = "cpu") -> list[str]:
    """What can run on such tensors here; where Triton interprets its kernels, they alone."""
    if _library.triton_interpreted:
        return ["triton"]
    table = pose_kernels.implementations()[op]
    return [n for n, e in table.items() if e.available and (not e.devices or device in e.devices)]


def features(batch, m, source_size, target_size, dtype=torch.float64):
    """A pair of maps, unit length per location as from the pose encoder (m = 1: any length)."""
    maps = [torch.randn(batch, m, *size).double() for size in (source_size, target_size)]
    return [(F.normalize(z, dim=1) if m > 1 else z).to(dtype) for z in maps]


def whole_features(batch, m, source_size, target_size, dtype=torch.float64):
    """A pair of maps of whole numbers, whose products and sums are exact in every dtype: full of
    ties."""
    return [torch.randint(-3, 4, (batch, m, *size)).to(dtype)
            for size in (source_size, target_size)]


def image_and_flow(batch=2, channels=3, image=(9, 13), flow=(4, 5), noise=0.2, dtype=torch.float64):
    pixels = torch.randn(batch, channels, *image, dtype=torch.float64).to(dtype)
    wobble = noise * torch.randn(batch, 2, *flow, dtype=torch.float64)
    identity = pose_kernels.identity_flow(*flow, dtype=torch.float64)
    return [pixels, (identity + wobble).to(dtype)]


def image_and_flow_not_finite():
    image, flow = image_and_flow(image=(8, 8), flow=(8, 8), noise=0)
    image[0, 1, 3, 4] = float("nan")
    flow[1, 0, 2, 5] = float("nan")
    flow[1, 1, 6, 6] = float("inf")
    flow[1, 0, 7, 7] = float("-inf")
    image[1, 0, 7, 0] = float("inf")
    return [image, flow]


def relative_error(value: torch.Tensor, oracle: torch.Tensor) -> float:
    if oracle.numel() == 0:
        return 0.0
    return ((value.double() - oracle.double()).norm() / oracle.double().norm()).item()


def assert_errors(found, oracle, dtype, slack=1):
    """Those of value and gradients, which are of this dtype; indices must be the same."""
    for i, (a, b) in enumerate(zip(found, oracle, strict=True)):
        if not b.is_floating_point():
            assert torch.equal(a, b)
            continue
        assert a.dtype == dtype
        assert relative_error(a, b) < slack * TOLERANCE[dtype][min(i, 1)]


def value_and_gradients(function, inputs, upstream=None):
    """[value, gradient of every input]; a gradient that does not exist fails the test here. Of an
    operator that has none: all that it returns, none of which may require one."""
    inputs = [x.detach().clone(memory_format=torch.preserve_format) for x in inputs]
    for x in inputs:
        x.requires_grad_()
    value = function(*inputs)
    if isinstance(value, tuple):
        assert not any(x.requires_grad for x in value)
        return list(value)
    if upstream is None:
        generator = torch.Generator().manual_seed(1)
        upstream = torch.randn(value.shape, generator=generator, dtype=torch.float64)
    return [value.detach(), *torch.autograd.grad(value, inputs, upstream.to(value))]


def leaves(arguments):
    """Tensors among them want a gradient."""
    return tuple(x.detach().clone().requires_grad_() if isinstance(x, torch.Tensor) else x
                 for x in arguments)


def assert_same_bits_every_time(function, inputs):
    """Value and gradients do not change from call to call, nor with the number of threads."""
    first = value_and_gradients(function, inputs)
    threads = torch.get_num_threads()
    try:
        for n in (threads, threads, 1, 3):
            torch.set_num_threads(n)
            torch.testing.assert_close(value_and_gradients(function, inputs), first, rtol=0, atol=0)
    finally:
        torch.set_num_threads(threads)
