"""The Triton kernels on the CPU, through Triton's interpreter, against float64.

Run by `test_triton.py`: TRITON_INTERPRET=1 must be set before Triton is imported. The interpreter
multiplies float32 exactly; features split into high and low parts give what a GPU gives, except for
the order of its sums.
"""

import functools

import pytest
import torch
from kernel_helpers import (
    DTYPES,
    TOLERANCE,
    assert_errors,
    cases,
    features,
    image_and_flow,
    image_and_flow_not_finite,
    leaves,
    relative_error,
    value_and_gradients,
)

import pose_kernels
from pose_kernels import identity_flow
from pose_kernels.triton import common

ops = torch.ops.pose_kernels_triton
CASES = cases()
#: B, m, source, target: below, at and above the sizes of blocks.
SHAPES = [(2, 35, (6, 5), (4, 7)), (1, 1, (3, 3), (1, 1)), (1, 40, (1, 33), (9, 15)),
          (1, 67, (7, 5), (8, 9))]


def both(name, inputs, *arguments, upstream=None, **keywords):
    """[value, gradients] by Triton, and by the reference in float64."""
    function = getattr(pose_kernels, name)
    found = value_and_gradients(lambda *x: function(*x, *arguments, impl="triton", **keywords),
                                inputs, upstream)
    wide = None if upstream is None else upstream.double()
    oracle = value_and_gradients(lambda *x: function(*x, *arguments, impl="reference", **keywords),
                                 [x.double() for x in inputs], wide)
    return found, oracle


def assert_near(found, oracle, dtype, smallest=1.0):
    assert [x.dtype for x in found] == [dtype] * len(found)
    assert relative_error(found[0], oracle[0]) < TOLERANCE[dtype][0]
    for gradient, expected in zip(found[1:], oracle[1:], strict=True):
        scale = max(expected.norm().item(), smallest)
        assert (gradient.double() - expected).norm().item() < TOLERANCE[dtype][1] * scale


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["guided_correlation", "correlation_4d"])
def test_against_float64(name, dtype):
    half = dtype in (torch.float16, torch.bfloat16)
    for shape in SHAPES[2:] if half else SHAPES:
        assert_near(*both(name, features(*shape, dtype)), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_soft_mutual_normalize(dtype):
    correlation = torch.randn(1, 70, 3, 47, dtype=torch.float64).to(dtype)
    assert_near(*both("soft_mutual_normalize", [correlation]), dtype)
    strided = correlation.to(memory_format=torch.channels_last)
    upstream = torch.randn(1, 70, 3, 47).to(dtype, memory_format=torch.channels_last)
    assert_near(*both("soft_mutual_normalize", [strided], upstream=upstream), dtype)


@pytest.mark.parametrize("own", [64, 128])
def test_the_blocks_of_large_sizes(monkeypatch, own):
    """As `owned` chooses them where there is work for a whole GPU."""
    monkeypatch.setattr(common, "PROGRAMS", 1)
    inputs = features(1, 35, (9, 15), (10, 14), torch.float32)
    assert common.owned(1, 135, common.pack(inputs[0]), own)["BLOCK_OWN"] == own
    owned = common.owned
    monkeypatch.setattr(common, "owned", lambda *a, most=128: owned(*a, min(most, own)))
    assert_near(*both("guided_correlation", inputs), torch.float32)


@pytest.mark.parametrize(("power", "own", "m", "targets", "outputs", "blocks"), [
    (1, False, 35, (9, 8), 40, 64), (2, True, 67, (5, 8), 70, 32)])
def test_many_outputs(monkeypatch, power, own, m, targets, outputs, blocks):
    """More than g takes at once, more than a program sums, in the blocks of large sizes."""
    monkeypatch.setattr(common, "PROGRAMS", 1)
    source, target = features(1, m, (5, 7), targets, torch.float32)
    z_s, z_t = common.pack_pair(source, target, False)
    assert common.owned(1, z_t.shape[1], z_t, common.most_owned(z_s))["BLOCK_OWN"] == blocks
    values = torch.randn(*[1] * own, outputs, 35)
    found, oracle = both("guided_readout", [source, target, values], power)
    assert_errors(found, oracle, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_values_of_another_type(dtype):
    """As under autocast; what comes of them has their type, the sums are those of the features."""
    source, target = features(2, 5, (3, 4), (3, 5), torch.float32)
    values = torch.randn(3, 12).to(dtype)
    oracle = pose_kernels.guided_readout(source, target, values.float(), impl="reference")
    found, *statistics = ops.guided_readout(source, target, values, 1, 1e-5, False)
    assert found.dtype == dtype and statistics[0].dtype == torch.float32
    assert relative_error(found, oracle) < TOLERANCE[torch.float16][0]
    upstream = torch.randn(found.shape).to(dtype)
    gradients = ops.guided_readout_backward(upstream, source, target, values, found, *statistics, 1,
                                            1e-5, False, True, True, True)
    assert [x.dtype for x in gradients] == [torch.float32, torch.float32, dtype]
    _, *oracle = value_and_gradients(
        lambda *z: pose_kernels.guided_readout(*z, impl="reference"),
        [source, target, values.float()], upstream.float())
    for gradient, expected in zip(gradients, oracle, strict=True):
        assert relative_error(gradient, expected) < TOLERANCE[torch.float16][0]


def launches_of_readout_backward(monkeypatch, dtype, wanted, tf32=False):
    """Gradients, and by kernel the sizes of every launch; nothing runs."""
    source, target = features(2, 20, (3, 4), (3, 5), dtype)
    values = torch.randn(3, 12).to(dtype)
    found, *statistics = ops.guided_readout(source, target, values, 1, 1e-5, tf32)
    launches = {}
    monkeypatch.setattr(common, "launch", lambda kernel, *_, **sizes: launches.setdefault(
        kernel.fn.__name__, []).append(sizes))
    return ops.guided_readout_backward(found, source, target, values, found, *statistics, 1, 1e-5,
                                       tf32, *wanted), launches


@pytest.mark.parametrize(("wanted", "launched"), [
    ((True, False, False), {"gradient_dots", "source_gradient"}),
    ((False, True, False), {"gradient_dots", "source_gradient", "target_gradient"}),  # needs beta
    ((False, False, True), {"values_gradient"}),
], ids=["source", "target", "values"])
def test_only_what_is_asked_for_is_computed(monkeypatch, wanted, launched):
    gradients, launches = launches_of_readout_backward(monkeypatch, torch.float32, wanted)
    assert [x.numel() > 0 for x in gradients] == list(wanted)
    packed = launches.pop("pack_block")
    assert launches.keys() == launched
    # Both for C, the upstream gradient; values; the other features for a gradient.
    assert len(packed) == (3 if wanted[2] else 5)
    if "source_gradient" in launched:
        assert launches["source_gradient"][0]["WANTED"] == wanted[0]


@pytest.mark.parametrize(("dtype", "tf32", "of_map", "of_g"), [
    (torch.float32, False, "tf32x3", "tf32x3"), (torch.float32, True, "tf32", "tf32"),
    (torch.bfloat16, False, "tf32x3", "tf32"), (torch.float64, False, "ieee", "ieee")], ids=str)
def test_products_are_as_precise_as_the_features(monkeypatch, dtype, tf32, of_map, of_g):
    """One pass over TF32 only where that is allowed, or where both factors are exact in it."""
    _, launches = launches_of_readout_backward(monkeypatch, dtype, (True, True, True), tf32)
    for name in ("source_gradient", "target_gradient"):
        sizes = launches[name][0]
        assert (sizes["GRAD_PRECISION"], sizes["G_PRECISION"]) == (of_map, of_g)
        assert sizes["WIDTH"] == (64 if (dtype, tf32) == (torch.float32, False) else 32)  # parts
    assert launches["values_gradient"][0]["SUM_PRECISION"] == of_map


def test_tf32_is_passed_on():
    """Features are not split then; the interpreter itself multiplies as precisely as ever."""
    source, target = features(1, 20, (3, 4), (4, 5), torch.float32)
    assert common.pack_pair(source, target, True)[0].shape == (1, 12, 32)
    assert common.pack_pair(source, target, False)[0].shape == (1, 12, 64)
    expected = pose_kernels.guided_correlation(source, target, impl="reference")
    found, *statistics = ops.guided_correlation(source, target, 1e-5, True, False,
                                                  torch.float32)
    torch.testing.assert_close(found, expected)
    arguments = torch.randn_like(found), source, target, *statistics, 1e-5
    grads = ops.guided_correlation_backward(*arguments, True, True, True)
    exact = ops.guided_correlation_backward(*arguments, False, True, True)
    for a, b in zip(grads, exact, strict=True):
        assert relative_error(a, b) < TOLERANCE[torch.float32][1]


def test_parts_are_exact_in_tf32():
    """high + low is the feature to 2^-22; both have at most 11 significant bits."""
    z = torch.randn(1, 40, 3, 3)
    high, other, low = common.pack(z, 3, 2)[:, :, :120].unflatten(2, (3, 40)).unbind(2)
    assert torch.equal(high, other)
    for part in (high, low):
        assert (part.view(torch.int32) & 0x1FFF == 0).all()
    error = (high.double() + low - z.flatten(2).transpose(1, 2)).abs()
    assert (error <= 2.0**-22 * z.flatten(2).transpose(1, 2).abs()).all()


@pytest.mark.parametrize("name", ["guided_correlation", "correlation_4d"])
def test_layouts(name):
    """Channels-last results, channels-last and expanded gradients, strided features."""
    source, target = features(2, 6, (5, 4), (3, 7))
    expected = both(name, [source, target])[0]
    inputs = [source.to(memory_format=torch.channels_last),
              target.transpose(2, 3).contiguous().transpose(2, 3)]
    upstream = torch.randn(expected[0].shape, generator=torch.Generator().manual_seed(1),
                           dtype=torch.float64).to(memory_format=torch.channels_last)
    found, _ = both(name, inputs, memory_format=torch.channels_last, upstream=upstream)
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    one = torch.ones((), dtype=torch.float64).expand(2, 20, 3, 7)
    function, z = getattr(pose_kernels, name), [x.clone().requires_grad_() for x in inputs]
    gradients = torch.autograd.grad(function(*z, impl="triton").sum(), z)
    oracle = both(name, inputs, upstream=one.contiguous())[1]
    torch.testing.assert_close(gradients, oracle[1:], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("eps", [1e-5, 0.3])  # 0.3: floors are active for some rows and columns
def test_gradcheck(eps):
    inputs = [x.requires_grad_() for x in features(1, 3, (2, 2), (3, 1))]
    op = pose_kernels.guided_correlation
    assert torch.autograd.gradcheck(lambda *x: op(*x, eps, impl="triton"), inputs, fast_mode=True)
    correlation = torch.rand(1, 4, 3, 1, dtype=torch.float64).requires_grad_()
    op = pose_kernels.soft_mutual_normalize
    assert torch.autograd.gradcheck(lambda c: op(c, eps, impl="triton"), correlation,
                                    fast_mode=True)
    found, oracle = both("guided_correlation", features(2, 5, (6, 5), (4, 7)), eps)
    assert_near(found, oracle, torch.float64)  # eps arrives in float64


def test_ties_go_to_the_first():
    tied = torch.randint(-2, 3, (1, 9, 5, 50), dtype=torch.float64)
    found, oracle = both("soft_mutual_normalize", [tied])
    torch.testing.assert_close(found, oracle, rtol=1e-11, atol=1e-12)
    C = tied.flatten(2)
    assert torch.equal(ops.soft_mutual_normalize(tied, 1e-5, tied.dtype)[2],
                       C.eq(C.amax(2, True)).int().argmax(2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_not_a_number_spreads_as_in_the_reference(bad, dtype):
    source, target = features(1, 5, (3, 4), (3, 4), dtype)
    target[0, 2, 1, 1] = bad
    op = pose_kernels.guided_correlation
    for s in (0, 1):
        if s == 1:
            source[0, 2, 1, 1] = bad
        found = op(source, target, impl="triton")
        assert torch.equal(found.isnan(), op(source, target, impl="reference").isnan())
    _, row_max, row_argmax, _ = ops.guided_correlation(source, target, 1e-5, False, False, dtype)
    if bad != bad:  # the largest value; the first one wins
        assert row_max.isnan().all()
        assert row_argmax[0].tolist() == [5] * 5 + [0] + [5] * 6


@pytest.fixture(params=["atomic", "deterministic"])
def mode(request):
    """A padding mode for each of the two ways to the image gradient."""
    torch.use_deterministic_algorithms(request.param == "deterministic")
    yield {"atomic": "border", "deterministic": "zeros"}[request.param]
    torch.use_deterministic_algorithms(False)


def test_flow_sample(mode):
    cases = [((9, 13), (9, 13), None, 3), ((9, 13), (4, 5), None, 19), ((1, 1), (1, 1), (18, 5), 1),
             ((12, 7), (20, 3), (6, 40), 3)]
    for image, flow, size, channels in cases:
        inputs = image_and_flow(channels=channels, image=image, flow=flow, noise=0.5)
        torch.testing.assert_close(*both("flow_sample", inputs, size, mode), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("flow_dtype", DTYPES, ids=str)
def test_identity_of_any_coarseness_is_exact(flow_dtype, mode):
    for coarse in [(1, 7), (9, 13), (11, 37), (64, 3)]:
        image = torch.randn(1, 3, 9, 13)
        flow = identity_flow(*coarse, dtype=flow_dtype).expand(1, -1, -1, -1)
        value = pose_kernels.flow_sample(image, flow, padding_mode=mode, impl="triton")
        assert torch.equal(value, image)


def test_flow_sample_gradcheck(mode):
    inputs = image_and_flow(batch=1, channels=1, image=(3, 2), flow=(2, 2))
    inputs[1] += 0.013  # off the kinks at whole pixels
    op = functools.partial(pose_kernels.flow_sample, padding_mode=mode, impl="triton")
    assert torch.autograd.gradcheck(op, [x.requires_grad_() for x in inputs], fast_mode=True)


def test_flow_sample_layouts(mode):
    image, flow = image_and_flow(batch=1, channels=18, image=(6, 5))
    upstream = torch.randn(image.shape, dtype=torch.float64)
    expected, _ = both("flow_sample", [image, flow], None, mode, upstream=upstream)
    strided = torch.randn(1, 2, 8, 5, dtype=torch.float64)[:, :, ::2]
    strided.copy_(flow)
    last = [x.to(memory_format=torch.channels_last) for x in (image, upstream)]
    found, _ = both("flow_sample", [last[0], strided], None, mode, upstream=last[1])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    inputs = [image.requires_grad_(), flow.requires_grad_()]
    value = pose_kernels.flow_sample(*inputs, padding_mode=mode, impl="triton")
    gradients = torch.autograd.grad(value.sum(), inputs)
    _, oracle = both("flow_sample", inputs, None, mode, upstream=torch.ones_like(upstream))
    torch.testing.assert_close(gradients, oracle[1:], rtol=1e-11, atol=1e-12)


def test_flow_sample_not_a_number_and_infinity(mode):
    found, oracle = both("flow_sample", image_and_flow_not_finite(), None, mode)
    torch.testing.assert_close(found, oracle, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("name", CASES)
def test_same_bits_every_time(name):
    torch.use_deterministic_algorithms(True)
    try:
        inputs = CASES[name].inputs(1, torch.float32)
        function = functools.partial(getattr(pose_kernels, name), impl="triton")
        first, again = (value_and_gradients(function, inputs) for _ in range(2))
        torch.testing.assert_close(first, again, rtol=0, atol=0)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", CASES)
def test_operators_keep_their_promises(name):
    tests = ("test_schema", "test_faketensor")
    for part, arguments in CASES[name].calls(ops, torch.randn, 1, 5, (3, 4), (2, 3), False):
        more = ()
        if part == name:
            arguments = leaves(arguments)
            more = ("test_autograd_registration",)
            if name == "correlation_4d":  # all are registered by the same function
                more += ("test_aot_dispatch_dynamic",)
        torch.library.opcheck(getattr(ops, part).default, arguments, test_utils=tests + more)


def test_errors_name_the_argument():
    z_s, z_t = (z.flatten(2) for z in features(1, 3, (2, 2), (2, 3), torch.float32))
    row_max, norm = torch.ones(1, 4), torch.ones(1, 6)
    with pytest.raises(ValueError, match="begin: 4 targets from 3 on"):
        ops.guided_correlation_band(z_s, z_t, row_max, 1e-5, False, 3, torch.empty(1, 4, 4), norm)
    with pytest.raises(ValueError, match="out: expected a contiguous tensor"):
        ops.guided_correlation_band(z_s, z_t, row_max, 1e-5, False, 0,
                                    torch.empty(1, 4, 4).transpose(1, 2), norm)
