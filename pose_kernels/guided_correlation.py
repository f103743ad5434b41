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
from .correlation_4d import fake_map
from .correlation_4d import reference as correlation_reference
from .soft_mutual_normalize import reference as soft_mutual_reference


def reference(
    source: torch.Tensor, target: torch.Tensor, eps: float, channels_last: bool = False
) -> torch.Tensor:
    dtype = _checks.compute_dtype(source.dtype)
    C = correlation_reference(source.to(dtype), target.to(dtype))  # Eq. 1
    Q = soft_mutual_reference(C, eps).to(source.dtype)  # Eqs. 9, 2
    return Q.contiguous(memory_format=torch.channels_last) if channels_last else Q


_dispatch.register("guided_correlation", "reference", reference)


def compiled(ops, source, target, eps, channels_last):
    tf32 = _checks.allow_tf32(source)
    return ops.guided_correlation(source, target, eps, tf32, channels_last)[0]


_library.register_implementations("guided_correlation", compiled)


def fake_statistics(source, target):
    """Shapes of max_t C, t* and n for features [B, m, ...]."""
    batch, dtype = source.shape[0], _checks.compute_dtype(source.dtype)
    sources, targets = math.prod(source.shape[2:]), math.prod(target.shape[2:])
    return (
        source.new_empty(batch, sources, dtype=dtype),
        source.new_empty(batch, sources, dtype=torch.int64),
        source.new_empty(batch, targets, dtype=dtype),
    )


def _fake(source, target, eps, tf32, channels_last):
    return fake_map(source, target, channels_last), *fake_statistics(source, target)


def _fake_backward(grad, source, target, row_max, row_argmax, norm, eps, tf32):
    return source.new_empty(source.shape), target.new_empty(target.shape)


def _setup_context(ctx, inputs, output):
    source, target, ctx.eps, ctx.tf32, _ = inputs
    _, *statistics = output
    ctx.save_for_backward(source, target, *statistics)
    ctx.mark_non_differentiable(*statistics)


def _backward(ops, ctx, grad, *_):
    grads = ops.guided_correlation_backward(grad, *ctx.saved_tensors, ctx.eps, ctx.tf32)
    return *grads, None, None, None


_library.register_fake("guided_correlation", _fake)
_library.register_fake("guided_correlation_backward", _fake_backward)
_library.register_fake(
    "guided_correlation_row_max", lambda source, target, *_: fake_statistics(source, target)[:2]
)
for _name in ("band", "band_backward", "row_max_backward"):  # they write into their arguments
    _library.register_fake(f"guided_correlation_{_name}", lambda *_: None)
_library.register_autograd("guided_correlation", _setup_context, _backward)


def guided_correlation(
    source: torch.Tensor,
    target: torch.Tensor,
    eps: float = 1e-5,
    *,
    memory_format: torch.memory_format = torch.contiguous_format,
    impl: str | None = None,
) -> torch.Tensor:
    """The guided correlation map of two feature maps (Eqs. 1, 9, 2): what the flow head reads.

    ``C = <z_s(s), z_t(t)>``, ``gamma = C / max_s C * C / max_t C``, ``Q = gamma * C``,
    ``Qhat = Q / ||Q(., t)||_2``; equal to ``soft_mutual_normalize(correlation_4d(source, target),
    eps)``.

    Args:
        source: features ``[B, m, hs, ws]``; normalise them before, nothing is normalised here.
        target: features ``[B, m, ht, wt]``, same dtype and device.
        eps: floor of the maxima, and of the norm of ``C^3 / max_t C``.
        memory_format: of the result; ``torch.channels_last`` is what a tensor-core convolution
            reads best.
        impl: ``"reference"``, ``"cpp"``, ``"cuda"`` or ``"triton"``; None picks the best that can
            run.

    Returns:
        ``[B, hs*ws, ht, wt]`` in the dtype of the inputs.

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
        RuntimeError: the requested implementation cannot run.
        NotImplementedError: second derivatives of anything but ``reference``.
    """
    source, target = _checks.check_feature_pair(source, target)
    eps = _checks.check_eps(eps)
    channels_last = _checks.check_memory_format(memory_format)
    function = _dispatch.choose("guided_correlation", impl, source.device)
    return function(source, target, eps, channels_last)
