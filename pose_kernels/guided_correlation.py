"""Guided correlation in one op.

Eqs. 1, 9 and 2 of "Pose transfer using a single spatial transformation":

C = <z_s(s), z_t(t)>,  b_s = max(max_t C, eps),  u = C^3 / b_s,  n_t = max(||u(., t)||_2, eps),
Qhat = u / n_t (a_t of Eq. 9 is constant over s, so Eq. 2 removes it). With G = dL/dQhat:
D_t = sum_s G Qhat,  du = (G - Qhat D_t) / n_t,  dC = 3 C^2 du / b_s,  beta_s = -sum_t du C^3 /
b_s^2, dz_s = sum_t dC z_t + beta_s z_t(t*),  dz_t = sum_s dC z_s  and  dz_t(t*(s)) += beta_s z_s,
t*(s) = argmax_t C. D_t is dropped where n_t is at its floor, beta_s where b_s is.
"""

import torch

from . import _checks, _dispatch, _library
from .correlation_4d import reference as correlation_reference
from .soft_mutual_normalize import reference as soft_mutual_reference


def reference(source: torch.Tensor, target: torch.Tensor, eps: float) -> torch.Tensor:
    dtype = _checks.compute_dtype(source.dtype)
    C = correlation_reference(source.to(dtype), target.to(dtype))  # Eq. 1
    return soft_mutual_reference(C, eps).to(source.dtype)  # Eqs. 9, 2


_dispatch.register("guided_correlation", "reference", reference)


def compiled(source: torch.Tensor, target: torch.Tensor, eps: float) -> torch.Tensor:
    return torch.ops.pose_kernels.guided_correlation(source, target, eps)[0]


_dispatch.register(
    "guided_correlation", "cpp", compiled, devices=("cpu",), reason=_library.cpu_reason
)


def _fake(source, target, eps):
    batch, _, hs, ws = source.shape
    ht, wt = target.shape[2:]
    dtype = _checks.compute_dtype(source.dtype)
    return (
        source.new_empty(batch, hs * ws, ht, wt),  # Qhat
        source.new_empty(batch, hs * ws, dtype=dtype),  # max_t C
        source.new_empty(batch, hs * ws, dtype=torch.int64),  # t*
        source.new_empty(batch, ht * wt, dtype=dtype),  # n
    )


def _fake_backward(grad, source, target, row_max, row_argmax, norm, eps):
    return torch.empty_like(source, memory_format=torch.contiguous_format), torch.empty_like(
        target, memory_format=torch.contiguous_format
    )


def _setup_context(ctx, inputs, output):
    source, target, ctx.eps = inputs
    _, row_max, row_argmax, norm = output
    ctx.save_for_backward(source, target, row_max, row_argmax, norm)
    ctx.mark_non_differentiable(row_max, row_argmax, norm)


def _backward(ctx, grad, *_):
    grads = torch.ops.pose_kernels.guided_correlation_backward(grad, *ctx.saved_tensors, ctx.eps)
    return *grads, None


def _no_double_backward(ctx, *_):
    raise NotImplementedError("guided_correlation: second derivatives need impl='reference'")


if _library.cpu_reason is None:
    torch.library.register_fake("pose_kernels::guided_correlation", _fake)
    torch.library.register_fake("pose_kernels::guided_correlation_backward", _fake_backward)
    torch.library.register_autograd(
        "pose_kernels::guided_correlation", _backward, setup_context=_setup_context
    )
    torch.library.register_autograd(
        "pose_kernels::guided_correlation_backward", _no_double_backward
    )


def guided_correlation(
    source: torch.Tensor, target: torch.Tensor, eps: float = 1e-5, *, impl: str | None = None
) -> torch.Tensor:
    """The guided correlation map of two feature maps (Eqs. 1, 9, 2): what the flow head reads.

    ``C = <z_s(s), z_t(t)>``, ``gamma = C / max_s C * C / max_t C``, ``Q = gamma * C``,
    ``Qhat = Q / ||Q(., t)||_2``; equal to ``soft_mutual_normalize(correlation_4d(source, target),
    eps)``.

    Args:
        source: features ``[B, m, hs, ws]``; normalise them before, nothing is normalised here.
        target: features ``[B, m, ht, wt]``, same dtype and device.
        eps: floor of the maxima, and of the norm of ``C^3 / max_t C``.
        impl: ``"reference"`` or ``"cpp"``; None picks the best that can run.

    Returns:
        ``[B, hs*ws, ht, wt]`` in the dtype of the inputs.

    Convention:
        Channel ``s = i*ws + j`` is source position (row i, column j), the last two dimensions are
        target positions. A column of zeros gives zeros and zero gradients. The gradient of a tied
        maximum goes to the first one.
    Precision:
        float16 and bfloat16 are computed in float32 and rounded once, also under autocast (mixed
        inputs are promoted there). ``cpp`` has the accuracy of float32 summed in blocks; the same
        bits at every run and for any number of threads.
    Memory:
        ``cpp``: the result, ``O(hs*ws + ht*wt)`` saved for backward, and per thread one block of
        all sources by 64 targets; the backward keeps no 4D tensor either. ``reference``: about 8
        maps with gradients.
    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device.
        RuntimeError: the requested implementation cannot run.
        NotImplementedError: second derivatives of ``cpp``.
    """
    source, target = _checks.check_feature_pair(source, target)
    eps = _checks.check_eps(eps)
    return _dispatch.choose("guided_correlation", impl, source.device)(source, target, eps)
