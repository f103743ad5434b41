"""guided_correlation_conv2d is a convolution of the guided correlation map."""

import importlib

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


@pytest.mark.parametrize("impl", [impl for impl in IMPLS if impl != "reference"])
@pytest.mark.parametrize("size", [(5, 6), (4, 7), (3, 1)], ids=str)
@pytest.mark.parametrize("kernel", [(3, 3), (1, 3), (4, 3), (1, 1), (5, 2), (1, 4)], ids=str)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_bands_parts_and_forms_change_nothing(impl, kernel, size, monkeypatch):
    """Every form of the convolution, with bands of one row and of all, the weight whole and in
    uneven parts, on odd and even widths, against the literal equations."""
    module = importlib.import_module("pose_kernels.guided_correlation_conv2d")
    source, target = features(2, 5, (3, 4), size, torch.float64)
    weight = torch.randn(5, 12, *kernel, dtype=torch.float64)
    bias = torch.randn(5, dtype=torch.float64)
    upstream = torch.randn(2, 5, *size, dtype=torch.float64)

    def run(impl):
        inputs = [x.clone().requires_grad_() for x in (source, target, weight, bias)]
        result = pose_kernels.guided_correlation_conv2d(*inputs, impl=impl)
        return [result.detach(), *torch.autograd.grad(result, inputs, upstream)]

    expected = run("reference")
    two_outputs = 8 * 12 * 2 * 4 * kernel[0]
    for fewest, band, part in ((1, 1 << 20, 1 << 20), (1, 1, two_outputs), (9, 1, two_outputs)):
        monkeypatch.setattr(module, "WINOGRAD_OUTPUTS", fewest)
        monkeypatch.setattr(module, "BAND_BYTES", {"cpu": band, "cuda": band})
        monkeypatch.setattr(module, "WEIGHT_BYTES", {"cpu": part, "cuda": part})
        monkeypatch.setattr(module, "BAND_COLUMNS", 1)
        for ours, literal in zip(run(impl), expected, strict=True):
            torch.testing.assert_close(ours, literal, rtol=1e-9, atol=1e-11)


def test_fewer_products_in_single_precision():
    """The sums of Winograd's form cost float32 no more than a few roundings."""
    source, target = features(1, 8, (8, 8), (8, 9), torch.float64)
    weight = torch.randn(64, 64, 3, 3, dtype=torch.float64)
    exact = pose_kernels.guided_correlation_conv2d(source, target, weight, impl="reference")
    single = pose_kernels.guided_correlation_conv2d(
        *(x.float() for x in (source, target, weight)), impl="cpp"
    )
    assert (single - exact).norm() < 1e-6 * exact.norm()
