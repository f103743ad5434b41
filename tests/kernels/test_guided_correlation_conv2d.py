"""guided_correlation_conv2d is a convolution of the guided correlation map."""

import pytest
import torch
from kernel_helpers import features, implementations

import pose_kernels

IMPLS = implementations("guided_correlation_conv2d")


def arguments(kernel=(3, 3), dtype=torch.float64):
    source, target = features(2, 5, (3, 4), (4, 5), dtype)
    weight, bias = torch.randn(6, 12, *kernel, dtype=dtype), torch.randn(6, dtype=dtype)
    return [source, target, weight, bias]


@pytest.mark.parametrize("impl", IMPLS)
def test_no_bias_and_empty_batch(impl):
    source, target, weight, _ = arguments()
    op = pose_kernels.guided_correlation_conv2d
    assert op(source, target, weight, impl=impl).shape == (2, 6, 4, 5)
    assert op(source[:0], target[:0], weight, impl=impl).shape == (0, 6, 4, 5)


def test_errors_name_the_argument():
    source, target, weight, bias = arguments()
    op = pose_kernels.guided_correlation_conv2d
    with pytest.raises(ValueError, match=r"weight: expected hs\*ws = 12 input channels"):
        op(source, target, weight[:, :5], bias)
    with pytest.raises(ValueError, match=r"bias: expected \[6\], got shape \[5\]"):
        op(source, target, weight, bias[:5])
    with pytest.raises(TypeError, match="weight: expected torch.float64 as source"):
        op(source, target, weight.float(), bias)
