"""correlation_4d against a loop over positions, and against float64."""

import functools

import pytest
import torch
from kernel_helpers import (
    DTYPES,
    FEATURE_SHAPES,
    LARGE_MAP,
    MANY_FEATURES,
    TOLERANCE,
    Case,
    assert_errors,
    features,
    implementations,
    narrower,
    relative_error,
)
from kernel_helpers import value_and_gradients as run

import pose_kernels

IMPLS = implementations("correlation_4d")


def inputs(batch, dtype, m=5, source=(3, 4), target=(4, 5)):
    return features(batch, m, source, target, dtype)


def calls(ops, new, batch, m, source_size, target_size, last):
    z = new(batch, m, *source_size), new(batch, m, *target_size)
    for dtype in {z[0].dtype, narrower(z[0].dtype)}:
        yield "correlation_4d", (*z, False, last, dtype)
        grad = ops.correlation_4d(*z, False, last, dtype)
        yield "correlation_4d_out", (*z, False, torch.empty_like(grad))
        for wanted in ((True, True), (True, False), (False, True)):
            yield "correlation_4d_backward", (grad, *z, False, *wanted)


CASE = Case(inputs, calls, medium={"m": 35, "source": (13, 11), "target": (9, 17)},
            large={"m": 35, "source": (17, 16), "target": (16, 19)}, differentiable_twice=True,
            unusual=(LARGE_MAP, *MANY_FEATURES))


@pytest.mark.parametrize("impl", IMPLS)
def test_every_pair_and_their_order(impl):
    source, target = features(2, 3, (2, 3), (4, 2))
    value = pose_kernels.correlation_4d(source, target, impl=impl)
    assert value.shape == (2, 6, 4, 2)
    for i in range(2):
        for j in range(3):
            expected = (source[:, :, i, j, None, None] * target).sum(1)
            torch.testing.assert_close(value[:, i * 3 + j], expected)


@pytest.mark.parametrize("shape", [*FEATURE_SHAPES, (1, 67, (16, 16), (32, 16))], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("impl", IMPLS)
def test_against_float64(impl, dtype, shape):
    def literal(source, target):
        C = torch.einsum("bks,bkt->bst", source.flatten(2), target.flatten(2))
        return C.unflatten(2, target.shape[2:])

    inputs = features(*shape, dtype)
    oracle = run(literal, [x.double() for x in inputs])
    op = functools.partial(pose_kernels.correlation_4d, impl=impl)
    for last in (torch.contiguous_format, torch.channels_last):
        assert_errors(run(functools.partial(op, memory_format=last), inputs), oracle, dtype)


LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("impl", IMPLS)
def test_second_derivative(impl, layout):
    """Of both gradients together, and of each alone, where the other features are constants."""
    op = functools.partial(pose_kernels.correlation_4d, impl=impl, memory_format=layout)
    source, target = (z.to(memory_format=layout) for z in inputs(2, torch.float64, 2, (2, 3)))

    def cubed(*z):
        return op(*z).pow(3)

    for z in ((source, target), (source,), (target,)):
        function = {2: cubed, 1: lambda x, z=z: cubed(*((x, target) if z[0] is source
                                                        else (source, x)))}[len(z)]
        z = tuple(x.clone().requires_grad_() for x in z)
        assert torch.autograd.gradgradcheck(function, z, fast_mode=len(z) == 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("impl", IMPLS)
def test_second_derivative_in_other_types(impl, dtype):
    given = inputs(2, dtype)

    def penalty(impl, *z):
        z = [x.clone().requires_grad_() for x in z]
        value = pose_kernels.correlation_4d(*z, impl=impl)
        grads = torch.autograd.grad(value.square().sum(), z, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), z)

    expected = penalty("reference", *(x.double() for x in given))
    for found, wanted in zip(penalty(impl, *given), expected, strict=True):
        assert found.dtype == dtype
        assert relative_error(found, wanted) < TOLERANCE[dtype][1]


@pytest.mark.parametrize("in_dims", [(0, 0), (2, None), (None, 4)], ids=str)
@pytest.mark.parametrize("impl", IMPLS)
def test_vmap_is_a_loop(impl, in_dims):
    op = functools.partial(pose_kernels.correlation_4d, impl=impl)
    if impl != "reference":  # torch itself does not know layouts under vmap
        op = functools.partial(op, memory_format=torch.channels_last)
    given = [z if d is None else torch.stack([z, -z, z + 1], d)
             for z, d in zip(inputs(2, torch.float64), in_dims, strict=True)]
    slices = [[z if d is None else z.select(d, i) for z, d in zip(given, in_dims, strict=True)]
              for i in range(3)]

    def loss(*z):
        return op(*z).pow(3).sum()

    for function in (op, torch.func.grad(loss, (0, 1)), torch.func.grad(loss, 1),
                     torch.func.grad(lambda s, t: torch.func.grad(loss)(s, t).square().sum(), 1)):
        found = torch.func.vmap(function, in_dims)(*given)
        loop = [function(*z) for z in slices]
        expected = (torch.stack(loop) if isinstance(found, torch.Tensor)
                    else tuple(map(torch.stack, zip(*loop, strict=True))))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("impl", IMPLS)
def test_jacobian(impl):
    """vmap of the backward alone: one of its arguments has the dimension that is mapped over."""
    source, target = inputs(1, torch.float64, 2, (2, 2), (1, 3))
    found, expected = (
        torch.func.jacrev(functools.partial(pose_kernels.correlation_4d, impl=name), (0, 1))(
            source, target) for name in (impl, "reference"))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_errors_name_the_argument():
    source, target = features(2, 3, (2, 3), (3, 2))
    with pytest.raises(ValueError, match="target: expected 3 channels as source"):
        pose_kernels.correlation_4d(source, target[:, :1])
    with pytest.raises(ValueError, match="memory_format: expected torch.contiguous_format or"):
        pose_kernels.correlation_4d(source, target, memory_format=torch.preserve_format)
