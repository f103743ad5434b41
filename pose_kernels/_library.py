"""The operators torch knows: their schemas, the compiled libraries behind them, Triton.

Each operator exists twice, with one schema: in the namespace ``pose_kernels``, where the two
compiled libraries implement it for CPU and CUDA tensors, and in ``pose_kernels_triton``; but for
those of ``CPU_SCHEMAS``, which the CPU library alone has. The libraries are apart because one that
is linked to CUDA does not load under a CPU build of torch. Importing this touches no GPU and does
not import Triton.
"""

import importlib
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch.autograd import forward_ad

from . import _dispatch

_here = Path(__file__).parent

# S = hs*ws source and T = ht*wt target positions. row_max [B, S] is max(max_t C, eps), row_argmax
# [B, S] (int64) the first t where it is, norm [B, T] is max(||C^3 / row_max||_2 over S, eps); they
# are float32, or float64 for float64 features. tf32 allows TF32 products on a GPU; channels_last is
# the memory format of the result. A gradient that is not asked for is an empty tensor.
SCHEMAS = (
    "correlation_4d(Tensor source, Tensor target, bool tf32, bool channels_last) -> Tensor",
    "correlation_4d_backward(Tensor grad, Tensor source, Tensor target, bool tf32,"
    " bool source_grad, bool target_grad) -> (Tensor source_grad, Tensor target_grad)",
    "soft_mutual_normalize(Tensor correlation, float eps)"
    " -> (Tensor result, Tensor row_max, Tensor row_argmax, Tensor norm)",
    "soft_mutual_normalize_backward(Tensor grad, Tensor correlation, Tensor row_max,"
    " Tensor row_argmax, Tensor norm, float eps) -> Tensor",
    "guided_correlation(Tensor source, Tensor target, float eps, bool tf32, bool channels_last)"
    " -> (Tensor result, Tensor row_max, Tensor row_argmax, Tensor norm)",
    "guided_correlation_backward(Tensor grad, Tensor source, Tensor target, Tensor row_max,"
    " Tensor row_argmax, Tensor norm, float eps, bool tf32)"
    " -> (Tensor source_grad, Tensor target_grad)",
    # The map in bands of target positions, for guided_correlation_conv2d. Features are [B, m, S]
    # and [B, m, T], float32 or float64; `out` and `grad` are [B, S, n] for the targets from `begin`
    # on, contiguous, of any floating dtype. The band writes its part of norm.
    "guided_correlation_row_max(Tensor source, Tensor target, float eps, bool tf32)"
    " -> (Tensor row_max, Tensor row_argmax)",
    "guided_correlation_band(Tensor source, Tensor target, Tensor row_max, float eps, bool tf32,"
    " SymInt begin, Tensor(a!) out, Tensor(b!) norm) -> ()",
    # Adds to source_grad [B, m, S] and beta [B, S], writes the band's columns of target_grad
    # [B, m, T], all in the features' dtype; beta_s is dL/d(row_max_s).
    "guided_correlation_band_backward(Tensor grad, Tensor source, Tensor target, Tensor row_max,"
    " Tensor norm, float eps, bool tf32, SymInt begin, Tensor(a!) source_grad,"
    " Tensor(b!) target_grad, Tensor(c!) beta) -> ()",
    # source_grad(s) += beta_s z_t(t*), target_grad(t*) += beta_s z_s, where row_max is above eps.
    "guided_correlation_row_max_backward(Tensor source, Tensor target, Tensor row_max,"
    " Tensor row_argmax, float eps, Tensor beta, Tensor(a!) source_grad, Tensor(b!) target_grad)"
    " -> ()",
    "guided_correlation_conv2d(Tensor source, Tensor target, Tensor weight, Tensor? bias,"
    " float eps, bool tf32) -> (Tensor result, Tensor row_max, Tensor row_argmax, Tensor norm)",
    "guided_correlation_conv2d_backward(Tensor grad, Tensor source, Tensor target, Tensor weight,"
    " Tensor row_max, Tensor row_argmax, Tensor norm, float eps, bool tf32, bool features_grad,"
    " bool weight_grad) -> (Tensor source_grad, Tensor target_grad, Tensor weight_grad)",
    "flow_sample(Tensor image, Tensor flow, SymInt height, SymInt width, bool zeros) -> Tensor",
    "flow_sample_backward(Tensor grad, Tensor image, Tensor flow, bool zeros, bool image_grad,"
    " bool flow_grad) -> (Tensor image_grad, Tensor flow_grad)",
)
# On a CPU only: the convolution of guided_correlation_conv2d by Winograd's F(2, 3) along x, see
# csrc/cpu/winograd.cpp; the products in float32 or float64. `maps` are the even and the odd columns
# of a band, [2, S, rows * w/2], Y and dY are [n, h + kh - 1, w] and even in width, R = n * kh.
CPU_SCHEMAS = (
    # The weight [n, S, kh, 3], strided and of any floating dtype, in panels: U is
    # [4, R to a multiple of 12, S], or transposed [4, S to a multiple of 12, R].
    "winograd_weight(Tensor weight, bool transposed, Tensor(a!) U) -> ()",
    # For the band from row `first` on: adds its part of the output to Y, with a U that is not
    # transposed; its gradient, with a transposed U; adds its part to dU [4, S, R].
    "winograd_add_output(Tensor U, Tensor maps, SymInt first, SymInt kh, Tensor(a!) Y) -> ()",
    "winograd_map_gradient(Tensor U, Tensor dY, SymInt first, SymInt kh, Tensor(a!) maps) -> ()",
    "winograd_add_weight_gradient(Tensor maps, Tensor dY, SymInt first, SymInt kh,"
    " Tensor(a!) dU) -> ()",
    # The sum dU to the gradient [n, S, kh, 3] of any floating dtype.
    "winograd_weight_gradient(Tensor dU, Tensor(a!) weight_grad) -> ()",
)
NAMESPACES = ("pose_kernels", "pose_kernels_triton")

#: The fragments stay referenced: torch forgets a registration together with its Library.
fragments = {namespace: torch.library.Library(namespace, "FRAGMENT") for namespace in NAMESPACES}
for _fragment in fragments.values():
    for _schema in SCHEMAS:
        _fragment.define(_schema)
for _schema in CPU_SCHEMAS:
    fragments["pose_kernels"].define(_schema)


def _read_build_info() -> dict:
    try:
        return json.loads((_here / "_build_info.json").read_text())
    except (OSError, ValueError):
        return {}


#: What setup.py built: versions, architectures, and per library None or the reason why it was not
# built.
build_info = _read_build_info()


def _load(name: str) -> str | None:
    """Load ``_C_<name>``: None when it worked, otherwise the reason in one sentence."""
    path = _here / f"_C_{name}.so"
    if not path.exists():
        built = build_info.get(name, {}).get("reason")
        return f"{path.name} is not built" + (
            f": {built}" if built else " (run `pip install -e .`)"
        )
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{path.name} does not load: {str(error).splitlines()[0]}"
    return None


cpu_reason = _load("cpu")
# The instruction set is asked of the CPU library, whatever else is there.
cuda_reason = _load("cuda") if cpu_reason is None else f"it needs the CPU library: {cpu_reason}"
triton_reason = None if importlib.util.find_spec("triton") else "Triton is not installed"
#: Triton's interpreter runs kernels on CPU tensors: slowly, for tests and debugging.
triton_interpreted = os.environ.get("TRITON_INTERPRET") == "1"


def _implement_in_triton(schema: str) -> None:
    name = schema.partition("(")[0]
    if name.startswith("guided_correlation_conv2d"):  # made of the other operators
        return

    def call(*arguments):
        # guided_correlation_row_max, _band, ... live in the file of guided_correlation.
        file = "guided_correlation" if name.startswith("guided") else name.removesuffix("_backward")
        module = importlib.import_module(f"pose_kernels.triton.{file}")
        return getattr(module, name)(*arguments)

    for key in ("CUDA", "CPU") if triton_interpreted else ("CUDA",):
        fragments["pose_kernels_triton"].impl(name, call, key)


if triton_reason is None:
    for _schema in SCHEMAS:
        _implement_in_triton(_schema)


def register_fake(name: str, fake: Callable) -> None:
    """Shapes for tracing, in both namespaces."""
    for namespace in NAMESPACES:
        torch.library.register_fake(f"{namespace}::{name}", fake)


@torch.library.custom_op("pose_kernels::channels_last_gradient", mutates_args=())
def _channels_last_gradient(grad: torch.Tensor) -> torch.Tensor:
    """An operator of its own, so that torch.compile does not look into it: the copy fused into the
    backward of a BatchNorm before it reads memory that was never written (torch 2.14 with bfloat16
    on a CPU with AVX-512)."""
    return grad.clone(memory_format=torch.channels_last)


@_channels_last_gradient.register_fake
def _(grad):
    return torch.empty_like(grad, memory_format=torch.channels_last)


# A second derivative passes through, to the operator's own backward, which refuses it.
_channels_last_gradient.register_autograd(lambda ctx, grad: grad)


def _is_channels_last(value) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.dim() == 4
        and not value.is_contiguous()
        and value.is_contiguous(memory_format=torch.channels_last)
    )


def register_autograd(
    op: str, setup_context: Callable, backward: Callable, *, activations: int = 2
) -> None:
    """``backward(ops, ctx, *grads)`` gets the namespace whose operators it shall call.

    The first ``activations`` inputs come from a layer of a network: where one of them is
    channels-last, so is its gradient, as that layer wants it.

    The operator's own backward has no derivative: a second one raises, it is never silently zero.
    """

    def no_double_backward(ctx, *grads):
        raise NotImplementedError(f"{op}: second derivatives need impl='reference'")

    def set_up(ctx, inputs, output):
        ctx.channels_last = tuple(map(_is_channels_last, inputs[:activations]))
        setup_context(ctx, inputs, output)

    def laid_out(ops, ctx, *grads):
        found = list(backward(ops, ctx, *grads))
        for i, wanted in enumerate(ctx.channels_last):
            if wanted and found[i] is not None and not _is_channels_last(found[i]):
                found[i] = _channels_last_gradient(found[i])
        return tuple(found)

    for namespace in NAMESPACES:
        ops = getattr(torch.ops, namespace)
        torch.library.register_autograd(
            f"{namespace}::{op}",
            lambda ctx, *grads, ops=ops: laid_out(ops, ctx, *grads),
            setup_context=set_up,
        )
        torch.library.register_autograd(f"{namespace}::{op}_backward", no_double_backward)


def has_tangent(value) -> bool:
    return isinstance(value, torch.Tensor) and forward_ad.unpack_dual(value).tangent is not None


def register_implementations(op: str, call: Callable) -> None:
    """Offer ``cpp``, ``cuda`` and ``triton``; ``call(ops, *arguments)`` as above."""
    compiled, triton = (getattr(torch.ops, namespace) for namespace in NAMESPACES)

    def through(ops):
        def function(*arguments):
            # Torch would drop a tangent silently: these operators have no forward-mode derivative.
            if forward_ad._current_level >= 0 and any(map(has_tangent, arguments)):
                raise NotImplementedError(f"{op}: forward-mode derivatives need impl='reference'")
            return call(ops, *arguments)

        return function

    _dispatch.register(op, "cpp", through(compiled), devices=("cpu",), reason=cpu_reason)
    _dispatch.register(op, "cuda", through(compiled), devices=("cuda",), reason=cuda_reason)
    _dispatch.register(
        op,
        "triton",
        through(triton),
        devices=("cuda",),
        on_request=("cpu",) if triton_interpreted else (),
        reason=triton_reason,
    )
