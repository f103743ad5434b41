"""What every operator promises, in every implementation that runs here.

Torch's own machinery (opcheck, compile, export, autocast), layouts, gradients one by one, empty
batches, values that are not finite, repeatability.
"""

import functools
import os
import subprocess
import sys

import pytest
import torch
from kernel_helpers import (
    DTYPES,
    TOLERANCE,
    assert_same_bits_every_time,
    features,
    implementations,
    relative_error,
    value_and_gradients,
)

import pose_kernels


def feature_pair(batch, dtype):
    return features(batch, 5, (3, 4), (4, 5), dtype)


def correlation_map(batch, dtype):
    return [pose_kernels.correlation_4d(*feature_pair(batch, dtype), impl="reference")]


def features_and_layer(batch, dtype):
    weight = 0.1 * torch.randn(6, 12, 3, 3, dtype=torch.float64)
    return [*feature_pair(batch, dtype), weight.to(dtype), torch.randn(6).to(dtype)]


def image_and_flow(batch, dtype):
    wobble = 0.1 * torch.randn(batch, 2, 4, 5, dtype=torch.float64)
    flow = pose_kernels.identity_flow(4, 5, dtype=torch.float64) + wobble
    return [torch.randn(batch, 3, 9, 13).to(dtype), flow.to(dtype)]


INPUTS = {
    "correlation_4d": feature_pair,
    "soft_mutual_normalize": correlation_map,
    "guided_correlation": feature_pair,
    "guided_correlation_conv2d": features_and_layer,
    "flow_sample": image_and_flow,
}
PAIRS = [(name, impl) for name in INPUTS for impl in implementations(name)]
FUSED = [(name, impl) for name, impl in PAIRS if impl != "reference"]

every_pair = pytest.mark.parametrize(("name", "impl"), PAIRS)
every_fused = pytest.mark.parametrize(("name", "impl"), FUSED)


def operator(name, impl, **options):
    return functools.partial(getattr(pose_kernels, name), impl=impl, **options)


def assert_close(found, expected, rtol=1e-10, atol=1e-11):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def test_every_operator_is_here():
    assert set(INPUTS) == set(pose_kernels.implementations())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_pair
def test_against_the_reference_in_float64(name, impl, dtype):
    inputs = INPUTS[name](2, dtype)
    oracle = value_and_gradients(operator(name, "reference"), [x.double() for x in inputs])
    found = value_and_gradients(operator(name, impl), inputs)
    assert [x.dtype for x in found] == [dtype] * len(found)
    # A location in half precision is far coarser than what is sampled there.
    slack = 50 if name == "flow_sample" and dtype.itemsize == 2 else 2
    for i, (a, b) in enumerate(zip(found, oracle, strict=True)):
        assert b.abs().max() > 0
        assert relative_error(a, b) < slack * TOLERANCE[dtype][min(i, 1)]


@every_pair
def test_gradcheck(name, impl):
    inputs = [x.requires_grad_() for x in INPUTS[name](1, torch.float64)]
    assert torch.autograd.gradcheck(operator(name, impl), inputs, fast_mode=True)


@every_fused
def test_one_gradient_at_a_time(name, impl):
    inputs = INPUTS[name](2, torch.float64)
    every = value_and_gradients(operator(name, impl), inputs)
    for wanted in range(len(inputs)):
        alone = [x.detach().clone() for x in inputs]
        alone[wanted].requires_grad_()
        value = operator(name, impl)(*alone)
        generator = torch.Generator().manual_seed(1)
        value.backward(torch.randn(value.shape, generator=generator, dtype=torch.float64))
        for i, x in enumerate(alone):
            if i == wanted:
                torch.testing.assert_close(x.grad, every[1 + wanted], rtol=1e-12, atol=1e-12)
            else:
                assert x.grad is None


def strided(x):
    """The same values, every other one of a larger tensor that is full of NaN."""
    larger = torch.full([2 * n for n in x.shape], float("nan"), dtype=x.dtype)
    view = larger[tuple(slice(None, None, 2) for _ in x.shape)]
    return view.copy_(x)


@every_fused
def test_layouts_of_the_inputs(name, impl):
    inputs = INPUTS[name](2, torch.float64)
    expected = value_and_gradients(operator(name, impl), inputs)

    def channels_last(x):
        return x.to(memory_format=torch.channels_last) if x.dim() == 4 else x

    for change in (channels_last, strided):
        changed = [change(x) for x in inputs]
        assert not changed[0].is_contiguous()
        assert_close(value_and_gradients(operator(name, impl), changed), expected, 1e-12, 1e-12)


@every_fused
def test_layouts_of_the_upstream_gradient(name, impl):
    inputs = [x.requires_grad_() for x in INPUTS[name](2, torch.float64)]
    value = operator(name, impl)(*inputs)
    plain = torch.randn(value.shape, dtype=torch.float64)
    expected = torch.autograd.grad(value, inputs, plain, retain_graph=True)
    for upstream in (
        plain.to(memory_format=torch.channels_last),
        strided(plain),
        plain.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        found = torch.autograd.grad(value, inputs, upstream, retain_graph=True)
        assert_close(found, expected, 1e-12, 1e-12)
    # `.sum()` hands over a gradient whose strides are all zero.
    ones = torch.autograd.grad(value, inputs, torch.ones_like(plain), retain_graph=True)
    assert_close(torch.autograd.grad(value.sum(), inputs), ones, 1e-12, 1e-12)


@pytest.mark.parametrize(
    ("name", "impl"), [pair for pair in FUSED if pair[0] != "soft_mutual_normalize"]
)
def test_gradients_have_the_layout_of_what_a_layer_made(name, impl):
    inputs = INPUTS[name](2, torch.float64)
    last = (0, 1)  # features, or image and flow; after them weights
    inputs = [
        (x.to(memory_format=torch.channels_last) if i in last else x).requires_grad_()
        for i, x in enumerate(inputs)
    ]
    call = operator(name, impl)
    for form in (call, torch.compile(call, fullgraph=True, backend="aot_eager")):
        grads = torch.autograd.grad(form(*inputs).square().sum(), inputs)
        for i, grad in enumerate(grads):
            wanted = torch.channels_last if i in last else torch.contiguous_format
            assert grad.is_contiguous(memory_format=wanted), i


@pytest.mark.parametrize("name", ["correlation_4d", "guided_correlation"])
def test_channels_last_result(name):
    for impl in implementations(name):
        torch.compiler.reset()
        inputs = INPUTS[name](2, torch.float64)
        expected = value_and_gradients(operator(name, impl), inputs)
        last = operator(name, impl, memory_format=torch.channels_last)
        found = value_and_gradients(last, inputs)
        assert last(*inputs).is_contiguous(memory_format=torch.channels_last)
        assert_close(found, expected)
        compiled = torch.compile(last, fullgraph=True, backend="aot_eager")
        assert compiled(*inputs).is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="memory_format: expected torch.contiguous_format or"):
        operator(name, None, memory_format=torch.channels_last_3d)(*inputs)


@every_pair
def test_empty_batch(name, impl):
    full = value_and_gradients(operator(name, impl), INPUTS[name](1, torch.float32))
    inputs = INPUTS[name](0, torch.float32)
    found = value_and_gradients(operator(name, impl), inputs)
    for i, (x, y) in enumerate(zip(found, full, strict=True)):
        batched = i == 0 or inputs[i - 1].shape[0] == 0
        assert x.shape == ((0, *y.shape[1:]) if batched else y.shape)
        assert batched or (x == 0).all()


@every_fused
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_every_time(name, impl, dtype):
    larger = {
        "correlation_map": lambda: [pose_kernels.correlation_4d(*maps())],
        "feature_pair": lambda: maps(),
        "features_and_layer": lambda: [*maps(), torch.randn(6, 272, 3, 3).to(dtype)],
        "image_and_flow": lambda: [
            torch.randn(2, 3, 65, 40).to(dtype),
            (pose_kernels.identity_flow(16, 10) + 0.5 * torch.randn(2, 2, 16, 10)).to(dtype),
        ],
    }

    def maps():
        return features(2, 35, (17, 16), (16, 19), dtype)

    assert_same_bits_every_time(operator(name, impl), larger[INPUTS[name].__name__]())


@every_fused
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_second_derivatives_say_no(name, impl, layout):
    inputs = [
        (x.to(memory_format=layout) if x.dim() == 4 else x).requires_grad_()
        for x in INPUTS[name](1, torch.float64)
    ]
    value = operator(name, impl)(*inputs)
    gradient = torch.autograd.grad(value.square().sum(), inputs[0], create_graph=True)[0]
    with pytest.raises(NotImplementedError, match=f"{name}: second derivatives need impl='ref"):
        gradient.sum().backward()


@every_fused
def test_forward_mode_says_no(name, impl):
    inputs = INPUTS[name](1, torch.float64)
    tangents = [torch.ones_like(x) for x in inputs]
    with pytest.raises(NotImplementedError, match=f"{name}: forward-mode derivatives need"):
        torch.func.jvp(operator(name, impl), tuple(inputs), tuple(tangents))
    with torch.autograd.forward_ad.dual_level():  # nobody asks for one here
        operator(name, impl)(*inputs)
    torch.func.jvp(operator(name, "reference"), tuple(inputs), tuple(tangents))


@pytest.mark.parametrize("name", INPUTS)
def test_meta_tensors_have_shapes(name):
    inputs = INPUTS[name](2, torch.float32)
    value = operator(name, "reference")(*(x.to("meta") for x in inputs))
    assert value.shape == operator(name, "reference")(*inputs).shape


@every_fused
def test_nothing_4d_is_saved(name, impl):
    """Of the correlation map, that is; soft_mutual_normalize was given one and keeps that."""
    inputs = [x.requires_grad_() for x in INPUTS[name](2, torch.float64)]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        operator(name, impl)(*inputs)
    given = {x.data_ptr() for x in inputs}
    assert saved and sum(x.numel() for x in saved if x.data_ptr() not in given) <= 2 * 3 * 20


@every_pair
def test_compile_fullgraph(name, impl):
    torch.compiler.reset()  # all operators share the code of functools.partial
    inputs = INPUTS[name](2, torch.float64)
    compiled = torch.compile(operator(name, impl), fullgraph=True, backend="aot_eager")
    expected = value_and_gradients(operator(name, impl), inputs)
    assert_close(value_and_gradients(compiled, inputs), expected)


@every_fused
def test_export_with_a_free_batch(name, impl):
    class Module(torch.nn.Module):
        def forward(self, *inputs):
            return operator(name, impl)(*inputs)

    inputs = tuple(INPUTS[name](2, torch.float64))
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = tuple({0: batch} if x.shape[0] == 2 else None for x in inputs)
    program = torch.export.export(Module(), inputs, dynamic_shapes=(shapes,))
    other = (*INPUTS[name](3, torch.float64)[:2], *inputs[2:])
    assert_close([program.module()(*other)], [operator(name, impl)(*other)])


@every_fused
def test_autocast(name, impl):
    """The map and locations stay precise; the convolution follows autocast as torch's own does."""
    inputs = INPUTS[name](2, torch.float32)

    def under_autocast(impl):
        return torch.autocast("cpu", dtype=torch.bfloat16)(operator(name, impl))

    found = value_and_gradients(under_autocast(impl), inputs)
    expected = value_and_gradients(under_autocast("reference"), inputs)
    convolution = name == "guided_correlation_conv2d"
    assert found[0].dtype == expected[0].dtype == (torch.bfloat16 if convolution else torch.float32)
    assert [x.dtype for x in found[1:]] == [torch.float32] * len(inputs)
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert relative_error(a, b) < (2e-2 if convolution else TOLERANCE[torch.float32][min(i, 1)])
    if name.startswith(("guided", "correlation")):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = operator(name, impl)(inputs[0].bfloat16(), *inputs[1:])
        assert mixed.dtype == found[0].dtype


@every_pair
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_spreads(name, impl, bad):
    """No hang, no crash, and what depends on it is not finite, as in the reference."""
    inputs = INPUTS[name](2, torch.float64)
    inputs[0][0, 2, 1, 1] = bad
    found = value_and_gradients(operator(name, impl), inputs)
    expected = value_and_gradients(operator(name, "reference"), inputs)
    assert not found[0].isfinite().all()
    assert torch.equal(found[0].isfinite(), expected[0].isfinite())
    assert found[0][1].isfinite().all()  # another sample


@every_fused
def test_uninitialised_memory_is_never_read(name, impl):
    """Deterministic mode fills fresh tensors with NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        for inputs in (INPUTS[name](2, torch.float32), INPUTS[name](0, torch.float32)):
            for x in value_and_gradients(operator(name, impl), inputs):
                assert x.isfinite().all()
    finally:
        torch.use_deterministic_algorithms(False)


def test_scratch_memory_is_never_read_before_it_is_written():
    """Every fresh byte of malloc is 0x7f: a number near the largest there is."""
    done = subprocess.run(
        [sys.executable, "-m", "pose_kernels", "--json"],
        env={**os.environ, "MALLOC_PERTURB_": "128", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def torch_operators():
    """(operator, arguments) for every one that a library implements for CPU tensors."""
    z_s, z_t = feature_pair(2, torch.float32)
    weight = torch.randn(6, 12, 3, 3)
    C = correlation_map(2, torch.float32)[0]
    image, flow = image_and_flow(2, torch.float32)
    ops = torch.ops.pose_kernels
    _, *statistics = ops.guided_correlation(z_s, z_t, 1e-5, False, False)
    row_max, row_argmax, norm = statistics
    G, Y = torch.randn_like(C), torch.randn(2, 6, 4, 5)
    flat = [z.flatten(2).clone() for z in (z_s, z_t)]
    for last in (False, True):
        yield "correlation_4d", (z_s, z_t, False, last)
        yield "guided_correlation", (z_s, z_t, 1e-5, False, last)
    for wanted in ((True, True), (True, False), (False, True)):
        yield "correlation_4d_backward", (G, z_s, z_t, False, *wanted)
        yield "flow_sample_backward", (image[..., :6], image, flow, False, *wanted)
        yield (
            "guided_correlation_conv2d_backward",
            (Y, z_s, z_t, weight, *statistics, 1e-5, False, *wanted),
        )
    yield "soft_mutual_normalize", (C, 1e-5)
    yield "soft_mutual_normalize_backward", (G, C, *statistics, 1e-5)
    yield "guided_correlation_backward", (G, z_s, z_t, *statistics, 1e-5, False)
    yield "guided_correlation_row_max", (*flat, 1e-5, False)
    out, columns = torch.empty(2, 12, 7), norm.clone()
    yield "guided_correlation_band", (*flat, row_max, 1e-5, False, 3, out, columns)
    sums = [torch.zeros_like(x) for x in (*flat, row_max)]
    band = (torch.randn(2, 12, 7), *flat, row_max, norm, 1e-5, False, 3, *sums)
    yield "guided_correlation_band_backward", band
    yield (
        "guided_correlation_row_max_backward",
        (*flat, row_max, row_argmax, 1e-5, row_max.clone(), *sums[:2]),
    )
    maps, Y, edged = torch.randn(2, 12, 6), torch.zeros(6, 6, 6), torch.randn(6, 6, 6)
    U, U_t, dU = torch.empty(4, 24, 12), torch.empty(4, 12, 18), torch.zeros(4, 12, 18)
    yield "winograd_weight", (weight, False, U)
    yield "winograd_weight", (weight, True, U_t)
    yield "winograd_add_output", (U.zero_(), maps, 1, 3, Y)
    yield "winograd_map_gradient", (U_t.zero_(), edged, 1, 3, torch.empty_like(maps))
    yield "winograd_add_weight_gradient", (maps, edged, 1, 3, dU)
    yield "winograd_weight_gradient", (dU, torch.empty_like(weight))
    for bias in (None, torch.randn(6)):
        yield "guided_correlation_conv2d", (z_s, z_t, weight, bias, 1e-5, False)
    for zeros in (False, True):
        yield "flow_sample", (image, flow, 6, 7, zeros)


@pytest.mark.skipif("cpp" not in implementations("flow_sample"), reason="no CPU library")
def test_opcheck():
    from pose_kernels._library import CPU_SCHEMAS, SCHEMAS

    names = {schema.partition("(")[0] for schema in (*SCHEMAS, *CPU_SCHEMAS)}
    seen = set()
    for name, arguments in torch_operators():
        seen.add(name)
        op = getattr(torch.ops.pose_kernels, name).default
        differentiable = f"{name}_backward" in names
        if differentiable and "band" not in name and "row_max" not in name:
            arguments = tuple(
                x.detach().clone().requires_grad_() if isinstance(x, torch.Tensor) else x
                for x in arguments
            )
        torch.library.opcheck(op, arguments)
    assert seen == names


def test_bands_make_up_the_map_and_its_gradient():
    """Whatever the cuts, also where a band is narrower than a vector."""
    source, target = features(2, 7, (5, 3), (6, 5))
    ops = torch.ops.pose_kernels
    Q, row_max, row_argmax, norm = ops.guided_correlation(source, target, 1e-5, False, False)
    G = torch.randn_like(Q)
    expected = ops.guided_correlation_backward(
        G, source, target, row_max, row_argmax, norm, 1e-5, False
    )
    z_s, z_t = source.flatten(2), target.flatten(2)
    for cuts in ([0, 30], [0, 1, 17, 18, 30], [0, 13, 30]):
        norms = torch.empty_like(norm)
        sums = torch.zeros_like(z_s), torch.full_like(z_t, float("nan")), torch.zeros_like(row_max)
        for begin, end in zip(cuts, cuts[1:], strict=False):
            out = torch.empty(2, 15, end - begin, dtype=torch.float64)
            ops.guided_correlation_band(z_s, z_t, row_max, 1e-5, False, begin, out, norms)
            assert_close([out], [Q.flatten(2)[:, :, begin:end]])
            part = G.flatten(2)[:, :, begin:end].contiguous()
            ops.guided_correlation_band_backward(
                part, z_s, z_t, row_max, norm, 1e-5, False, begin, *sums
            )
        assert_close([norms], [norm])
        ops.guided_correlation_row_max_backward(
            z_s, z_t, row_max, row_argmax, 1e-5, sums[2], *sums[:2]
        )
        assert_close([sums[0].view_as(source), sums[1].view_as(target)], expected)


def test_tf32_is_read_by_both_of_its_names():
    """Setting the new name makes reading the old one raise: in a process of its own."""
    script = (
        "import torch; from pose_kernels import _checks;"
        "gpu = type('Gpu', (), {'is_cuda': True}); assert not _checks.allow_tf32(gpu);"
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'; assert _checks.allow_tf32(gpu);"
        "torch.backends.cuda.matmul.fp32_precision = 'ieee'; assert not _checks.allow_tf32(gpu)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    script = (
        "import torch; from pose_kernels import _checks; gpu = type('Gpu', (), {'is_cuda': True});"
        "torch.backends.cuda.matmul.allow_tf32 = True; assert _checks.allow_tf32(gpu)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_band_outside_the_targets_is_refused():
    z_s, z_t = (z.flatten(2) for z in features(1, 3, (2, 2), (2, 3)))
    ops = torch.ops.pose_kernels
    row_max, _ = ops.guided_correlation_row_max(z_s, z_t, 1e-5, False)
    norm, out = z_t.new_empty(1, 6), z_t.new_empty(1, 4, 3)
    with pytest.raises(RuntimeError, match="the band lies outside the targets"):
        ops.guided_correlation_band(z_s, z_t, row_max, 1e-5, False, 4, out, norm)
