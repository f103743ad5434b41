"""All-pairs correlation: Eq. 1 of "Pose transfer using a single spatial transformation".

C(s, t) = <z_s(s), z_t(t)>.   Gradients: dz_s(s) = sum_t dC(s, t) z_t(t),  dz_t(t) = sum_s dC(s, t)
z_s(s).
"""

import torch

from . import _checks, _dispatch


def reference(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    dtype = _checks.compute_dtype(source.dtype)
    # Autocast would run the product in half precision, whatever comes in.
    with torch.autocast(source.device.type, enabled=False):
        z_s = source.to(dtype).flatten(2)  # [B, m, S]
        z_t = target.to(dtype).flatten(2)  # [B, m, T]
        correlation = z_s.transpose(1, 2) @ z_t  # Eq. 1, [B, S, T]
        return correlation.unflatten(2, target.shape[2:]).to(source.dtype)


_dispatch.register("correlation_4d", "reference", reference)


def correlation_4d(
    source: torch.Tensor, target: torch.Tensor, *, impl: str | None = None
) -> torch.Tensor:
    """Correlation of every source position with every target position (Eq. 1).

    ``C[b, s, i, j] = sum_k source[b, k, s] * target[b, k, i, j]``; the inputs are not normalised
    here.

    Args:
        source: features ``[B, m, hs, ws]``.
        target: features ``[B, m, ht, wt]``, same dtype and device.
        impl: ``"reference"``; None picks the best that can run.

    Returns:
        ``[B, hs*ws, ht, wt]`` in the dtype of the inputs.

    Convention:
        Channel ``s = i*ws + j`` is source position (row i, column j): row-major, as ``flatten(2)``
        gives it.
    Precision:
        float16 and bfloat16 are multiplied and summed in float32, also under autocast. On a GPU
        float32 follows torch's own TF32 setting.
    Memory:
        The result, ``B*hs*ws*ht*wt`` values; float16 and bfloat16 pass through a float32 copy of
        it.
    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device.
        RuntimeError: the requested implementation cannot run.
    """
    source, target = _checks.check_feature_pair(source, target)
    return _dispatch.choose("correlation_4d", impl, source.device)(source, target)
