"""A convolution with a map that exists only in bands of rows, as products of matrices.

The map M has S channels and comes in bands of rows. A form of the convolution, one of the two
classes here, keeps a band as V, [phases, S, columns], and makes of the weights U,
[components, n * taps, S]. Each band adds

    P = U V, put together and moved by each tap, to the output Y,

and takes from the upstream gradient dY

    G, the parts of dY that meet the taps;  dU += V G^T;  dV = U^T G.

Y and dY have an edge of kh - 1 rows (and columns, where taps run along x), so that taps may reach
over the borders; padding is "same" as torch has it: an odd one more is at the end.
"""

import torch

from . import _library

# On a CPU only: the convolution by Winograd's F(2, 3) along x, see csrc/cpu/winograd.cpp; the
# products in float32 or float64. `maps` are the even and the odd columns of a band,
# [2, S, rows * w/2], Y and dY are [n, h + kh - 1, w] and even in width, R = n * kh.
_library.define(
    # The weight [n, S, kh, 3], strided and of any floating dtype, in panels: U is
    # [4, R to a multiple of 12, S], or transposed [4, S to a multiple of 12, R].
    "winograd_weight(Tensor weight, bool transposed, Tensor(a!) U) -> ()",
    # For the band from row `first` on: adds its part of the output to Y, with a U that is not
    # transposed; its gradient, with a transposed U; adds its part to dU [4, S, R].
    "winograd_add_output(Tensor U, Tensor maps, SymInt first, SymInt kh, Tensor(a!) Y) -> ()",
    "winograd_map_gradient(Tensor U, Tensor dY, SymInt first, SymInt kh, Tensor(a!) maps) -> ()",
    "winograd_add_weight_gradient(Tensor maps, Tensor dY, SymInt first, SymInt kh,"
    " Tensor(a!) dU) -> ()",
    # The sum dU to the gradient [n, S, kh, 3] of any floating dtype.
    "winograd_weight_gradient(Tensor dU, Tensor(a!) weight_grad) -> ()",
    namespaces=("pose_kernels",),
)


def _multiply(a, b, wide):
    """a @ b in `wide`, their dtype or the float32 they are summed in."""
    return torch.bmm(a, b) if a.dtype == wide else torch.bmm(a, b, out_dtype=wide)


class Direct:
    """Every tap of the window by itself: V is the map, U the weight. In torch, on any device."""

    phases = 1  # matrices that a band is kept in
    haloed = False

    def __init__(self, kernel: tuple[int, int], size: tuple[int, int]):
        self.kernel, self.size = kernel, size
        kh, kw = kernel
        self.taps = [(dy, dx) for dy in range(kh) for dx in range(kw)]
        self.products = len(self.taps)  # values of U for each output and source
        self.row = size[1]  # columns of V that a row of the map has
        self.edged_size = (size[0] + kh - 1, size[1] + kw - 1)  # of Y and dY

    def weight(self, weight, transposed, dtype, empty):
        """[n, S, kh, kw] -> U as `add_output` reads it, or transposed as `map_gradient` does;
        `empty(shape, dtype)` gives its memory."""
        U = weight.flatten(2).transpose(1, 2)  # a channels-last weight is that already
        if U.dtype != dtype or not U.is_contiguous():
            U = empty(U.shape, dtype).copy_(U)
        U = U.flatten(0, 1)[None]
        return U.transpose(1, 2) if transposed else U

    def weight_sums(self, outputs, sources):
        """The shape of dU."""
        return (1, sources, outputs * len(self.taps))  # quicker to add to than its transpose

    def weight_gradient(self, dU, dW):
        """dU -> dW, [n, S, kh, kw]."""
        dW.copy_(dU[0].unflatten(1, (len(dW), -1)).transpose(0, 1).unflatten(2, self.kernel))

    def groups(self, z):
        """Features [B, m, h, w] -> the targets of each phase of the map, [B, m, h, row]."""
        return [z]

    def ungroup(self, z):
        """The adjoint of `groups`: gradients [B, m, h, row] -> [B, m, h, w]."""
        return z[0]

    def inner(self, Y):
        """[n, *edged_size] -> [n, h, w]."""
        top, left = (k - 1 - (k - 1) // 2 for k in self.kernel)
        return Y[:, top : top + self.size[0], left : left + self.size[1]]

    def add_output(self, U, V, first, Y):
        """Adds what the band V from row `first` on gives to Y, [n, *edged_size]."""
        rows = V.shape[2] // self.row
        P = _multiply(U, V, Y.dtype).view(len(Y), len(self.taps), rows, self.row)
        for tap, part in enumerate(self._met(Y, first, rows)):
            part += P[:, tap]

    def map_gradient(self, U, dY, first, dV):
        """Fills dV with the gradient of the band."""
        torch.bmm(U, self._gradient(dY, first, dV), out=dV)

    def add_weight_gradient(self, V, dY, first, dU):
        """Adds the band's part to dU."""
        G = self._gradient(dY, first, V).transpose(1, 2)
        if dU.dtype == V.dtype:
            dU.baddbmm_(V, G)
        else:
            dU += _multiply(V, G, dU.dtype)

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


class Library(Direct):
    """The library's own convolution, on a GPU. V is the map channels-last, as its tensor cores read
    it, with the rows and columns beside the band that the window reaches: zeros where they lie
    outside, for that is the map of targets without features. So nothing is padded or reordered.
    The gradient of the weight is that of `Direct`, summed in float32.
    """

    haloed = True

    def __init__(self, kernel, size, tf32):
        super().__init__(kernel, size)
        self.tf32 = tf32
        self.before = tuple((k - 1) // 2 for k in kernel)  # rows above, columns left

    def weight(self, weight, transposed, dtype, empty):
        """Transposed: the window turned around, sources for outputs."""
        if transposed:
            weight = weight.flip(2, 3).transpose(0, 1)
        U = empty((weight.shape[0], *weight.shape[2:], weight.shape[1]), dtype)
        return U.movedim(3, 1).copy_(weight)

    def halo(self, z):
        """[B, m, h, w] -> [B, m, h + kh - 1, w + kw - 1], zeros around."""
        (above, left), (kh, kw) = self.before, self.kernel
        return torch.nn.functional.pad(z, (left, kw - 1 - left, above, kh - 1 - above))

    def without_halo(self, z):
        above, left = self.before
        return z[..., above : above + self.size[0], left : left + self.size[1]]

    def add_output(self, U, V, first, Y):
        part = self._convolve(V.unflatten(2, (-1, self.edged_size[1])), U)[0]
        self.inner(Y)[:, first : first + part.shape[1]] += part

    def band_gradient(self, U, dY, first, rows):
        """The gradient of the band of so many rows, [1, S, rows * columns], channels-last."""
        met = dY[None, :, first : first + rows + self.kernel[0] - 1]
        return self._convolve(met.to(U.dtype, memory_format=torch.channels_last), U).flatten(2)

    def _convolve(self, x, weight):
        """Without padding; the same bits each time."""
        benchmark, deterministic, cudnn = False, True, True
        return torch.ops.aten._convolution(x, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0],
                                           1, benchmark, deterministic, cudnn, self.tf32)


class WinogradAlongX:
    """F(2, 3) along x: 4 products for 2 columns of the output instead of 6. In C++, on a CPU; the
    mathematics is in csrc/cpu/winograd.cpp.

    The same face as `Direct`. V are the even and the odd columns of the map. An odd width gets one
    more column of zero features, whose map is zero.
    """

    phases, haloed = 2, False

    def __init__(self, kernel: tuple[int, int], size: tuple[int, int]):
        self.kernel, self.size = kernel, size
        self.products = 4 * kernel[0]
        self.row = -(-size[1] // 2)
        self.edged_size = (size[0] + kernel[0] - 1, 2 * self.row)
        self.ops = torch.ops.pose_kernels

    def weight(self, weight, transposed, dtype, empty):
        n, S, kh, _ = weight.shape
        rows, depth = (S, n * kh) if transposed else (n * kh, S)
        U = empty((4, -(-rows // 12) * 12, depth), dtype)  # every instruction set's panels fit
        self.ops.winograd_weight(weight, transposed, U)
        return U

    def weight_sums(self, outputs, sources):
        return (4, sources, outputs * self.kernel[0])

    def weight_gradient(self, dU, dW):
        self.ops.winograd_weight_gradient(dU, dW)

    def groups(self, z):
        if z.shape[3] % 2:
            z = torch.nn.functional.pad(z, (0, 1))
        return [z[..., 0::2], z[..., 1::2]]

    def ungroup(self, z):
        return torch.stack(z, dim=-1).flatten(3)[..., : self.size[1]]

    def inner(self, Y):
        top = self.kernel[0] - 1 - (self.kernel[0] - 1) // 2
        return Y[:, top : top + self.size[0], : self.size[1]]

    def add_output(self, U, V, first, Y):
        self.ops.winograd_add_output(U, V, first, self.kernel[0], Y)

    def map_gradient(self, U, dY, first, dV):
        self.ops.winograd_map_gradient(U, dY, first, self.kernel[0], dV)

    def add_weight_gradient(self, V, dY, first, dU):
        self.ops.winograd_add_weight_gradient(V, dY, first, self.kernel[0], dU)
