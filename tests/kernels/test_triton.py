"""Runs `triton_interpreted.py` where Triton interprets its kernels: decided when it is imported.

And on a GPU, where there is one, every operator against float64.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernel_helpers import features, relative_error, value_and_gradients

import pose_kernels


def test_the_kernels_through_the_interpreter():
    pytest.importorskip("triton")
    inner = Path(__file__).with_name("triton_interpreted.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(inner)]
    run = subprocess.run(
        command,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=inner.parents[2],
    )
    assert run.returncode == 0, run.stdout


def test_says_where_it_runs():
    entry = pose_kernels.implementations()["guided_correlation"]["triton"]
    assert entry.devices == ("cuda",)
    if not entry.available:
        assert entry.reason == "Triton is not installed"


#: As `kernel_helpers.TOLERANCE`, with room for tensor cores, which cut off when they add.
GPU_TOLERANCE = {
    torch.float64: (1e-13, 1e-12),
    torch.float32: (1e-5, 3e-5),
    torch.float16: (1e-3, 2e-2),
    torch.bfloat16: (5e-3, 4e-2),
}


def operators(dtype):
    """(name, inputs, keywords) of every operator."""
    source, target = features(2, 35, (20, 17), (16, 19), dtype)
    weight, bias = (0.1 * torch.randn(8, 340, 3, 3)).to(dtype), torch.randn(8).to(dtype)
    correlation = torch.rand(2, 70, 9, 13, dtype=torch.float64).to(dtype)
    flow = pose_kernels.identity_flow(8, 9, dtype=torch.float64) + 0.1 * torch.randn(2, 2, 8, 9)
    image = torch.randn(2, 20, 33, 40, dtype=torch.float64)
    last = {"memory_format": torch.channels_last}
    yield "correlation_4d", [source, target], {}
    yield "correlation_4d", [source, target], last
    yield "soft_mutual_normalize", [correlation], {}
    yield "guided_correlation", [source, target], {}
    yield "guided_correlation", [source, target], last
    yield "guided_correlation_conv2d", [source, target, weight, bias], {}
    if dtype in (torch.float32, torch.float64):  # half a pixel is more than bfloat16 can tell
        for mode in ("border", "zeros"):
            yield "flow_sample", [image.to(dtype), flow.to(dtype)], {"padding_mode": mode}


@pytest.mark.gpu
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", GPU_TOLERANCE, ids=str)
def test_on_a_gpu(dtype, deterministic):
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    try:
        for name, inputs, keywords in operators(dtype):
            function = getattr(pose_kernels, name)
            oracle = value_and_gradients(
                lambda *x, f=function, k=keywords: f(*x, impl="reference", **k),
                [x.double() for x in inputs],
            )
            found = value_and_gradients(
                lambda *x, f=function, k=keywords: f(*x, impl="triton", **k),
                [x.cuda() for x in inputs],
            )
            limits = [GPU_TOLERANCE[dtype][0], *[GPU_TOLERANCE[dtype][1]] * len(inputs)]
            for value, expected, limit in zip(found, oracle, limits, strict=True):
                assert value.dtype == dtype
                # A location between two pixels is found in the type of the image.
                room = 20 if name == "flow_sample" else 1
                assert relative_error(value.cpu(), expected) < room * limit, name
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
def test_in_a_cuda_graph():
    """No synchronisation, no work on another stream; a replay reads the new inputs."""
    for name, inputs, keywords in operators(torch.float32):
        if name == "guided_correlation_conv2d":
            continue
        function = getattr(pose_kernels, name)
        still = [x.cuda().requires_grad_() for x in inputs]

        def step(function=function, still=still, keywords=keywords):
            value = function(*still, impl="triton", **keywords)
            return [value, *torch.autograd.grad(value, still, torch.ones_like(value))]

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        with torch.no_grad():
            for x in still:
                x.mul_(0.9)
        graph.replay()
        for a, b in zip(captured, step(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
