"""Soft mutual nearest neighbours, then unit columns.

Eqs. 9 and 2 of "Pose transfer using a single spatial transformation":

a_t = max(max_s C(s, t), eps),  b_s = max(max_t C(s, t), eps)
gamma = C/a_t * C/b_s,  Q = gamma C                        (Eq. 9)
Qhat(., t) = Q(., t) / ||Q(., t)||_2                       (Eq. 2)
"""

import torch

from . import _checks, _dispatch


def reference(correlation: torch.Tensor, eps: float) -> torch.Tensor:
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
    return Q_hat.unflatten(2, correlation.shape[2:]).to(correlation.dtype)


_dispatch.register("soft_mutual_normalize", "reference", reference)


def soft_mutual_normalize(
    correlation: torch.Tensor, eps: float = 1e-5, *, impl: str | None = None
) -> torch.Tensor:
    """Weigh a correlation map by how mutual each match is; unit columns (Eqs. 9, 2).

    ``gamma = C / max_s C * C / max_t C``, ``Q = gamma * C``, ``Qhat = Q / ||Q(., t)||_2``.

    Args:
        correlation: ``[B, hs*ws, ht, wt]`` as :func:`correlation_4d` returns it.
        eps: floor of both maxima, and of the norm of ``C^3 / max_t C``.
        impl: ``"reference"``; None picks the best that can run.

    Returns:
        Same shape and dtype.

    Convention:
        Dimension 1 runs over source positions, the last two over target positions.
        A column of zeros gives zeros and zero gradients. The gradient of a tied maximum goes to the
        first one.
    Precision:
        float16 and bfloat16 are computed in float32: a cube of .02 is below half precision's
        resolution.
    Memory:
        About 8 times the map with gradients; :func:`guided_correlation` needs none of it.
    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype or shape.
        RuntimeError: the requested implementation cannot run.
    """
    _checks.check_tensor("correlation", correlation, "[B, hs*ws, ht, wt]")
    eps = _checks.check_eps(eps)
    return _dispatch.choose("soft_mutual_normalize", impl, correlation.device)(correlation, eps)
