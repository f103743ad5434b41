"""Guided correlation and the convolution that reads it, the map never stored.

Eqs. 1, 9, 2 and the first layer of C_l:

Y = conv2d(Qhat, weight, bias, padding="same"),  Qhat = guided_correlation(source, target).

The map is made in bands of target rows, used and thrown away. With W_k the weights of tap k = (dy,
dx), [n, S], and the band M [S, band]: P_k = W_k M for all taps at once is one product, and Y is the
sum of the P_k, each shifted by its tap. Backward makes each band again: with G_k the upstream
gradient shifted by tap k, dM = sum_k W_k^T G_k and dW_k += G_k M^T are one product each; dM goes on
through guided_correlation's own backward. So a band needs no halo, and memory is a band and a copy
of the weights.
"""

import math
import mmap
import os

import torch
import torch.nn.functional as F

from . import _checks, _dispatch, _library
from .guided_correlation import fake_statistics
from .guided_correlation import reference as guided_correlation_reference

#: Bytes of one band, and of the copied weights. On a CPU the band stays in the cache between its
# making and its use; on a GPU it keeps every multiprocessor busy.
BUFFER_BYTES = {"cpu": 6 << 20, "cuda": 64 << 20}
#: Columns of a band that a product needs to run at full speed, whatever their bytes.
BAND_COLUMNS = 256
#: The weights are copied in no more parts than this: each part reads the band once more.
WEIGHT_PARTS = 4


def reference(source, target, weight, bias, eps: float) -> torch.Tensor:
    Q = guided_correlation_reference(source, target, eps).to(weight.dtype)
    return F.conv2d(Q, weight, bias, padding="same")


_dispatch.register("guided_correlation_conv2d", "reference", reference)


def _zeros(shape, dtype, device) -> torch.Tensor:
    """Large zeros. On a CPU the system gets them back at once: malloc would keep what forward is
    done with, and backward's peak would be the sum of both."""
    size = math.prod(shape)
    if device.type != "cpu" or size == 0:
        return torch.zeros(shape, dtype=dtype, device=device)
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if os.name == "posix" else {}
    memory = mmap.mmap(-1, size * dtype.itemsize, **private)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


class _Bands:
    """The walk over bands of target rows and over parts of the weights, for one call."""

    def __init__(self, source, target, weight):
        self.height, self.width = target.shape[2:]
        self.kernel = kh, kw = weight.shape[2:]
        self.outputs, self.sources = weight.shape[:2]
        self.taps = kh * kw
        self.wide = _checks.compute_dtype(torch.promote_types(source.dtype, weight.dtype))
        self.device = source.device
        # CPUs multiply float16 and bfloat16 no faster, GPUs sum them in float32.
        self.operand = weight.dtype if source.is_cuda else self.wide
        self.z_s, self.z_t = (z.to(self.wide).flatten(2).contiguous() for z in (source, target))
        budget = BUFFER_BYTES[self.device.type]
        row = self.sources * self.width * self.operand.itemsize
        self.rows = min(max(budget // row, -(-BAND_COLUMNS // self.width), 1), self.height)
        # [n, taps, S], as the products read them: a channels-last weight is that already.
        self.weight, self.copied = weight.to(self.operand).flatten(2).transpose(1, 2), None
        size = weight.numel() * self.operand.itemsize
        parts = min(-(-size // budget), WEIGHT_PARTS, self.outputs)
        # With the sum of the parts in 16 bits, the gradient would be rounded once for each.
        if self.operand != self.wide or self.weight.is_contiguous():
            parts = 1
        step = -(-self.outputs // parts)
        starts = range(0, self.outputs, step)
        self.parts = [slice(first, min(first + step, self.outputs)) for first in starts]
        if not self.weight.is_contiguous():
            self.copy = _zeros((step, self.taps, self.sources), self.operand, self.device)

    def __iter__(self):
        """First row, number of rows, and the buffer of the map, [1, S, rows * width]."""
        size = self.sources * self.rows * self.width
        buffer = _zeros((size,), self.operand, self.device)
        for first in range(0, self.height, self.rows):
            rows = min(self.rows, self.height - first)
            used = buffer[: self.sources * rows * self.width]
            yield first, rows, used.view(1, self.sources, rows * self.width)

    def weights(self, part):
        """The weights of some outputs, [outputs * taps, S]."""
        if self.weight.is_contiguous():
            return self.weight[part].flatten(0, 1)
        copy = self.copy[: part.stop - part.start]
        if self.copied != part:
            copy.copy_(self.weight[part])
            self.copied = part
        return copy.flatten(0, 1)

    def extended(self):
        """Zeros for results or gradients that the taps move beyond the edges, [n, h, w]."""
        kh, kw = self.kernel
        shape = (self.outputs, self.height + kh - 1, self.width + kw - 1)
        return torch.zeros(shape, dtype=self.wide, device=self.device)

    def inner(self, extended):
        """[n, height, width], as padding="same" of torch: an odd one more is at the end."""
        top, left = (k - 1 - (k - 1) // 2 for k in self.kernel)
        return extended[:, top : top + self.height, left : left + self.width]

    def shifted(self, extended, first, rows):
        """For every tap the part of `extended` that a band meets, [n, rows, width]."""
        kh, kw = self.kernel
        for dy in range(kh):
            for dx in range(kw):
                top, left = first + kh - 1 - dy, kw - 1 - dx
                yield extended[:, top : top + rows, left : left + self.width]


def _multiply(a, b, wide):
    """a @ b in `wide`, which is the operands' dtype or the float32 they are summed in."""
    return torch.mm(a, b) if a.dtype == wide else torch.mm(a, b, out_dtype=wide)


def _forward(ops, source, target, weight, bias, eps, tf32):
    with _checks.without_autocast(source.device):
        bands = _Bands(source, target, weight)
        shape = (source.shape[0], bands.outputs, bands.height, bands.width)
        result = source.new_empty(shape, dtype=weight.dtype)
        row_max, row_argmax = ops.guided_correlation_row_max(bands.z_s, bands.z_t, eps, tf32)
        norm = bands.z_t.new_empty(source.shape[0], bands.height * bands.width)
        for b in range(source.shape[0]):
            one = slice(b, b + 1)
            Y = bands.extended()
            for first, rows, M in bands:
                ops.guided_correlation_band(
                    bands.z_s[one], bands.z_t[one], row_max[one], eps, tf32,
                    first * bands.width, M, norm[one],
                )  # fmt: skip
                for part in bands.parts:
                    P = _multiply(bands.weights(part), M[0], bands.wide)
                    P = P.view(-1, bands.taps, rows, bands.width)
                    for tap, place in enumerate(bands.shifted(Y[part], first, rows)):
                        place += P[:, tap]
            Y = bands.inner(Y)
            result[b] = Y if bias is None else Y + bias.to(bands.wide)[:, None, None]
        return result, row_max, row_argmax, norm


def _backward_op(
    ops, grad, source, target, weight, row_max, row_argmax, norm, eps, tf32,
    features_grad, weight_grad,
):  # fmt: skip
    with _checks.without_autocast(source.device):
        bands = _Bands(source, target, weight)
        # [S, n * taps]: quicker to add to than its transpose.
        shape = (bands.sources, bands.outputs * bands.taps)
        dW = _zeros(shape, bands.wide, bands.device) if weight_grad else None
        sums = torch.zeros_like(bands.z_s), torch.zeros_like(bands.z_t), torch.zeros_like(row_max)
        for b in range(source.shape[0]):
            _backward_sample(
                ops, bands, grad[b], slice(b, b + 1), row_max, norm, eps, tf32, sums, dW,
                features_grad,
            )  # fmt: skip
        dz_s, dz_t, beta = sums
        if features_grad:
            ops.guided_correlation_row_max_backward(
                bands.z_s, bands.z_t, row_max, row_argmax, eps, beta, dz_s, dz_t
            )
        del bands  # its memory, before the last is taken
        return (
            dz_s.to(source.dtype).view_as(source) if features_grad else source.new_empty(0),
            dz_t.to(target.dtype).view_as(target) if features_grad else target.new_empty(0),
            weight.new_empty(0)
            if dW is None
            else dW.view(-1, *weight[:, 0].shape).transpose(0, 1).to(weight.dtype).contiguous(),
        )


def _backward_sample(ops, bands, grad, one, row_max, norm, eps, tf32, sums, dW, features_grad):
    z_s, z_t, row_max, norm = bands.z_s[one], bands.z_t[one], row_max[one], norm[one]
    same_norm = torch.empty_like(norm)
    extended = bands.extended()
    bands.inner(extended).copy_(grad)
    for first, rows, M in bands:
        begin, columns = first * bands.width, rows * bands.width
        shape = (bands.outputs, bands.taps, columns)
        G = torch.empty(shape, dtype=bands.operand, device=bands.device)
        for tap, place in enumerate(bands.shifted(extended, first, rows)):
            G[:, tap] = place.flatten(1)
        if dW is not None:
            ops.guided_correlation_band(z_s, z_t, row_max, eps, tf32, begin, M, same_norm)
            if dW.dtype == bands.operand:
                dW.addmm_(M[0], G.flatten(0, 1).t())
            else:
                dW += _multiply(M[0], G.flatten(0, 1).t(), bands.wide)
        if features_grad:
            dM = M[0]  # in the place of the map
            for part in bands.parts:
                weights, G_part = bands.weights(part).t(), G[part].flatten(0, 1)
                if part.start == 0:
                    torch.mm(weights, G_part, out=dM)
                else:
                    dM.addmm_(weights, G_part)
            dz_s, dz_t, beta = (x[one] for x in sums)
            ops.guided_correlation_band_backward(
                M, z_s, z_t, row_max, norm, eps, tf32, begin, dz_s, dz_t, beta
            )


def _register_kernels() -> None:
    for namespace in _library.NAMESPACES:
        ops = getattr(torch.ops, namespace)
        for name, function in (("", _forward), ("_backward", _backward_op)):
            for key in ("CPU", "CUDA"):
                _library.fragments[namespace].impl(
                    f"guided_correlation_conv2d{name}",
                    lambda *arguments, ops=ops, function=function: function(ops, *arguments),
                    key,
                )


_register_kernels()
_library.register_implementations(
    "guided_correlation_conv2d",
    lambda ops, source, target, weight, bias, eps: ops.guided_correlation_conv2d(
        source, target, weight, bias, eps, _checks.allow_tf32(source)
    )[0],
)


def _fake(source, target, weight, bias, eps, tf32):
    shape = (source.shape[0], weight.shape[0], *target.shape[2:])
    return weight.new_empty(shape), *fake_statistics(source, target)


def _fake_backward(
    grad, source, target, weight, row_max, row_argmax, norm, eps, tf32, features_grad, weight_grad
):
    return (
        source.new_empty(source.shape if features_grad else (0,)),
        target.new_empty(target.shape if features_grad else (0,)),
        weight.new_empty(weight.shape if weight_grad else (0,)),
    )


def _setup_context(ctx, inputs, output):
    source, target, weight, bias, ctx.eps, ctx.tf32 = inputs
    _, *statistics = output
    ctx.save_for_backward(source, target, weight, *statistics)
    ctx.mark_non_differentiable(*statistics)


def _backward(ops, ctx, grad, *_):
    source, target, weight, *_ = ctx.needs_input_grad
    grads = ops.guided_correlation_conv2d_backward(
        grad, *ctx.saved_tensors, ctx.eps, ctx.tf32, source or target, weight
    )
    needed = (source, target, weight)
    return (
        *(g if wanted else None for g, wanted in zip(grads, needed, strict=True)),
        grad.sum(dim=(0, 2, 3)) if ctx.needs_input_grad[3] else None,
        None,
        None,
    )


_library.register_fake("guided_correlation_conv2d", _fake)
_library.register_fake("guided_correlation_conv2d_backward", _fake_backward)
_library.register_autograd("guided_correlation_conv2d", _setup_context, _backward)


def guided_correlation_conv2d(
    source: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    *,
    impl: str | None = None,
) -> torch.Tensor:
    """Convolve the guided correlation map of two feature maps (Eqs. 1, 9, 2, then a convolution).

    ``Y = conv2d(guided_correlation(source, target, eps), weight, bias, padding="same")``.

    Args:
        source: features ``[B, m, hs, ws]``.
        target: features ``[B, m, ht, wt]``, same dtype and device.
        weight: ``[n, hs*ws, kh, kw]``.
        bias: ``[n]`` or None.
        eps: floor of the row maxima and the column norms.
        impl: ``"reference"``, ``"cpp"``, ``"cuda"`` or ``"triton"``; None picks the best that can
            run.

    Returns:
        ``[B, n, ht, wt]``.

    Convention:
        Channels of ``weight`` run over source positions row-major, its window over target
        positions. Zero padding; odd kernels are centred, even ones as torch's ``padding="same"``.
    Precision:
        The map as :func:`guided_correlation`. The products follow autocast as a convolution does:
        weight, bias and result in its dtype; they are summed in float32. On a GPU float32 products
        follow ``torch.backends.cuda.matmul.allow_tf32``, not the separate switch of cuDNN.
    Memory:
        A band of the map (on a CPU 6 MiB, or 256 targets where that is more), a copy of some of the
        weight (6 MiB, or a quarter), and ``O(hs*ws + ht*wt)`` saved for backward, which makes the
        map again. ``reference``: about 8 maps with gradients.
    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device.
        RuntimeError: the requested implementation cannot run.
        NotImplementedError: second derivatives of anything but ``reference``.
    """
    source, target = _checks.check_feature_pair(source, target)
    _checks.check_tensor("weight", weight, "[n, hs*ws, kh, kw]")
    _checks.check_same_device("weight", weight, "source", source)
    positions = source.shape[2] * source.shape[3]
    if weight.shape[1] != positions:
        raise ValueError(
            f"weight: expected hs*ws = {positions} input channels, "
            f"got shape {_checks.shape_of(weight)}"
        )
    autocast = _checks.autocast_enabled(source.device)
    if weight.dtype != source.dtype and not autocast:
        raise TypeError(f"weight: expected {source.dtype} as source, got {weight.dtype}")
    if bias is not None:
        _checks.check_tensor("bias", bias, "[n]")
        _checks.check_same_device("bias", bias, "source", source)
        if bias.shape[0] != weight.shape[0]:
            raise ValueError(
                f"bias: expected [{weight.shape[0]}], got shape {_checks.shape_of(bias)}"
            )
        if bias.dtype != weight.dtype and not autocast:
            raise TypeError(f"bias: expected {weight.dtype} as weight, got {bias.dtype}")
    eps = _checks.check_eps(eps)
    if autocast and weight.dtype != torch.float64:  # as for torch's own convolution
        dtype = torch.get_autocast_dtype(source.device.type)
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    return _dispatch.choose("guided_correlation_conv2d", impl, source.device)(
        source, target, weight, bias, eps
    )
