"""correlation_4d against a loop over positions."""

import pytest
import torch
from kernel_helpers import DTYPES, features, value_and_gradients

import pose_kernels


def test_every_pair_and_their_order():
    source, target = features(2, 3, (2, 3), (4, 2))
    value = pose_kernels.correlation_4d(source, target)
    assert value.shape == (2, 6, 4, 2)
    for i in range(2):
        for j in range(3):
            expected = (source[:, :, i, j, None, None] * target).sum(1)
            torch.testing.assert_close(value[:, i * 3 + j], expected)


def test_gradcheck():
    inputs = [x.requires_grad_() for x in features(2, 3, (2, 3), (3, 2))]
    assert torch.autograd.gradcheck(pose_kernels.correlation_4d, inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_and_autocast(dtype):
    source, target = features(1, 35, (4, 4), (4, 4), dtype)
    expected = pose_kernels.correlation_4d(source.double(), target.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):  # must not lower the precision
        value = pose_kernels.correlation_4d(source, target)
    assert value.dtype == dtype
    torch.testing.assert_close(
        value, expected.to(dtype), rtol=1e-2 if dtype.itemsize == 2 else 1e-5, atol=1e-6
    )


def test_compile_fullgraph_and_empty_batch():
    compiled = torch.compile(pose_kernels.correlation_4d, fullgraph=True, backend="aot_eager")
    for batch in (0, 2):
        inputs = features(batch, 3, (2, 3), (3, 2))
        expected = value_and_gradients(pose_kernels.correlation_4d, inputs)
        for a, b in zip(value_and_gradients(compiled, inputs), expected, strict=True):
            torch.testing.assert_close(a, b)


def test_errors_name_the_argument():
    source, target = features(2, 3, (2, 3), (3, 2))
    with pytest.raises(ValueError, match="target: expected 3 channels as source"):
        pose_kernels.correlation_4d(source, target[:, :1])
