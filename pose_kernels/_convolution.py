"""A convolution with a map that exists only in bands of rows, as products of matrices.

The map M has S channels and comes in bands of rows. A form of the convolution keeps a band as V,
[phases, S, columns], and makes of the weights U, [components, n * taps, S]. Each band adds

    P = U V, put together and moved by each tap, to the output Y,

and takes from the upstream gradient dY

    G, the parts of dY that meet the taps;  dU += V G^T;  dV = U^T G.

Y and dY have an edge of kh - 1 rows (and columns, where taps run along x), so that taps may reach
over the borders; padding is "same" as torch has it: an odd one more is at the end.
"""

import torch

from . import _library

for _schema in _library.CPU_SCHEMAS:  # they write into their arguments
    torch.library.register_fake(f"pose_kernels::{_schema.partition('(')[0]}", lambda *_: None)


def _multiply(a, b, wide):
    """a @ b in `wide`, their dtype or the float32 they are summed in."""
    return torch.bmm(a, b) if a.dtype == wide else torch.bmm(a, b, out_dtype=wide)


class Direct:
    """Every tap of the window by itself: V is the map, U the weight. In torch, on any device."""

    phases = 1

    def __init__(self, kernel: tuple[int, int], size: tuple[int, int]):
        self.kernel, self.size = kernel, size
        kh, kw = kernel
        self.taps = [(dy, dx) for dy in range(kh) for dx in range(kw)]
        self.products = len(self.taps)  # values of U for each output and source
        self.row = size[1]  # columns of V that a row of the map has
        self.edged_size = (size[0] + kh - 1, size[1] + kw - 1)

    def weight(self, weight: torch.Tensor, dtype: torch.dtype, empty) -> torch.Tensor:
        """[n, S, kh, kw] -> U as `add_output` reads it; `empty(shape, dtype)` gives its memory."""
        U = weight.flatten(2).transpose(1, 2)  # a channels-last weight is that already
        if U.dtype != dtype or not U.is_contiguous():
            U = empty(U.shape, dtype).copy_(U)
        return U.flatten(0, 1)[None]

    def transposed_weight(self, weight: torch.Tensor, dtype: torch.dtype, empty) -> torch.Tensor:
        """[n, S, kh, kw] -> U as `map_gradient` reads it."""
        return self.weight(weight, dtype, empty).transpose(1, 2)

    def weight_sums(self, outputs: int, sources: int) -> tuple[int, ...]:
        """The shape of dU."""
        return (1, sources, outputs * len(self.taps))  # quicker to add to than its transpose

    def weight_gradient(self, dU: torch.Tensor, dW: torch.Tensor) -> None:
        """dU -> dW, [n, S, kh, kw]."""
        dW.copy_(dU[0].unflatten(1, (len(dW), -1)).transpose(0, 1).unflatten(2, self.kernel))

    def groups(self, z: torch.Tensor) -> list[torch.Tensor]:
        """Features [B, m, h, w] -> the targets of each phase of the map, [B, m, h, row]."""
        return [z]

    def ungroup(self, z: list[torch.Tensor]) -> torch.Tensor:
        """The adjoint of `groups`: gradients [B, m, h, row] -> [B, m, h, w]."""
        return z[0]

    def inner(self, Y: torch.Tensor) -> torch.Tensor:
        """[n, *edged_size] -> [n, h, w]."""
        top, left = (k - 1 - (k - 1) // 2 for k in self.kernel)
        return Y[:, top : top + self.size[0], left : left + self.size[1]]

    def _met(self, Y: torch.Tensor, first: int, rows: int):
        """For each tap the part of Y or dY that a band meets, [n, rows, columns]."""
        kh, kw = self.kernel
        for dy, dx in self.taps:
            top, left = first + kh - 1 - dy, kw - 1 - dx
            yield Y[:, top : top + rows, left : left + self.row]

    def _gradient(self, dY: torch.Tensor, first: int, V: torch.Tensor) -> torch.Tensor:
        """G for a band like V, in its dtype, [1, n * taps, columns]."""
        shape = (len(dY), len(self.taps), V.shape[2] // self.row, self.row)
        G = V.new_empty(shape)
        for tap, part in enumerate(self._met(dY, first, shape[2])):
            G[:, tap] = part
        return G.flatten(2).flatten(0, 1)[None]

    def add_output(self, U: torch.Tensor, V: torch.Tensor, first: int, Y: torch.Tensor) -> None:
        """Adds what the band V from row `first` on gives to Y, [n, *edged_size]."""
        rows = V.shape[2] // self.row
        P = _multiply(U, V, Y.dtype).view(len(Y), len(self.taps), rows, self.row)
        for tap, part in enumerate(self._met(Y, first, rows)):
            part += P[:, tap]

    def map_gradient(self, U: torch.Tensor, dY: torch.Tensor, first: int, dV: torch.Tensor) -> None:
        """Fills dV with the gradient of the band."""
        torch.bmm(U, self._gradient(dY, first, dV), out=dV)

    def add_weight_gradient(
        self, V: torch.Tensor, dY: torch.Tensor, first: int, dU: torch.Tensor
    ) -> None:
        G = self._gradient(dY, first, V).transpose(1, 2)
        if dU.dtype == V.dtype:
            dU.baddbmm_(V, G)
        else:
            dU += _multiply(V, G, dU.dtype)


class WinogradAlongX(Direct):
    """F(2, 3) along x: 4 products for 2 columns of the output instead of 6. In C++, on a CPU; the
    mathematics is in csrc/cpu/winograd.cpp.

    V are the even and the odd columns of the map. An odd width gets one more column of zero
    features, whose map is zero.
    """

    phases = 2

    def __init__(self, kernel: tuple[int, int], size: tuple[int, int]):
        self.kernel, self.size = kernel, size
        self.products = 4 * kernel[0]
        self.row = -(-size[1] // 2)
        self.edged_size = (size[0] + kernel[0] - 1, 2 * self.row)
        self.ops = torch.ops.pose_kernels

    def _pack(self, weight, transposed, rows, depth, dtype, empty):
        U = empty((4, -(-rows // 12) * 12, depth), dtype)  # every instruction set's panels fit
        self.ops.winograd_weight(weight, transposed, U)
        return U

    def weight(self, weight: torch.Tensor, dtype: torch.dtype, empty) -> torch.Tensor:
        n, S, kh, _ = weight.shape
        return self._pack(weight, False, n * kh, S, dtype, empty)

    def transposed_weight(self, weight: torch.Tensor, dtype: torch.dtype, empty) -> torch.Tensor:
        n, S, kh, _ = weight.shape
        return self._pack(weight, True, S, n * kh, dtype, empty)

    def weight_sums(self, outputs: int, sources: int) -> tuple[int, ...]:
        return (4, sources, outputs * self.kernel[0])

    def weight_gradient(self, dU: torch.Tensor, dW: torch.Tensor) -> None:
        self.ops.winograd_weight_gradient(dU, dW)

    def groups(self, z: torch.Tensor) -> list[torch.Tensor]:
        if z.shape[3] % 2:
            z = torch.nn.functional.pad(z, (0, 1))
        return [z[..., 0::2], z[..., 1::2]]

    def ungroup(self, z: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(z, dim=-1).flatten(3)[..., : self.size[1]]

    def inner(self, Y: torch.Tensor) -> torch.Tensor:
        top = self.kernel[0] - 1 - (self.kernel[0] - 1) // 2
        return Y[:, top : top + self.size[0], : self.size[1]]

    def add_output(self, U: torch.Tensor, V: torch.Tensor, first: int, Y: torch.Tensor) -> None:
        self.ops.winograd_add_output(U, V, first, self.kernel[0], Y)

    def map_gradient(self, U: torch.Tensor, dY: torch.Tensor, first: int, dV: torch.Tensor) -> None:
        self.ops.winograd_map_gradient(U, dY, first, self.kernel[0], dV)

    def add_weight_gradient(
        self, V: torch.Tensor, dY: torch.Tensor, first: int, dU: torch.Tensor
    ) -> None:
        self.ops.winograd_add_weight_gradient(V, dY, first, self.kernel[0], dU)
