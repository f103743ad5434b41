"""Shared by the kernel tests: what can run here, features, and errors against a float64 oracle."""

import torch
import torch.nn.functional as F

import pose_kernels

#: Relative error (norm of the difference / norm) of value and gradients, per dtype of the inputs.
TOLERANCE = {
    torch.float64: (1e-13, 1e-12),
    torch.float32: (2e-6, 1e-5),
    torch.float16: (1e-3, 2e-2),
    torch.bfloat16: (5e-3, 4e-2),
}
DTYPES = list(TOLERANCE)


def implementations(op: str) -> list[str]:
    """What can run on CPU tensors here; the reference is always among it."""
    table = pose_kernels.implementations()[op]
    return [n for n, e in table.items() if e.available and (not e.devices or "cpu" in e.devices)]


def features(batch, m, source_size, target_size, dtype=torch.float64):
    """A pair of maps, unit length per location as from the pose encoder (m = 1: any length)."""
    maps = [torch.randn(batch, m, *size).double() for size in (source_size, target_size)]
    return [(F.normalize(z, dim=1) if m > 1 else z).to(dtype) for z in maps]


def relative_error(value: torch.Tensor, oracle: torch.Tensor) -> float:
    if oracle.numel() == 0:
        return 0.0
    return ((value.double() - oracle.double()).norm() / oracle.double().norm()).item()


def value_and_gradients(function, inputs, upstream=None):
    """[value, gradient of every input]; a gradient that does not exist fails the test here."""
    inputs = [x.detach().clone(memory_format=torch.preserve_format) for x in inputs]
    for x in inputs:
        x.requires_grad_()
    value = function(*inputs)
    if upstream is None:
        generator = torch.Generator().manual_seed(1)
        upstream = torch.randn(value.shape, generator=generator, dtype=torch.float64)
    return [value.detach(), *torch.autograd.grad(value, inputs, upstream.to(value))]


def assert_same_bits_every_time(function, inputs):
    """Value and gradients do not change from call to call, nor with the number of threads."""
    first = value_and_gradients(function, inputs)
    threads = torch.get_num_threads()
    try:
        for n in (threads, threads, 1, 3):
            torch.set_num_threads(n)
            for a, b in zip(value_and_gradients(function, inputs), first, strict=True):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(threads)
