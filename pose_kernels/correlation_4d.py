"""All-pairs correlation: Eq. 1 of "Pose transfer using a single spatial transformation".

C(s, t) = <z_s(s), z_t(t)>.   Gradients: dz_s(s) = sum_t dC(s, t) z_t(t),  dz_t(t) = sum_s dC(s, t)
z_s(s).
"""

import torch

from . import _checks, _dispatch, _library

# tf32 allows TF32 products on a GPU; channels_last is the memory format of the result.
_library.define(
    "correlation_4d(Tensor source, Tensor target, bool tf32, bool channels_last) -> Tensor",
    "correlation_4d_backward(Tensor grad, Tensor source, Tensor target, bool tf32,"
    " bool source_grad, bool target_grad) -> (Tensor source_grad, Tensor target_grad)",
    triton="correlation_4d",
)


def reference(source: torch.Tensor, target: torch.Tensor,
              channels_last: bool = False) -> torch.Tensor:
    dtype = _checks.compute_dtype(source.dtype)
    # Autocast would run the product in half precision, whatever comes in.
    with _checks.without_autocast(source.device):
        z_s = source.to(dtype).flatten(2)  # [B, m, S]
        z_t = target.to(dtype).flatten(2)  # [B, m, T]
        correlation = z_s.transpose(1, 2) @ z_t  # Eq. 1, [B, S, T]
        correlation = correlation.unflatten(2, target.shape[2:]).to(source.dtype)
    if channels_last:
        correlation = correlation.contiguous(memory_format=torch.channels_last)
    return correlation


def compiled(ops, source, target, channels_last):
    return ops.correlation_4d(source, target, _checks.allow_tf32(source), channels_last)


def new_map(source, target, channels_last):
    """Memory for a correlation map."""
    batch, _, hs, ws = source.shape
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty((batch, hs * ws, *target.shape[2:]), dtype=source.dtype,
                       device=source.device, memory_format=memory_format)


def _fake(source, target, tf32, channels_last):
    return new_map(source, target, channels_last)


def _fake_backward(grad, source, target, tf32, source_grad, target_grad):
    return _library.new_gradient(source, source_grad), _library.new_gradient(target, target_grad)


def _setup_context(ctx, inputs, output):
    source, target, ctx.tf32, _ = inputs
    ctx.save_for_backward(source, target)


def _backward(ops, ctx, grad):
    wanted = ctx.needs_input_grad[:2]
    return ops.correlation_4d_backward(grad, *ctx.saved_tensors, ctx.tf32, *wanted)


def example_features() -> list[torch.Tensor]:
    """A pair of feature maps with unit vectors, for self-checks."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 35, 9, 7), (2, 35, 6, 11))
    maps = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [torch.nn.functional.normalize(z, dim=1) for z in maps]


_library.register_operator("correlation_4d", reference, compiled, _fake, _fake_backward,
                           _setup_context, _backward, example_features)


def correlation_4d(source: torch.Tensor, target: torch.Tensor, *,
                   memory_format: torch.memory_format = torch.contiguous_format,
                   impl: str | None = None) -> torch.Tensor:
    """Correlation of every source position with every target position (Eq. 1).

    ``C[b, s, i, j] = sum_k source[b, k, s] * target[b, k, i, j]``; the inputs are not normalised
    here.

    Args:
        source: features ``[B, m, hs, ws]``.
        target: features ``[B, m, ht, wt]``, same dtype and device.
        memory_format: of the result; ``torch.channels_last`` is what a tensor-core convolution
            reads best.
        impl: one of :func:`implementations` by name; None picks the best that can run.

    Returns: ``[B, hs*ws, ht, wt]`` in the dtype of the inputs.

    Convention:
        Channel ``s = i*ws + j`` is source position (row i, column j): row-major, as ``flatten(2)``
        gives it.
    Precision:
        float16 and bfloat16 are multiplied and summed in float32, also under autocast. On a GPU
        float32 is accurate to float32 unless ``torch.backends.cuda.matmul.allow_tf32`` is set.
    Memory:
        The result, ``B*hs*ws*ht*wt`` values, and copies of the feature maps. ``reference``: float16
        and bfloat16 pass through a float32 copy of the result.
    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device.
        RuntimeError: the requested implementation cannot run.
        NotImplementedError: second derivatives of anything but ``reference``.
    """
    source, target = _checks.check_feature_pair(source, target)
    channels_last = _checks.check_memory_format(memory_format)
    function = _dispatch.choose("correlation_4d", impl, source.device)
    return function(source, target, channels_last)
