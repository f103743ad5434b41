"""A pytest plugin: in its process the implementation `cuda` is csrc/cuda/*.cu on CPU tensors.

`-p emulated_cuda`, with this folder in PYTHONPATH. The host code of the operators, their kernels
and the GPU's plan of the convolution run as on a GPU; the CPU library is not there, so that nothing
can fall back on it.
"""

import dataclasses
import functools
import importlib
import sys
from unittest import mock

import torch

assert "pose_kernels" not in sys.modules, "its libraries are loaded already"
import build  # noqa: E402

with mock.patch.object(torch.ops, "load_library"):  # neither of the two
    from pose_kernels import _dispatch, _library

torch.ops.load_library(str(build.wrappers()))
_library.cpu_reason = None  # what stands without Winograd's form is the plan's own choice
for op, table in _dispatch._implementations.items():
    del table["cpp"]
    _dispatch._functions[op].pop("cpp")
    table["cuda"] = dataclasses.replace(table["cuda"], devices=("cpu",), reason=None)

importlib.import_module("pose_kernels.guided_correlation_conv2d")._plan = lambda device: "cuda"
_pair = importlib.import_module("pose_kernels._readout_pair")
for name, function in (("guided_readout_pair", _pair.in_two_sweeps),
                       ("guided_readout_pair_backward", _pair.gradients_in_two_sweeps)):
    _library.fragments["pose_kernels"].impl(
        name, functools.partial(function, torch.ops.pose_kernels), "CPU")

_aten = torch.library.Library("aten", "IMPL")


def _bmm(a, b, out_dtype):
    """What torch has on a GPU alone: operands of 16 bits, summed in float32."""
    assert a.dtype == b.dtype and a.dtype.itemsize == 2 and out_dtype == torch.float32
    return torch.bmm(a.to(out_dtype), b.to(out_dtype))


_aten.impl("bmm.dtype", _bmm, "CPU")
