"""correlation_4d against a loop over positions, and against float64."""

import functools

import pytest
import torch
from kernel_helpers import DTYPES, FEATURE_SHAPES, Case, assert_errors, features, implementations
from kernel_helpers import value_and_gradients as run

import pose_kernels

IMPLS = implementations("correlation_4d")


def inputs(batch, dtype, m=5, source=(3, 4), target=(4, 5)):
    return features(batch, m, source, target, dtype)


def calls(ops, new, batch, m, source_size, target_size, last):
    z = new(batch, m, *source_size), new(batch, m, *target_size)
    yield "correlation_4d", (*z, False, last)
    grad = ops.correlation_4d(*z, False, last)
    for wanted in ((True, True), (True, False), (False, True)):
        yield "correlation_4d_backward", (grad, *z, False, *wanted)


CASE = Case(inputs, calls, medium={"m": 35, "source": (13, 11), "target": (9, 17)},
            large={"m": 35, "source": (17, 16), "target": (16, 19)})


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


def test_errors_name_the_argument():
    source, target = features(2, 3, (2, 3), (3, 2))
    with pytest.raises(ValueError, match="target: expected 3 channels as source"):
        pose_kernels.correlation_4d(source, target[:, :1])
    with pytest.raises(ValueError, match="memory_format: expected torch.contiguous_format or"):
        pose_kernels.correlation_4d(source, target, memory_format=torch.preserve_format)
