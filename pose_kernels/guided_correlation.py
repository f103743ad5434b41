"""Guided correlation in one op.

Eqs. 1, 9 and 2 of "Pose transfer using a single spatial transformation":

C = <z_s(s), z_t(t)>,  b_s = max(max_t C, eps),  u = C^3 / b_s,  n_t = max(||u(., t)||_2, eps),
Qhat = u / n_t (a_t of Eq. 9 is constant over s, so Eq. 2 removes it). With G = dL/dQhat:
D_t = sum_s G Qhat,  du = (G - Qhat D_t) / n_t,  dC = 3 C^2 du / b_s,  beta_s = -sum_t du C^3 /
b_s^2, dz_s = sum_t dC z_t + beta_s z_t(t*),  dz_t = sum_s dC z_s  and  dz_t(t*(s)) += beta_s z_s,
t*(s) = argmax_t C. D_t is dropped where n_t is at its floor, beta_s where b_s is.
"""

import math

import torch

from . import _checks, _dispatch, _library
from .correlation_4d import example_features, map_shape, new_map
from .correlation_4d import reference as correlation_reference
from .soft_mutual_normalize import new_statistics, save_with_statistics
from .soft_mutual_normalize import reference as soft_mutual_reference

# tf32, channels_last, out_dtype, out and the gradient as in correlation_4d, row_max, row_argmax and
# norm as in soft_mutual_normalize.
_library.define(
    "guided_correlation(Tensor source, Tensor target, float eps, bool tf32, bool channels_last,"
    " ScalarType out_dtype) -> (Tensor result, Tensor row_max, Tensor row_argmax, Tensor norm)",
    "guided_correlation_out(Tensor source, Tensor target, float eps, bool tf32, Tensor(a!) out)"
    " -> ()",
    "guided_correlation_backward(Tensor grad, Tensor source, Tensor target, Tensor row_max,"
    " Tensor row_argmax, Tensor norm, float eps, bool tf32, bool source_grad, bool target_grad)"
    " -> (Tensor source_grad, Tensor target_grad)",
    # The map in bands of target positions, for guided_correlation_conv2d. Features are [B, m, S]
    # and [B, m, T], on a CPU float32 or float64; `out` and `grad` are [B, S, n] for the targets
    # from `begin` on, contiguous, of any floating dtype. The band writes its part of norm.
    "guided_correlation_row_max(Tensor source, Tensor target, float eps, bool tf32)"
    " -> (Tensor row_max, Tensor row_argmax)",
    "guided_correlation_band(Tensor source, Tensor target, Tensor row_max, float eps, bool tf32,"
    " SymInt begin, Tensor(a!) out, Tensor(b!) norm) -> ()",
    # Adds to source_grad [B, m, S] and beta [B, S], writes the band's columns of target_grad
    # [B, m, T], all in the statistics' dtype; beta_s is dL/d(row_max_s). A gradient that nobody
    # asked for is an empty tensor.
    "guided_correlation_band_backward(Tensor grad, Tensor source, Tensor target, Tensor row_max,"
    " Tensor norm, float eps, bool tf32, SymInt begin, Tensor(a!) source_grad,"
    " Tensor(b!) target_grad, Tensor(c!) beta) -> ()",
    # source_grad(s) += beta_s z_t(t*), target_grad(t*) += beta_s z_s, where row_max is above eps.
    "guided_correlation_row_max_backward(Tensor source, Tensor target, Tensor row_max,"
    " Tensor row_argmax, float eps, Tensor beta, Tensor(a!) source_grad, Tensor(b!) target_grad)"
    " -> ()",
    triton="guided_correlation",
)


def reference(source: torch.Tensor, target: torch.Tensor, eps: float, channels_last: bool = False,
              out_dtype: torch.dtype | None = None,
              out: torch.Tensor | None = None) -> torch.Tensor:
    dtype = _checks.compute_dtype(source.dtype)
    C = correlation_reference(source.to(dtype), target.to(dtype))  # Eq. 1
    Q = soft_mutual_reference(C, eps).to(out_dtype or source.dtype)  # Eqs. 9, 2
    if channels_last and out is None:
        Q = Q.contiguous(memory_format=torch.channels_last)
    return _library.into(out, Q)


def compiled(ops, source, target, eps, channels_last, out_dtype, out):
    tf32 = _checks.allow_tf32(source)
    if out is None:
        return ops.guided_correlation(source, target, eps, tf32, channels_last, out_dtype)[0]
    ops.guided_correlation_out(source, target, eps, tf32, out)
    return out


def fake_statistics(source, target):
    """Shapes of max_t C, t* and n for features [B, m, ...]."""
    return new_statistics(source, math.prod(source.shape[2:]), math.prod(target.shape[2:]))


def _fake(source, target, eps, tf32, channels_last, out_dtype):
    return new_map(source, target, channels_last, out_dtype), *fake_statistics(source, target)


def _fake_backward(grad, source, target, row_max, row_argmax, norm, eps, tf32, source_grad,
                   target_grad):
    return _library.new_gradient(source, source_grad), _library.new_gradient(target, target_grad)


def _setup_context(ctx, inputs, output):
    source, target, ctx.eps, ctx.tf32, *_ = inputs
    save_with_statistics(ctx, [source, target], output)


def _backward(ops, ctx, grad, *_):
    wanted = ctx.needs_input_grad[:2]
    return ops.guided_correlation_backward(grad, *ctx.saved_tensors, ctx.eps, ctx.tf32, *wanted)


_library.register_fake("guided_correlation_row_max",
                       lambda source, target, *_: fake_statistics(source, target)[:2])
_library.register_operator("guided_correlation", reference, compiled, _fake, _fake_backward,
                           _setup_context, _backward, example_features)


def guided_correlation(source: torch.Tensor, target: torch.Tensor, eps: float = 1e-5, *,
                       memory_format: torch.memory_format = torch.contiguous_format,
                       out_dtype: torch.dtype | None = None, out: torch.Tensor | None = None,
                       impl: str | None = None) -> torch.Tensor:
    """The guided correlation map of two feature maps (Eqs. 1, 9, 2): what the flow head reads.

    ``C = <z_s(s), z_t(t)>``, ``gamma = C / max_s C * C / max_t C``, ``Q = gamma * C``,
    ``Qhat = Q / ||Q(., t)||_2``; equal to ``soft_mutual_normalize(correlation_4d(source, target),
    eps)``.

    Args:
        source: features ``[B, m, hs, ws]``; normalise them before, nothing is normalised here.
        target: features ``[B, m, ht, wt]``, same dtype and device.
        eps: floor of the maxima, and of the norm of ``C^3 / max_t C``.
        memory_format, out_dtype, out: of the result, as in :func:`correlation_4d`.
        impl: one of :func:`implementations` by name; None picks the best that can run.

    Returns: ``[B, hs*ws, ht, wt]`` in ``out_dtype``; ``out`` where it is given.

    Convention:
        Channel ``s = i*ws + j`` is source position (row i, column j), the last two dimensions are
        target positions. A column of zeros gives zeros and zero gradients. The gradient of a tied
        maximum goes to the first one.
    Precision:
        float16 and bfloat16 are computed in float32 and rounded once, also under autocast (mixed
        inputs are promoted there). On a GPU float32 is accurate to float32 unless
        ``torch.backends.cuda.matmul.allow_tf32`` is set. The same bits at every run, on a CPU for
        any number of threads.
    Memory:
        The result, ``O(hs*ws + ht*wt)`` saved for backward, and copies of the feature maps; no
        other 4D tensor, in the backward neither. ``cpp``: per thread one block of all sources by
        64 targets. ``reference``: about 8 maps with gradients.
    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device.
        RuntimeError: the requested implementation cannot run; ``out`` where a gradient is asked
            for.
        NotImplementedError: second derivatives of anything but ``reference``.
    """
    source, target = _checks.check_feature_pair(source, target)
    eps = _checks.check_eps(eps)
    channels_last = _checks.check_memory_format(memory_format)
    out_dtype = _checks.check_out_dtype(out_dtype, source.dtype)
    _checks.check_out(out, map_shape(source, target), out_dtype, channels_last, source, target)
    function = _dispatch.choose("guided_correlation", impl, source.device)
    return function(source, target, eps, channels_last, out_dtype, out)
