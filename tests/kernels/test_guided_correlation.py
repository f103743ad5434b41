"""guided_correlation against the literal equations in float64, in every implementation."""

import dataclasses
import functools

import pytest
import torch
import torch.nn.functional as F
from kernel_helpers import (
    DTYPES,
    FEATURE_SHAPES,
    TOLERANCE,
    features,
    implementations,
    narrower,
    relative_error,
    value_and_gradients,
)
from test_correlation_4d import CASE as correlation_case

import pose_kernels

IMPLS = implementations("guided_correlation")


def calls(ops, new, batch, m, source_size, target_size, last):
    eps = 1e-5
    z = new(batch, m, *source_size), new(batch, m, *target_size)
    for dtype in {z[0].dtype, narrower(z[0].dtype)}:
        yield "guided_correlation", (*z, eps, False, last, dtype)
        grad, *statistics = ops.guided_correlation(*z, eps, False, last, dtype)
        yield "guided_correlation_out", (*z, eps, False, torch.empty_like(grad))
        for wanted in ((True, True), (True, False), (False, True)):
            yield "guided_correlation_backward", (grad, *z, *statistics, eps, False, *wanted)
    row_max, row_argmax, norm = statistics
    if z[0].dtype != row_max.dtype:
        return  # bands know no other features
    flat, targets = [x.flatten(2) for x in z], norm.shape[1]
    begin, columns = targets // 4, max(1, targets // 2)
    yield "guided_correlation_row_max", (*flat, eps, False)
    band = new(batch, row_max.shape[1], columns)
    yield "guided_correlation_band", (*flat, row_max, eps, False, begin, band, norm.clone())
    sums = [new(*x.shape) for x in (*flat, row_max)]
    beta = new(*row_max.shape)
    nothing = new(0)  # for a gradient that nobody asked for
    for z_s, z_t in (sums[:2], (sums[0], nothing), (nothing, sums[1])):
        yield ("guided_correlation_band_backward",
               (new(*band.shape), *flat, row_max, norm, eps, False, begin, z_s, z_t, sums[2]))
        yield ("guided_correlation_row_max_backward",
               (*flat, row_max, row_argmax, eps, beta, z_s, z_t))


CASE = dataclasses.replace(correlation_case, calls=calls)


def op(impl, eps=1e-5):
    return functools.partial(pose_kernels.guided_correlation, eps=eps, impl=impl)


def literal(source, target, eps=1e-5):
    """Eqs. 1, 9 and 2 with loops for dimensions, written down independently of the package."""
    C = torch.einsum("bks,bkt->bst", source.flatten(2), target.flatten(2))
    a = C.max(1, keepdim=True).values.clamp(min=eps)
    b = C.max(2, keepdim=True).values.clamp(min=eps)
    Q = C / a * (C / b) * C
    floor = eps / a
    return (Q / torch.maximum(Q.norm(dim=1, keepdim=True), floor)).unflatten(2, target.shape[2:])


@pytest.mark.parametrize("shape", [*FEATURE_SHAPES, (1, 67, (16, 16), (16, 16))], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("impl", IMPLS)
def test_against_float64(impl, dtype, shape):
    inputs = features(*shape, dtype)
    oracle = value_and_gradients(literal, [x.double() for x in inputs])
    found = value_and_gradients(op(impl), inputs)
    assert found[0].dtype == dtype
    assert [g.dtype for g in found[1:]] == [dtype, dtype]
    assert relative_error(found[0], oracle[0]) < TOLERANCE[dtype][0]
    for gradient, expected in zip(found[1:], oracle[1:], strict=True):
        # With one source or one channel the true gradient is (near) zero: terms near 1/C cancel.
        scale = max(expected.norm().item(), 10.0 if shape[2] == (1, 1) else 1.0)
        assert (gradient.double() - expected).norm().item() < TOLERANCE[dtype][1] * scale


@pytest.mark.parametrize("impl", IMPLS)
def test_gradients_exist_and_are_not_zero(impl):
    _, *gradients = value_and_gradients(op(impl), features(2, 5, (4, 4), (4, 4)))
    for gradient in gradients:
        assert (gradient.flatten(1).norm(dim=1) > 1e-2).all()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("eps", [1e-5, 0.3])  # 0.3: both floors are active in places
def test_gradcheck(impl, eps):
    inputs = [x.requires_grad_() for x in features(2, 3, (2, 3), (3, 2))]
    assert torch.autograd.gradcheck(op(impl, eps), inputs)


@pytest.mark.parametrize("impl", IMPLS)
def test_columns_have_norm_one(impl):
    value = op(impl)(*features(2, 35, (8, 8), (8, 8), torch.float32))
    torch.testing.assert_close(value.norm(dim=1), torch.ones(2, 8, 8))


@pytest.mark.parametrize("impl", IMPLS)
def test_planted_correspondence(impl):
    """Target (i, j) is a copy of one source position: its channel is row * width + column."""
    hs, ws, ht, wt = 5, 3, 4, 6
    source = F.normalize(torch.randn(1, 32, hs, ws), dim=1)
    row, column = torch.randint(hs, (ht, wt)), torch.randint(ws, (ht, wt))
    value = op(impl)(source, source[:, :, row, column])
    assert torch.equal(value.argmax(dim=1)[0], row * ws + column)


@pytest.mark.parametrize("impl", IMPLS)
def test_zero_column(impl):
    source, target = features(1, 5, (3, 4), (3, 4))
    target[:, :, 1, 2] = 0
    value, source_gradient, target_gradient = value_and_gradients(op(impl), [source, target])
    assert (value[:, :, 1, 2] == 0).all()
    assert (target_gradient[:, :, 1, 2] == 0).all()
    assert source_gradient.isfinite().all() and target_gradient.isfinite().all()
    nothing = value_and_gradients(op(impl), [torch.zeros_like(source), target])
    assert all((x == 0).all() for x in nothing)


@pytest.mark.parametrize("impl", IMPLS)
def test_ties_go_to_the_first(impl):
    """Two equal target positions: b_s sends its gradient to the first one only."""
    source, target = features(1, 4, (4, 4), (4, 5))
    target[:, :, 3, 1] = target[:, :, 0, 3]
    found = value_and_gradients(op(impl), [source, target])
    expected = value_and_gradients(op("reference"), [source, target])
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_a_number_spreads(impl, bad):
    source, target = features(1, 5, (3, 4), (3, 4))
    target[0, 2, 1, 1] = bad
    assert op(impl)(source, target)[:, :, 1, 1].isnan().all()
    source[0, 2, 1, 1] = bad  # every column has this source in its norm
    assert op(impl)(source, target).isnan().any(dim=1).all()


@pytest.mark.parametrize("change, error, words", [
    (lambda s, t: ([1], t), TypeError, "source: expected a tensor"),
    (lambda s, t: (s.int(), t.int()), TypeError, "source: expected float32"),
    (lambda s, t: (s[0], t), ValueError, r"source: expected \[B, m, hs, ws\], got shape"),
    (lambda s, t: (s, t.float()), TypeError, "target: expected torch.float64 as source"),
    (lambda s, t: (s, t[:1]), ValueError, "target: expected batch 2 as source"),
    (lambda s, t: (s, t[:, :2]), ValueError, "target: expected 3 channels as source"),
    (lambda s, t: (s[:, :, :0], t), ValueError, "source: expected .* no empty dimension"),
    (lambda s, t: (s, t.to("meta")), ValueError, "target: expected device cpu as source"),
    (lambda s, t: (s, t, 0.0), ValueError, "eps: expected a positive number, got 0"),
    (lambda s, t: (s, t, float("nan")), ValueError, "eps: expected a positive number"),
    (lambda s, t: (s, t, "1"), TypeError, "eps: expected a positive number, got str"),
])
def test_errors_name_the_argument(change, error, words):
    with pytest.raises(error, match=words):
        pose_kernels.guided_correlation(*change(*features(2, 3, (2, 3), (3, 2))))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_bands_make_up_the_map_and_its_gradient(dtype):
    """Whatever the cuts, also where a band is narrower than a vector or has another dtype."""
    ops = torch.ops.pose_kernels_triton if IMPLS == ["triton"] else torch.ops.pose_kernels
    source, target = features(2, 67 if dtype == torch.float64 else 20, (5, 4), (4, 7), dtype)
    eps = 0.25 if dtype == torch.float64 else 0.4375  # some rows and columns are at the floors
    Q, row_max, row_argmax, norm = ops.guided_correlation(source, target, eps, False, False,
                                                           dtype)
    assert (row_max == eps).any() and (row_max > eps).any()
    G = torch.randn_like(Q)
    expected = ops.guided_correlation_backward(G, source, target, row_max, row_argmax, norm, eps,
                                               False, True, True)
    z_s, z_t = source.flatten(2), target.flatten(2)
    found = ops.guided_correlation_row_max(z_s, z_t, eps, False)
    assert torch.equal(found[0], row_max) and torch.equal(found[1], row_argmax)
    for cuts in ([0, 1, 17, 28], [0, 9, 10, 28]):
        dz_s, dz_t = torch.zeros_like(z_s), torch.full_like(z_t, float("nan"))
        beta, norms = torch.zeros_like(row_max), torch.full_like(norm, float("nan"))
        for begin, end in zip(cuts, cuts[1:], strict=False):
            out_dtype = torch.float16 if begin == 9 else dtype  # a map may be narrower
            out = torch.empty(2, 20, end - begin, dtype=out_dtype)
            ops.guided_correlation_band(z_s, z_t, row_max, eps, False, begin, out, norms)
            assert relative_error(out, Q.flatten(2)[..., begin:end]) < TOLERANCE[out.dtype][0]
            part = G.flatten(2)[..., begin:end].contiguous()
            ops.guided_correlation_band_backward(part, z_s, z_t, row_max, norm, eps, False, begin,
                                                 dz_s, dz_t, beta)
        assert relative_error(norms, norm) < TOLERANCE[dtype][0]
        ops.guided_correlation_row_max_backward(z_s, z_t, row_max, row_argmax, eps, beta, dz_s,
                                                dz_t)
        for a, b in zip((dz_s, dz_t), expected, strict=True):
            assert relative_error(a, b.flatten(2)) < TOLERANCE[dtype][1]


def test_a_band_outside_the_targets_is_refused():
    z_s, z_t = (z.flatten(2) for z in features(1, 3, (2, 2), (2, 3)))
    ops = torch.ops.pose_kernels
    row_max, _ = ops.guided_correlation_row_max(z_s, z_t, 1e-5, False)
    norm, out = z_t.new_empty(1, 6), z_t.new_empty(1, 4, 3)
    with pytest.raises(RuntimeError, match="the band lies outside the targets"):
        ops.guided_correlation_band(z_s, z_t, row_max, 1e-5, False, 4, out, norm)
