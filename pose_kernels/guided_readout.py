"""What is read out of the guided correlation map, which is never made.

Eqs. 1, 9 and 2, then a sum over the sources with weights v_n, for power p = 1 or 2:

out_n(t) = sum_s v_n(s) Qhat(s, t)^p,  Qhat = u / n_t,
u = C^3 / b_s,  n_t = max(||u(., t)||_2, eps).

One sweep over the sources gives a_n = sum_s v_n u^p and n_t; out = a / n_t^p. With G = dL/dout,

g(s, t) = sum_n v_n(s) G_n(t),  D_t = sum_n G_n(t) out_n(t)  (0 where n_t is at its floor),
p = 1: du = (g - Qhat D_t) / n_t,      p = 2: du = 2 Qhat (g - D_t) / n_t,
dv_n(s) = sum_t G_n(t) Qhat(s, t)^p,

and from du on as in guided_correlation. Values of both powers add up in du (`_readout_pair`).
"""

import functools
from typing import overload

import torch

from . import _checks, _dispatch, _library, _readout_pair  # noqa: F401, which defines its operator
from .correlation_4d import example_features
from .guided_correlation import fake_statistics
from .guided_correlation import reference as guided_correlation_reference
from .soft_mutual_normalize import save_with_statistics

# Values are [n, S] or [B, n, S] and of any floating dtype, which the result has too. row_max,
# row_argmax and norm as in soft_mutual_normalize. Of the last three flags each asks for the
# gradient of that name; one that is not asked for is empty.
_library.define(
    "guided_readout(Tensor source, Tensor target, Tensor values, int power, float eps, bool tf32)"
    " -> (Tensor result, Tensor row_max, Tensor row_argmax, Tensor norm)",
    "guided_readout_backward(Tensor grad, Tensor source, Tensor target, Tensor values,"
    " Tensor result, Tensor row_max, Tensor row_argmax, Tensor norm, int power, float eps,"
    " bool tf32, bool source_grad, bool target_grad, bool values_grad)"
    " -> (Tensor source_grad, Tensor target_grad, Tensor values_grad)",
    triton="guided_readout",
)


def reference(source, target, values, power, eps: float, squared=None):
    pairs = [(values, power)] if squared is None else [(values, 1), (squared, 2)]
    wide = functools.reduce(torch.promote_types, (x.dtype for x, _ in pairs), source.dtype)
    wide = _checks.compute_dtype(wide)
    # Autocast would run the product in half precision, whatever comes in.
    with _checks.without_autocast(source.device):
        Q = guided_correlation_reference(source.to(wide), target.to(wide), eps)  # Eqs. 1, 9, 2
        results = [(x.to(wide) @ Q.flatten(2).pow(p)).unflatten(2, target.shape[2:]).to(x.dtype)
                   for x, p in pairs]                                            # [B, n, ht, wt]
    return results[0] if squared is None else tuple(results)


def compiled(ops, source, target, values, power, eps, squared=None):
    tf32 = _checks.allow_tf32(source)
    if squared is not None:
        return ops.guided_readout_pair(source, target, values, squared, eps, tf32)[:2]
    return ops.guided_readout(source, target, values, power, eps, tf32)[0]


def _fake(source, target, values, power, eps, tf32):
    shape = (source.shape[0], values.shape[-2], *target.shape[2:])
    return values.new_empty(shape), *fake_statistics(source, target)


def _fake_backward(grad, source, target, values, result, row_max, row_argmax, norm, power, eps,
                   tf32, source_grad, target_grad, values_grad):
    wanted = ((source, source_grad), (target, target_grad), (values, values_grad))
    return tuple(_library.new_gradient(*of) for of in wanted)


def _setup_context(ctx, inputs, output):
    source, target, values, ctx.power, ctx.eps, ctx.tf32 = inputs
    save_with_statistics(ctx, [source, target, values, output[0]], output)


def _backward(ops, ctx, grad, *_):
    return ops.guided_readout_backward(grad, *ctx.saved_tensors, ctx.power, ctx.eps, ctx.tf32,
                                       *ctx.needs_input_grad[:3])


def _example():
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(8, 63, generator=generator, dtype=torch.float64)
    return [*example_features(), values]


_library.register_operator("guided_readout", reference, compiled, _fake, _fake_backward,
                           _setup_context, _backward, _example)


def _check_values(values, source) -> torch.Tensor:
    """Values for the features, under autocast in its dtype."""
    shared = not isinstance(values, torch.Tensor) or values.dim() != 3
    _checks.check_tensor("values", values, "[n, hs*ws]" if shared else "[B, n, hs*ws]")
    _checks.check_same_device("values", values, "source", source)
    batch, positions = source.shape[0], source.shape[2] * source.shape[3]
    if values.shape[-1] != positions or not shared and values.shape[0] != batch:
        raise ValueError(f"values: expected [n, {positions}] or [{batch}, n, {positions}] for "
                         f"source {list(source.shape)}, got shape {list(values.shape)}")
    if values.shape[-2] == 0:
        raise ValueError(f"values: expected n > 0 outputs, got shape {list(values.shape)}")
    autocast = _checks.autocast_enabled(source.device)
    # Positions and the like need more than the 16 bits that are enough for features.
    wide = values.dtype == torch.float32 and source.dtype != torch.float64
    if values.dtype != source.dtype and not wide and not autocast:
        raise TypeError(f"values: expected {source.dtype} as source, or float32 for features of "
                        f"16 bits, got {values.dtype}")
    if autocast and values.dtype != torch.float64:  # as for torch's own products
        values = values.to(torch.get_autocast_dtype(source.device.type))
    return values


@overload
def guided_readout(source: torch.Tensor, target: torch.Tensor, values: torch.Tensor,
                   power: int = 1, eps: float = 1e-5, *, impl: str | None = None
                   ) -> torch.Tensor: ...


@overload
def guided_readout(source: torch.Tensor, target: torch.Tensor,
                   values: tuple[torch.Tensor, torch.Tensor], power: tuple[int, int],
                   eps: float = 1e-5, *, impl: str | None = None
                   ) -> tuple[torch.Tensor, torch.Tensor]: ...


def guided_readout(source, target, values, power=1, eps=1e-5, *, impl=None):
    """Sums over the sources, weighted by the guided correlation of two feature maps (Eqs. 1, 9, 2).

    ``out[b, n, t] = sum_s values[n, s] Qhat(s, t)**power``, where
    ``Qhat = guided_correlation(source, target, eps)``. With weights as values it is a 1 x 1
    convolution of the map; with features of the source and ``power=2``, whose weights sum to one,
    it moves them to where they match; with positions it is the expected match.

    Two read-outs of one map, ``guided_readout(source, target, (weights, places), power=(1, 2))``,
    take little longer than one on a CPU, forward and backward, where it is the features' length
    that costs; elsewhere they take as long as two calls.

    Args:
        source: features ``[B, m, hs, ws]``.
        target: features ``[B, m, ht, wt]``, same dtype and device.
        values: ``[n, hs*ws]`` for all samples, or ``[B, n, hs*ws]``; same device, and the
            dtype of the features, or float32 where those have 16 bits. Or a pair of such tensors.
        power: 1 or 2; for a pair (1, 2), those of the first and of the second.
        eps: floor of the row maxima and the column norms.
        impl: one of :func:`implementations` by name; None picks the best that can run.

    Returns: ``[B, n, ht, wt]`` in the dtype of ``values``, contiguous; of a pair both.

    Convention:
        The last dimension of ``values`` runs over source positions row-major, ``s = i*ws + j``. A
        column of zeros gives zeros and zero gradients. The gradient of a tied maximum goes to the
        first one.
    Precision:
        float16 and bfloat16 are computed in float32 and rounded once. Autocast is followed as by a
        convolution: values and result in its dtype, unless they are float64. On a GPU float32 is
        accurate to float32 unless ``torch.backends.cuda.matmul.allow_tf32`` is set. The same bits
        at every run, on a CPU for any number of threads.
    Memory:
        The result, ``O(hs*ws + ht*wt)`` saved for backward, copies of the feature maps and a few
        blocks; no map, in the backward neither. ``reference``: about 8 maps with gradients.
    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device.
        RuntimeError: the requested implementation cannot run.
        NotImplementedError: second derivatives of anything but ``reference``.
    """
    source, target = _checks.check_feature_pair(source, target)
    pair = isinstance(values, tuple)
    values = tuple(_check_values(x, source) for x in (values if pair else (values,)))
    if pair and (len(values) != 2 or power != (1, 2)):
        raise ValueError(f"values, power: expected a tensor, or a pair of them with power (1, 2), "
                         f"got {len(values)} with power {power!r}")
    if not pair and power not in (1, 2):
        raise ValueError(f"power: expected 1 or 2, got {power!r}")
    eps = _checks.check_eps(eps)
    function = _dispatch.choose("guided_readout", impl, source.device)
    return function(source, target, values[0], power if pair else int(power), eps, *values[1:])
