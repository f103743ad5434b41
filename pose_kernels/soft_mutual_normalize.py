"""Soft mutual nearest neighbours, then unit columns.

Eqs. 9 and 2 of "Pose transfer using a single spatial transformation":

a_t = max(max_s C(s, t), eps),  b_s = max(max_t C(s, t), eps)
gamma = C/a_t * C/b_s,  Q = gamma C                        (Eq. 9)
Qhat(., t) = Q(., t) / ||Q(., t)||_2                       (Eq. 2)

a_t cancels: Qhat = u / n_t with u = C^3 / b_s and n_t = max(||u(., t)||_2, eps). With G = dL/dQhat:
D_t = sum_s G Qhat,  du = (G - Qhat D_t) / n_t,  dC = 3 C^2 du / b_s, and at t*(s) = argmax_t C also
beta_s = -sum_t du C^3 / b_s^2. D_t is dropped where n_t is at its floor, beta_s where b_s is.
"""

import torch

from . import _checks, _dispatch, _library
from .correlation_4d import example_features
from .correlation_4d import reference as correlation_reference

# For S source and T target positions: row_max [B, S] is max(max_t C, eps), row_argmax [B, S]
# (int64) the first t where it is, norm [B, T] is max(||C^3 / row_max||_2 over S, eps); they are
# float32, or float64 for float64 maps. out_dtype, out and the gradient as in correlation_4d.
_library.define(
    "soft_mutual_normalize(Tensor correlation, float eps, ScalarType out_dtype)"
    " -> (Tensor result, Tensor row_max, Tensor row_argmax, Tensor norm)",
    "soft_mutual_normalize_out(Tensor correlation, float eps, Tensor(a!) out) -> ()",
    "soft_mutual_normalize_backward(Tensor grad, Tensor correlation, Tensor row_max,"
    " Tensor row_argmax, Tensor norm, float eps) -> Tensor",
    triton="soft_mutual_normalize",
)


def reference(correlation: torch.Tensor, eps: float, out_dtype: torch.dtype | None = None,
              out: torch.Tensor | None = None) -> torch.Tensor:
    dtype = _checks.compute_dtype(correlation.dtype)
    C = correlation.to(dtype).flatten(2)  # [B, S, T]
    # torch.max sends the gradient of a tie to the first maximal index; every implementation does
    # the same.
    a = C.max(dim=1, keepdim=True).values.clamp(min=eps)  # [B, 1, T]
    b = C.max(dim=2, keepdim=True).values.clamp(min=eps)  # [B, S, 1]
    gamma = (C / a) * (C / b)  # Eq. 9
    Q = gamma * C
    norm = torch.linalg.vector_norm(Q, dim=1, keepdim=True)  # [B, 1, T]
    # Q = u / a_t with u = C^3 / b_s, so a floor of eps / a_t here is the floor eps on ||u||: a_t
    # cancels exactly, in the value and in the gradient, and a fused implementation need not compute
    # it.
    Q_hat = Q / torch.maximum(norm, eps / a)  # Eq. 2
    Q_hat = Q_hat.unflatten(2, correlation.shape[2:]).to(out_dtype or correlation.dtype)
    return _library.into(out, Q_hat)


def compiled(ops, correlation, eps, out_dtype, out):
    if out is None:
        return ops.soft_mutual_normalize(correlation, eps, out_dtype)[0]
    ops.soft_mutual_normalize_out(correlation, eps, out)
    return out


def new_statistics(like, sources, targets):
    """Memory for max_t C, t* and n of a map that is as precise as ``like``."""
    batch, dtype = like.shape[0], _checks.compute_dtype(like.dtype)
    return (like.new_empty(batch, sources, dtype=dtype),
            like.new_empty(batch, sources, dtype=torch.int64),
            like.new_empty(batch, targets, dtype=dtype))


def save_with_statistics(ctx, inputs, output) -> None:
    """For backward: tensors of the inputs, and what the operator returns beside its result."""
    _, *statistics = output
    ctx.save_for_backward(*inputs, *statistics)
    ctx.mark_non_differentiable(*statistics)


def _fake(correlation, eps, out_dtype):
    _, sources, ht, wt = correlation.shape
    result = correlation.new_empty(correlation.shape, dtype=out_dtype)
    return result, *new_statistics(correlation, sources, ht * wt)


def _fake_backward(grad, correlation, row_max, row_argmax, norm, eps):
    return correlation.new_empty(correlation.shape)


def _setup_context(ctx, inputs, output):
    correlation, ctx.eps, _ = inputs
    save_with_statistics(ctx, [correlation], output)


def _backward(ops, ctx, grad, *_):
    return [ops.soft_mutual_normalize_backward(grad, *ctx.saved_tensors, ctx.eps)]


def _example():
    return [correlation_reference(*example_features())]


# Its map comes from an operator that takes a gradient of any layout.
_library.register_operator("soft_mutual_normalize", reference, compiled, _fake, _fake_backward,
                           _setup_context, _backward, _example, activations=0)


def soft_mutual_normalize(correlation: torch.Tensor, eps: float = 1e-5, *,
                          out_dtype: torch.dtype | None = None, out: torch.Tensor | None = None,
                          impl: str | None = None) -> torch.Tensor:
    """Weigh a correlation map by how mutual each match is; unit columns (Eqs. 9, 2).

    ``gamma = C / max_s C * C / max_t C``, ``Q = gamma * C``, ``Qhat = Q / ||Q(., t)||_2``.

    Args:
        correlation: ``[B, hs*ws, ht, wt]`` as :func:`correlation_4d` returns it.
        eps: floor of both maxima, and of the norm of ``C^3 / max_t C``.
        out_dtype, out: of the result, as in :func:`correlation_4d`; ``out`` is not ``correlation``.
        impl: one of :func:`implementations` by name; None picks the best that can run.

    Returns: Same shape, contiguous, in ``out_dtype``; ``out`` where it is given.

    Convention:
        Dimension 1 runs over source positions, the last two over target positions.
        A column of zeros gives zeros and zero gradients. The gradient of a tied maximum goes to the
        first one.
    Precision:
        float16 and bfloat16 are computed in float32: a cube of .02 is below half precision's
        resolution.
    Memory:
        The result; with gradients also the input is kept, and its gradient made. ``reference``:
        about 8 maps. :func:`guided_correlation` keeps no map at all.
    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype or shape.
        RuntimeError: the requested implementation cannot run; ``out`` where a gradient is asked
            for.
        NotImplementedError: second derivatives of anything but ``reference``.
    """
    _checks.check_tensor("correlation", correlation, "[B, hs*ws, ht, wt]")
    eps = _checks.check_eps(eps)
    out_dtype = _checks.check_out_dtype(out_dtype, correlation.dtype)
    _checks.check_out(out, tuple(correlation.shape), out_dtype, False, correlation)
    function = _dispatch.choose("soft_mutual_normalize", impl, correlation.device)
    return function(correlation, eps, out_dtype, out)
