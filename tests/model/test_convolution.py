import pytest
import torch
import torch.nn.functional as F
from torch import nn

from posemodel.model import convolution
from posemodel.model.convolution import (
    WIDE,
    Conv2d,
    ConvTranspose2d,
    one_by_one,
    unit_planes,
    weight_gradient,
)


@pytest.fixture(autouse=True)
def slow_gradient(monkeypatch):
    """On any CPU as on one where torch's gradient is slow."""
    monkeypatch.setattr(convolution, "SLOW_GRADIENT", True)


def layer(kind, width_in=WIDE, width=WIDE, *, kernel=3, stride=1, bias=False):
    torch.manual_seed(0)
    made = kind(width_in, width, kernel, stride=stride, padding=1, bias=bias)
    return made.to(memory_format=torch.channels_last)


def is_split(result):
    return "SplitBackward" in type(result.grad_fn).__name__


@pytest.mark.parametrize("kind, exact, kernel, stride", [
    (Conv2d, nn.Conv2d, 3, 1), (Conv2d, nn.Conv2d, 3, 2), (Conv2d, nn.Conv2d, 4, 2),
    (ConvTranspose2d, nn.ConvTranspose2d, 4, 2)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_values_and_gradients_are_torchs(kind, exact, kernel, stride, layout):
    ours = layer(kind, WIDE, WIDE + 8, kernel=kernel, stride=stride)
    oracle = exact(WIDE, WIDE + 8, kernel, stride=stride, padding=1, bias=False).double()
    oracle.load_state_dict(ours.state_dict())
    x = torch.randn(3, WIDE, 10, 7).contiguous(memory_format=layout).requires_grad_()
    wide = x.detach().double().requires_grad_()
    result, expected = ours(x), oracle(wide)
    assert is_split(result)
    # As it comes from a mean or a sum: without strides of its own.
    for gradient in (torch.randn_like(result), torch.ones(()).expand_as(result)):
        found = torch.autograd.grad(result, [x, ours.weight], gradient, retain_graph=True)
        wanted = torch.autograd.grad(expected, [wide, oracle.weight], gradient.double(),
                                     retain_graph=True)
        for one, other in zip((result, *found), (expected, *wanted), strict=True):
            scale = other.abs().max().item()
            torch.testing.assert_close(one.double(), other, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 4)])
@pytest.mark.parametrize("kernel, stride, padding", [
    ((3, 3), (1, 1), (1, 1)), ((3, 3), (2, 2), (1, 1)), ((4, 4), (2, 2), (1, 1)),
    ((7, 7), (1, 1), (3, 3)), ((1, 1), (1, 1), (0, 0)), ((2, 3), (3, 2), (0, 2))])
def test_weight_gradient(size, kernel, stride, padding):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *(n + 6 for n in size), dtype=torch.float64, generator=generator)
    weight = torch.randn(5, 3, *kernel, dtype=torch.float64, requires_grad=True,
                         generator=generator)
    result = nn.functional.conv2d(x, weight, stride=stride, padding=padding)
    gradient = torch.randn(result.shape, dtype=torch.float64, generator=generator)
    expected, = torch.autograd.grad(result, weight, gradient)
    torch.testing.assert_close(weight_gradient(gradient, x, kernel, stride, padding), expected)
    back = nn.functional.conv_transpose2d(gradient, weight, stride=stride, padding=padding)
    upstream = torch.randn(back.shape, dtype=torch.float64, generator=generator)
    expected, = torch.autograd.grad(back, weight, upstream)
    torch.testing.assert_close(
        weight_gradient(gradient, upstream, kernel, stride, padding), expected)


def test_an_input_that_needs_no_gradient_gets_none():
    ours, x = layer(Conv2d), torch.randn(2, WIDE, 8, 8)
    ours(x).sum().backward()
    assert ours.weight.grad.any()
    assert x.grad is None


def test_elsewhere_it_is_torchs_own_convolution(monkeypatch):
    x = torch.randn(2, WIDE, 8, 8, requires_grad=True)
    with monkeypatch.context() as patch:
        patch.setattr(convolution, "SLOW_GRADIENT", False)
        assert not is_split(layer(Conv2d)(x))
    assert is_split(layer(Conv2d)(x))
    assert not is_split(layer(Conv2d, bias=True)(x))
    assert not is_split(layer(Conv2d, width=WIDE - 1)(x))
    assert not is_split(layer(Conv2d).double()(x.double()))
    assert not is_split(layer(Conv2d).requires_grad_(False)(x))
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(Conv2d)(x)
    assert half.dtype == torch.bfloat16 and not is_split(half)
    with torch.no_grad():
        torch.testing.assert_close(
            layer(Conv2d)(x), nn.functional.conv2d(x, layer(Conv2d).weight, padding=1))


def test_compiles_without_a_break():
    ours, x = layer(Conv2d), torch.randn(2, WIDE, 8, 8, requires_grad=True)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    found, expected = (torch.autograd.grad(net(x).square().sum(), [x, ours.weight])
                       for net in (compiled, ours))
    torch.testing.assert_close(found, expected)


def test_sample_by_sample_is_the_same():
    calls = []

    def double(x):
        calls.append(len(x))
        return (2 * x).contiguous(memory_format=torch.channels_last)

    batch = torch.rand(3, 4, 5, 6)
    found = one_by_one(double, batch)
    assert torch.equal(found, 2 * batch) and calls == [1, 1, 1]
    assert found.is_contiguous(memory_format=torch.channels_last)
    calls.clear()
    assert one_by_one(double, batch[:0]).shape == (0, 4, 5, 6) and calls == [0]


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e4])
def test_unit_planes_are_normalize(scale):
    torch.manual_seed(0)
    x = scale * torch.randn(2, 5, 3, 4).to(memory_format=torch.channels_last)
    x[0, :, 1, 1] = 0
    x[1, :, 1, 1] = 1e-17  # far shorter than what is divided by at least
    gradient = torch.randn(2, 5, 3, 4)
    exact = x.double().requires_grad_()
    wanted = F.normalize(exact, dim=1)
    wanted.backward(gradient.double())
    x.requires_grad_()
    found = unit_planes(x, torch.float32)
    # Not by `backward`, which lays a leaf's gradient out as the leaf is.
    back, = torch.autograd.grad(found, x, gradient)
    assert found.is_contiguous() and back.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(found.double(), wanted, atol=1e-6)
    assert torch.allclose(back.double(), exact.grad, rtol=1e-5, atol=1e-5 / scale)
    with torch.no_grad():
        assert torch.equal(unit_planes(x, torch.float32), found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unit_planes_round_once(dtype):
    torch.manual_seed(0)
    x = torch.randn(2, 64, 3, 4).bfloat16().requires_grad_()
    found = unit_planes(x, dtype)
    assert found.dtype == dtype
    assert torch.equal(found, F.normalize(x.float(), dim=1).to(dtype))
    found.sum().backward()
    assert x.grad.dtype == torch.bfloat16
