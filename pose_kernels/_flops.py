"""What `torch.utils.flop_counter.FlopCounterMode` counts for the operators.

As torch does for its own: two for each product and its addition, nothing for what is done to single
values, which sampling, maxima and norms are. A backward that makes the map again counts it again,
as those of torch's attention do.
"""

import importlib.abc
import importlib.util
import math
import sys

import torch

_MODULE = "torch.utils.flop_counter"


def _map(source, target, *_, **__) -> int:
    """All products of features ``[B, m, hs, ws]`` and ``[B, m, ht, wt]``."""
    return 2 * math.prod(source) * math.prod(target[2:])


def _map_backward(grad, source, target, *rest, **__) -> int:
    return sum(rest[-2:]) * _map(source, target)


def _guided_backward(grad, source, target, *rest, **__) -> int:
    return (1 + sum(rest[-2:])) * _map(source, target)


def _convolution(source, target, weight) -> int:
    return 2 * source[0] * math.prod(weight) * math.prod(target[2:])


def _conv2d(source, target, weight, *_, **__) -> int:
    return _map(source, target) + _convolution(source, target, weight)


def _conv2d_backward(grad, source, target, weight, *rest, **__) -> int:
    *_, source_grad, target_grad, weight_grad = rest
    convolutions = (source_grad or target_grad) + weight_grad
    return (1 + source_grad + target_grad) * _map(source, target) \
        + convolutions * _convolution(source, target, weight)


def _reading(source, target, values) -> int:
    return 2 * source[0] * values[-2] * math.prod(source[2:]) * math.prod(target[2:])


def _readout(source, target, values, *_, **__) -> int:
    return _map(source, target) + _reading(source, target, values)


def _readout_backward(grad, source, target, values, *rest, **__) -> int:
    *_, source_grad, target_grad, values_grad = rest
    readings = (source_grad or target_grad) + values_grad
    return (1 + source_grad + target_grad) * _map(source, target) \
        + readings * _reading(source, target, values)


def _pair(source, target, values, squared, *_, **__) -> int:
    return _readout(source, target, values) + _reading(source, target, squared)


def _pair_backward(grad, squared_grad, source, target, values, squared, *rest, **__) -> int:
    *_, source_grad, target_grad, values_grad, squared_wanted = rest
    features = source_grad or target_grad
    return (1 + source_grad + target_grad) * _map(source, target) \
        + (features + values_grad) * _reading(source, target, values) \
        + (features + squared_wanted) * _reading(source, target, squared)


_FORMULAS = {
    "correlation_4d": _map, "correlation_4d_backward": _map_backward,
    "guided_correlation": _map, "guided_correlation_backward": _guided_backward,
    "guided_correlation_conv2d": _conv2d, "guided_correlation_conv2d_backward": _conv2d_backward,
    "guided_readout": _readout, "guided_readout_backward": _readout_backward,
    "guided_readout_pair": _pair, "guided_readout_pair_backward": _pair_backward,
    "mutual_matches": _map,
}


def register() -> None:
    """Hand the formulas to torch: now, or when its counter is imported, which takes as long as to
    import this package."""
    if _MODULE in sys.modules:
        _hand_over(sys.modules[_MODULE])
    else:
        sys.meta_path.insert(0, _WhenImported())


class _WhenImported(importlib.abc.MetaPathFinder):
    """Has its turn at every import, and finds nothing but the counter, once."""

    def find_spec(self, name, path, target=None):
        if name != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def load_and_hand_over(module):
            load(module)
            _hand_over(module)

        spec.loader.exec_module = load_and_hand_over
        return spec


def _hand_over(counter) -> None:
    for namespace in ("pose_kernels", "pose_kernels_triton"):
        for name, formula in _FORMULAS.items():
            operator = getattr(getattr(torch.ops, namespace), name)
            counter.register_flop_formula(operator)(formula)
