"""The CUDA kernels' own source on the CPU, and what the public suite does not ask of it: orders of
threads, few blocks that walk over many tiles each, products in TF32, work, scratch.

Run by `test_cuda_wrappers.py`, with the plugin `emulated_cuda`. Fibers stand for threads, matrix
fragments lie as in the PTX manual, shared memory and scratch start as NaN. What this cannot show is
speed, and whatever only real hardware does.
"""

import itertools

import pytest
import torch
from kernel_helpers import (
    TOLERANCE,
    assert_errors,
    cases,
    features,
    image_and_flow,
    relative_error,
    takes,
    value_and_gradients,
    whole_features,
)

import pose_kernels
from pose_kernels import _checks

ops, emulation = torch.ops.pose_kernels, torch.ops.pose_kernels_emulation
CASES = cases()
FLOAT, DOUBLE, HALF, BFLOAT = torch.float32, torch.float64, torch.float16, torch.bfloat16
#: What TF32 products are good for: 10 bits, and cubes.
TF32_TOLERANCE = (2e-3, 1e-2)
MAPS = ["correlation_4d", "guided_correlation"]


def function_of(op, impl="cuda", **options):
    return lambda *inputs: getattr(pose_kernels, op)(*inputs, impl=impl, **options)


def oracle_of(op, inputs, upstream=None, **options):
    """[value, gradients] of the reference in float64."""
    return value_and_gradients(function_of(op, "reference", **options),
                               [x.double() for x in inputs], upstream)


@pytest.fixture(params=[False, True], ids=["many blocks", "few blocks"])
def few_blocks(request):
    """Few blocks walk over many tiles each, as on large maps; many are the plan for a GPU."""
    emulation.set(False, request.param, False)
    yield request.param
    emulation.set(False, False, False)


@pytest.fixture
def orders(few_blocks):
    """Calls a function in both orders of threads, warps and blocks: equal bits, or a barrier is
    missing."""

    def both(function):
        found = []
        for reverse in (False, True):
            emulation.set(reverse, few_blocks, False)
            found.append(function())
        torch.testing.assert_close(*found, rtol=0, atol=0, equal_nan=True)
        return found[0]

    return both


@pytest.fixture
def sorted_gradients():
    """Those of an image, which are added up in any order otherwise."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def switch(monkeypatch):
    """Turns TF32 on or off."""
    return lambda on: monkeypatch.setattr(_checks, "allow_tf32", lambda tensor: on)


# ---- every operator

MODES = [(FLOAT, False), (FLOAT, True), (DOUBLE, False), (HALF, False), (BFLOAT, False)]
#: Further sizes, for float32: whole tiles; two turns of a block over the sources, two chunks of
# outputs.
SIZES = {"guided_readout": [{"m": 67, "source": (18, 16), "target": (5, 13), "own": True},
                            {"m": 9, "source": (8, 16), "target": (16, 16), "outputs": 130}],
         **{op: [{"m": 40, "source": (16, 8), "target": (16, 16)}] for op in MAPS}}
ORDERED = [(op, CASES[op].medium, dtype, tf32) for op in CASES for dtype, tf32 in MODES
           if dtype != HALF and (takes(op, "target") or not tf32)]
ORDERED += [(op, sizes, FLOAT, tf32)
            for op in SIZES for sizes in SIZES[op] for tf32 in (False, True)]


def options_of(op, few):
    """Others where blocks are few: how they walk does not depend on them."""
    options = {}
    if few and takes(op, "memory_format"):
        options["memory_format"] = torch.channels_last
    if few and takes(op, "power"):
        options["power"] = 2
    if few and takes(op, "k"):
        options["k"] = 3
    return options


@pytest.mark.parametrize(("op", "sizes", "dtype", "tf32"), ORDERED)
def test_the_order_of_threads_changes_nothing(op, sizes, dtype, tf32, orders, few_blocks, switch,
                                              sorted_gradients):
    torch.manual_seed(1)  # after 0 two values of a row are so near that TF32 exchanges them
    batch = 2 if sizes == CASES[op].medium else 1
    inputs, options = CASES[op].inputs(batch, dtype, **sizes), options_of(op, few_blocks)
    oracle = oracle_of(op, inputs, **options)
    switch(tf32)
    found = orders(lambda: value_and_gradients(function_of(op, **options), inputs))
    if tf32:
        for i, (a, b) in enumerate(zip(found, oracle, strict=True)):
            assert relative_error(a, b) < TF32_TOLERANCE[min(i, 1)]
    else:
        slack = 2 if dtype == BFLOAT else 1
        assert_errors(found, oracle, dtype, slack if CASES[op].slack == 2 else 10)


# ---- maps


@pytest.mark.parametrize("out_dtype", [HALF, BFLOAT], ids=str)
def test_narrower_maps(out_dtype):
    """The same sums, rounded once; gradients as wide as the features."""
    z = features(2, 9, (10, 13), (7, 19), FLOAT)
    for inputs, op in [(z, MAPS[0]), (z, MAPS[1]),
                       ([torch.randn(2, 13, 3, 50)], "soft_mutual_normalize")]:
        narrow = function_of(op, out_dtype=out_dtype)
        value = function_of(op)(*inputs)
        upstream = torch.randn(value.shape).to(out_dtype).double()
        found = value_and_gradients(narrow, inputs, upstream)
        assert torch.equal(found[0], value.to(out_dtype))
        for a, b in zip(found[1:], oracle_of(op, inputs, upstream)[1:], strict=True):
            assert a.dtype == FLOAT and relative_error(a, b) < TOLERANCE[FLOAT][1]


@pytest.mark.parametrize("op", MAPS)
def test_layouts_have_the_same_bits(op):
    inputs = features(2, 9, (10, 13), (7, 19), FLOAT)
    first, last = (value_and_gradients(function_of(op, memory_format=f), inputs)
                   for f in (torch.contiguous_format, torch.channels_last))
    torch.testing.assert_close(first, last, rtol=0, atol=0)


@pytest.fixture
def truncating():
    """Tensor cores that add towards zero."""
    emulation.set(False, False, True)
    yield
    emulation.set(False, False, False)


@pytest.mark.parametrize("op", MAPS)
@pytest.mark.parametrize(("m", "sizes"), [(35, ((5, 4), (3, 7))), (1024, ((5, 4), (3, 7))),
                                          (24, ((32, 34), (5, 4))), (24, ((5, 4), (32, 34)))])
def test_float32_where_tensor_cores_truncate(op, m, sizes, truncating):
    """Long sums of features forward, of features and of positions backward."""
    inputs = features(1, m, *sizes, FLOAT)
    found = value_and_gradients(function_of(op), inputs)
    for a, b in zip(found, oracle_of(op, inputs), strict=True):
        assert relative_error(a, b) < 2e-6


def test_a_map_of_several_pieces():
    """17 x 17 tiles: each side has runs in the first piece and is added to by others."""
    z = features(1, 1, (34, 64), (64, 34), FLOAT)
    grad = torch.randn(1, 2176, 64, 34)
    found = ops.correlation_4d_backward(grad, *z, True, True, True)
    flat, grad = [x.flatten(2) for x in z], grad.flatten(2)
    for a, b in zip(found, (flat[1] @ grad.mT, flat[0] @ grad), strict=True):
        assert relative_error(a.flatten(2), b) < TF32_TOLERANCE[1]


def test_ties_go_to_the_first_of_different_tiles(few_blocks):
    """The equal targets are 150 apart, and neighbours."""
    source, target = features(1, 4, (4, 4), (10, 20))
    target[:, :, 7, 13] = target[:, :, 0, 4] = target[:, :, 0, 3]
    values = torch.randn(2, 16, dtype=DOUBLE)
    for dtype in (DOUBLE, FLOAT):
        for op, inputs in (("guided_correlation", (source, target)),
                           ("guided_readout", (source, target, values))):
            inputs = [x.to(dtype) for x in inputs]
            assert_errors(value_and_gradients(function_of(op), inputs), oracle_of(op, inputs),
                          dtype)
    C = torch.zeros(1, 3, 5, 60)
    C[0, 0, 4, 50] = C[0, 0, 1, 2] = 1
    C[0, 1, 0, 7] = -0.0  # equal to the zeros before it
    C[0, 2] = -1
    assert ops.soft_mutual_normalize(C, 1e-5, FLOAT)[2].tolist() == [[62, 0, 0]]


def test_argmax_and_row_maxima_agree_with_torch():
    source, target = (x.flatten(2) for x in features(2, 6, (15, 10), (21, 13), DOUBLE))
    C = source.transpose(1, 2) @ target
    row_max, row_argmax = ops.guided_correlation_row_max(source, target, 1e-5, False)
    torch.testing.assert_close(row_max, C.amax(2).clamp(min=1e-5), rtol=1e-13, atol=0)
    assert torch.equal(row_argmax, C.argmax(2))


@pytest.mark.parametrize("dtype", [FLOAT, HALF, BFLOAT], ids=str)
def test_zero_columns_and_zero_features(dtype):
    """As the public suite asks of float64."""
    source, target = features(1, 5, (3, 4), (3, 4), dtype)
    target[:, :, 1, 2] = 0
    values = torch.randn(2, 12).to(dtype)
    for power in (None, 1, 2):
        more = [] if power is None else [values]
        op = (function_of("guided_readout", power=power) if more
              else function_of("guided_correlation"))
        value, *grads = value_and_gradients(op, [source, target, *more])
        assert (value[:, :, 1, 2] == 0).all() and (grads[1][:, :, 1, 2] == 0).all()
        assert all(x.isfinite().all() for x in grads)
        nothing = value_and_gradients(op, [torch.zeros_like(source), target, *more])
        assert all((x == 0).all() for x in nothing)


@pytest.mark.parametrize("tf32", [False, True])
def test_nan_and_infinity(tf32, switch):
    """Three passes of TF32 must not make NaN of infinity: high times low parts."""
    switch(tf32)
    source, target = features(1, 6, (3, 5), (4, 4), FLOAT)
    source[0, 2, 1, 1] = torch.inf
    target[0, 3, 2, 2] = -torch.inf
    source[0, 1, 0, 4] = torch.finfo(FLOAT).max  # rounds up to infinity in TF32
    expected = pose_kernels.correlation_4d(source, target, impl="reference")
    found = function_of("correlation_4d")(source, target)
    assert torch.equal(found.isnan(), expected.isnan())
    limit = 1e-2 if tf32 else 1e-5
    torch.testing.assert_close(found, expected, rtol=limit, atol=limit, equal_nan=True)

    source, target = features(1, 6, (3, 5), (4, 4), FLOAT)
    target[0, 0, 1, 3] = torch.nan  # the largest of every row
    value, row_max, row_argmax, _ = ops.guided_correlation(source, target, 1e-5, tf32, False, FLOAT)
    assert row_max.isnan().all() and (row_argmax == 7).all() and value.isnan().all()
    expected = pose_kernels.guided_correlation(source, target, impl="reference")
    assert torch.equal(value.isnan(), expected.isnan())


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("op", MAPS)
def test_nan_and_infinity_in_the_gradient(op, tf32, switch):
    """The low part of infinity is not infinity less infinity."""
    switch(tf32)
    inputs = features(1, 6, (3, 5), (4, 4), FLOAT)
    for bad in (torch.inf, -torch.inf, torch.nan, 1e30):
        upstream = torch.rand(1, 15, 4, 4)
        upstream[0, 3, 1, 2] = bad
        expected = value_and_gradients(function_of(op, "reference"), inputs, upstream)
        found = value_and_gradients(function_of(op), inputs, upstream)
        for a, b in zip(found, expected, strict=True):
            finite = b.isfinite()
            assert torch.equal(a.isfinite(), finite)
            # Guided, whether infinity meets infinity depends on the order of the sums.
            assert op == "guided_correlation" or torch.equal(a.isnan(), b.isnan())
            limit = 5e-2 if tf32 else 1e-4
            torch.testing.assert_close(a[finite], b[finite], rtol=limit, atol=limit)
    largest = torch.full((1, 15, 4, 4), torch.finfo(FLOAT).max)  # rounds up to infinity in TF32
    tiny = [1e-3 * x for x in inputs]
    _, *grads = value_and_gradients(function_of("correlation_4d"), tiny, largest)
    assert all(x.isfinite().all() for x in grads)


BANDS = [(FLOAT, FLOAT), (FLOAT, BFLOAT), (FLOAT, HALF), (DOUBLE, DOUBLE), (DOUBLE, FLOAT),
         (HALF, HALF), (BFLOAT, BFLOAT), (BFLOAT, FLOAT)]


@pytest.mark.parametrize(("dtype", "map_dtype"), BANDS, ids=str)
def test_bands(dtype, map_dtype, orders):
    """Bands put together are the whole: map, norms, and gradients that add up."""
    B, m, S, T, eps = 2, 11, 133, 150, 0.05
    source, target = (x.flatten(2) for x in features(B, m, (7, 19), (10, 15), dtype))
    upstream = torch.randn(B, S, T, dtype=map_dtype)
    wide = DOUBLE if dtype == DOUBLE else FLOAT
    bands = [(0, 5), (5, 128), (133, 17)]

    def call():
        row_max, row_argmax = ops.guided_correlation_row_max(source, target, eps, False)
        norm, found = torch.full((B, T), torch.nan, dtype=wide), []
        for begin, n in bands:
            found.append(torch.full((B, S, n), torch.nan, dtype=map_dtype))
            ops.guided_correlation_band(source, target, row_max, eps, False, begin, found[-1], norm)
        # Sums over bands: in what the kernels compute in.
        grads = [torch.zeros_like(source, dtype=wide), torch.full_like(target, torch.nan).to(wide)]
        beta = torch.zeros_like(row_max)
        for begin, n in bands:
            ops.guided_correlation_band_backward(
                upstream[:, :, begin : begin + n].contiguous(), source, target, row_max, norm, eps,
                False, begin, *grads, beta)
        ops.guided_correlation_row_max_backward(source, target, row_max, row_argmax, eps, beta,
                                                *grads)
        return [torch.cat(found, 2), norm, *grads]

    value, norm, *grads = orders(call)
    expected, *oracle = oracle_of("guided_correlation", [x.unsqueeze(3) for x in (source, target)],
                                  upstream.unsqueeze(3).double(), eps=eps)
    tolerance = TOLERANCE[map_dtype if map_dtype != DOUBLE else dtype]
    assert relative_error(value, expected.squeeze(3)) < tolerance[0]
    assert norm.isfinite().all()
    for a, b in zip(grads, oracle, strict=True):
        assert relative_error(a, b.squeeze(3)) < TOLERANCE[dtype][1]


# ---- work and memory


def counted(counter, function, *arguments):
    """How much a call adds to a counter of the emulation."""
    before = counter()
    function(*arguments)
    return counter() - before


@pytest.mark.parametrize("op", MAPS)
def test_the_work_is_linear_in_the_number_of_features(op):
    few, many = (counted(emulation.products, value_and_gradients, function_of(op),
                         features(1, m, (5, 4), (9, 15), FLOAT)) for m in (64, 64 * 6))
    assert 0 < many <= 6 * few


@pytest.mark.parametrize("best", ["each its own", "one of all"])
def test_the_gradient_through_row_maxima_is_linear_in_positions(best):
    def call(n):
        z = [x.flatten(2) for x in features(1, 5, (n, 1), (n, 1), FLOAT)]
        row_argmax = torch.arange(n)[None] * (best == "each its own")
        beta, grads = torch.randn(1, n), [torch.zeros_like(x) for x in z]
        expected = beta[:, None] * z[1][:, :, row_argmax[0]], torch.zeros_like(z[1])
        expected[1].index_add_(2, row_argmax[0], beta[:, None] * z[0])
        ops.guided_correlation_row_max_backward(*z, torch.ones(1, n), row_argmax, 1e-5, beta,
                                                *grads)
        torch.testing.assert_close(grads, list(expected))

    few, many = (counted(emulation.operations, call, n) for n in (256, 1024))
    assert 0 < many <= 4 * few


def test_scratch_of_backward_is_a_constant():
    for batch, m, n in itertools.product((1, 7, 200), (1, 35, 1024), (16, 256, 4096, 2**20)):
        found = emulation.gradient_scratch(batch, m, n, n)
        assert min(16 << 20, 4 * batch * n**2) <= found <= 32 << 20


def test_offsets_have_64_bits():
    B, S, T = 3, 70_000, 70_000
    offset = emulation.map_offset(B - 1, S - 1, T - 1, S, T)
    assert offset == B * S * T - 1 > 2**33


# ---- mutual_matches


@pytest.mark.parametrize(("dtype", "tf32"), MODES, ids=str)
def test_mutual_matches_of_several_tiles(dtype, tf32, orders, switch):
    """Whole numbers: full of ties, and exact in every precision."""
    switch(tf32)
    source, target = whole_features(2, 35, (13, 11), (9, 17), dtype)
    source[0, 0, 0, 0], target[0, -1, -1, -1] = torch.nan, -torch.inf
    found = orders(lambda: function_of("mutual_matches", k=3)(source, target))
    expected = pose_kernels.mutual_matches(source, target, k=3, impl="reference")
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_mutual_matches_of_real_numbers(few_blocks):
    """Three passes are accurate, and a pair has one value from both sides."""
    inputs = features(2, 35, (13, 11), (9, 17), FLOAT)
    found = pose_kernels.mutual_matches(*inputs, 3, impl="cuda")
    C = pose_kernels.correlation_4d(*[z.double() for z in inputs], impl="reference").flatten(2)
    best = C.topk(3, dim=1).values
    assert relative_error(found.correlations.flatten(2), best) < TOLERANCE[FLOAT][0]
    _, _, _, back = ops.mutual_matches(*inputs, 3, False)
    assert relative_error(back.flatten(1), C.amax(2)) < TOLERANCE[FLOAT][0]
    here = back.flatten(1).gather(1, found.sources[:, 0].flatten(1)).view_as(found.mutual)
    assert torch.equal(found.correlations[:, 0][found.mutual], here[found.mutual])
    assert found.mutual.any()


# ---- guided_readout


@pytest.mark.parametrize("power", [1, 2])
def test_guided_readout_of_small_and_large_features(power):
    """u goes as C^2, and u^2 as C^4: beyond what float16 holds on either side."""
    options = {"power": power, "eps": 1e-12}
    for scale in (2.0**-7, 2.0**6):
        source, target, values = CASES["guided_readout"].inputs(1, HALF, 9, (6, 5), (4, 7), 3)
        inputs = [source * scale, target * scale, values]
        assert_errors(value_and_gradients(function_of("guided_readout", **options), inputs),
                      oracle_of("guided_readout", inputs, **options), HALF)


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("power", [1, 2])
def test_guided_readout_nan_and_infinity(power, tf32, switch):
    """As in float64: what meets a NaN is NaN, and infinity in the values and in the gradient meets
    finite numbers as infinity."""
    switch(tf32)
    op = function_of("guided_readout", power=power)
    reference = function_of("guided_readout", "reference", power=power)
    inputs = CASES["guided_readout"].inputs(1, FLOAT, 6, (3, 5), (4, 4), 3)
    inputs[2][1, 4] = torch.inf
    value, *_ = value_and_gradients(op, inputs)
    expected = reference(*(x.double() for x in inputs))
    assert torch.equal(value.isinf(), expected.isinf()) and value[:, 1].isinf().all()
    torch.testing.assert_close(value.double(), expected, rtol=1e-2, atol=1e-2)

    inputs[2][1, 4] = 1
    upstream = torch.randn(1, 3, 4, 4)
    upstream[0, 2, 1, 3] = -torch.inf
    values = inputs[2].requires_grad_()
    op(*inputs[:2], values).backward(upstream)
    oracle = values.detach().double().requires_grad_()
    reference(*(x.double() for x in inputs[:2]), oracle).backward(upstream.double())
    assert values.grad[2].isinf().all() and values.grad[:2].isfinite().all()
    torch.testing.assert_close(values.grad.double(), oracle.grad, rtol=1e-2, atol=1e-2)

    inputs = CASES["guided_readout"].inputs(1, FLOAT, 6, (3, 5), (4, 4), 3)
    inputs[0][0, 0, 1, 3] = torch.nan  # one source: its row, and so every column
    assert op(*inputs).isnan().all()


# ---- flow_sample


SAMPLES = [  # image, flow, result, noise
    ((9, 13), (4, 5), (9, 13), 0.4), ((9, 13), (9, 13), (9, 13), 0.7),
    ((1, 5), (20, 3), (7, 7), 0.5), ((33, 7), (1, 1), (18, 40), 0.5),
    ((5, 6), (2, 1), (1, 1), 0.3),
    ((6, 5), (3, 3), (64, 40), 3.0)]  # long lists: all pixels at few places


@pytest.mark.parametrize("mode", ["border", "zeros"])
def test_flow_sample_with_sorted_gradients(mode, orders, sorted_gradients):
    """Coarser, finer and equal flows; other output sizes; a wide flow that leaves the image."""
    for image, flow, size, noise in SAMPLES:
        inputs = image_and_flow(image=image, flow=flow, noise=noise)
        options = {"size": size, "padding_mode": mode}
        found = orders(lambda: value_and_gradients(
            function_of("flow_sample", **options), inputs))  # noqa: B023
        torch.testing.assert_close(found, oracle_of("flow_sample", inputs, **options), rtol=1e-10,
                                   atol=1e-10)


@pytest.mark.parametrize("flow_dtype", [FLOAT, BFLOAT], ids=str)
@pytest.mark.parametrize("dtype", [FLOAT, HALF, BFLOAT], ids=str)
def test_flow_sample_dtypes(dtype, flow_dtype, few_blocks):
    image, flow = image_and_flow(channels=37, image=(24, 20), flow=(6, 5), noise=0.05)
    inputs = [image.to(dtype), flow.to(flow_dtype)]
    expected = value_and_gradients(function_of("flow_sample", "reference"), inputs)
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        try:
            found = value_and_gradients(function_of("flow_sample"), inputs)
        finally:
            torch.use_deterministic_algorithms(False)
        for a, b, type_ in zip(found, expected, (dtype, dtype, flow_dtype), strict=True):
            assert relative_error(a, b.double()) < TOLERANCE[type_][1]


@pytest.mark.parametrize("mode", ["border", "zeros"])
def test_flow_sample_nan_and_infinity(mode):
    image, flow = image_and_flow(image=(6, 7), flow=(6, 7), noise=0.3, dtype=FLOAT)
    flow[0, 0, 2, 3] = image[1, 2, 3, 3] = torch.nan
    flow[0, 1, 4, 4] = image[1, 1, 5, 6] = torch.inf
    flow[1, 0, 0, 0] = -torch.inf
    op = function_of("flow_sample", padding_mode=mode)
    expected = function_of("flow_sample", "reference", padding_mode=mode)(image, flow)
    torch.testing.assert_close(op(image, flow), expected, equal_nan=True)
    # A pixel without a place has no gradient to give, whichever way it is added up.
    atomic = value_and_gradients(op, [image, flow])
    torch.use_deterministic_algorithms(True)
    try:
        torch.testing.assert_close(atomic, value_and_gradients(op, [image, flow]), equal_nan=True)
    finally:
        torch.use_deterministic_algorithms(False)
