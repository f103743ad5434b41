"""Two read-outs of one guided correlation map, of its first and of its second power.

On a CPU one sweep gives both, and one their gradients: C, whose products are most of the work where
values are few, is made once for the two. Elsewhere it is one sweep after the other.
"""

from . import _library
from .guided_correlation import fake_statistics
from .soft_mutual_normalize import save_with_statistics

# `values` for power 1 and `squared` for power 2, each as the values of guided_readout and with a
# result in its own dtype.
_library.define(
    "guided_readout_pair(Tensor source, Tensor target, Tensor values, Tensor squared, float eps,"
    " bool tf32)"
    " -> (Tensor result, Tensor squared_result, Tensor row_max, Tensor row_argmax, Tensor norm)",
    "guided_readout_pair_backward(Tensor grad, Tensor squared_grad, Tensor source, Tensor target,"
    " Tensor values, Tensor squared, Tensor result, Tensor squared_result, Tensor row_max,"
    " Tensor row_argmax, Tensor norm, float eps, bool tf32, bool source_grad, bool target_grad,"
    " bool values_grad, bool squared_grad_wanted)"
    " -> (Tensor source_grad, Tensor target_grad, Tensor values_grad, Tensor squared_grad_)",
)


def in_two_sweeps(ops, source, target, values, squared, eps, tf32):
    result, *_ = ops.guided_readout(source, target, values, 1, eps, tf32)
    return result, *ops.guided_readout(source, target, squared, 2, eps, tf32)


def gradients_in_two_sweeps(ops, grad, squared_grad, source, target, values, squared, result,
                            squared_result, row_max, row_argmax, norm, eps, tf32, source_wanted,
                            target_wanted, values_wanted, squared_wanted):
    statistics = (row_max, row_argmax, norm)
    *of_features, dv = ops.guided_readout_backward(
        grad, source, target, values, result, *statistics, 1, eps, tf32, source_wanted,
        target_wanted, values_wanted)
    *of_squares, dv_squared = ops.guided_readout_backward(
        squared_grad, source, target, squared, squared_result, *statistics, 2, eps, tf32,
        source_wanted, target_wanted, squared_wanted)
    of_both = (one + other for one, other in zip(of_features, of_squares, strict=True))
    return *of_both, dv, dv_squared


def _fake(source, target, values, squared, eps, tf32):
    results = (of.new_empty(source.shape[0], of.shape[-2], *target.shape[2:])
               for of in (values, squared))
    return *results, *fake_statistics(source, target)


def _fake_backward(grad, squared_grad, source, target, values, squared, *rest):
    wanted = zip((source, target, values, squared), rest[-4:], strict=True)
    return tuple(_library.new_gradient(*of) for of in wanted)


def _setup_context(ctx, inputs, output):
    source, target, values, squared, ctx.eps, ctx.tf32 = inputs
    save_with_statistics(ctx, [source, target, values, squared, *output[:2]], output[1:])


def _backward(ops, ctx, grad, squared_grad, *_):
    return ops.guided_readout_pair_backward(grad, squared_grad, *ctx.saved_tensors, ctx.eps,
                                            ctx.tf32, *ctx.needs_input_grad[:4])


_library.implement_by_others("guided_readout_pair", in_two_sweeps, but=("pose_kernels", "CPU"))
_library.implement_by_others("guided_readout_pair_backward", gradients_in_two_sweeps,
                             but=("pose_kernels", "CPU"))
_library.register_gradient("guided_readout_pair", _fake, _fake_backward, _setup_context, _backward)
