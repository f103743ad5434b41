"""What makes networks on images train faster on a CPU; otherwise torch's own."""

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from posemodel.runtime.memory_format import channels_last, is_compiled

#: Channels on both sides from which the weights' gradient is taken as matrix products.
WIDE = 64
#: Whether torch is slow at that gradient in channels-last, and at that alone. With AVX2 it is: for
#: 3 x 3, 256 -> 256 on 7 maps of 64 x 64 it takes 0.58 s on two cores, the products 0.27 (narrower
#: layers gain nothing). With AVX-512 torch is the quicker one, by a tenth at 256 channels, by half
#: at 64.
SLOW_GRADIENT = torch.backends.cpu.get_cpu_capability() == "AVX2"


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


def normalized(convolution: nn.Conv2d | nn.ConvTranspose2d) -> list[nn.Module]:
    """A convolution, which needs no bias, with BatchNorm and ReLU."""
    return [convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU(inplace=True)]


def network_dtype(device: torch.device) -> torch.dtype:
    """What convolutions compute in: float32, or autocast's."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) \
        else torch.float32


def planes(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`[B, C, H, W]` in channels-last from convolutions, in planes and in `dtype` for operators
    that read those; the gradient goes back as it was left. Without that it stays in planes, and
    BatchNorm's backward takes many times as long for the two layouts."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return _in_planes(x, dtype)  # also what torch.jit.trace can save
    return _Planes.apply(x, dtype)


def _in_planes(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype, memory_format=torch.contiguous_format, copy=True)


class _Planes(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = x.dtype
        return _in_planes(x, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        return channels_last(gradient).to(ctx.dtype), None


def unit_planes(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`planes` of features `[B, C, H, W]` that are made as long as 1 at each location, in float32
    (`F.normalize`, whose backward goes through memory nine times, this one four)."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return _in_planes(F.normalize(x.float(), dim=1), dtype)
    return _UnitPlanes.apply(x, dtype)


class _UnitPlanes(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = x.dtype
        unit = x.float()
        length = torch.linalg.vector_norm(unit, dim=1, keepdim=True).clamp_min_(1e-12)
        unit = unit / length
        ctx.save_for_backward(unit, length)
        return _in_planes(unit, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        # What is along the feature does not change its direction.
        unit, length = ctx.saved_tensors
        gradient = channels_last(gradient).to(torch.float32, copy=True)
        along = (gradient * unit).sum(dim=1, keepdim=True)
        gradient.addcmul_(unit, along, value=-1).div_(length)
        return gradient.to(ctx.dtype), None


def _split(layer: nn.Conv2d | nn.ConvTranspose2d, x: Tensor) -> bool:
    return (SLOW_GRADIENT and x.device.type == "cpu" and x.dtype == torch.float32
            and torch.is_grad_enabled() and layer.weight.requires_grad and layer.bias is None
            and min(layer.in_channels, layer.out_channels) >= WIDE
            and not torch.is_autocast_enabled("cpu"))


class _SplitBackward(torch.autograd.Function):
    """A convolution whose weights get their gradient from `weight_gradient`."""

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
            of_x = torch.ops.aten.convolution_backward(
                gradient, x, weight, None, *ctx.form, [True, False, False])[0]
        if ctx.needs_input_grad[1]:
            stride, padding, _, transposed, *_ = ctx.form
            coarse, fine = (x, gradient) if transposed else (gradient, x)
            of_weight = weight_gradient(coarse, fine, weight.shape[2:], stride, padding)
        return of_x, of_weight, None, None, None


def weight_gradient(coarse: Tensor, fine: Tensor, kernel: tuple[int, int], stride: tuple[int, int],
                    padding: tuple[int, int]) -> Tensor:
    """`W[a, b, k] = sum over images and p of coarse[a, p] fine[b, stride p + k - padding]`, which
    is zero outside.

    Args:
        coarse: `[B, A, h, w]`, the gradient of a convolution's result, or the input of a transposed
            one.
        fine: `[B, C, H, W]`, the input, or the gradient of a transposed one's result.

    Returns: `[A, C, *kernel]`.
    """
    (batch, width, *size), wide = coarse.shape, fine.shape[1]
    # By remainders of the stride, fine falls into grids with the step of coarse. In rows of
    # channels with a common edge of zeros, a tap is one of them, some rows further: a product.
    grid = [n + (k - 1) // s for n, k, s in zip(size, kernel, stride, strict=True)]
    left = coarse.new_zeros(batch, *grid, width)
    left[:, :size[0], :size[1]] = coarse.movedim(1, 3)
    right = fine.new_zeros(*stride, batch, *grid, wide)
    for y, x in itertools.product(*map(range, stride)):
        part, place = fine.movedim(1, 3), [slice(None)]
        for axis, (rest, s, pad) in enumerate(zip((y, x), stride, padding, strict=True)):
            first = -((rest - pad) // s)
            start = s * first + rest - pad
            part = part[(slice(None),) * (axis + 1) + (slice(start, None, s),)]
            part = part.narrow(axis + 1, 0, min(part.shape[axis + 1], grid[axis] - first))
            place.append(slice(first, first + part.shape[axis + 1]))
        right[y, x][tuple(place)] = part
    left, right = left.flatten(0, 2), right.flatten(2, 4)
    furthest = sum((k - 1) // s * step for k, s, step in zip(kernel, stride, (grid[1], 1),
                                                             strict=True))
    left = left[: len(left) - furthest]
    taps = []
    for y, x in itertools.product(*map(range, kernel)):
        shift = y // stride[0] * grid[1] + x // stride[1]
        rows = right[y % stride[0], x % stride[1], shift : shift + len(left)]
        taps.append(rows.T @ left)  # quicker than its transpose
    return torch.stack(taps).view(*kernel, wide, width).permute(3, 2, 0, 1)


def one_by_one(function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """`function(batch)`, of a function that treats each sample for itself.

    On a CPU a sample at a time: what is in between then stays in the cache, where that of a batch
    goes through memory once for every operator. Code that is compiled or exported, for any batch,
    has the one call, and so has a GPU.
    """
    # Asking for the length would bind exported code to it.
    whole = is_compiled(batch) or len(batch) == 0
    return function(batch) if whole else torch.cat([function(one) for one in batch.split(1)])
