"""The CUDA kernels' own source, executed on the CPU, against the equations in float64.

`tests/emulation` compiles csrc/cuda/*.cuh for the host: fibers for threads, matrix fragments as the
PTX manual lays them out, shared memory and scratch that start as NaN. What this cannot show is
speed, and whatever only real hardware does. Every call runs twice, in forward and in reversed order
of threads, warps and blocks: equal bits, or a barrier is missing.
"""

import functools
import importlib.util
import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernel_helpers import (
    TOLERANCE,
    features,
    image_and_flow,
    relative_error,
    value_and_gradients,
    whole_features,
)

import pose_kernels
from pose_kernels.mutual_matches import mutual

if shutil.which("g++") is None or importlib.util.find_spec("pybind11") is None:
    pytest.skip("executing the CUDA sources needs g++ and pybind11", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "emulation"))
import build  # noqa: E402

FLOAT, DOUBLE, HALF, BFLOAT = torch.float32, torch.float64, torch.float16, torch.bfloat16
SHAPES = [  # B, m, source, target
    (2, 35, (13, 11), (9, 17)),  # no multiple of a tile, two tiles each way
    (1, 1, (3, 3), (2, 2)),
    (3, 8, (1, 1), (5, 2)),
    (1, 7, (4, 3), (1, 1)),
    (1, 40, (16, 8), (16, 16)),  # whole tiles
    (1, 67, (5, 20), (12, 12)),  # two chunks of features in backward
]
#: What TF32 products are good for: 10 bits, and cubes.
TF32_TOLERANCE = (2e-3, 1e-2)


#: B, m, source, target, outputs, whether each sample has its own values.
READOUTS = [
    (2, 35, (13, 11), (9, 17), 5, False),  # no multiple of a tile
    (1, 5, (3, 3), (2, 3), 1, True),
    (3, 8, (2, 1), (5, 2), 3, False),
    (2, 7, (4, 3), (1, 1), 2, True),
    (1, 9, (8, 16), (16, 16), 130, False),  # whole tiles; two chunks of outputs
    (1, 67, (18, 16), (5, 13), 9, True),  # 288 sources: two turns of a block
]


@functools.cache
def emulated():
    return build.load()


def array(x):
    """NumPy's view of a tensor; bfloat16 as its bits."""
    return (x.view(torch.uint16) if x.dtype == BFLOAT else x).detach().numpy()


def run(name, *arguments, outputs, any_order=False):
    """Calls a launcher in both orders of threads; it writes `outputs`, its last arguments, with the
    same bits but where they are added up in any order."""
    module = emulated()
    before = [x.clone() for x in outputs]
    arguments = [array(x) if isinstance(x, torch.Tensor) else x for x in arguments]
    found = []
    for reverse in (False, True):
        for x, start in zip(outputs, before, strict=True):
            x.copy_(start)
        module.set_reversed(reverse)
        getattr(module, name)(*arguments, *(array(x) for x in outputs))
        found.append([x.clone() for x in outputs])
    for forward, backward in zip(*found, strict=True):
        same = array(forward).tobytes() == array(backward).tobytes()
        assert same or any_order, "depends on the order"
    return found[0]


def wide(dtype):
    return DOUBLE if dtype == DOUBLE else FLOAT


def new(*shape, dtype):
    fill = float("nan") if dtype.is_floating_point else -1
    return torch.full(shape, fill, dtype=dtype)


def statistics(B, S, T, dtype):
    return new(B, S, dtype=dtype), new(B, S, dtype=torch.int64), new(B, T, dtype=dtype)


class Map(torch.autograd.Function):
    """correlation_4d or guided_correlation as pose_kernels puts them together; `eps`: an argument,
    or none."""

    @staticmethod
    def forward(ctx, source, target, name, eps, tf32, channels_last, out_dtype=None):
        z = [source.flatten(2), target.flatten(2)]
        (B, _, S), T = z[0].shape, z[1].shape[2]
        shape = (B, T, S) if channels_last else (B, S, T)
        result = new(*shape, dtype=out_dtype or source.dtype)
        stats = statistics(B, S, T, wide(source.dtype)) if eps else ()
        result, *stats = run(name, *z, *eps, tf32, channels_last, outputs=[result, *stats])
        ctx.saved = [*z, *stats, *eps, tf32], source.shape, target.shape, name, channels_last
        result = result.transpose(1, 2) if channels_last else result
        return result.reshape(B, S, *target.shape[2:])

    @staticmethod
    def backward(ctx, grad):
        given, source_shape, target_shape, name, channels_last = ctx.saved
        grad = grad.flatten(2).transpose(1, 2) if channels_last else grad.flatten(2)
        grads = run(f"{name}_backward", grad.contiguous(), channels_last, *given,
                    outputs=[torch.full_like(z, torch.nan) for z in given[:2]])
        return grads[0].view(source_shape), grads[1].view(target_shape), *[None] * 5


class Readout(torch.autograd.Function):
    """guided_readout; what has no gradient is not asked for one."""

    @staticmethod
    def forward(ctx, source, target, values, power, eps, tf32):
        z = [source.flatten(2), target.flatten(2), values]
        (B, _, S), T = z[0].shape, z[1].shape[2]
        outputs = [new(B, values.shape[-2], T, dtype=source.dtype),
                   *statistics(B, S, T, wide(source.dtype))]
        result, *stats = run("guided_readout", *z, power, eps, tf32, outputs=outputs)
        ctx.saved = [*z, result, *stats, power, eps, tf32], source.shape, target.shape
        return result.view(*result.shape[:2], *target.shape[2:])

    @staticmethod
    def backward(ctx, grad):
        given, *shapes = ctx.saved
        wanted = ctx.needs_input_grad[:3]
        grads = run("guided_readout_backward", grad.flatten(2).contiguous(), *given,
                    outputs=[new(*(z.shape if w else (0,)), dtype=z.dtype)
                             for z, w in zip(given, wanted, strict=False)])
        shapes.append(given[2].shape)
        grads = [g.view(shape) if w else None
                 for g, shape, w in zip(grads, shapes, wanted, strict=True)]
        return *grads, None, None, None


class Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, correlation, eps, out_dtype=None):
        C = correlation.flatten(2).contiguous()
        result = torch.full_like(C, torch.nan, dtype=out_dtype)
        result, *stats = run("soft_mutual_normalize", C, eps,
                             outputs=[result, *statistics(*C.shape, wide(C.dtype))])
        ctx.saved = C, stats, eps
        return result.view(correlation.shape)

    @staticmethod
    def backward(ctx, grad):
        C, stats, eps = ctx.saved
        (result,) = run("soft_mutual_normalize_backward", grad.flatten(2).contiguous(), C, *stats,
                        eps, outputs=[torch.full_like(C, torch.nan)])
        return result.view(grad.shape), None, None


class Sample(torch.autograd.Function):
    """`most`: pairs that are sorted at once; 0: the image's gradient in any order."""

    @staticmethod
    def forward(ctx, image, flow, size, mode, most=2**31 - 1):
        ctx.saved = image, flow, mode == "zeros", most
        result = new(*image.shape[:2], *size, dtype=image.dtype)
        return run("flow_sample", image, flow, mode == "zeros", outputs=[result])[0]

    @staticmethod
    def backward(ctx, grad):
        image, flow, zeros, most = ctx.saved
        grads = run("flow_sample_backward", grad.contiguous(), image, flow, zeros, most,
                    outputs=[torch.full_like(x, torch.nan) for x in (image, flow)],
                    any_order=most == 0)
        return *grads, None, None, None


def correlation(tf32=False, channels_last=False, out_dtype=None):
    return lambda s, t: Map.apply(s, t, "correlation_4d", (), tf32, channels_last, out_dtype)


def guided(eps=1e-5, tf32=False, channels_last=False, out_dtype=None):
    return lambda s, t: Map.apply(s, t, "guided_correlation", (eps,), tf32, channels_last,
                                  out_dtype)


def normalized(out_dtype=None):
    return lambda C: Normalize.apply(C, 1e-5, out_dtype)


def readout(power=1, eps=1e-5, tf32=False):
    return lambda s, t, v: Readout.apply(s, t, v, power, eps, tf32)


def readout_inputs(batch, m, source, target, outputs, own, dtype=DOUBLE):
    shape = (batch, outputs) if own else (outputs,)
    values = torch.randn(*shape, source[0] * source[1], dtype=DOUBLE)
    return [*features(batch, m, source, target, dtype), values.to(dtype)]


def reference(op, **options):
    return functools.partial(getattr(pose_kernels, op), impl="reference", **options)


def assert_close_to_float64(function, reference, inputs, tolerance, scale=0.0):
    """Value and gradients; `scale` is the least norm that errors are relative to."""
    oracle = value_and_gradients(reference, [x.double() for x in inputs])
    found = value_and_gradients(function, inputs)
    for i, (a, b) in enumerate(zip(found, oracle, strict=True)):
        limit = tolerance[min(i, 1)] * max(b.norm().item(), scale if i else 0.0)
        assert (a.double() - b).norm().item() < limit


@pytest.fixture(params=[False, True], ids=["many blocks", "few blocks"])
def few_blocks(request):
    """Few blocks walk over many tiles each, as on large maps; many are the plan for a GPU."""
    emulated().set_few_blocks(request.param)
    yield request.param
    emulated().set_few_blocks(False)


CASES = [(FLOAT, False), (FLOAT, True), (DOUBLE, False), (HALF, False), (BFLOAT, False)]


@pytest.mark.parametrize("op", ["correlation_4d", "guided_correlation"])
@pytest.mark.parametrize(("dtype", "tf32"), CASES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_maps(shape, dtype, tf32, op, few_blocks):
    inputs = features(*shape, dtype)
    tolerance = TF32_TOLERANCE if tf32 else TOLERANCE[dtype]
    make, scale = correlation, 0.0
    if op == "guided_correlation":
        # With one source or one channel the true gradient is (near) zero: terms near 1/C cancel.
        make, scale = guided, 10.0 if shape[2] == (1, 1) or shape[1] == 1 else 1.0
    for channels_last in (False, True) if shape == SHAPES[0] else (few_blocks,):
        function = make(tf32=tf32, channels_last=channels_last)
        assert_close_to_float64(function, reference(op), inputs, tolerance, scale)


@pytest.mark.parametrize("out_dtype", [HALF, BFLOAT], ids=str)
def test_narrower_maps(out_dtype):
    """The same sums, rounded once; gradients as wide as the features."""
    z = features(2, 9, (10, 13), (7, 19), FLOAT)
    C = torch.randn(2, 13, 3, 50)
    for inputs, make, op in [
            (z, correlation, "correlation_4d"), (z, guided, "guided_correlation"),
            ([C], normalized, "soft_mutual_normalize")]:
        narrow = make(out_dtype=out_dtype)
        assert torch.equal(narrow(*inputs), make()(*inputs).to(out_dtype))
        upstream = torch.randn(narrow(*inputs).shape).to(out_dtype).double()
        found = value_and_gradients(narrow, inputs, upstream)
        oracle = value_and_gradients(reference(op), [x.double() for x in inputs], upstream)
        for a, b in zip(found[1:], oracle[1:], strict=True):
            assert a.dtype == FLOAT and relative_error(a, b) < TOLERANCE[FLOAT][1]


@pytest.fixture
def truncating():
    """Tensor cores that add towards zero."""
    emulated().set_truncating(True)
    yield
    emulated().set_truncating(False)


@pytest.mark.parametrize("op", ["correlation_4d", "guided_correlation"])
@pytest.mark.parametrize(("m", "sizes"), [(35, ((5, 4), (3, 7))), (1024, ((5, 4), (3, 7))),
                                          (24, ((32, 34), (5, 4))), (24, ((5, 4), (32, 34)))])
def test_float32_where_tensor_cores_truncate(op, m, sizes, truncating):
    """Long sums of features forward, of features and of positions backward."""
    inputs = features(1, m, *sizes, FLOAT)
    function = correlation() if op == "correlation_4d" else guided()
    oracle = value_and_gradients(reference(op), [x.double() for x in inputs])
    for a, b in zip(value_and_gradients(function, inputs), oracle, strict=True):
        assert relative_error(a, b) < 2e-6


# 0.3: both floors are active for some rows and columns
@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_guided_correlation_gradcheck(eps):
    """float64 has fragments of its own; everything else is the same source."""
    inputs = features(1, 3, (2, 3), (3, 2))
    assert_close_to_float64(guided(eps), reference("guided_correlation", eps=eps), inputs,
                            TOLERANCE[DOUBLE], 1.0)
    if eps > 0.1:
        assert torch.autograd.gradcheck(guided(eps), [x.requires_grad_() for x in inputs])


@pytest.mark.parametrize("channels_last", [False, True])
def test_an_expanded_gradient(channels_last):
    """Made contiguous by the wrapper in C++; here only that sum() has a gradient."""
    source, target = (x.requires_grad_() for x in features(1, 5, (4, 4), (3, 4), FLOAT))
    guided(channels_last=channels_last)(source, target).sum().backward()
    expected = value_and_gradients(reference("guided_correlation"),
                                   [source.double(), target.double()], torch.ones(1, 16, 3, 4))
    for x, grad in zip((source, target), expected[1:], strict=True):
        torch.testing.assert_close(x.grad.double(), grad, rtol=1e-4, atol=1e-4)


def test_layouts_have_the_same_bits():
    inputs = features(2, 9, (10, 13), (7, 19), FLOAT)
    for op in (guided, correlation):
        found = [value_and_gradients(op(channels_last=c), inputs) for c in (False, True)]
        for a, b in zip(*found, strict=True):
            assert torch.equal(a, b)


def counted(counter, function, *arguments):
    """How much a call adds to a counter of the emulation."""
    before = counter()
    function(*arguments)
    return counter() - before


@pytest.mark.parametrize("make", [correlation, guided])
def test_the_work_is_linear_in_the_number_of_features(make):
    few, many = (counted(emulated().products, value_and_gradients, make(),
                         features(1, m, (5, 4), (9, 15), FLOAT)) for m in (64, 64 * 6))
    assert many <= 6 * few


@pytest.mark.parametrize("best", ["each its own", "one of all"])
def test_the_gradient_through_row_maxima_is_linear_in_positions(best):
    def call(n):
        z = [x.flatten(2) for x in features(1, 5, (n, 1), (n, 1), FLOAT)]
        row_argmax = torch.arange(n)[None] * (best == "each its own")
        beta, grads = torch.randn(1, n), [torch.zeros_like(x) for x in z]
        expected = beta[:, None] * z[1][:, :, row_argmax[0]], torch.zeros_like(z[1])
        expected[1].index_add_(2, row_argmax[0], beta[:, None] * z[0])
        found = run("guided_correlation_row_max_backward", *z, torch.ones(1, n), row_argmax, 1e-5,
                    beta, 2**31 - 1, outputs=grads)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)

    few, many = (counted(emulated().operations, call, n) for n in (256, 1024))
    assert many <= 4 * few


def test_scratch_of_backward_is_a_constant():
    for batch, m, n in itertools.product((1, 7, 200), (1, 35, 1024), (16, 256, 4096, 2**20)):
        found = emulated().gradient_scratch(batch, m, n, n)
        assert min(16 << 20, 4 * batch * n**2) <= found <= 32 << 20


def test_a_map_of_several_pieces():
    """17 x 17 tiles: each side has runs in the first piece and is added to by others."""
    z = [x.flatten(2) for x in features(1, 1, (34, 64), (64, 34), FLOAT)]
    grad = torch.randn(1, 2176, 2176)
    found = [torch.full_like(x, torch.nan) for x in z]
    emulated().correlation_4d_backward(array(grad), False, *map(array, z), True,
                                       *map(array, found))
    expected = z[1] @ grad.mT, z[0] @ grad
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) < TF32_TOLERANCE[1]


def test_ties_go_to_the_first(few_blocks):
    """The equal targets are 150 apart, in different tiles, and neighbours."""
    source, target = features(1, 4, (4, 4), (10, 20))
    target[:, :, 7, 13] = target[:, :, 0, 3]
    target[:, :, 0, 4] = target[:, :, 0, 3]
    for dtype in (DOUBLE, FLOAT):
        inputs = [source.to(dtype), target.to(dtype)]
        assert_close_to_float64(guided(), reference("guided_correlation"), inputs, TOLERANCE[dtype],
                                1.0)
    C = torch.zeros(1, 3, 5, 60)
    C[0, 0, 4, 50] = C[0, 0, 1, 2] = 1
    C[0, 1, 0, 7] = -0.0  # equal to the zeros before it
    C[0, 2] = -1
    stats = statistics(1, 3, 300, FLOAT)
    run("soft_mutual_normalize", C.flatten(2), 1e-5, outputs=[torch.empty(1, 3, 300), *stats])
    assert stats[1].tolist() == [[62, 0, 0]]


def test_argmax_and_row_maxima_agree_with_torch():
    source, target = features(2, 6, (15, 10), (21, 13), DOUBLE)
    C = source.flatten(2).transpose(1, 2) @ target.flatten(2)
    row_max, row_argmax, _ = statistics(2, 150, 273, DOUBLE)
    z = source.flatten(2), target.flatten(2)
    run("guided_correlation_row_max", *z, 1e-5, False, outputs=[row_max, row_argmax])
    torch.testing.assert_close(row_max, C.amax(2).clamp(min=1e-5), rtol=1e-13, atol=0)
    assert torch.equal(row_argmax, C.argmax(2))


@pytest.mark.parametrize("dtype", [FLOAT, DOUBLE, BFLOAT], ids=str)
def test_zero_columns_and_zero_features(dtype):
    source, target = features(1, 5, (3, 4), (3, 4), dtype)
    target[:, :, 1, 2] = 0
    value, source_grad, target_grad = value_and_gradients(guided(), [source, target])
    assert (value[:, :, 1, 2] == 0).all() and (target_grad[:, :, 1, 2] == 0).all()
    assert source_grad.isfinite().all() and target_grad.isfinite().all()
    nothing = value_and_gradients(guided(), [torch.zeros_like(source), target])
    assert all((x == 0).all() for x in nothing)


@pytest.mark.parametrize("tf32", [False, True])
def test_nan_and_infinity(tf32):
    """Three passes of TF32 must not make NaN of infinity: high times low parts."""
    source, target = features(1, 6, (3, 5), (4, 4), FLOAT)
    source[0, 2, 1, 1] = torch.inf
    target[0, 3, 2, 2] = -torch.inf
    source[0, 1, 0, 4] = torch.finfo(FLOAT).max  # rounds up to infinity in TF32
    expected = pose_kernels.correlation_4d(source, target, impl="reference")
    found = correlation(tf32)(source, target)
    assert torch.equal(found.isnan(), expected.isnan())
    limit = 1e-2 if tf32 else 1e-5
    torch.testing.assert_close(found, expected, rtol=limit, atol=limit, equal_nan=True)

    source, target = features(1, 6, (3, 5), (4, 4), FLOAT)
    target[0, 0, 1, 3] = torch.nan  # the largest of every row
    z = source.flatten(2), target.flatten(2)
    row_max, row_argmax, _ = statistics(1, 15, 16, FLOAT)
    run("guided_correlation_row_max", *z, 1e-5, tf32, outputs=[row_max, row_argmax])
    assert row_max.isnan().all() and (row_argmax == 7).all()
    value = guided(tf32=tf32)(source, target)
    assert value.isnan().all()
    expected = pose_kernels.guided_correlation(source, target, impl="reference")
    assert torch.equal(value.isnan(), expected.isnan())


def matches(source, target, k, tf32=False):
    """As pose_kernels.mutual_matches returns them, but correlations in the compute type."""
    (B, _, S), T = source.flatten(2).shape, target.flatten(2).shape[2]
    kinds = torch.int64, wide(source.dtype)
    found = run("mutual_matches", source.flatten(2), target.flatten(2), tf32, outputs=[
        new(*shape, dtype=kind) for shape in ((B, k, T), (B, S)) for kind in kinds])
    grids = [(k, *target.shape[2:])] * 2 + [source.shape[2:]] * 2
    found = [x.view(B, *grid) for x, grid in zip(found, grids, strict=True)]
    return [*found, mutual(found[0], found[2])]


@pytest.mark.parametrize(("dtype", "tf32"), CASES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_mutual_matches(shape, dtype, tf32, few_blocks):
    """Whole numbers: full of ties, and exact in every precision."""
    source, target = whole_features(*shape, dtype)
    for k in {1, min(3, source[0, 0].numel())}:
        if k > 1:
            source[0, 0, 0, 0], target[0, -1, -1, -1] = torch.nan, -torch.inf
        expected = reference("mutual_matches", k=k)(source, target)
        for a, b in zip(matches(source, target, k, tf32), expected, strict=True):
            torch.testing.assert_close(a.to(b.dtype), b, rtol=0, atol=0, equal_nan=True)


def test_mutual_matches_of_real_numbers(few_blocks):
    """Three passes are accurate, and a pair has one value from both sides."""
    inputs = features(2, 35, (13, 11), (9, 17), FLOAT)
    sources, correlations, _, back, is_mutual = matches(*inputs, 3)
    C = reference("correlation_4d")(*[z.double() for z in inputs]).flatten(2)
    assert relative_error(correlations.flatten(2), C.topk(3, dim=1).values) < TOLERANCE[FLOAT][0]
    assert relative_error(back.flatten(1), C.amax(2)) < TOLERANCE[FLOAT][0]
    here = back.flatten(1).gather(1, sources[:, 0].flatten(1)).view_as(is_mutual)
    assert torch.equal(correlations[:, 0][is_mutual], here[is_mutual]) and is_mutual.any()


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("op", ["correlation_4d", "guided_correlation"])
def test_nan_and_infinity_in_the_gradient(op, tf32):
    """The low part of infinity is not infinity less infinity."""
    inputs = features(1, 6, (3, 5), (4, 4), FLOAT)
    function = (correlation if op == "correlation_4d" else guided)(tf32=tf32)
    for bad in (torch.inf, -torch.inf, torch.nan, 1e30):
        upstream = torch.rand(1, 15, 4, 4)
        upstream[0, 3, 1, 2] = bad
        expected = value_and_gradients(reference(op), inputs, upstream)
        for a, b in zip(value_and_gradients(function, inputs, upstream), expected, strict=True):
            finite = b.isfinite()
            assert torch.equal(a.isfinite(), finite)
            # Guided, whether infinity meets infinity depends on the order of the sums.
            assert op == "guided_correlation" or torch.equal(a.isnan(), b.isnan())
            limit = 5e-2 if tf32 else 1e-4
            torch.testing.assert_close(a[finite], b[finite], rtol=limit, atol=limit)
    largest = torch.full((1, 15, 4, 4), torch.finfo(FLOAT).max)  # rounds up to infinity in TF32
    tiny = [1e-3 * x for x in inputs]
    _, *grads = value_and_gradients(correlation(tf32), tiny, largest)
    assert all(x.isfinite().all() for x in grads)


BANDS = [(FLOAT, FLOAT), (FLOAT, BFLOAT), (FLOAT, HALF), (DOUBLE, DOUBLE), (DOUBLE, FLOAT),
         (HALF, HALF), (BFLOAT, BFLOAT), (BFLOAT, FLOAT)]


@pytest.mark.parametrize(("dtype", "map_dtype"), BANDS, ids=str)
def test_bands(dtype, map_dtype, few_blocks):
    """Bands put together are the whole: map, norms, and gradients that add up."""
    B, m, S, T, eps = 2, 11, 133, 150, 0.05
    source, target = (x.flatten(2) for x in features(B, m, (7, 19), (10, 15), dtype))
    row_max, row_argmax, norm = statistics(B, S, T, wide(dtype))
    run("guided_correlation_row_max", source, target, eps, False, outputs=[row_max, row_argmax])
    bands, found = [(0, 5), (5, 128), (133, 17)], []
    for begin, n in bands:
        out, norm = run("guided_correlation_band", source, target, row_max, eps, False, begin,
                        outputs=[new(B, S, n, dtype=map_dtype), norm])
        found.append(out)
    inputs = [x.double().unsqueeze(3) for x in (source, target)]
    upstream = torch.randn(B, S, T, 1, dtype=map_dtype).double()
    value, *expected = value_and_gradients(
        reference("guided_correlation", eps=eps), inputs, upstream)
    tolerance = TOLERANCE[map_dtype if map_dtype != DOUBLE else dtype]
    assert relative_error(torch.cat(found, 2), value.squeeze(3)) < tolerance[0]
    assert norm.isfinite().all()

    # Sums over bands: in what the kernels compute in.
    grads = [torch.zeros_like(source, dtype=wide(dtype)), new(*target.shape, dtype=wide(dtype)),
             torch.zeros_like(row_max)]
    for begin, n in bands:
        grads = run("guided_correlation_band_backward",
                    upstream[:, :, begin : begin + n, 0].to(map_dtype).contiguous(),
                    source, target, row_max, norm, eps, False, begin, outputs=grads)
    *grads, beta = grads
    grads = run("guided_correlation_row_max_backward", source, target, row_max, row_argmax, eps,
                beta, 1 if few_blocks else 2**31 - 1, outputs=grads)
    for a, b in zip(grads, expected, strict=True):
        assert relative_error(a, b.squeeze(3)) < TOLERANCE[dtype][1]


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_soft_mutual_normalize(dtype, few_blocks):
    for shape in [(2, 13, 3, 5), (1, 1, 1, 1), (1, 70, 20, 13), (2, 9, 32, 36)]:
        C = torch.randn(shape, dtype=DOUBLE).to(dtype)
        C[0, 0, 0, 0] = 3.5  # some row above the floor
        assert_close_to_float64(lambda x: Normalize.apply(x, 0.1),
                                reference("soft_mutual_normalize", eps=0.1), [C], TOLERANCE[dtype],
                                1.0)


def test_soft_mutual_normalize_zeros_and_negative_rows():
    C = torch.randn(1, 4, 2, 3, dtype=DOUBLE)
    C[:, :, 0, 1] = 0
    C[:, 2] = -C[:, 2].abs()
    expected = value_and_gradients(reference("soft_mutual_normalize"), [C])
    found = value_and_gradients(lambda x: Normalize.apply(x, 1e-5), [C])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


# ---- guided_readout


@pytest.mark.parametrize(("dtype", "tf32"), CASES, ids=str)
@pytest.mark.parametrize("shape", READOUTS, ids=str)
def test_guided_readout(shape, dtype, tf32, few_blocks):
    power = 2 if few_blocks else 1  # how blocks walk does not depend on it
    tolerance = TF32_TOLERANCE if tf32 else TOLERANCE[dtype]
    assert_close_to_float64(readout(power, tf32=tf32), reference("guided_readout", power=power),
                            readout_inputs(*shape, dtype), tolerance)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("eps", [1e-5, 0.3])  # 0.3: both floors are active in places
def test_guided_readout_gradcheck(eps, power):
    inputs = readout_inputs(1, 3, (2, 3), (3, 2), 2, True)
    assert_close_to_float64(readout(power, eps), reference("guided_readout", power=power, eps=eps),
                            inputs, TOLERANCE[DOUBLE])
    assert torch.autograd.gradcheck(readout(power, eps), [x.requires_grad_() for x in inputs],
                                    fast_mode=True)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)], ids=str)
def test_guided_readout_makes_what_is_asked_for(wanted):
    inputs = readout_inputs(2, 6, (5, 3), (4, 4), 3, False, FLOAT)
    _, *expected = value_and_gradients(readout(), inputs)
    found = [x.clone().requires_grad_(i in wanted) for i, x in enumerate(inputs)]
    value = readout()(*found)
    generator = torch.Generator().manual_seed(1)
    value.backward(torch.randn(value.shape, generator=generator, dtype=DOUBLE).float())
    for i, (x, grad) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(x.grad, grad) if i in wanted else x.grad is None


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("dtype", [FLOAT, HALF], ids=str)
def test_guided_readout_zero_columns_and_zero_features(dtype, power):
    source, target, values = readout_inputs(1, 5, (3, 4), (3, 4), 2, False, dtype)
    target[:, :, 1, 2] = 0
    value, *grads = value_and_gradients(readout(power), [source, target, values])
    assert (value[:, :, 1, 2] == 0).all() and (grads[1][:, :, 1, 2] == 0).all()
    assert all(x.isfinite().all() for x in grads)
    nothing = value_and_gradients(readout(power), [torch.zeros_like(source), target, values])
    assert all((x == 0).all() for x in nothing)


def test_guided_readout_gives_ties_to_the_first():
    source, target, values = readout_inputs(1, 4, (4, 4), (10, 20), 2, False, FLOAT)
    target[:, :, 7, 13] = target[:, :, 0, 4] = target[:, :, 0, 3]
    assert_close_to_float64(readout(), reference("guided_readout"), [source, target, values],
                            TOLERANCE[FLOAT])


@pytest.mark.parametrize("power", [1, 2])
def test_guided_readout_of_small_and_large_features(power):
    """u goes as C^2, and u^2 as C^4: beyond what float16 holds on either side."""
    for scale in (2.0**-7, 2.0**6):
        source, target, values = readout_inputs(1, 9, (6, 5), (4, 7), 3, False, HALF)
        inputs = [source * scale, target * scale, values]
        assert_close_to_float64(readout(power, 1e-12),
                                reference("guided_readout", power=power, eps=1e-12), inputs,
                                TOLERANCE[HALF])


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("power", [1, 2])
def test_guided_readout_nan_and_infinity(power, tf32):
    """As in float64: what meets a NaN is NaN, and infinity in the values and in the gradient meets
    finite numbers as infinity."""
    inputs = readout_inputs(1, 6, (3, 5), (4, 4), 3, False, FLOAT)
    inputs[2][1, 4] = torch.inf
    upstream = torch.randn(1, 3, 4, 4)
    value, *_ = value_and_gradients(readout(power, tf32=tf32), inputs)
    expected = reference("guided_readout", power=power)(*(x.double() for x in inputs))
    assert torch.equal(value.isinf(), expected.isinf()) and value[:, 1].isinf().all()
    torch.testing.assert_close(value.double(), expected, rtol=1e-2, atol=1e-2)

    inputs[2][1, 4] = 1
    upstream[0, 2, 1, 3] = -torch.inf
    values = inputs[2].requires_grad_()
    readout(power, tf32=tf32)(inputs[0], inputs[1], values).backward(upstream)
    oracle = values.detach().double().requires_grad_()
    wide = [x.double() for x in inputs[:2]]
    reference("guided_readout", power=power)(*wide, oracle).backward(upstream.double())
    assert values.grad[2].isinf().all() and values.grad[:2].isfinite().all()
    torch.testing.assert_close(values.grad.double(), oracle.grad, rtol=1e-2, atol=1e-2)

    inputs = readout_inputs(1, 6, (3, 5), (4, 4), 3, False, FLOAT)
    inputs[0][0, 0, 1, 3] = torch.nan  # one source: its row, and so every column
    assert readout(power, tf32=tf32)(*inputs).isnan().all()


# ---- flow_sample


def sampled(size, mode="border", most=2**31 - 1):
    return lambda image, flow: Sample.apply(image, flow, size, mode, most)


@pytest.mark.parametrize("flow_dtype", [FLOAT, DOUBLE, BFLOAT], ids=str)
def test_identity_of_any_coarseness_is_exact(flow_dtype):
    for size in [(9, 13), (24, 18)]:
        image = torch.randn(2, 3, *size)
        for coarse in [(1, 1), (1, 7), (2, 2), (3, 5), (9, 13), (11, 3), (37, 41)]:
            flow = pose_kernels.identity_flow(*coarse, dtype=flow_dtype)
            flow = flow.expand(2, -1, -1, -1).contiguous()
            for mode in ("border", "zeros"):
                assert torch.equal(sampled(size, mode)(image, flow), image)


@pytest.mark.parametrize("mode", ["border", "zeros"])
def test_flow_sample(mode):
    """Coarser, finer and equal flows; other output sizes; a wide flow that leaves the image."""
    cases = [
        ((9, 13), (4, 5), (9, 13), 0.4), ((9, 13), (9, 13), (9, 13), 0.7),
        ((1, 5), (20, 3), (7, 7), 0.5), ((33, 7), (1, 1), (18, 40), 0.5),
        ((5, 6), (2, 1), (1, 1), 0.3),
        ((6, 5), (3, 3), (64, 40), 3.0)]  # long lists: all pixels at few places
    for image, flow, size, noise in cases:
        inputs = image_and_flow(image=image, flow=flow, noise=noise)
        expected = value_and_gradients(
            reference("flow_sample", size=size, padding_mode=mode), inputs)
        # All samples in one round of the sort, one by one, and without sorting.
        for most in (2**31 - 1, 1, 0):
            found = value_and_gradients(sampled(size, mode, most), inputs)
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("flow_dtype", [FLOAT, BFLOAT], ids=str)
@pytest.mark.parametrize("dtype", [FLOAT, HALF, BFLOAT], ids=str)
def test_flow_sample_dtypes(dtype, flow_dtype, few_blocks):
    image, flow = image_and_flow(channels=37, image=(24, 20), flow=(6, 5), noise=0.05)
    inputs = [image.to(dtype), flow.to(flow_dtype)]
    expected = value_and_gradients(reference("flow_sample"), inputs)
    for most in (2**31 - 1, 0):
        found = value_and_gradients(sampled((24, 20), most=most), inputs)
        for a, b, type_ in zip(found, expected, (dtype, dtype, flow_dtype), strict=True):
            assert relative_error(a, b.double()) < TOLERANCE[type_][1]


@pytest.mark.parametrize("mode", ["border", "zeros"])
def test_flow_sample_nan_and_infinity(mode):
    image, flow = image_and_flow(image=(6, 7), flow=(6, 7), noise=0.3, dtype=FLOAT)
    flow[0, 0, 2, 3] = image[1, 2, 3, 3] = torch.nan
    flow[0, 1, 4, 4] = image[1, 1, 5, 6] = torch.inf
    flow[1, 0, 0, 0] = -torch.inf
    torch.testing.assert_close(sampled((6, 7), mode)(image, flow),
                               reference("flow_sample", padding_mode=mode)(image, flow),
                               equal_nan=True)
    # A pixel without a place has no gradient to give, whichever way it is added up.
    ways = [value_and_gradients(sampled((6, 7), mode, most), [image, flow]) for most in (1, 0)]
    torch.testing.assert_close(*ways, equal_nan=True)


def test_offsets_have_64_bits():
    offset = emulated().map_offset
    B, S, T = 3, 70_000, 70_000
    assert offset(B - 1, S - 1, T - 1, S, T) == B * S * T - 1 > 2**33


def test_sanitizers_find_nothing():
    """Every kernel on awkward shapes under AddressSanitizer and UBSan, in both orders."""
    try:
        program = build.sanitized_program()
    except RuntimeError as error:
        if "asan" in str(error) or "ubsan" in str(error):
            pytest.skip("no sanitizer runtime for this compiler")
        raise
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
