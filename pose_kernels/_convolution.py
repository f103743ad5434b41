"""A convolution with a map that exists only in bands of rows, as products of matrices.

The map M has S channels and comes in bands of rows. A form of the convolution turns a band into
`components` matrices V_c [S, columns] and the weights into U_c [n * taps, S]. Then each band adds

    P_c = U_c V_c, put together and moved by each tap, to the output Y,

and takes from the upstream gradient dY

    G_c, the parts of dY that meet the taps;  dU_c += V_c G_c^T;  dV_c = U_c^T G_c.

Y and dY have an edge of kh - 1 rows (and columns, where taps run along x), so that taps may reach
over the borders; padding is "same" as torch has it: an odd one more is at the end.
"""

import torch


class Direct:
    """Every tap of the window by itself: V is the map, U the weight."""

    components = 1

    def __init__(self, kernel: tuple[int, int], size: tuple[int, int]):
        self.kernel, self.size = kernel, size
        kh, kw = kernel
        self.taps = [(dy, dx) for dy in range(kh) for dx in range(kw)]
        self.row = size[1]  # columns of V that a row of the map has
        self.edged_size = (size[0] + kh - 1, size[1] + kw - 1)

    def weight(self, weight: torch.Tensor, empty) -> torch.Tensor:
        """[n, S, kh, kw] -> U, [1, n, taps, S]; `empty` gives the memory of a copy."""
        U = weight.flatten(2).transpose(1, 2)  # a channels-last weight is that already
        return (U if U.is_contiguous() else empty(U.shape).copy_(U))[None]

    def weight_gradient(self, dU: torch.Tensor, dW: torch.Tensor) -> None:
        """dU [1, S, n, taps], written over -> dW, [n, S, kh, kw]."""
        dW.copy_(dU[0].transpose(0, 1).unflatten(2, self.kernel))

    def groups(self, z: torch.Tensor) -> list[torch.Tensor]:
        """Features [B, m, h, w] -> the targets of each map that a band is made of, [B, m, h, row].
        """
        return [z]

    def ungroup(self, z: list[torch.Tensor]) -> torch.Tensor:
        """The adjoint of `groups`: gradients [B, m, h, row] -> [B, m, h, w]."""
        return z[0]

    def maps(self, V: torch.Tensor) -> list[torch.Tensor]:
        """The parts of V [1, S, rows, row] that hold the maps, [S, rows, row] each."""
        return [V[0]]

    def from_maps(self, V: torch.Tensor) -> None:
        """The maps in V -> V, in place."""

    def to_maps(self, dV: torch.Tensor) -> None:
        """The adjoint of `from_maps`, in place."""

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

    def add_output(self, P: torch.Tensor, Y: torch.Tensor, first: int) -> None:
        """Adds P [components, n, taps, rows, row], written over, to Y [n, *edged_size]."""
        for tap, part in enumerate(self._met(Y, first, P.shape[3])):
            part += P[0, :, tap]

    def gradient(self, dY: torch.Tensor, first: int, G: torch.Tensor) -> None:
        """The adjoint of `add_output`: fills G [components, n, taps, rows, row]."""
        for tap, part in enumerate(self._met(dY, first, G.shape[3])):
            G[0, :, tap] = part


class WinogradAlongX(Direct):
    """F(2, 3) along x (Winograd; Lavin and Gray 2016, section 4.1): 4 products for 2 columns of the
    output instead of 6.

    With even and odd columns e_j = M(2j), o_j = M(2j + 1) and the weights g_0, g_1, g_2 of a row:

        V_0 = o_{j-1} - o_j    U_0 = g_0                      Y(2j)     = P_0 + P_1 + P_2
        V_1 = e_j + o_j        U_1 = (g_0 + g_1 + g_2) / 2    Y(2j + 1) = P_1 - P_2 - P_3
        V_2 = o_j - e_j        U_2 = (g_0 - g_1 + g_2) / 2
        V_3 = e_j - e_{j+1}    U_3 = g_2

    An odd width gets one more column of zero features, whose map is zero.
    """

    components = 4

    def __init__(self, kernel: tuple[int, int], size: tuple[int, int]):
        self.kernel, self.size = kernel, size
        kh, _ = kernel
        self.taps = [(dy, 0) for dy in range(kh)]
        self.row = -(-size[1] // 2)
        self.edged_size = (size[0] + kh - 1, 2 * self.row)

    def weight(self, weight: torch.Tensor, empty) -> torch.Tensor:
        """[n, S, kh, 3] -> U, [4, n, kh, S]."""
        n, S, kh, _ = weight.shape
        g_0, g_1, g_2 = weight.permute(3, 0, 2, 1)
        U = empty((4, n, kh, S))
        U[0] = g_0
        U[3] = g_2
        U[1] = g_1
        torch.add(U[0], U[3], out=U[2]).sub_(U[1]).mul_(0.5)
        U[1].add_(U[2])
        return U

    def weight_gradient(self, dU: torch.Tensor, dW: torch.Tensor) -> None:
        dU_0, dU_1, dU_2, dU_3 = dU
        dU_1.mul_(0.5)
        dU_0.add_(dU_1).add_(dU_2, alpha=0.5)
        dU_3.add_(dU_1).add_(dU_2, alpha=0.5)
        dU_1.sub_(dU_2, alpha=0.5)
        for part, dg in zip((dU_0, dU_1, dU_3), dW.unbind(3), strict=True):
            dg.copy_(part.transpose(0, 1))

    def groups(self, z: torch.Tensor) -> list[torch.Tensor]:
        if z.shape[3] % 2:
            z = torch.nn.functional.pad(z, (0, 1))
        return [z[..., 0::2], z[..., 1::2]]

    def ungroup(self, z: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(z, dim=-1).flatten(3)[..., : self.size[1]]

    def maps(self, V: torch.Tensor) -> list[torch.Tensor]:
        return [V[1], V[2]]

    def from_maps(self, V: torch.Tensor) -> None:
        V_0, even, odd, V_3 = V
        torch.sub(odd[..., :-1], odd[..., 1:], out=V_0[..., 1:])
        torch.neg(odd[..., :1], out=V_0[..., :1])
        torch.sub(even[..., :-1], even[..., 1:], out=V_3[..., :-1])
        V_3[..., -1:] = even[..., -1:]
        even.add_(odd)
        odd.mul_(2).sub_(even)

    def to_maps(self, dV: torch.Tensor) -> None:
        dV_0, even, odd, dV_3 = dV
        odd.add_(even)
        even.mul_(2).sub_(odd)
        even.add_(dV_3)
        even[..., 1:].sub_(dV_3[..., :-1])
        odd.sub_(dV_0)
        odd[..., :-1].add_(dV_0[..., 1:])

    def inner(self, Y: torch.Tensor) -> torch.Tensor:
        top = self.kernel[0] - 1 - (self.kernel[0] - 1) // 2
        return Y[:, top : top + self.size[0], : self.size[1]]

    def _met(self, Y: torch.Tensor, first: int, rows: int):
        for dy, _ in self.taps:
            top = first + self.kernel[0] - 1 - dy
            yield Y[:, top : top + rows, 0::2], Y[:, top : top + rows, 1::2]

    def add_output(self, P: torch.Tensor, Y: torch.Tensor, first: int) -> None:
        P_0, P_1, P_2, P_3 = P
        P_0.add_(P_1).add_(P_2)
        P_1.sub_(P_2).sub_(P_3)
        for tap, (even, odd) in enumerate(self._met(Y, first, P.shape[3])):
            even += P_0[:, tap]
            odd += P_1[:, tap]

    def gradient(self, dY: torch.Tensor, first: int, G: torch.Tensor) -> None:
        for tap, (even, odd) in enumerate(self._met(dY, first, G.shape[3])):
            G_0, G_1, G_2, G_3 = G[:, :, tap]
            G_0.copy_(even)
            torch.add(even, odd, out=G_1)
            torch.sub(even, odd, out=G_2)
            torch.neg(odd, out=G_3)
