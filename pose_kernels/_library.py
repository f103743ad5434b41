"""What stands between an operator's file and torch: schemas, compiled libraries, Triton, autograd.

Each operator exists twice, with one schema: in the namespace ``pose_kernels``, where the two
compiled libraries implement it for CPU and CUDA tensors, and in ``pose_kernels_triton``. The
libraries are apart because one that is linked to CUDA does not load under a CPU build of torch.
Importing this touches no GPU and does not import Triton.
"""

import functools
import importlib
import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch.autograd import forward_ad

from . import _derivatives, _dispatch

_here = Path(__file__).parent

NAMESPACES = ("pose_kernels", "pose_kernels_triton")
#: The fragments stay referenced: torch forgets a registration together with its Library.
fragments = {namespace: torch.library.Library(namespace, "FRAGMENT") for namespace in NAMESPACES}
#: The names of all operators that torch was told of, forward and backward and their parts.
defined: list[str] = []
#: By operator the inputs of its self-check, in float64 on a CPU, the same every time.
examples: dict[str, Callable[[], list[torch.Tensor]]] = {}


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
        why = f": {built}" if built else " (run `pip install -e .`)"
        return f"{path.name} is not built{why}"
    nvcc, here = build_info.get(name, {}).get("nvcc"), torch.version.cuda
    # One for another CUDA may load, beside a second CUDA runtime in the process.
    if nvcc and nvcc.partition(".")[0] != str(here).partition(".")[0]:
        return (f"{path.name} is built for CUDA {nvcc}, torch {torch.__version__} "
                f"for {here or 'none'}")
    try:
        torch.ops.load_library(str(path))
    except OSError as error:  # torch's own words are only that it could not; the cause says why
        return f"{path.name} does not load: {str(error.__cause__ or error).splitlines()[0]}"
    return None


cpu_reason = _load("cpu")
# The instruction set is asked of the CPU library, whatever else is there.
cuda_reason = _load("cuda") if cpu_reason is None else f"it needs the CPU library: {cpu_reason}"
#: Triton's interpreter runs kernels on CPU tensors: slowly, for tests and debugging.
triton_interpreted = os.environ.get("TRITON_INTERPRET") == "1"


def simd_level() -> str | None:
    """The vectors that the CPU library uses on this machine; None where it is not there."""
    if cpu_reason is not None:
        return None
    return ("baseline", "avx2", "avx512", "bf16", "amx")[torch.ops.pose_kernels.simd_level()]


def _without_triton() -> str | None:
    """None where Triton works, otherwise the reason. What launches its kernels it compiles in C."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if triton_interpreted or os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"):
        return None
    return "Triton takes a C compiler (gcc, clang or what CC names), and there is none"


triton_reason = _without_triton()


def define(*schemas: str, triton: str | None = None,
           namespaces: tuple[str, ...] = NAMESPACES) -> None:
    """Tell torch of operators.

    ``triton`` is the file in `pose_kernels/triton` with a function of the name of each. Operators
    that return nothing write into their arguments: they need no fake of their own.
    """
    for schema in schemas:
        name = schema.partition("(")[0]
        for namespace in namespaces:
            fragments[namespace].define(schema)
            if schema.endswith("-> ()"):
                torch.library.register_fake(f"{namespace}::{name}", lambda *_: None)
        if triton is not None and triton_reason is None:
            _implement_in_triton(name, triton)
        defined.append(name)


def _implement_in_triton(name: str, file: str) -> None:
    def call(*arguments):
        module = importlib.import_module(f"pose_kernels.triton.{file}")
        return getattr(module, name)(*arguments)

    for key in ("CUDA", "CPU") if triton_interpreted else ("CUDA",):
        fragments["pose_kernels_triton"].impl(name, call, key)


def implement_by_others(name: str, function: Callable, *,
                        but: tuple[str, str] | None = None) -> None:
    """An operator that is made of others: ``function(ops, *arguments)``, ops of its namespace;
    ``but`` in a namespace for a device where it is compiled."""
    for namespace in NAMESPACES:
        ops = getattr(torch.ops, namespace)
        for key in ("CPU", "CUDA"):
            if (namespace, key) != but:
                fragments[namespace].impl(name, functools.partial(function, ops), key)


def register_fake(name: str, fake: Callable) -> None:
    """Shapes for tracing, in both namespaces."""
    for namespace in NAMESPACES:
        torch.library.register_fake(f"{namespace}::{name}", fake)


def new_gradient(of: torch.Tensor, wanted: bool) -> torch.Tensor:
    """Memory for the gradient of ``of``; one that is not asked for is an empty tensor."""
    return of.new_empty(of.shape if wanted else (0,))


def into(out: torch.Tensor | None, result: torch.Tensor) -> torch.Tensor:
    """The result, in the memory given for it, if any."""
    return result if out is None else out.copy_(result)


@torch.library.custom_op("pose_kernels::channels_last_gradient", mutates_args=())
def _channels_last_gradient(grad: torch.Tensor) -> torch.Tensor:
    """An operator of its own, so that torch.compile does not look into it: the copy fused into the
    backward of a BatchNorm before it reads memory that was never written (torch 2.14 with bfloat16
    on a CPU with AVX-512)."""
    return grad.clone(memory_format=torch.channels_last)


@_channels_last_gradient.register_fake
def _(grad):
    return torch.empty_like(grad, memory_format=torch.channels_last)


# A second derivative passes through, to the operator's own backward.
_channels_last_gradient.register_autograd(lambda ctx, grad: grad)


def _as_channels_last(grad: torch.Tensor) -> torch.Tensor:
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return _channels_last_gradient(grad)
    return grad.clone(memory_format=torch.channels_last)


def is_channels_last(value) -> bool:
    # What vmap works on has no layout of its own.
    if not isinstance(value, torch.Tensor) or torch._C._functorch.is_batchedtensor(value):
        return False
    return (value.dim() == 4 and not value.is_contiguous()
            and value.is_contiguous(memory_format=torch.channels_last))


def register_operator(op: str, reference: Callable, compiled: Callable, fake: Callable,
                      fake_backward: Callable, setup_context: Callable, backward: Callable,
                      example: Callable[[], list[torch.Tensor]], *, activations: int = 2,
                      second_derivative: tuple[Callable, Callable] | None = None,
                      vmap: Callable | None = None, vmap_backward: Callable | None = None) -> None:
    """Its implementations, shapes for tracing, of ``op`` and of ``<op>_backward``, its derivative,
    and the inputs of its self-check.

    ``compiled(ops, *arguments)`` and ``backward(ops, ctx, *grads)`` get the namespace whose
    operators they shall call. ``backward`` returns the gradients of the first inputs; the others
    have none, and one that nobody asked for is dropped.
    The first ``activations`` inputs come from a layer of a network: where one of them is
    channels-last, so is its gradient, as that layer wants it.

    ``second_derivative`` are setup_context and backward of ``<op>_backward``; without them a second
    derivative raises, it is never silently zero. ``vmap(ops, info, in_dims, *arguments)`` is the
    rule for torch.func.vmap; without it that raises too.
    """
    _dispatch.register(op, "reference", reference)
    _register_implementations(op, compiled)
    examples[op] = example
    register_gradient(op, fake, fake_backward, setup_context, backward, activations=activations,
                      second_derivative=second_derivative, vmap=vmap, vmap_backward=vmap_backward)


def register_gradient(op: str, fake: Callable, fake_backward: Callable, setup_context: Callable,
                      backward: Callable, *, activations: int = 2,
                      second_derivative: tuple[Callable, Callable] | None = None,
                      vmap: Callable | None = None, vmap_backward: Callable | None = None) -> None:
    """What torch has to know of ``op`` and ``<op>_backward``, as `register_operator` does it; alone
    it is for an operator that another one's implementations call."""
    register_fake(op, fake)
    register_fake(f"{op}_backward", fake_backward)
    laid_out = _keep_layout(setup_context, backward, activations)
    _register_derivatives(op, *laid_out, vmap or _derivatives.no_vmap(op))
    second = second_derivative or _derivatives.no_second_derivative(op)
    _register_derivatives(f"{op}_backward", *second, vmap_backward or _derivatives.no_vmap(op))


def _keep_layout(setup_context, backward, activations: int):
    """Both, for gradients in the layout of the first inputs."""

    def set_up(ctx, inputs, output):
        ctx.channels_last = tuple(map(is_channels_last, inputs[:activations]))
        setup_context(ctx, inputs, output)

    def laid_out(ops, ctx, *grads):
        needed = ctx.needs_input_grad
        found = backward(ops, ctx, *grads)
        found = [g if n else None for g, n in zip(found, needed, strict=False)]
        for i, wanted in enumerate(ctx.channels_last):
            if wanted and found[i] is not None and not is_channels_last(found[i]):
                found[i] = _as_channels_last(found[i])
        return *found, *[None] * (len(needed) - len(found))

    return set_up, laid_out


def _register_derivatives(name: str, setup_context, backward, vmap) -> None:
    """In both namespaces; ``backward`` and ``vmap`` get that whose operators they shall call."""
    for namespace in NAMESPACES:

        def with_operators(function, namespace=namespace):
            return lambda *arguments: function(_derivatives.operators(namespace), *arguments)

        _derivatives.register(namespace, name, setup_context, with_operators(backward),
                              with_operators(vmap))


def register_without_gradient(op: str, reference: Callable, compiled: Callable, fake: Callable,
                              example: Callable[[], list[torch.Tensor]]) -> None:
    """The same for an operator that looks something up: no result has a gradient, and it says so
    to torch. Arguments as of `register_operator`."""
    _dispatch.register(op, "reference", reference)
    _register_implementations(op, compiled)
    examples[op] = example
    register_fake(op, fake)
    vmap = functools.partial(_derivatives.no_vmap(op), None)
    for namespace in NAMESPACES:
        _derivatives.register_constant(namespace, op, vmap)


def has_tangent(value) -> bool:
    return isinstance(value, torch.Tensor) and forward_ad.unpack_dual(value).tangent is not None


def _register_implementations(op: str, call: Callable) -> None:
    """Offer ``cpp``, ``cuda`` and ``triton``."""

    def through(namespace):
        def function(*arguments):
            # Torch would drop a tangent silently: these operators have no forward-mode derivative.
            if forward_ad._current_level >= 0 and any(map(has_tangent, arguments)):
                raise NotImplementedError(f"{op}: forward-mode derivatives need impl='reference'")
            return call(_derivatives.operators(namespace), *arguments)

        return function

    compiled, triton = map(through, NAMESPACES)
    _dispatch.register(op, "cpp", compiled, devices=("cpu",), reason=cpu_reason)
    _dispatch.register(op, "cuda", compiled, devices=("cuda",), reason=cuda_reason)
    _dispatch.register(op, "triton", triton, devices=("cuda",),
                       on_request=("cpu",) if triton_interpreted else (), reason=triton_reason)
