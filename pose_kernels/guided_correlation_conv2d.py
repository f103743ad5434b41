"""Guided correlation and the convolution that reads it, the map never stored.

Eqs. 1, 9, 2 and the first layer of C_l:

Y = conv2d(Qhat, weight, bias, padding="same"),  Qhat = guided_correlation(source, target).

The map is made in bands of target rows, used and thrown away. The convolution of a band is products
of matrices, on a GPU that of the library (`_convolution.py`); backward makes each band again. The
gradient of the map goes on through guided_correlation's own backward. So memory is a band and a
copy of the weights.
"""

import math
import mmap
import os

import torch
import torch.nn.functional as F

from . import _checks, _dispatch, _library
from ._convolution import Direct, Library, WinogradAlongX
from .correlation_4d import example_features
from .guided_correlation import fake_statistics
from .guided_correlation import reference as guided_correlation_reference
from .guided_readout import guided_readout
from .soft_mutual_normalize import save_with_statistics

# row_max, row_argmax and norm as in soft_mutual_normalize.
_library.define(
    "guided_correlation_conv2d(Tensor source, Tensor target, Tensor weight, Tensor? bias,"
    " float eps, bool tf32) -> (Tensor result, Tensor row_max, Tensor row_argmax, Tensor norm)",
    "guided_correlation_conv2d_backward(Tensor grad, Tensor source, Tensor target, Tensor weight,"
    " Tensor row_max, Tensor row_argmax, Tensor norm, float eps, bool tf32, bool source_grad,"
    " bool target_grad, bool weight_grad)"
    " -> (Tensor source_grad, Tensor target_grad, Tensor weight_grad)",
)

#: Bytes of one band as the products read it. On a CPU it stays in the cache between its making and
# its use; on a GPU it keeps every multiprocessor busy.
BAND_BYTES = {"cpu": 6 << 20, "cuda": 64 << 20}
#: Columns of a band that a product needs to run at full speed, whatever their bytes.
BAND_COLUMNS = 256
#: Bytes of the weights as the products read them. Larger ones are handled in parts of the outputs,
# and each part makes the bands again.
WEIGHT_BYTES = {"cpu": 48 << 20, "cuda": 256 << 20}
#: Outputs from which on fewer products pay for what they cost in additions.
WINOGRAD_OUTPUTS = 16


def reference(source, target, weight, bias, eps: float) -> torch.Tensor:
    Q = guided_correlation_reference(source, target, eps).to(weight.dtype)
    return F.conv2d(Q, weight, bias, padding="same")


def _plan(device: torch.device) -> str:
    """Whose sizes, form and operands: a key of the tables above."""
    return device.type


class _Bands:
    """The walk over bands of target rows, and the form of the convolution, for one call."""

    def __init__(self, source, target, weight, tf32=False, channels_last=True):
        """`channels_last`: whether bands may be."""
        kernel, size = tuple(weight.shape[2:]), tuple(target.shape[2:])
        outputs, self.sources = weight.shape[:2]
        self.wide = _checks.compute_dtype(torch.promote_types(source.dtype, weight.dtype))
        self.device, self.plan = source.device, _plan(source.device)
        # CPUs multiply float16 and bfloat16 no faster, GPUs sum them in float32: whatever the map
        # is made in, for under autocast float64 features meet a weight of 16 bits.
        self.operand = weight.dtype if self.plan == "cuda" else self.wide
        self.summed = _checks.compute_dtype(self.operand)
        # On a GPU operands with fewer bits and tensor cores spare more than fewer products would.
        # Triton's interpreter may be there without the CPU library.
        winograd = self.plan == "cpu" and _library.cpu_reason is None
        fewer = winograd and kernel[1] == 3 and outputs >= WINOGRAD_OUTPUTS
        if self.plan == "cuda" and channels_last:
            self.form = Library(kernel, size, tf32)
        else:
            self.form = (WinogradAlongX if fewer else Direct)(kernel, size)
        # A GPU's tensor cores take 16-bit features as they are, exactly and in one pass.
        narrow = self.plan == "cuda" and _checks.compute_dtype(source.dtype) == self.wide
        dtype = source.dtype if narrow else self.wide
        self.z_s, self.z_t = (z.to(dtype).flatten(2).contiguous() for z in (source, target))
        # The targets of each phase of the map.
        self.groups = [z.flatten(2).contiguous()
                       for z in self.form.groups(self.z_t.unflatten(2, size))]
        # What the output is made of.
        self.output_groups, self.output_row = self.groups, self.form.row
        if self.form.haloed:
            self.output_groups = [self.form.halo(self.z_t.unflatten(2, size)).flatten(2)]
            self.output_row = self.form.edged_size[1]
        self.height = size[0]
        row = self.form.phases * self.sources * self.form.row * self.operand.itemsize
        fitting = BAND_BYTES[self.plan] // row
        self.rows = min(max(fitting, -(-BAND_COLUMNS // size[1]), 1), self.height)
        per_output = self.form.products * self.sources * self.summed.itemsize
        step = max(1, WEIGHT_BYTES[self.plan] // per_output)
        self.parts = [slice(at, min(at + step, outputs)) for at in range(0, outputs, step)]

    def __iter__(self):
        """First row, and memory for V, [phases, S, rows * form.row]."""
        row = self.form.phases * self.sources * self.form.row
        buffer = self.memory((row * self.rows,), self.operand)
        for first, rows in self.walk():
            yield first, buffer[: row * rows].view(self.form.phases, self.sources, -1)

    def walk(self):
        """First row of a band and how many there are."""
        for first in range(0, self.height, self.rows):
            yield first, min(self.rows, self.height - first)

    def outputs(self):
        """First row of the output, and memory for the V that it is made of."""
        if not self.form.haloed:
            yield from self
            return
        row, edge = self.sources * self.output_row, self.form.kernel[0] - 1
        buffer = self.memory((row * (self.rows + edge),), self.operand)
        for first, rows in self.walk():
            V = buffer[: row * (rows + edge)].view(1, -1, self.sources)
            yield first, V.transpose(1, 2)

    def gradients(self, U, dY):
        """First row, and the gradient of V."""
        if self.form.haloed:
            for first, rows in self.walk():
                yield first, self.form.band_gradient(U, dY, first, rows)
        else:
            for first, dV in self:
                self.form.map_gradient(U, dY, first, dV)
                yield first, dV

    def memory(self, shape, dtype) -> torch.Tensor:
        """Large and uninitialised. On a CPU the system gets it back at once: malloc would keep what
        forward is done with, and backward's peak would be the sum of both."""
        size = math.prod(shape)
        if self.plan != "cpu" or size == 0:
            return torch.empty(shape, dtype=dtype, device=self.device)
        private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if os.name == "posix" else {}
        memory = mmap.mmap(-1, size * dtype.itemsize, **private)
        return torch.frombuffer(memory, dtype=dtype).view(shape)

    def gradient(self, of, wanted):
        """Memory for the gradient of ``of``, in the dtype of sums; empty where it is not wanted."""
        return of.new_empty(of.shape if wanted else (0,), dtype=self.wide)

    def edged(self, outputs):
        """Zeros for outputs and their edges, [n, *edged_size]."""
        shape = (outputs, *self.form.edged_size)
        return torch.zeros(shape, dtype=self.summed, device=self.device)

    def weight(self, weight, transposed=False):
        """U, or U^T, as the products read it."""
        return self.form.weight(weight, transposed, self.operand, self.memory)

    def make(self, ops, groups, b, row_max, norms, eps, tf32, begin, V):
        """Fills V for the targets of a band of sample b, from number `begin` of the groups on;
        writes the norms of its columns."""
        one = slice(b, b + 1)
        for z_t, M, norm in zip(groups, V, norms, strict=True):
            ops.guided_correlation_band(self.z_s[one], z_t[one], row_max[one], eps, tf32, begin,
                                        M[None], norm[one])

    def norm(self, norms):
        """Of all targets, from those of what the output is made of."""
        form, row = self.form, self.output_row
        grids = [n.unflatten(1, (1, -1, row)) for n in norms]
        norm = form.without_halo(grids[0]) if form.haloed else form.ungroup(grids)
        return norm.flatten(1).contiguous()

    def new_norms(self, groups):
        return [torch.empty_like(z[:, 0], dtype=self.wide) for z in groups]


def _bands(ops, *arguments):
    return _Bands(*arguments, channels_last=ops is not torch.ops.pose_kernels_triton)


def _forward(ops, source, target, weight, bias, eps, tf32):
    with _checks.without_autocast(source.device):
        bands = _bands(ops, source, target, weight, tf32)
        result = source.new_empty((source.shape[0], weight.shape[0], *target.shape[2:]),
                                  dtype=weight.dtype)
        row_max, row_argmax = ops.guided_correlation_row_max(bands.z_s, bands.z_t, eps, tf32)
        norms = bands.new_norms(bands.output_groups)
        for part in bands.parts:
            shift = None if bias is None else bias[part].to(bands.summed)[:, None, None]
            _convolve(ops, bands, weight[part], shift, row_max, norms, eps, tf32, result[:, part])
        norm = bands.norm(norms)
        return result, row_max, row_argmax, norm


def _convolve(ops, bands, weight, bias, row_max, norms, eps, tf32, result):
    form, U = bands.form, bands.weight(weight)
    for b in range(len(result)):
        Y = bands.edged(len(weight))
        for first, V in bands.outputs():
            begin = first * bands.output_row
            bands.make(ops, bands.output_groups, b, row_max, norms, eps, tf32, begin, V)
            form.add_output(U, V, first, Y)
        result[b] = form.inner(Y if bias is None else Y.add_(bias))


def _backward_op(ops, grad, source, target, weight, row_max, row_argmax, norm, eps, tf32,
                 source_grad, target_grad, weight_grad):
    # A walk for the features and one for the weight, so that U and dU are never there at once.
    with _checks.without_autocast(source.device):
        bands = _bands(ops, source, target, weight, tf32)
        dz_s, dz_t = (_library.new_gradient(*x)
                      for x in ((source, source_grad), (target, target_grad)))
        dW = _library.new_gradient(weight, weight_grad)
        if source_grad or target_grad:
            sums = _features_gradient(ops, bands, grad, weight, row_max, row_argmax, norm, eps,
                                      tf32, source_grad, target_grad)
            for gradient, found in zip((dz_s, dz_t), sums, strict=True):
                gradient.copy_(found.view_as(gradient))
        if weight_grad:
            for part in bands.parts:
                _weight_gradient(ops, bands, grad[:, part], row_max, eps, tf32, dW[part])
        return dz_s, dz_t, dW


def _features_gradient(ops, bands, grad, weight, row_max, row_argmax, norm, eps, tf32, source_grad,
                       target_grad):
    form = bands.form
    sums = tuple(bands.gradient(*x).zero_() for x in (
        (bands.z_s, source_grad), (bands.z_t, target_grad), (row_max, True)))
    # A column that only fills up a group has the floor for a norm.
    norms = form.groups(norm.unflatten(1, (1, bands.height, -1)))
    norms = [n.flatten(1).clamp(min=eps) for n in norms]
    for part in bands.parts:
        _add_features_gradient(ops, bands, grad[:, part], weight[part], row_max, norms, eps, tf32,
                               *sums)
    dz_s, dz_t, beta = sums
    ops.guided_correlation_row_max_backward(bands.z_s, bands.z_t, row_max, row_argmax, eps, beta,
                                            dz_s, dz_t)
    return dz_s, dz_t


def _add_features_gradient(ops, bands, grad, weight, row_max, norms, eps, tf32, dz_s, dz_t, beta):
    form, U = bands.form, bands.weight(weight, transposed=True)
    grouped = [bands.gradient(z, dz_t.numel() > 0) for z in bands.groups]
    for b in range(len(grad)):
        one = slice(b, b + 1)
        dY = bands.edged(len(weight))
        form.inner(dY).copy_(grad[b])
        for first, dV in bands.gradients(U, dY):
            for z_t, dM, n_t, dz in zip(bands.groups, dV, norms, grouped, strict=True):
                ops.guided_correlation_band_backward(
                    dM[None], bands.z_s[one], z_t[one], row_max[one], n_t[one], eps, tf32,
                    first * form.row, dz_s[one], dz[one], beta[one])
    if dz_t.numel() > 0:
        dz = [dz.unflatten(2, (bands.height, form.row)) for dz in grouped]
        dz_t += form.ungroup(dz).flatten(2)


def _weight_gradient(ops, bands, grad, row_max, eps, tf32, dW):
    form = bands.form
    dU = bands.memory(form.weight_sums(len(dW), bands.sources), bands.summed)
    dU.zero_()  # fresh pages that are first read and then written are brought in twice
    norms = bands.new_norms(bands.groups)
    for b in range(len(grad)):
        dY = bands.edged(len(dW))
        form.inner(dY).copy_(grad[b])
        for first, V in bands:
            begin = first * form.row
            bands.make(ops, bands.groups, b, row_max, norms, eps, tf32, begin, V)
            form.add_weight_gradient(V, dY, first, dU)
    form.weight_gradient(dU, dW)


_library.implement_by_others("guided_correlation_conv2d", _forward)
_library.implement_by_others("guided_correlation_conv2d_backward", _backward_op)


def compiled(ops, source, target, weight, bias, eps):
    tf32 = _checks.allow_tf32(source)
    return ops.guided_correlation_conv2d(source, target, weight, bias, eps, tf32)[0]


def _fake(source, target, weight, bias, eps, tf32):
    shape = (source.shape[0], weight.shape[0], *target.shape[2:])
    made_in = source.to(torch.promote_types(source.dtype, weight.dtype))
    return weight.new_empty(shape), *fake_statistics(made_in, target)


def _fake_backward(grad, source, target, weight, row_max, row_argmax, norm, eps, tf32,
                   source_grad, target_grad, weight_grad):
    wanted = ((source, source_grad), (target, target_grad), (weight, weight_grad))
    return tuple(_library.new_gradient(*of) for of in wanted)


def _setup_context(ctx, inputs, output):
    source, target, weight, bias, ctx.eps, ctx.tf32 = inputs
    save_with_statistics(ctx, [source, target, weight], output)


def _backward(ops, ctx, grad, *_):
    *wanted, bias = ctx.needs_input_grad[:4]
    grads = ops.guided_correlation_conv2d_backward(grad, *ctx.saved_tensors, ctx.eps, ctx.tf32,
                                                   *wanted)
    return *grads, grad.sum(dim=(0, 2, 3)) if bias else None


def _example():
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(8, 63, 3, 3, generator=generator, dtype=torch.float64)
    return [*example_features(), weight]


_library.register_operator("guided_correlation_conv2d", reference, compiled, _fake, _fake_backward,
                           _setup_context, _backward, _example)


def _check_layer(weight, bias, source):
    """Weight and bias for the features, under autocast in its dtype."""
    _checks.check_tensor("weight", weight, "[n, hs*ws, kh, kw]")
    _checks.check_same_device("weight", weight, "source", source)
    positions = source.shape[2] * source.shape[3]
    if weight.shape[1] != positions:
        raise ValueError(f"weight: expected hs*ws = {positions} input channels, "
                         f"got shape {list(weight.shape)}")
    autocast = _checks.autocast_enabled(source.device)
    if weight.dtype != source.dtype and not autocast:
        raise TypeError(f"weight: expected {source.dtype} as source, got {weight.dtype}")
    if bias is not None:
        _checks.check_tensor("bias", bias, "[n]")
        _checks.check_same_device("bias", bias, "source", source)
        if bias.shape[0] != weight.shape[0]:
            raise ValueError(f"bias: expected [{weight.shape[0]}], "
                             f"got shape {list(bias.shape)}")
        if bias.dtype != weight.dtype and not autocast:
            raise TypeError(f"bias: expected {weight.dtype} as weight, got {bias.dtype}")
    if autocast and weight.dtype != torch.float64:  # as for torch's own convolution
        dtype = torch.get_autocast_dtype(source.device.type)
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    return weight, bias


def guided_correlation_conv2d(source: torch.Tensor, target: torch.Tensor, weight: torch.Tensor,
                              bias: torch.Tensor | None = None, eps: float = 1e-5, *,
                              impl: str | None = None) -> torch.Tensor:
    """Convolve the guided correlation map of two feature maps (Eqs. 1, 9, 2, then a convolution).

    ``Y = conv2d(guided_correlation(source, target, eps), weight, bias, padding="same")``.

    Args:
        source: features ``[B, m, hs, ws]``.
        target: features ``[B, m, ht, wt]``, same dtype and device.
        weight: ``[n, hs*ws, kh, kw]``.
        bias: ``[n]`` or None.
        eps: floor of the row maxima and the column norms.
        impl: one of :func:`implementations` by name; None picks the best that can run.

    Returns: ``[B, n, ht, wt]``.

    Convention:
        Channels of ``weight`` run over source positions row-major, its window over target
        positions. Zero padding; odd kernels are centred, even ones as torch's ``padding="same"``.
    Precision:
        The map as :func:`guided_correlation`. The products follow autocast as a convolution does:
        weight, bias and result in its dtype; they are summed in float32. On a GPU float32 products
        follow ``torch.backends.cuda.matmul.allow_tf32``, not the separate switch of cuDNN. On a CPU
        windows 3 wide are computed with fewer products (Winograd F(2, 3) along x): two neighbouring
        columns share sums, so a NaN or an infinity may reach one column further.
    Memory:
        For a window of 1 x 1 that of :func:`guided_readout`. Else a band of the map (on a CPU
        6 MiB, or 256 targets where that is more), a copy of the weight (4/3 of it for windows
        3 wide; 48 MiB at most), and ``O(hs*ws + ht*wt)`` saved for backward, which makes the map
        again. ``reference``: about 8 maps with gradients.
    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device.
        RuntimeError: the requested implementation cannot run.
        NotImplementedError: second derivatives of anything but ``reference``.
    """
    source, target = _checks.check_feature_pair(source, target)
    weight, bias = _check_layer(weight, bias, source)
    if weight.shape[2:] == (1, 1):  # needs no bands
        # The gradient shall have the strides of the weight: distributed training asks for that.
        last = weight.stride(2) != 1
        values = (weight.permute(0, 2, 3, 1) if last else weight).flatten(1)
        result = guided_readout(source, target, values, 1, eps, impl=impl)
        return result if bias is None else result + bias[:, None, None]
    eps = _checks.check_eps(eps)
    function = _dispatch.choose("guided_correlation_conv2d", impl, source.device)
    return function(source, target, weight, bias, eps)
