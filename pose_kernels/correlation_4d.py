"""All-pairs correlation: Eq. 1 of "Pose transfer using a single spatial transformation".

C(s, t) = <z_s(s), z_t(t)>.   Gradients: dz_s(s) = sum_t dC(s, t) z_t(t),  dz_t(t) = sum_s dC(s, t)
z_s(s).
C is bilinear, so these gradients have derivatives of the same kind. With v_s and v_t the gradients
with respect to dz_s and dz_t, in the place of features:
d(dC)(s, t) = <v_s(s), z_t(t)> + <z_s(s), v_t(t)>,  d(z_s)(s) = sum_t dC(s, t) v_t(t),  d(z_t)(t) =
sum_s dC(s, t) v_s(s).
"""

import torch

from . import _checks, _derivatives, _dispatch, _library

# tf32 allows TF32 products on a GPU; channels_last and out_dtype are the layout and dtype of the
# result, which is as wide as the features or narrower; `out` is memory for it, in either layout.
# Its gradient has its dtype, the gradients of the features have theirs.
_library.define(
    "correlation_4d(Tensor source, Tensor target, bool tf32, bool channels_last,"
    " ScalarType out_dtype) -> Tensor",
    "correlation_4d_out(Tensor source, Tensor target, bool tf32, Tensor(a!) out) -> ()",
    "correlation_4d_backward(Tensor grad, Tensor source, Tensor target, bool tf32,"
    " bool source_grad, bool target_grad) -> (Tensor source_grad, Tensor target_grad)",
    triton="correlation_4d",
)


def reference(source: torch.Tensor, target: torch.Tensor, channels_last: bool = False,
              out_dtype: torch.dtype | None = None,
              out: torch.Tensor | None = None) -> torch.Tensor:
    dtype = _checks.compute_dtype(source.dtype)
    # Autocast would run the product in half precision, whatever comes in.
    with _checks.without_autocast(source.device):
        z_s = source.to(dtype).flatten(2)  # [B, m, S]
        z_t = target.to(dtype).flatten(2)  # [B, m, T]
        correlation = z_s.transpose(1, 2) @ z_t  # Eq. 1, [B, S, T]
        correlation = correlation.unflatten(2, target.shape[2:]).to(out_dtype or source.dtype)
    if channels_last and out is None:
        correlation = correlation.contiguous(memory_format=torch.channels_last)
    return _library.into(out, correlation)


def compiled(ops, source, target, channels_last, out_dtype, out):
    tf32 = _checks.allow_tf32(source)
    if out is None:
        return ops.correlation_4d(source, target, tf32, channels_last, out_dtype)
    ops.correlation_4d_out(source, target, tf32, out)
    return out


def map_shape(source, target) -> tuple[int, ...]:
    batch, _, hs, ws = source.shape
    return batch, hs * ws, *target.shape[2:]


def new_map(source, target, channels_last, out_dtype):
    """Memory for a correlation map."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(map_shape(source, target), dtype=out_dtype, device=source.device,
                       memory_format=memory_format)


def _fake(source, target, tf32, channels_last, out_dtype):
    return new_map(source, target, channels_last, out_dtype)


def _fake_backward(grad, source, target, tf32, source_grad, target_grad):
    return _library.new_gradient(source, source_grad), _library.new_gradient(target, target_grad)


def _setup_context(ctx, inputs, output):
    source, target, ctx.tf32, *_ = inputs
    ctx.save_for_backward(source, target)


def _backward(ops, ctx, grad):
    wanted = ctx.needs_input_grad[:2]
    return ops.correlation_4d_backward(grad, *ctx.saved_tensors, ctx.tf32, *wanted)


def _setup_second(ctx, inputs, output):
    grad, source, target, ctx.tf32, *_ = inputs
    ctx.channels_last = _library.is_channels_last(grad)
    ctx.save_for_backward(grad, source, target)
    ctx.set_materialize_grads(False)


def _second_derivative(ops, ctx, v_s, v_t):
    grad, source, target = ctx.saved_tensors
    of_grad, of_source, of_target, *_ = ctx.needs_input_grad
    d_grad = d_source = d_target = None
    pairs = [(a, b) for a, b in ((v_s, target), (source, v_t)) if a is not None and b is not None]
    if of_grad and pairs:
        # Both products in one, over twice the features.
        left, right = (torch.cat(z, dim=1) for z in zip(*pairs, strict=True))
        d_grad = ops.correlation_4d(left, right, ctx.tf32, ctx.channels_last, grad.dtype)
    if of_source and v_t is not None:
        d_source, _ = ops.correlation_4d_backward(grad, source, v_t, ctx.tf32, True, False)
    if of_target and v_s is not None:
        _, d_target = ops.correlation_4d_backward(grad, v_s, target, ctx.tf32, False, True)
    return d_grad, d_source, d_target, None, None, None


def _vmap(ops, info, in_dims, source, target, *options):
    source, target = (_derivatives.fold(info, d, z)
                      for d, z in zip(in_dims, (source, target), strict=False))
    return _derivatives.unfold(info, ops.correlation_4d(source, target, *options)), 0


def _vmap_backward(ops, info, in_dims, grad, source, target, tf32, *wanted):
    tensors = (_derivatives.fold(info, d, x)
               for d, x in zip(in_dims, (grad, source, target), strict=False))
    grads = ops.correlation_4d_backward(*tensors, tf32, *wanted)
    return (tuple(_derivatives.unfold(info, g) if w else g
                  for g, w in zip(grads, wanted, strict=True)),
            tuple(0 if w else None for w in wanted))


def example_features() -> list[torch.Tensor]:
    """A pair of feature maps with unit vectors, for self-checks."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 35, 9, 7), (2, 35, 6, 11))
    maps = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [torch.nn.functional.normalize(z, dim=1) for z in maps]


_library.register_operator("correlation_4d", reference, compiled, _fake, _fake_backward,
                           _setup_context, _backward, example_features,
                           second_derivative=(_setup_second, _second_derivative), vmap=_vmap,
                           vmap_backward=_vmap_backward)


def correlation_4d(source: torch.Tensor, target: torch.Tensor, *,
                   memory_format: torch.memory_format = torch.contiguous_format,
                   out_dtype: torch.dtype | None = None, out: torch.Tensor | None = None,
                   impl: str | None = None) -> torch.Tensor:
    """Correlation of every source position with every target position (Eq. 1).

    ``C[b, s, i, j] = sum_k source[b, k, s] * target[b, k, i, j]``; the inputs are not normalised
    here.

    Args:
        source: features ``[B, m, hs, ws]``.
        target: features ``[B, m, ht, wt]``, same dtype and device.
        memory_format: of the result; ``torch.channels_last`` is what a tensor-core convolution
            reads best.
        out_dtype: of the result: that of the inputs (None) or a narrower one: float32 from float64,
            float16 or bfloat16 from either. The product is rounded to it once.
        out: memory to write the result into, contiguous or channels-last, of its shape, dtype and
            device; for loops without gradients, which then pay for its pages once.
        impl: one of :func:`implementations` by name; None picks the best that can run.

    Returns: ``[B, hs*ws, ht, wt]`` in ``out_dtype``; ``out`` where it is given.

    Convention:
        Channel ``s = i*ws + j`` is source position (row i, column j): row-major, as ``flatten(2)``
        gives it.
    Precision:
        float16 and bfloat16 are multiplied and summed in float32, also under autocast. On a GPU
        float32 is accurate to float32 unless ``torch.backends.cuda.matmul.allow_tf32`` is set.
    Memory:
        The result, ``B*hs*ws*ht*wt`` values, and copies of the feature maps. A narrower result of
        float64 features passes through a float64 one; ``reference``: every narrower one, and those
        of float16 and bfloat16, through one as wide as what is computed.
    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device.
        RuntimeError: the requested implementation cannot run; ``out`` where a gradient is asked
            for.
    """
    source, target = _checks.check_feature_pair(source, target)
    channels_last = _checks.check_memory_format(memory_format)
    out_dtype = _checks.check_out_dtype(out_dtype, source.dtype)
    _checks.check_out(out, map_shape(source, target), out_dtype, channels_last, source, target)
    function = _dispatch.choose("correlation_4d", impl, source.device)
    return function(source, target, channels_last, out_dtype, out)
