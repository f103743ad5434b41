"""What the operators that corr_bench.py compares have in common; see `operators/`.

A form is one way to get the result: the literal equations, the same under torch.compile, what users
of NCNet write, and every implementation of pose_kernels. The bytes and operations counted here are
those that no form can do without, not those that a form does.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F

import pose_kernels

EPS = 1e-5
Tensors = dict[str, torch.Tensor]
Shapes = tuple[dict[str, tuple[int, ...]], tuple[int, ...]]


@dataclass(frozen=True)
class Size:
    """One problem. An operation reads the fields that it names and no others."""

    batch: int
    grid: int
    dtype: str
    features: int
    outputs: int
    kernel: int
    image: int
    channels: int
    power: int = 1


@dataclass(frozen=True)
class Form:
    """`kind` says what its error means: "ours" is held to the tolerance, "peer" computes the same
    function, "other" a different one, for the reason in `note`."""

    name: str
    function: Callable
    kind: str
    maps: tuple[float, float]  # peak memory in maps, forward and with gradients: see Operation.need
    note: str = ""
    channels_last: bool = False  # the upstream gradient, and whatever has four dimensions
    ready_map: bool = False  # starts from the guided correlation, not from the features
    backward: bool = True  # whether it has gradients
    ready_result: bool = False  # writes into memory that is there, which it takes as `out`
    result_dtype: str | None = None  # of the result and its gradient; None: as everything


class Operation:
    """An operator beside its rivals; a file of `operators/` says its shapes, work, and forms.

    Where a method takes a form, that is because a form may start from other inputs than the
    operator (`inputs_of`); without one it speaks of the operator's own.
    """

    name: str
    operator: str = ""  # of pose_kernels, where it is not the name
    fields: tuple[str, ...]  # of Size
    eager: Callable  # the equations as one writes them
    ncnet: Callable | None = None  # the same with NCNet's formulas
    oracle: Callable  # what is exact in float64
    keywords: dict = {}  # what the operator is called with besides its inputs
    backward = True  # measured with gradients too
    shared: tuple[str, ...] = ()  # inputs that all samples of a batch have in common
    has_memory_format = False  # whether it can write its map in channels-last memory
    # Peak memory, in maps of the compute dtype, forward and with gradients. From the notes in the
    # operators' docstrings and from measurement; used to leave out what would exhaust a CPU's RAM.
    eager_maps = (5, 11)
    ours_maps = (1, 1)
    oracle_maps: float = 12

    def of(self, size: Size) -> "Operation":
        """The operator of this problem, where problems differ in more than their sizes."""
        return self

    def shapes(self, size: Size, form: Form | None = None) -> Shapes:
        """Of every input by name, and of the result."""
        raise NotImplementedError

    def operations(self, size: Size, backward: bool, form: Form | None = None) -> float:
        """Additions and multiplications of the products; nothing for what is made again."""
        raise NotImplementedError

    def inputs(self, size: Size, generator: torch.Generator) -> Tensors:
        """In float32 on the generator's device."""
        shapes, _ = self.shapes(size)
        inputs = {name: random(shape, generator) for name, shape in shapes.items()}
        for name in {"source", "target"} & inputs.keys():  # unit length, as from the pose encoder
            inputs[name] = F.normalize(inputs[name], dim=1)
        return inputs

    def inputs_of(self, form: Form, inputs: Tensors) -> Tensors:
        """What a form starts from, made of the operator's inputs."""
        return inputs

    def upstream(self, size: Size, inputs: Tensors, generator: torch.Generator) -> torch.Tensor:
        """The gradient that arrives, in the dtype of the problem."""
        _, result = self.shapes(size)
        grad = torch.empty(result, dtype=getattr(torch, size.dtype), device=generator.device)
        for sample in grad:
            sample.copy_(random(result[1:], generator))
        return grad

    def map_values(self, size: Size) -> int:
        return size.batch * size.grid**4

    def values(self, size: Size, form: Form | None = None) -> tuple[int, int]:
        """How many the inputs have, and the result."""
        shapes, result = self.shapes(size, form)
        return sum(math.prod(shape) for shape in shapes.values()), math.prod(result)

    def bytes(self, size: Size, form: Form | None = None) -> tuple[int, int]:
        """Of the inputs, and of the result."""
        inputs, result = self.values(size, form)
        result_dtype = form and form.result_dtype or size.dtype
        return inputs * itemsize(size.dtype), result * itemsize(result_dtype)

    def work(self, size: Size, backward: bool, form: Form | None = None) -> tuple[float, float]:
        """(minimal bytes, useful operations). Forward: every input read once, the result written
        once; backward: besides, the upstream gradient read and every input's gradient written."""
        fewest = sum(self.bytes(size, form)) * (2 if backward else 1)
        return fewest, self.operations(size, backward, form)

    def returned(self, size: Size, backward: bool, form: Form | None = None) -> int:
        """Bytes of the result and the gradients that a call makes."""
        inputs, result = self.bytes(size, form)
        return (0 if form and form.ready_result else result) + backward * inputs

    def need(self, size: Size, form: Form, backward: bool) -> float:
        """Bytes that a call takes beyond its inputs, roughly."""
        wide = max(itemsize(size.dtype), 4)
        inputs, _ = self.values(size)
        copies = form.channels_last + form.ready_map
        return wide * ((form.maps[backward] + copies) * self.map_values(size) + 4 * inputs)

    def base(self, size: Size) -> float:
        """Bytes of the inputs and the upstream gradient."""
        return sum(self.values(size)) * itemsize(size.dtype)

    def oracle_need(self, size: Size) -> float:
        sample = replace(size, batch=1, dtype="float64")
        kept = self.returned(replace(size, dtype="float64"), True)
        return 8 * self.oracle_maps * self.map_values(sample) + 2 * kept

    def slack(self, size: Size) -> float:
        """How many times the tolerance of its dtype a form of ours may be off."""
        return 1.0

    def exact(self, inputs: Tensors, upstream: torch.Tensor) -> Tensors:
        """Result and gradients in float64, one sample at a time; kept on the CPU."""
        parts: dict[str, list] = {}
        for b in range(upstream.shape[0]):
            sample = {n: x if n in self.shared else x[b : b + 1] for n, x in inputs.items()}
            wide = {n: x.requires_grad_() for n, x in self.widened(sample).items()}
            gradient = upstream[b : b + 1].double() if self.backward else None
            for n, part in differentiate(self.oracle, wide, gradient).items():
                parts.setdefault(n, []).append(part.cpu())
        return {n: sum(p) if n in self.shared else torch.cat(p) for n, p in parts.items()}

    def widened(self, inputs: Tensors) -> Tensors:
        """The same numbers in float64."""
        return {name: x.detach().double() for name, x in inputs.items()}

    def forms(self, size: Size, device: torch.device, options) -> list[Form]:
        eager = self.eager_form(size, device)
        forms = [eager]
        if self.ncnet:
            maps = (self.eager_maps[0] + 1, self.eager_maps[1] + 2)
            forms.append(Form("ncnet", self.ncnet, "other", maps, "differs by definition"))
        if options.compile:
            function = torch.compile(eager.function, dynamic=False)
            forms.append(replace(eager, name="compile", function=function))
        forms += self.peers(options)
        for impl in implementations(self.operator or self.name, device):
            forms += self.ours(impl, size, options)
        return forms

    def ours(self, impl: str, size: Size, options) -> list[Form]:
        """What one implementation offers. The reference is there to be right, not to be fast."""
        function = self.function()
        literal, takes = impl == "reference", inspect.signature(function).parameters
        function = partial(function, impl=impl, **self.keywords)
        form = Form(impl, function, "ours", self.eager_maps if literal else self.ours_maps)
        forms = [form]
        if options.channels_last and self.has_memory_format:
            last = partial(function, memory_format=torch.channels_last)
            forms.append(replace(form, name=f"{impl}, ch.-last", function=last, channels_last=True))
        if "out" in takes and not literal:
            forms.append(replace(form, name=f"{impl}, out=", backward=False, ready_result=True))
        if "out_dtype" in takes and not literal and size.dtype == "float32":
            half = partial(function, out_dtype=torch.bfloat16)
            forms.append(replace(form, name=f"{impl}, bfloat16 map", function=half,
                                 result_dtype="bfloat16"))
        return forms

    def function(self) -> Callable:
        """(*inputs, impl=...): the operator."""
        return getattr(pose_kernels, self.name)

    def eager_form(self, size: Size, device: torch.device) -> Form:
        return Form("eager", self.eager, "peer", self.eager_maps)

    def peers(self, options) -> list[Form]:
        """Further forms to compare with."""
        return []


def random(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)


def itemsize(dtype: str) -> int:
    return getattr(torch, dtype).itemsize


def implementations(op: str, device: torch.device) -> list[str]:
    """What runs on the device without being asked for by name."""
    table = pose_kernels.implementations()[op]
    here = device.type
    return [n for n, e in table.items() if e.available and (not e.devices or here in e.devices)]


def differentiate(function, inputs: Tensors, upstream: torch.Tensor | None) -> Tensors:
    """The result as "result", and with an upstream gradient each input's gradient by its name."""
    if upstream is None:
        with torch.no_grad():
            return {"result": function(*inputs.values())}
    result = function(*inputs.values())
    gradients = torch.autograd.grad(result, tuple(inputs.values()), upstream)
    return {"result": result.detach(), **dict(zip(inputs, gradients, strict=True))}
