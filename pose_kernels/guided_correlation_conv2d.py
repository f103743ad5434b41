"""Guided correlation and the convolution that reads it.

Eqs. 1, 9, 2 and the first layer of C_l:

Y = conv2d(Qhat, weight, bias, padding="same"),  Qhat = guided_correlation(source, target).
"""

import torch
import torch.nn.functional as F

from . import _checks, _dispatch
from .guided_correlation import reference as guided_correlation_reference


def reference(source, target, weight, bias, eps: float) -> torch.Tensor:
    return F.conv2d(guided_correlation_reference(source, target, eps), weight, bias, padding="same")


_dispatch.register("guided_correlation_conv2d", "reference", reference)


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
        impl: ``"reference"``; None picks the best that can run.

    Returns:
        ``[B, n, ht, wt]``.

    Convention:
        Channels of ``weight`` run over source positions row-major, its window over target
        positions. Zero padding; odd kernels are centred, even ones as torch's ``padding="same"``.
    Precision:
        The map as :func:`guided_correlation`; the convolution is torch's own and follows autocast.
    Memory:
        The reference stores the map.
    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device.
        RuntimeError: the requested implementation cannot run.
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
    autocast = torch.is_autocast_enabled(source.device.type)
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
    return _dispatch.choose("guided_correlation_conv2d", impl, source.device)(
        source, target, weight, bias, eps
    )
