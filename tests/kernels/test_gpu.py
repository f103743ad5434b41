"""On a GPU: every operator in CUDA C++ and Triton against the reference in float64 on that GPU.

These need a device and do not run without one. What the emulation cannot show is here: the real
matrix instructions, streams, CUDA graphs, the allocator, maps of more than 2^31 elements.
"""

import functools
import os

# Deterministic mode asks for it of everything that cuBLAS multiplies, and cuBLAS reads it once.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch
from kernel_helpers import (
    TOLERANCE,
    assert_errors,
    cases,
    implementations,
    leaves,
    relative_error,
    takes,
    value_and_gradients,
)

import pose_kernels

pytestmark = pytest.mark.gpu
CASES = cases()
TF32_TOLERANCE = (3e-3, 2e-2)


FUSED = {op: [n for n in implementations(op, "cuda") if n != "reference"] for op in CASES}
PAIRS = [(op, impl) for op in CASES for impl in FUSED[op]]
every_op = pytest.mark.parametrize(("op", "impl"), PAIRS, ids="-".join)
every_map = pytest.mark.parametrize(("op", "impl"),
                                    [pair for pair in PAIRS if takes(pair[0], "memory_format")])


def inputs_of(op, dtype, batch=2, **sizes):
    inputs = CASES[op].inputs(batch, dtype, **(sizes or CASES[op].medium))
    return [x.cuda() for x in inputs]


def function_of(op, impl, **options):
    return functools.partial(getattr(pose_kernels, op), impl=impl, **options)


def run(op, impl, inputs, **options):
    return value_and_gradients(function_of(op, impl, **options), inputs)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@every_op
def test_against_float64(op, impl, dtype):
    inputs = inputs_of(op, dtype)
    expected = run(op, "reference", [x.double() for x in inputs])
    found = run(op, impl, inputs)
    assert all(x.is_cuda for x in found)
    assert_errors(found, expected, dtype, 10 if CASES[op].slack > 2 else 1)


@pytest.mark.parametrize("shape", [(1, 1, (3, 3), (2, 2)), (3, 8, (1, 1), (5, 2)),
                                   (1, 67, (40, 31), (20, 19))], ids=str)
@every_map
def test_shapes_and_layouts(op, impl, shape):
    batch, m, source, target = shape
    inputs = inputs_of(op, torch.float32, batch, m=m, source=source, target=target)
    expected = run(op, "reference", [x.double() for x in inputs])
    for memory_format in (torch.contiguous_format, torch.channels_last):
        found = run(op, impl, inputs, memory_format=memory_format)
        assert found[0].is_contiguous(memory_format=memory_format)
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            limit = TOLERANCE[torch.float32][min(i, 1)] * max(b.norm().item(), 10.0 if i else 0.0)
            assert (a.double() - b).norm().item() < limit


@pytest.mark.parametrize(("op", "impl"), [pair for pair in PAIRS if takes(pair[0], "out")])
def test_narrower_maps_and_given_memory(op, impl):
    inputs = inputs_of(op, torch.float32)
    wide, narrow = (run(op, impl, inputs, out_dtype=d) for d in (torch.float32, torch.bfloat16))
    assert torch.equal(narrow[0], wide[0].bfloat16())
    for a, b in zip(narrow[1:], wide[1:], strict=True):  # the upstream gradient was rounded too
        assert a.dtype == torch.float32
        assert relative_error(a, b) < TOLERANCE[torch.bfloat16][1]
    for value in (wide[0], narrow[0]):
        for layout in (torch.contiguous_format, torch.channels_last):
            out = torch.full_like(value, torch.nan, memory_format=layout)
            assert function_of(op, impl, out_dtype=value.dtype, out=out)(*inputs) is out
            assert torch.equal(out, value)


@pytest.mark.parametrize("impl", FUSED["flow_sample"])
def test_the_image_gradient_in_any_order(impl):
    """Atomics without deterministic mode, lists with it."""
    inputs = inputs_of("flow_sample", torch.float32, **CASES["flow_sample"].large)
    atomic = run("flow_sample", impl, inputs)
    torch.use_deterministic_algorithms(True)
    try:
        ordered = run("flow_sample", impl, inputs)
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(atomic, ordered, strict=True):
        assert relative_error(a, b) < TOLERANCE[torch.float32][1]


@every_map
def test_tf32(op, impl, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    inputs = inputs_of(op, torch.float32)
    expected = run(op, "reference", [x.double() for x in inputs])
    for i, (a, b) in enumerate(zip(run(op, impl, inputs), expected, strict=True)):
        assert relative_error(a, b) < TF32_TOLERANCE[min(i, 1)]


@every_op
def test_an_empty_batch_and_an_expanded_gradient(op, impl):
    inputs = inputs_of(op, torch.float32)
    empty = [x if x.shape[0] == 8 else x[:0] for x in inputs]
    assert all(x.isfinite().all() for x in run(op, impl, empty))
    if not CASES[op].differentiable:
        return
    inputs = [x.requires_grad_() for x in inputs]
    function_of(op, impl)(*inputs).sum().backward()
    wide = [x.detach().double().requires_grad_() for x in inputs]
    function_of(op, "reference")(*wide).sum().backward()
    for a, b in zip(inputs, wide, strict=True):
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-3, atol=1e-3)


@every_op
def test_the_same_bits_every_time(op, impl):
    inputs = inputs_of(op, torch.float32)
    torch.use_deterministic_algorithms(True)
    try:
        first = run(op, impl, inputs)
        for _ in range(5):
            torch.testing.assert_close(run(op, impl, inputs), first, rtol=0, atol=0)
    finally:
        torch.use_deterministic_algorithms(False)


@every_op
def test_another_stream(op, impl):
    inputs = inputs_of(op, torch.float32)
    expected = run(op, impl, inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        busy = torch.randn(4096, 4096, device="cuda")
        late = [x * (busy @ busy).isfinite().all() for x in inputs]  # ready only after the product
        found = run(op, impl, late)
    torch.cuda.current_stream().wait_stream(stream)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@every_op
def test_a_cuda_graph(op, impl):
    inputs = [x.requires_grad_() for x in inputs_of(op, torch.float32)]
    function = function_of(op, impl)
    upstream = torch.randn_like(function(*inputs)) if CASES[op].differentiable else None

    def step():
        value = function(*inputs)
        if upstream is None:
            return tuple(value)
        return value, *torch.autograd.grad(value, inputs, upstream)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for x in inputs:
            x.mul_(0.9)
    graph.replay()
    torch.testing.assert_close(captured, step(), rtol=0, atol=0)


@every_op
def test_compile(op, impl):
    inputs = inputs_of(op, torch.float32)
    expected = run(op, impl, inputs)
    compiled = torch.compile(function_of(op, impl), fullgraph=True)
    torch.testing.assert_close(value_and_gradients(compiled, inputs), expected)


@pytest.mark.skipif("cuda" not in FUSED["guided_correlation"], reason="no CUDA library")
def test_opcheck():
    new, ops = functools.partial(torch.randn, device="cuda"), torch.ops.pose_kernels
    for op in set(CASES) - {"guided_correlation_conv2d"}:  # it is made of the others
        for last in (False, True):
            for name, arguments in CASES[op].calls(ops, new, 1, 4, (3, 3), (3, 4), last):
                if name == op:
                    torch.library.opcheck(getattr(ops, name).default, leaves(arguments))


@pytest.mark.parametrize("impl", FUSED["flow_sample"])
def test_identity_is_exact(impl):
    for dtype in (torch.float32, torch.bfloat16):
        image = torch.randn(2, 3, 64, 48, device="cuda").to(dtype)
        for coarse in [(1, 1), (3, 5), (16, 16), (64, 48), (100, 7)]:
            flow = pose_kernels.identity_flow(*coarse, device="cuda").expand(2, -1, -1, -1)
            for mode in ("border", "zeros"):
                value = pose_kernels.flow_sample(image, flow, padding_mode=mode, impl=impl)
                assert torch.equal(value, image)


@pytest.mark.parametrize("impl", FUSED["correlation_4d"])
def test_a_map_of_more_than_two_to_the_31(impl):
    free, _ = torch.cuda.mem_get_info()
    if free < 16 << 30:
        pytest.skip("needs 16 GiB of GPU memory")
    source, target = (torch.randn(1, 8, 192, 244, device="cuda", dtype=torch.bfloat16)
                      for _ in range(2))
    value = pose_kernels.correlation_4d(source, target, impl=impl).flatten(2)  # 46 848 squared
    assert value.numel() > 2**31
    z_s, z_t = source.flatten(2).float(), target.flatten(2).float()
    for rows in (slice(0, 3), slice(-3, None)):
        expected = (z_s[0, :, rows].T @ z_t[0]).to(torch.bfloat16)
        torch.testing.assert_close(value[0, rows], expected, rtol=1e-2, atol=1e-2)
