"""correlation_4d against a loop over positions, and against float64."""

import functools

import pytest
import torch
from kernel_helpers import DTYPES, TOLERANCE, features, implementations, relative_error
from kernel_helpers import value_and_gradients as run

import pose_kernels

IMPLS = implementations("correlation_4d")
SHAPES = [  # B, m, source, target
    (2, 35, (6, 5), (4, 7)),
    (1, 1, (3, 3), (3, 3)),
    (3, 8, (1, 1), (5, 2)),
    (1, 7, (4, 3), (1, 1)),
    (1, 40, (13, 5), (9, 23)),
    (1, 67, (16, 16), (32, 16)),
]


@pytest.mark.parametrize("impl", IMPLS)
def test_every_pair_and_their_order(impl):
    source, target = features(2, 3, (2, 3), (4, 2))
    value = pose_kernels.correlation_4d(source, target, impl=impl)
    assert value.shape == (2, 6, 4, 2)
    for i in range(2):
        for j in range(3):
            expected = (source[:, :, i, j, None, None] * target).sum(1)
            torch.testing.assert_close(value[:, i * 3 + j], expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
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
        found = run(functools.partial(op, memory_format=last), inputs)
        for i, (a, b) in enumerate(zip(found, oracle, strict=True)):
            assert a.dtype == dtype
            assert relative_error(a, b) < TOLERANCE[dtype][min(i, 1)]


def test_errors_name_the_argument():
    source, target = features(2, 3, (2, 3), (3, 2))
    with pytest.raises(ValueError, match="target: expected 3 channels as source"):
        pose_kernels.correlation_4d(source, target[:, :1])
    with pytest.raises(ValueError, match="memory_format: expected torch.contiguous_format or"):
        pose_kernels.correlation_4d(source, target, memory_format=torch.preserve_format)
