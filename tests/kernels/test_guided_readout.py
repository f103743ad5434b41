"""guided_readout is a product with the guided correlation map."""

import functools
import subprocess
import sys

import pytest
import torch
from kernel_helpers import (
    DTYPES,
    FEATURE_SHAPES,
    Case,
    assert_errors,
    assert_same_bits_every_time,
    features,
    implementations,
    relative_error,
    value_and_gradients,
)

import pose_kernels

IMPLS = implementations("guided_readout")
POWERS = (1, 2)


def op(impl, power=1, eps=1e-5):
    return functools.partial(pose_kernels.guided_readout, power=power, eps=eps, impl=impl)


def inputs(batch, dtype, m=5, source=(3, 4), target=(4, 5), outputs=6, own=False):
    """`own`: every sample has its own values."""
    shape = (batch, outputs) if own else (outputs,)
    values = torch.randn(*shape, source[0] * source[1], dtype=torch.float64)
    return [*features(batch, m, source, target, dtype), values.to(dtype)]


def calls(ops, new, batch, m, source_size, target_size, last):
    S, eps = source_size[0] * source_size[1], 1e-5
    z = new(batch, m, *source_size), new(batch, m, *target_size)
    for power, values in ((1, new(6, S)), (2, new(batch, 3, S))):
        yield "guided_readout", (*z, values, power, eps, False)
        grad, *statistics = ops.guided_readout(*z, values, power, eps, False)
        for wanted in ((True, True, True), (True, False, False), (False, True, False),
                       (False, False, True)):
            yield ("guided_readout_backward",
                   (torch.ones_like(grad), *z, values, grad, *statistics, power, eps, False,
                    *wanted))
    if not hasattr(ops, "guided_readout_pair"):  # Triton's, which is made of the others
        return
    values = new(6, S), new(batch, 3, S)
    yield "guided_readout_pair", (*z, *values, eps, False)
    first, second, *statistics = ops.guided_readout_pair(*z, *values, eps, False)
    for wanted in ((True, True, True, True), (True, False, False, True),
                   (False, False, True, False)):
        yield ("guided_readout_pair_backward",
               (torch.ones_like(first), torch.ones_like(second), *z, *values, first, second,
                *statistics, eps, False, *wanted))


CASE = Case(inputs, calls, medium={"m": 35, "source": (13, 11), "target": (9, 17), "outputs": 20},
            large={"m": 35, "source": (17, 16), "target": (16, 19), "outputs": 40},
            follows_autocast=True)


def over_the_map(power, eps=1e-5):
    def function(source, target, values):
        Q = pose_kernels.guided_correlation(source, target, eps, impl="reference")
        return (values @ Q.flatten(2).pow(power)).unflatten(2, target.shape[2:])

    return function


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("impl", IMPLS)
def test_against_the_map_in_float64(impl, dtype, own, power):
    """Below, at and above the sizes of blocks; more features and outputs than a tile has."""
    shapes = [*FEATURE_SHAPES, (1, 67, (16, 16), (16, 17))] if impl != "triton" else (
        FEATURE_SHAPES[:1] + FEATURE_SHAPES[4:])
    for shape, outputs in zip(shapes, (6, 1, 3, 2, 33, 130), strict=False):
        z = inputs(shape[0], dtype, *shape[1:], outputs, own)
        if shape[1] == 1 or shape[2] == (1, 1):
            continue  # the true gradient is (near) zero
        oracle = value_and_gradients(over_the_map(power), [x.double() for x in z])
        assert_errors(value_and_gradients(op(impl, power), z), oracle, dtype,
                      2 if dtype.itemsize == 2 else 1)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("eps", [1e-5, 0.3])  # 0.3: both floors are active in places
def test_gradcheck(impl, eps, power):
    z = [x.requires_grad_() for x in inputs(2, torch.float64, 3, (2, 3), (3, 2), 2, own=True)]
    fast = impl == "triton"
    assert torch.autograd.gradcheck(op(impl, power, eps), z, fast_mode=fast)


# ---- two read-outs of one map


def pair_op(impl, eps=1e-5):
    def function(source, target, values, squared):
        both = pose_kernels.guided_readout(source, target, (values, squared), (1, 2), eps,
                                           impl=impl)
        return torch.cat([x.to(source.dtype) for x in both], dim=1)

    return function


def apart(impl, eps=1e-5):
    def function(source, target, values, squared):
        both = (op(impl, 1, eps)(source, target, values), op(impl, 2, eps)(source, target, squared))
        return torch.cat([x.to(source.dtype) for x in both], dim=1)

    return function


def pair_inputs(batch, dtype, *sizes, outputs=6, squares=2, own=False):
    """The values of the square in float32 where they may be."""
    z = inputs(batch, dtype, *sizes, outputs=outputs, own=own)
    squared = torch.randn(squares, z[2].shape[-1], dtype=torch.float64)
    return [*z, squared.to(dtype if dtype == torch.float64 else torch.float32)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("impl", IMPLS)
def test_a_pair_against_the_map_in_float64(impl, dtype):
    shapes = [FEATURE_SHAPES[0], FEATURE_SHAPES[4]]
    if impl != "triton":
        shapes.append((1, 67, (16, 16), (16, 17)))
    for shape, outputs, squares in zip(shapes, (6, 33, 40), (2, 1, 35), strict=False):
        z = pair_inputs(shape[0], dtype, *shape[1:], outputs=outputs, squares=squares,
                        own=outputs == 33)
        oracle = value_and_gradients(apart("reference"), [x.double() for x in z])
        found = value_and_gradients(pair_op(impl), z)
        assert [x.dtype for x in found] == [dtype, dtype, dtype, dtype, z[3].dtype]
        # The last one's gradient came from a result that was rounded.
        assert_errors(found[:4], oracle[:4], dtype, 2 if dtype.itemsize == 2 else 1)
        assert_errors([found[4].to(dtype)], oracle[4:], dtype, 10)


@pytest.mark.parametrize("eps", [1e-5, 0.3])
@pytest.mark.parametrize("impl", IMPLS)
def test_gradcheck_of_a_pair(impl, eps):
    z = [x.requires_grad_() for x in pair_inputs(2, torch.float64, 3, (2, 3), (3, 2), outputs=2,
                                                 own=True)]
    assert torch.autograd.gradcheck(pair_op(impl, eps), z, fast_mode=impl == "triton")


@pytest.mark.parametrize("impl", IMPLS)
def test_a_pair_is_what_two_calls_give(impl):
    """Floors, zero columns, ties, no sample; and gradients one by one."""
    z = pair_inputs(2, torch.float64)
    z[1][:, :, 1, 2] = 0
    z[1][:, :, 3, 1] = z[1][:, :, 0, 3]
    for eps in (1e-5, 0.3):
        expected = value_and_gradients(apart(impl, eps), z)
        torch.testing.assert_close(value_and_gradients(pair_op(impl, eps), z), expected,
                                   rtol=1e-11, atol=1e-12)
        for only in range(4):
            some = [x.clone().requires_grad_(i == only) for i, x in enumerate(z)]
            out = pair_op(impl, eps)(*some)
            upstream = torch.ones_like(out)
            gradient, = torch.autograd.grad(out, some[only], upstream)
            alone = [x.clone().requires_grad_(i == only) for i, x in enumerate(z)]
            wanted, = torch.autograd.grad(apart(impl, eps)(*alone), alone[only], upstream)
            torch.testing.assert_close(gradient, wanted, rtol=1e-11, atol=1e-12)
    none = [z[0][:0], z[1][:0], *z[2:]]
    empty = value_and_gradients(pair_op(impl), none)
    assert empty[0].shape == (0, 8, 4, 5) and all((x == 0).all() for x in empty)


@pytest.mark.parametrize("impl", IMPLS)
def test_of_a_pair_one_may_have_no_gradient(impl):
    source, target, values, squared = pair_inputs(1, torch.float64)
    source.requires_grad_()
    first, second = pose_kernels.guided_readout(source, target, (values, squared), (1, 2),
                                                impl=impl)
    alone = op(impl, 2)(source, target, squared)
    torch.testing.assert_close(torch.autograd.grad(second.square().sum(), source),
                               torch.autograd.grad(alone.square().sum(), source))
    assert torch.equal(second, alone) and first.shape == (1, 6, 4, 5)


@pytest.mark.skipif("cpp" not in IMPLS, reason="of the CPU library")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_pair_has_the_same_bits_for_any_number_of_threads(dtype):
    z = pair_inputs(3, dtype, 35, (17, 16), (16, 19), outputs=40)
    assert_same_bits_every_time(pair_op("cpp"), z)


@pytest.mark.skipif("cpp" not in IMPLS, reason="of the CPU library")
def test_a_pair_compiles_in_one_piece_and_keeps_the_layout():
    z = pair_inputs(2, torch.float32)
    z[:2] = (x.contiguous(memory_format=torch.channels_last) for x in z[:2])
    compiled = torch.compile(pair_op("cpp"), fullgraph=True, backend="aot_eager")
    found, expected = (value_and_gradients(f, z) for f in (compiled, pair_op("cpp")))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    gradients = torch.autograd.grad(pair_op("cpp")(*(x.requires_grad_() for x in z)).sum(), z[:2])
    assert all(g.is_contiguous(memory_format=torch.channels_last) for g in gradients)


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("impl", IMPLS)
def test_floors_and_zero_columns(impl, power):
    z = inputs(2, torch.float64)
    z[1][:, :, 1, 2] = 0
    for eps in (1e-5, 0.3):
        found = value_and_gradients(op(impl, power, eps), z)
        torch.testing.assert_close(found, value_and_gradients(over_the_map(power, eps), z),
                                   rtol=1e-10, atol=1e-11)
        assert (found[0][:, :, 1, 2] == 0).all() and (found[2][:, :, 1, 2] == 0).all()
    nothing = value_and_gradients(op(impl, power), [torch.zeros_like(z[0]), *z[1:]])
    assert all((x == 0).all() for x in nothing)


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("impl", IMPLS)
def test_ties_go_to_the_first(impl, power):
    source, target, values = inputs(1, torch.float64, 4, (4, 4), (4, 5))
    target[:, :, 3, 1] = target[:, :, 0, 3]
    z = [source, target, values]
    found = value_and_gradients(op(impl, power), z)
    expected = value_and_gradients(over_the_map(power), z)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_1x1_convolution(impl):
    source, target, values = inputs(2, torch.float64)
    weight = values[:, :, None, None]
    expected = pose_kernels.guided_correlation_conv2d(source, target, weight, impl="reference")
    found = op(impl)(source, target, values)
    torch.testing.assert_close(found, expected)
    bias = torch.randn(6, dtype=torch.float64)
    convolved = pose_kernels.guided_correlation_conv2d(source, target, weight, bias, impl=impl)
    assert torch.equal(convolved, found + bias[:, None, None])
    # Both layouts of a 1 x 1 weight are contiguous: only memory made for one has its strides.
    for layout in (torch.contiguous_format, torch.channels_last):
        layer = torch.empty(6, 12, 1, 1, dtype=torch.float64, memory_format=layout)
        layer.copy_(weight).requires_grad_()
        assert layer.stride(2) == (1 if layout is torch.contiguous_format else 12)
        convolved = pose_kernels.guided_correlation_conv2d(source, target, layer, impl=impl)
        gradient, = torch.autograd.grad(convolved.sum(), layer)
        assert gradient.stride() == layer.stride()


@pytest.mark.parametrize("impl", IMPLS)
def test_squares_move_values_to_where_they_match(impl):
    """Weights that sum to one: a constant stays what it is."""
    source, target, _ = inputs(2, torch.float64)
    moved = op(impl, 2)(source, target, torch.full((1, 12), 3.0, dtype=torch.float64))
    torch.testing.assert_close(moved, torch.full((2, 1, 4, 5), 3.0, dtype=torch.float64))


@pytest.mark.parametrize("impl", IMPLS)
def test_float32_keeps_its_accuracy_over_many_sources(impl):
    if impl == "triton":
        pytest.skip("slow where it is interpreted")
    z = inputs(1, torch.float32, 35, (40, 45), (5, 8), 10)
    oracle = value_and_gradients(over_the_map(1), [x.double() for x in z])
    found = value_and_gradients(op(impl), z)
    assert relative_error(found[0], oracle[0]) < 1e-6
    assert all(relative_error(a, b) < 3e-6 for a, b in zip(found[1:], oracle[1:], strict=True))


#: Prints the MiB that a call takes beyond inputs and results. The first call is a small one: torch
#: loads modules for gradients, and threads start.
MEMORY = """
import ctypes, torch, pose_kernels

def field(name):
    return next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith(name))

def extra(side):
    z = [torch.nn.functional.normalize(torch.randn(1, 35, side, side), dim=1) for _ in range(2)]
    inputs = [x.requires_grad_() for x in (*z, torch.randn(128, side * side))]
    G = torch.randn(1, 128, side, side)
    ctypes.CDLL(None).malloc_trim(0)
    open("/proc/self/clear_refs", "w").write("5")
    before = field("VmRSS")
    out = pose_kernels.guided_readout(*inputs, impl="cpp")
    gradients = torch.autograd.grad(out, inputs, G)
    results = sum(x.nbytes for x in (out, *gradients)) / 2**20
    return (field("VmHWM") - before) / 2**10 - results

torch.set_num_threads(2)
extra(8)
print(extra(64))
"""


@pytest.mark.skipif("cpp" not in IMPLS or sys.platform != "linux", reason="of the CPU library")
def test_memory_is_a_few_blocks():
    """Where a map has 64 MiB, the packed features 2 and the bar is 8."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 8


@pytest.mark.parametrize(("change", "error", "words"), [
    (lambda s, t, v: (s, t, v[:, :5]), ValueError, r"values: expected \[n, 12\] or \[2, n, 12\]"),
    (lambda s, t, v: (s, t, v[None]), ValueError, r"got shape \[1, 6, 12\]"),
    (lambda s, t, v: (s, t, v[:0]), ValueError, "values: expected"),
    (lambda s, t, v: (s, t, v[0]), ValueError, r"values: expected \[n, hs\*ws\]"),
    (lambda s, t, v: (s, t, v.float()), TypeError, "values: expected torch.float64 as source"),
    (lambda s, t, v: (s, t, v, 3), ValueError, "power: expected 1 or 2, got 3"),
    (lambda s, t, v: (s, t, [1]), TypeError, r"values: expected a tensor \[n, hs\*ws\]"),
    (lambda s, t, v: (s, t, (v, v)), ValueError, r"pair of them with power \(1, 2\), got 2 with"),
    (lambda s, t, v: (s, t, (v, v), (2, 1)), ValueError, r"got 2 with power \(2, 1\)"),
    (lambda s, t, v: (s, t, (v,), (1, 2)), ValueError, r"got 1 with power \(1, 2\)"),
    (lambda s, t, v: (s, t, v, (1, 2)), ValueError, r"power: expected 1 or 2, got \(1, 2\)"),
    (lambda s, t, v: (s, t, (v, v[:, :5]), (1, 2)), ValueError, r"values: expected \[n, 12\]"),
])
def test_errors_name_the_argument(change, error, words):
    with pytest.raises(error, match=words):
        pose_kernels.guided_readout(*change(*inputs(2, torch.float64)))
