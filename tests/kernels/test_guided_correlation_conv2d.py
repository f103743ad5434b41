"""guided_correlation_conv2d is a convolution of the guided correlation map."""

import functools
import importlib
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from kernel_helpers import (
    DTYPES,
    MANY_FEATURES,
    TOLERANCE,
    Case,
    assert_errors,
    assert_same_bits_every_time,
    features,
    implementations,
    relative_error,
    value_and_gradients,
)
from torch._subclasses.fake_tensor import FakeTensorMode

import pose_kernels

IMPLS = implementations("guided_correlation_conv2d")
needs_cpu_library = pytest.mark.skipif("cpp" not in IMPLS, reason="no CPU library")


def inputs(batch, dtype, m=5, source=(3, 4), target=(4, 5), outputs=6, with_bias=True):
    weight = 0.1 * torch.randn(outputs, source[0] * source[1], 3, 3, dtype=torch.float64)
    bias = [torch.randn(outputs).to(dtype)] if with_bias else []
    return [*features(batch, m, source, target, dtype), weight.to(dtype), *bias]


def calls(ops, new, batch, m, source_size, target_size, last):
    S, eps = source_size[0] * source_size[1], 1e-5
    z, weight = (new(batch, m, *source_size), new(batch, m, *target_size)), new(6, S, 3, 3)
    for bias in (None, new(6)):
        yield "guided_correlation_conv2d", (*z, weight, bias, eps, False)
    grad, *statistics = ops.guided_correlation_conv2d(*z, weight, None, eps, False)
    for wanted in ((True,) * 3, (True, False, False), (False, True, False), (False, False, True)):
        yield ("guided_correlation_conv2d_backward",
               (grad, *z, weight, *statistics, eps, False, *wanted))
    if hasattr(ops, "winograd_weight"):
        yield from winograd_calls(new, weight, rows=2, width=6)


def winograd_calls(new, weight, rows, width):
    """For a band of a few rows; R values of the outputs and rows of the window."""
    n, S, kh, _ = weight.shape
    R = n * kh
    maps, Y = new(2, S, rows * width // 2), new(n, rows + kh + 1, width)
    U, U_t = (new(4, -(-r // 12) * 12, depth) for r, depth in ((R, S), (S, R)))
    dU = new(4, S, R)
    yield "winograd_weight", (weight, False, U)
    yield "winograd_weight", (weight, True, U_t)
    yield "winograd_add_output", (U, maps, 1, kh, Y)
    yield "winograd_map_gradient", (U_t, Y, 1, kh, new(*maps.shape))
    yield "winograd_add_weight_gradient", (maps, Y, 1, kh, dU)
    yield "winograd_weight_gradient", (dU, new(*weight.shape))


CASE = Case(inputs, calls, medium={"m": 35, "source": (13, 11), "target": (9, 17), "outputs": 8,
                                   "with_bias": False},
            large={"m": 35, "source": (17, 16), "target": (16, 19), "with_bias": False},
            follows_autocast=True, unusual=MANY_FEATURES)


@pytest.mark.parametrize("impl", IMPLS)
def test_no_bias_and_empty_batch(impl):
    source, target, weight, _ = inputs(2, torch.float64)
    op = pose_kernels.guided_correlation_conv2d
    assert op(source, target, weight, impl=impl).shape == (2, 6, 4, 5)
    assert op(source[:0], target[:0], weight, impl=impl).shape == (0, 6, 4, 5)


def test_errors_name_the_argument():
    source, target, weight, bias = inputs(2, torch.float64)
    op = pose_kernels.guided_correlation_conv2d
    with pytest.raises(ValueError, match=r"weight: expected hs\*ws = 12 input channels"):
        op(source, target, weight[:, :5], bias)
    with pytest.raises(ValueError, match=r"bias: expected \[6\], got shape \[5\]"):
        op(source, target, weight, bias[:5])
    with pytest.raises(TypeError, match="weight: expected torch.float64 as source"):
        op(source, target, weight.float(), bias)


@pytest.mark.parametrize("impl", [impl for impl in IMPLS if impl != "reference"])
@pytest.mark.parametrize("size", [(5, 6), (4, 7), (3, 1)], ids=str)
@pytest.mark.parametrize("kernel", [(3, 3), (1, 3), (4, 3), (1, 1), (5, 2), (1, 4)], ids=str)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_bands_parts_and_forms_change_nothing(impl, kernel, size, monkeypatch):
    """Every form of the convolution, with bands of one row and of all, the weight whole and in
    uneven parts, on odd and even widths, against the literal equations."""
    module = importlib.import_module("pose_kernels.guided_correlation_conv2d")
    source, target = features(2, 5, (3, 4), size, torch.float64)
    weight = torch.randn(5, 12, *kernel, dtype=torch.float64)
    bias = torch.randn(5, dtype=torch.float64)
    upstream = torch.randn(2, 5, *size, dtype=torch.float64)

    def run(impl):
        inputs = [x.clone().requires_grad_() for x in (source, target, weight, bias)]
        result = pose_kernels.guided_correlation_conv2d(*inputs, impl=impl)
        return [result.detach(), *torch.autograd.grad(result, inputs, upstream)]

    expected = run("reference")
    two_outputs = 8 * 12 * 2 * 4 * kernel[0]
    for fewest, band, part in ((1, 1 << 20, 1 << 20), (1, 1, two_outputs), (9, 1, two_outputs)):
        monkeypatch.setattr(module, "WINOGRAD_OUTPUTS", fewest)
        monkeypatch.setattr(module, "BAND_BYTES", {"cpu": band, "cuda": band})
        monkeypatch.setattr(module, "WEIGHT_BYTES", {"cpu": part, "cuda": part})
        monkeypatch.setattr(module, "BAND_COLUMNS", 1)
        for ours, literal in zip(run(impl), expected, strict=True):
            torch.testing.assert_close(ours, literal, rtol=1e-9, atol=1e-11)


def winograd_problem(dtype):
    """The fewest outputs that are computed with fewer products; nothing is a multiple of a tile."""
    source, target = features(2, 8, (5, 7), (7, 9), dtype)
    weight = 0.1 * torch.randn(67, 35, 3, 3, dtype=torch.float64)
    return [source, target, weight.to(dtype), torch.randn(67).to(dtype)]


#: Of features and weight: what autocast lets through, beside equal ones.
MIXED = [(torch.float32, torch.bfloat16), (torch.float64, torch.bfloat16),
         (torch.float32, torch.float64), (torch.float16, torch.bfloat16)]


@pytest.mark.parametrize("dtypes", MIXED, ids=str)
def test_types_that_autocast_mixes_on_a_gpu(dtypes):
    """Traced as for a GPU, with tensors that have no values: every product exists there, and the
    results are what the operator says they are."""
    parts = importlib.import_module("pose_kernels.guided_correlation_conv2d")
    ops = torch.ops.pose_kernels
    with FakeTensorMode():
        z_s, z_t, weight = (torch.empty(shape, dtype=dtype, device="cuda") for shape, dtype in zip(
            ((2, 5, 4, 5), (2, 5, 3, 7), (6, 20, 3, 3)), (dtypes[0], *dtypes), strict=True))
        given = (z_s, z_t, weight, None, 1e-5, False)
        found, said = parts._forward(ops, *given), ops.guided_correlation_conv2d(*given)
        grads = parts._backward_op(ops, found[0], *given[:3], *found[1:], 1e-5, False, *[True] * 3)
        for x, y in zip((*found, *grads), (*said, *given[:3]), strict=True):
            assert (x.shape, x.dtype, x.device) == (y.shape, y.dtype, y.device)


@pytest.mark.parametrize("dtypes", [(torch.float64, torch.float32), (torch.float32, torch.float64)],
                         ids=str)
@pytest.mark.parametrize("impl", IMPLS)
def test_types_that_autocast_mixes(impl, dtypes):
    *z, weight, bias = inputs(2, dtypes[0])
    given = [*z, weight.to(dtypes[1]), bias.to(dtypes[1])]

    def under_autocast(impl):
        op = functools.partial(pose_kernels.guided_correlation_conv2d, impl=impl)
        return torch.autocast("cpu", dtype=torch.bfloat16)(op)

    found = value_and_gradients(under_autocast(impl), given)
    for compiled in (found, value_and_gradients(
            torch.compile(under_autocast(impl), fullgraph=True, backend="aot_eager"), given)):
        expected = value_and_gradients(under_autocast("reference"), given)
        for a, b in zip(compiled, expected, strict=True):
            assert a.dtype == b.dtype
            assert relative_error(a, b) < 2e-2


@needs_cpu_library
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fewer_products_in_every_precision(dtype):
    """The sums of Winograd's form cost float32 no more than a few roundings."""
    op, inputs = pose_kernels.guided_correlation_conv2d, winograd_problem(dtype)
    exact = value_and_gradients(functools.partial(op, impl="reference"),
                                [x.double() for x in inputs])
    inputs[2] = inputs[2].contiguous(memory_format=torch.channels_last)
    found = value_and_gradients(functools.partial(op, impl="cpp"), inputs)
    assert_errors(found, exact, dtype, 2)


@needs_cpu_library
def test_fewer_products_same_bits_for_any_number_of_threads():
    op = functools.partial(pose_kernels.guided_correlation_conv2d, impl="cpp")
    assert_same_bits_every_time(op, winograd_problem(torch.float32))


#: Outputs, sources, window, rows of a band and half its width: below, at and beyond the tiles and
#: the depth that is summed at a time, some no multiple of either.
WINOGRAD_SIZES = [(1, 1, 1, 1, 1), (5, 7, 3, 2, 1), (8, 24, 3, 4, 8), (64, 13, 3, 3, 5),
                  (7, 50, 1, 1, 33), (3, 1100, 4, 2, 17), (140, 49, 4, 2, 3), (2, 5, 2, 7, 190)]


@needs_cpu_library
@pytest.mark.parametrize("sizes", WINOGRAD_SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_winograd_operators(dtype, sizes):
    """Each against torch's convolution of the band and its gradients."""
    n, S, kh, rows, row = sizes
    ops, first = torch.ops.pose_kernels, 2
    band = torch.randn(S, rows, 2 * row).to(dtype)
    weight, Y = torch.randn(n, S, kh, 3).to(dtype), torch.randn(n, rows + kh + 4, 2 * row).to(dtype)
    maps = torch.stack([band[..., 0::2], band[..., 1::2]]).flatten(2)

    exact = [x.double().requires_grad_() for x in (band, weight)]
    part = F.conv2d(exact[0][None], exact[1], padding=(kh - 1, 1))[0]
    met = slice(first, first + rows + kh - 1)
    band_grad, weight_grad = torch.autograd.grad(part, exact, Y[:, met].double())

    def near(found, expected):
        assert relative_error(found, expected) < TOLERANCE[dtype][0]

    # What pads a panel may be anything.
    U = torch.full((4, -(-n * kh // 12) * 12, S), float("nan"), dtype=dtype)
    ops.winograd_weight(weight, False, U)
    result = Y.clone()
    ops.winograd_add_output(U, maps, first, kh, result)
    assert torch.equal(result[:, :first], Y[:, :first])
    assert torch.equal(result[:, met.stop :], Y[:, met.stop :])
    near(result[:, met] - Y[:, met].double(), part)

    U = torch.full((4, -(-S // 12) * 12, n * kh), float("nan"), dtype=dtype)
    ops.winograd_weight(weight, True, U)
    found = torch.full_like(maps, float("nan"))
    ops.winograd_map_gradient(U, Y, first, kh, found)
    near(found.unflatten(2, (rows, row)).movedim(0, 3).flatten(2), band_grad)

    dU, dW = torch.zeros(4, S, n * kh, dtype=dtype), torch.full_like(weight, float("nan"))
    for _ in range(2):
        ops.winograd_add_weight_gradient(maps, Y, first, kh, dU)
    ops.winograd_weight_gradient(dU, dW)
    near(dW, 2 * weight_grad)


@needs_cpu_library
@pytest.mark.parametrize("level", ["baseline", "avx2"])
def test_winograd_operators_at_lower_vector_widths(level):
    """Every fresh byte of malloc is 0x7f besides: scratch is written before it is read."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", f"{__file__}::test_winograd_operators"],
        env={**os.environ, "POSE_KERNELS_SIMD": level, "MALLOC_PERTURB_": "128"},
        capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_cpu_library
def test_winograd_operators_refuse_what_does_not_fit():
    ops = torch.ops.pose_kernels
    weight, U, dU = torch.randn(6, 12, 3, 3), torch.zeros(4, 24, 12), torch.zeros(4, 12, 18)
    maps, Y = torch.zeros(2, 12, 6), torch.zeros(6, 6, 6)
    for message, call in (
        ("U: unexpected shape", lambda: ops.winograd_weight(weight, True, U)),
        ("weight: expected", lambda: ops.winograd_weight(weight[..., :2], False, U)),
        ("the band lies outside", lambda: ops.winograd_add_output(U, maps, 3, 3, Y)),
        ("the band lies outside", lambda: ops.winograd_map_gradient(U, Y, -1, 3, maps)),
        ("maps: unexpected dtype", lambda: ops.winograd_add_output(U, maps.double(), 0, 3, Y)),
        ("U: unexpected dtype", lambda: ops.winograd_add_output(U.double(), maps, 0, 3, Y)),
        ("even width", lambda: ops.winograd_add_output(U, maps, 0, 3, Y[..., :5].clone())),
        ("maps: expected", lambda: ops.winograd_add_output(U, maps[..., :5].clone(), 0, 3, Y)),
        ("contiguous", lambda: ops.winograd_add_weight_gradient(maps, Y.mT, 0, 3, dU)),
        ("dU: unexpected shape", lambda: ops.winograd_add_weight_gradient(maps, Y, 0, 2, dU)),
        ("dU: unexpected shape", lambda: ops.winograd_weight_gradient(dU[:3], weight)),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()
