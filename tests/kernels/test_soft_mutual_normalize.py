"""soft_mutual_normalize: Eqs. 9 and 2, element by element, and against float64."""

import functools

import pytest
import torch
from kernel_helpers import (
    DTYPES,
    LARGE_MAP,
    TOLERANCE,
    Case,
    features,
    implementations,
    narrower,
    relative_error,
    value_and_gradients,
)

import pose_kernels

IMPLS = implementations("soft_mutual_normalize")


def inputs(batch, dtype, m=5, source=(3, 4), target=(4, 5), positive=False):
    if positive:
        return [torch.rand(batch, source[0] * source[1], *target, dtype=torch.float64).to(dtype)]
    pair = features(batch, m, source, target, dtype)
    return [pose_kernels.correlation_4d(*pair, impl="reference")]


def calls(ops, new, batch, m, source_size, target_size, last):
    C = new(batch, source_size[0] * source_size[1], *target_size)
    if last:
        C = C.to(memory_format=torch.channels_last)
    for dtype in {C.dtype, narrower(C.dtype)}:
        yield "soft_mutual_normalize", (C, 1e-5, dtype)
        grad, *statistics = ops.soft_mutual_normalize(C, 1e-5, dtype)
        yield "soft_mutual_normalize_out", (C, 1e-5, torch.empty_like(C, dtype=dtype))
        yield "soft_mutual_normalize_backward", (grad, C, *statistics, 1e-5)


CASE = Case(inputs, calls, medium={"source": (13, 11), "target": (9, 17), "positive": True},
            large={"m": 35, "source": (17, 16), "target": (16, 19)}, activations=0,
            unusual=(LARGE_MAP,))


def op(impl, eps=1e-5):
    return functools.partial(pose_kernels.soft_mutual_normalize, eps=eps, impl=impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_element_by_element(impl):
    C = torch.rand(1, 4, 2, 3, dtype=torch.float64)
    value = op(impl)(C)
    flat = C[0].flatten(1)
    Q = torch.empty(4, 6, dtype=torch.float64)
    for s in range(4):
        for t in range(6):
            gamma = flat[s, t] / flat[:, t].max() * flat[s, t] / flat[s].max()
            Q[s, t] = gamma * flat[s, t]
    torch.testing.assert_close(value[0].flatten(1), Q / Q.norm(dim=0))


@pytest.mark.parametrize("impl", IMPLS)
def test_is_the_second_half_of_guided_correlation(impl):
    inputs = features(2, 5, (3, 4), (2, 3))

    def composed(source, target):
        return op(impl)(pose_kernels.correlation_4d(source, target))

    found = value_and_gradients(composed, inputs)
    expected = value_and_gradients(pose_kernels.guided_correlation, inputs)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("shape", [(2, 30, 4, 7), (1, 1, 3, 3), (3, 9, 1, 1), (1, 67, 9, 23),
                                   (2, 256, 8, 16)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("impl", IMPLS)
def test_against_float64(impl, dtype, shape):
    """Of both signs, and some rows below the floor."""
    C = torch.randn(shape, dtype=torch.float64)
    C[:, ::5] = -C[:, ::5].abs()
    C = C.to(dtype)
    oracle = value_and_gradients(op("reference"), [C.double()])
    found = value_and_gradients(op(impl), [C])
    assert [x.dtype for x in found] == [dtype, dtype]
    assert relative_error(found[0], oracle[0]) < TOLERANCE[dtype][0]
    # Where a maximum is at its floor of 1e-5 the gradients are huge: compare row by row.
    norms = oracle[1].flatten(2).norm(dim=2)
    errors = (found[1].double() - oracle[1]).flatten(2).norm(dim=2)
    assert (errors <= TOLERANCE[dtype][1] * norms.clamp(min=1)).all()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_gradcheck(impl, eps):
    C = torch.rand(2, 4, 2, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(op(impl, eps), C)


@pytest.mark.parametrize("impl", IMPLS)
def test_zeros_and_negative_rows(impl):
    C = torch.randn(1, 4, 2, 3, dtype=torch.float64)
    C[:, :, 0, 1] = 0
    C[:, 2] = -C[:, 2].abs()  # all maxima below eps: the floor keeps signs and numbers
    value, gradient = value_and_gradients(op(impl), [C])
    assert (value[:, :, 0, 1] == 0).all() and (gradient[:, :, 0, 1] == 0).all()
    assert value.isfinite().all() and gradient.isfinite().all() and gradient.abs().max() > 0


@pytest.mark.parametrize("impl", IMPLS)
def test_ties_go_to_the_first(impl):
    C = torch.rand(1, 5, 6, 7, dtype=torch.float64)
    C[0, 2, 1, 3] = C[0, 2, 4, 4] = 2.0
    found, expected = (value_and_gradients(op(name), [C]) for name in (impl, "reference"))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("impl", IMPLS)
def test_half_precision_survives_the_cube(impl):
    C = (0.02 * torch.rand(1, 64, 8, 8, dtype=torch.float64)).half()
    expected = op("reference")(C.double())
    torch.testing.assert_close(op(impl)(C).double(), expected, rtol=2e-3, atol=1e-5)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"correlation: expected \[B, hs\*ws, ht, wt\]"):
        pose_kernels.soft_mutual_normalize(torch.rand(4, 2, 3))
    with pytest.raises(ValueError, match="eps"):
        pose_kernels.soft_mutual_normalize(torch.rand(1, 4, 2, 3), eps=-1)
