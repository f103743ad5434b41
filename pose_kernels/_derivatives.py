"""Derivatives and vmap rules of the operators, told to torch in both ways that it asks for them.

What `torch.library.register_autograd` is told serves eager mode, torch.compile and torch.export,
but not torch.func: the function that it generates has no setup_context of its own. So while a
transform of torch.func runs, the operators are called through autograd.Functions of the same
formulas.
"""

from collections.abc import Callable
from types import SimpleNamespace

import torch

#: By namespace the operators as they are called while a transform of torch.func runs.
_transformed: dict[str, SimpleNamespace] = {}


def operators(namespace: str):
    """What to call the operators of a namespace through: from a public function or a formula."""
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return _transformed[namespace]
    return getattr(torch.ops, namespace)


def register(namespace: str, name: str, setup_context: Callable, backward: Callable,
             vmap: Callable) -> None:
    """``setup_context(ctx, inputs, output)`` and ``backward(ctx, *grads)`` as autograd.Function has
    them, ``vmap(info, in_dims, *arguments)`` as torch.library.register_vmap does."""
    torch.library.register_autograd(f"{namespace}::{name}", backward, setup_context=setup_context)
    torch.library.register_vmap(f"{namespace}::{name}", vmap)
    operator = getattr(getattr(torch.ops, namespace), name)
    methods = {"forward": lambda *arguments: operator(*arguments), "setup_context": setup_context,
               "backward": backward, "vmap": vmap}
    function = type(name, (torch.autograd.Function,),
                    {key: staticmethod(value) for key, value in methods.items()})
    setattr(_transformed.setdefault(namespace, SimpleNamespace()), name, function.apply)


def register_constant(namespace: str, name: str, vmap: Callable) -> None:
    """An operator without a gradient, which it says to torch."""

    def set_up(ctx, inputs, output):
        ctx.mark_non_differentiable(*output)

    torch.library.register_autograd(f"{namespace}::{name}", lambda ctx, *grads: None,
                                    setup_context=set_up)
    torch.library.register_vmap(f"{namespace}::{name}", vmap)
    operator = getattr(getattr(torch.ops, namespace), name)
    setattr(_transformed.setdefault(namespace, SimpleNamespace()), name, operator)


def no_vmap(op: str) -> Callable:
    """The rule of an operator that has none."""

    def refuse(ops, info, in_dims, *arguments):
        raise NotImplementedError(f"{op}: no vmap rule; give it the samples as one batch, or use "
                                  "impl='reference'")

    return refuse


def no_second_derivative(op: str) -> tuple[Callable, Callable]:
    """setup_context and backward of ``<op>_backward``, that it is never silently zero."""

    def refuse(ops, ctx, *grads):
        raise NotImplementedError(f"{op}: second derivatives need impl='reference'")

    return lambda ctx, inputs, output: None, refuse


def fold(info, in_dim: int | None, x: torch.Tensor) -> torch.Tensor:
    """The dimension that is mapped over, and the batch, as one: [V, B, ...] -> [V * B, ...]."""
    if in_dim is None:
        x = x.unsqueeze(0).expand(info.batch_size, *x.shape)
    else:
        x = x.movedim(in_dim, 0)
    return x.flatten(0, 1)


def unfold(info, x: torch.Tensor) -> torch.Tensor:
    """And back."""
    return x.unflatten(0, (info.batch_size, -1))
