"""Convolutions of images that train faster on a CPU; otherwise torch's own."""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

#: Channels on both sides from which a CPU takes the gradient of the weights in plain
# (channels-first) layout. torch is slow at just that one in channels-last: 7 images, 3 x 3,
# 256 -> 256 at 64 x 64: 0.66 s, in plain layout 0.45 s with the copies; 64 -> 128 at 256 x 256 with
# stride 2: 0.74 and 0.39. The result and the gradient of the input are up to twice as fast in
# channels-last. (Two cores of AVX2; narrower layers gain nothing.)
WIDE = 64


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d`, zero padding; with the same weights and the same result to rounding."""

    def forward(self, x: Tensor) -> Tensor:
        if not _split(self, x):
            return super().forward(x)
        return _SplitBackward.apply(x, self.weight, self.stride, self.padding, False)


class ConvTranspose2d(nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d`; with the same weights and the same result to rounding."""

    def forward(self, x: Tensor) -> Tensor:
        if not _split(self, x):
            return super().forward(x)
        return _SplitBackward.apply(x, self.weight, self.stride, self.padding, True)


def _split(layer: nn.Conv2d | nn.ConvTranspose2d, x: Tensor) -> bool:
    return (x.device.type == "cpu" and x.dtype == torch.float32 and torch.is_grad_enabled()
            and layer.weight.requires_grad and layer.bias is None
            and min(layer.in_channels, layer.out_channels) >= WIDE
            and not torch.is_autocast_enabled("cpu"))


class _SplitBackward(torch.autograd.Function):
    """A convolution in channels-last whose weights get their gradient in plain layout."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int],
                transposed: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.form = (stride, padding, (1, 1), transposed, (0, 0), 1)
        return torch.ops.aten.convolution(x, weight, None, *ctx.form)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        x, weight = ctx.saved_tensors
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = _backward(gradient, x, weight, ctx.form, [True, False, False])[0]
        if ctx.needs_input_grad[1]:
            of_weight = _backward(gradient.contiguous(), x.contiguous(), weight.contiguous(),
                                  ctx.form, [False, True, False])[1]
        return of_x, of_weight, None, None, None


def _backward(gradient: Tensor, x: Tensor, weight: Tensor, form: tuple, wanted: list[bool]):
    return torch.ops.aten.convolution_backward(gradient, x, weight, None, *form, wanted)
