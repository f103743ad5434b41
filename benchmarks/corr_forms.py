"""What corr_bench.py compares: each operation's inputs, useful work, and the forms to write it in.

A form is one way to get the result: the literal equations, the same under torch.compile, what users
of NCNet write, and every implementation of pose_kernels. The bytes and operations counted here are
those that no form can do without, not those that a form does.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

import pose_kernels

EPS = 1e-5
Tensors = dict[str, torch.Tensor]


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


# The equations as one writes them.


def literal_correlation(source, target):
    C = source.flatten(2).transpose(1, 2) @ target.flatten(2)  # Eq. 1
    return C.unflatten(2, target.shape[2:])


def literal_soft_mutual(correlation):
    C = correlation.flatten(2)
    a = C.max(dim=1, keepdim=True).values.clamp(min=EPS)
    b = C.max(dim=2, keepdim=True).values.clamp(min=EPS)
    Q = (C / a) * (C / b) * C  # Eq. 9
    norm = torch.linalg.vector_norm(Q, dim=1, keepdim=True)
    return (Q / torch.maximum(norm, EPS / a)).unflatten(2, correlation.shape[2:])  # Eq. 2


def literal_guided(source, target):
    return literal_soft_mutual(literal_correlation(source, target))


def literal_conv(source, target, weight, bias):
    return F.conv2d(literal_guided(source, target), weight, bias, padding="same")


def interpolate_and_grid_sample(image, flow):
    if flow.shape[2:] != image.shape[2:]:
        flow = F.interpolate(flow, size=image.shape[2:], mode="bilinear", align_corners=False)
    return F.grid_sample(image, flow.permute(0, 2, 3, 1), "bilinear", "border", False)


def interpolate_and_grid_sample_in_float32(image, flow):
    return interpolate_and_grid_sample(image.float(), flow.float()).to(image.dtype)


# The same with NCNet's formulas: maxima + eps instead of a floor, and + 1e-6 inside the norm.


def ncnet_soft_mutual(correlation):
    C = correlation.flatten(2)  # its [B, 1, hs, ws, ht, wt], the same in memory
    over_sources, _ = torch.max(C, dim=1, keepdim=True)
    over_targets, _ = torch.max(C, dim=2, keepdim=True)
    C = C * ((C / (over_targets + EPS)) * (C / (over_sources + EPS)))
    norm = torch.pow(torch.sum(torch.pow(C, 2), 1) + 1e-6, 0.5).unsqueeze(1).expand_as(C)
    return torch.div(C, norm).view_as(correlation)


def ncnet_guided(source, target):
    return ncnet_soft_mutual(literal_correlation(source, target))


def ncnet_conv(source, target, weight, bias):
    return F.conv2d(ncnet_guided(source, target), weight, bias, padding="same")


def _random(shape, generator):
    return torch.randn(shape, generator=generator, device=generator.device)


class Operation:
    """What all operations share; the subclasses say their shapes, work, and forms."""

    name: str
    fields: tuple[str, ...]  # of Size
    differs = ""  # why the eager form is another function
    eager: Callable
    ncnet: Callable | None = None
    # Peak memory, in maps of the compute dtype, forward and with gradients. From the notes in the
    # operators' docstrings and from measurement; used to leave out what would exhaust a CPU's RAM.
    eager_maps = (5, 11)
    ours_maps = (1, 1)
    oracle_maps: float = 12

    def shapes(self, size: Size) -> tuple[dict[str, tuple[int, ...]], tuple[int, ...]]:
        """Of every input by name, and of the result."""
        raise NotImplementedError

    def operations(self, size: Size, backward: bool) -> float:
        """Additions and multiplications of the products; nothing for what is made again."""
        raise NotImplementedError

    def inputs(self, size: Size, generator: torch.Generator) -> Tensors:
        """In float32 on the generator's device."""
        shapes, _ = self.shapes(size)
        found = {name: _random(shape, generator) for name, shape in shapes.items()}
        for name in ("source", "target"):
            if name in found:  # unit length, as from the pose encoder
                found[name] = F.normalize(found[name], dim=1)
        return found

    def upstream(self, size: Size, inputs: Tensors, generator: torch.Generator) -> torch.Tensor:
        """The gradient that arrives, in the dtype of the problem."""
        _, result = self.shapes(size)
        grad = torch.empty(result, dtype=getattr(torch, size.dtype), device=generator.device)
        for sample in grad:
            sample.copy_(_random(result[1:], generator))
        return grad

    def map_values(self, size: Size) -> int:
        return size.batch * size.grid**4

    def work(self, size: Size, backward: bool, form: Form | None = None) -> tuple[float, float]:
        """(minimal bytes, useful operations). Forward: every input read once, the result written
        once; backward: besides, the upstream gradient read and every input's gradient written."""
        shapes, result = self.shapes(size)
        inputs = sum(math.prod(shape) for shape in shapes.values())
        values = (inputs + math.prod(result)) * (2 if backward else 1)
        return values * itemsize(size.dtype), self.operations(size, backward)

    def returned(self, size: Size, backward: bool, form: Form | None = None) -> int:
        """Bytes of the result and the gradients."""
        shapes, result = self.shapes(size)
        inputs = sum(math.prod(shape) for shape in shapes.values())
        return (math.prod(result) + backward * inputs) * itemsize(size.dtype)

    def need(self, size: Size, form: Form, backward: bool) -> float:
        """Bytes that a call takes beyond its inputs, roughly."""
        wide = max(itemsize(size.dtype), 4)
        shapes, _ = self.shapes(size)
        small = sum(math.prod(shape) for shape in shapes.values())
        copies = form.channels_last + form.ready_map
        return wide * ((form.maps[backward] + copies) * self.map_values(size) + 4 * small)

    def base(self, size: Size) -> float:
        """Bytes of the inputs and the upstream gradient."""
        shapes, result = self.shapes(size)
        values = sum(math.prod(shape) for shape in (*shapes.values(), result))
        return values * itemsize(size.dtype)

    def oracle_need(self, size: Size) -> float:
        one = replace(size, batch=1, dtype="float64")
        kept = self.returned(replace(size, dtype="float64"), True)
        return 8 * self.oracle_maps * self.map_values(one) + 2 * kept

    def slack(self, size: Size) -> float:
        """How many times the tolerance of its dtype a form of ours may be off."""
        return 1.0

    oracle: Callable

    def exact(self, inputs: Tensors, upstream: torch.Tensor) -> Tensors:
        """Result and gradients in float64, one sample at a time; kept on the CPU."""
        parts: dict[str, list] = {}
        shared = ("weight", "bias")
        for b in range(upstream.shape[0]):
            one = {n: x if n in shared else x[b : b + 1] for n, x in inputs.items()}
            wide = {n: x.requires_grad_() for n, x in self.widened(one).items()}
            for n, part in differentiate(self.oracle, wide, upstream[b : b + 1].double()).items():
                parts.setdefault(n, []).append(part.cpu())
        return {n: sum(found) if n in shared else torch.cat(found) for n, found in parts.items()}

    def widened(self, inputs: Tensors) -> Tensors:
        """The same numbers in float64."""
        return {name: x.detach().double() for name, x in inputs.items()}

    def forms(self, size: Size, device: torch.device, options) -> list[Form]:
        kind = "other" if self.differs else "peer"
        found = [Form("eager", self.eager, kind, self.eager_maps, self.differs)]
        if self.ncnet:
            maps = (self.eager_maps[0] + 1, self.eager_maps[1] + 2)
            found.append(Form("ncnet", self.ncnet, "other", maps, "differs by definition"))
        if options.compile:
            function = torch.compile(self.eager, dynamic=False)
            found.append(Form("compile", function, kind, self.eager_maps, self.differs))
        found += self.peers(options)
        function = getattr(pose_kernels, self.name)
        for impl in implementations(self.name, device):
            maps = self.eager_maps if impl == "reference" else self.ours_maps
            found.append(Form(impl, _with(function, impl=impl), "ours", maps))
            if options.channels_last and self.name in ("correlation_4d", "guided_correlation"):
                form = _with(function, impl=impl, memory_format=torch.channels_last)
                found.append(Form(f"{impl}, ch.-last", form, "ours", maps, channels_last=True))
        return found

    def peers(self, options) -> list[Form]:
        return []


def _with(function, **keywords):
    return lambda *arguments: function(*arguments, **keywords)


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


class Correlation4d(Operation):
    name = "correlation_4d"
    fields = ("batch", "grid", "dtype", "features")
    eager = oracle = staticmethod(literal_correlation)
    eager_maps, ours_maps, oracle_maps = (1, 1), (1, 1), 2

    def shapes(self, size):
        features = (size.batch, size.features, size.grid, size.grid)
        result = (size.batch, size.grid**2, size.grid, size.grid)
        return {"source": features, "target": features}, result

    def operations(self, size, backward):
        """One product forward, one per gradient backward."""
        return 2 * self.map_values(size) * size.features * (3 if backward else 1)


class SoftMutualNormalize(Operation):
    name = "soft_mutual_normalize"
    fields = ("batch", "grid", "dtype")
    eager = oracle = staticmethod(literal_soft_mutual)
    ncnet = staticmethod(ncnet_soft_mutual)
    ours_maps = (1, 2)

    def shapes(self, size):
        result = (size.batch, size.grid**2, size.grid, size.grid)
        return {"correlation": result}, result

    def inputs(self, size, generator):
        """A correlation of unit vectors, not noise: its maxima are what they are in the network."""
        shape = (2, size.batch, size.features, size.grid, size.grid)
        source, target = F.normalize(_random(shape, generator), dim=2)
        return {"correlation": pose_kernels.correlation_4d(source, target)}

    def operations(self, size, backward):
        return 0  # no products: bound by bytes


class GuidedCorrelation(Correlation4d):
    name = "guided_correlation"
    eager = oracle = staticmethod(literal_guided)
    ncnet = staticmethod(ncnet_guided)
    eager_maps, oracle_maps = Operation.eager_maps, Operation.oracle_maps


class GuidedCorrelationConv2d(Operation):
    name = "guided_correlation_conv2d"
    fields = ("batch", "grid", "dtype", "features", "outputs", "kernel")
    eager = oracle = staticmethod(literal_conv)
    ncnet = staticmethod(ncnet_conv)
    eager_maps, ours_maps = (5, 12), (0.2, 0.4)

    def shapes(self, size):
        features = (size.batch, size.features, size.grid, size.grid)
        weight = (size.outputs, size.grid**2, size.kernel, size.kernel)
        inputs = {"source": features, "target": features, "weight": weight, "bias": weight[:1]}
        return inputs, (size.batch, size.outputs, size.grid, size.grid)

    def operations(self, size, backward):
        """The correlation's products and the convolution's: one forward, two more backward."""
        correlation = 2 * self.map_values(size) * size.features
        return (correlation + self.convolution(size)) * (3 if backward else 1)

    def convolution(self, size):
        return 2 * self.map_values(size) * size.outputs * size.kernel**2

    def inputs(self, size, generator):
        found = super().inputs(size, generator)
        found["weight"] /= size.grid * size.kernel  # results of about one
        return found

    def oracle_need(self, size):
        """And torch's convolution in float64 unfolds the map."""
        columns = 8 * size.grid**4 * size.kernel**2
        return super().oracle_need(size) + columns

    def with_map(self, inputs: Tensors, channels_last: bool) -> Tensors:
        """The inputs of a convolution that finds the map ready."""
        format = torch.channels_last if channels_last else torch.contiguous_format
        with torch.no_grad():
            ready = pose_kernels.guided_correlation(
                inputs["source"], inputs["target"], memory_format=format
            )
        weight = inputs["weight"].detach().contiguous(memory_format=format)
        return {"map": ready, "weight": weight, "bias": inputs["bias"].detach()}

    def work(self, size, backward, form=None):
        if not (form and form.ready_map):
            return super().work(size, backward)
        values = self.returned_values(size, True) * (2 if backward else 1)
        operations = self.convolution(size) * (3 if backward else 1)
        return values * itemsize(size.dtype), operations

    def returned_values(self, size, backward):
        """Values that a convolution of a ready map gives back."""
        shapes, result = self.shapes(size)
        inputs = self.map_values(size) + sum(math.prod(shapes[n]) for n in ("weight", "bias"))
        return math.prod(result) + backward * inputs

    def returned(self, size, backward, form=None):
        if form and form.ready_map:
            return self.returned_values(size, backward) * itemsize(size.dtype)
        return super().returned(size, backward, form)

    def peers(self, options):
        def convolution(features, weight, bias):
            return F.conv2d(features, weight, bias, padding="same")

        def over_guided(source, target, weight, bias):
            ready = pose_kernels.guided_correlation(source, target)
            return F.conv2d(ready, weight, bias, padding="same")

        def over_channels_last(source, target, weight, bias):
            format = torch.channels_last
            ready = pose_kernels.guided_correlation(source, target, memory_format=format)
            return F.conv2d(ready, weight.contiguous(memory_format=format), bias, padding="same")

        note = "the convolution only, of a ready map"
        found = [
            Form("conv alone", convolution, "other", (1.5, 3), note, ready_map=True),
            Form("conv alone, ch.-last", convolution, "other", (1.5, 3), note, True, True),
            Form("conv over guided", over_guided, "peer", (2.5, 4.5)),
        ]
        if options.channels_last:
            name = "conv over guided, ch.-last"
            found.append(Form(name, over_channels_last, "peer", (2.5, 4.5), channels_last=True))
        return found


class FlowSample(Operation):
    name = "flow_sample"
    fields = ("batch", "grid", "dtype", "image", "channels")
    eager = staticmethod(interpolate_and_grid_sample)
    oracle = staticmethod(_with(pose_kernels.flow_sample, impl="reference"))
    eager_maps, ours_maps, oracle_maps = (2, 3), (1, 2), 20

    #: Bilinear interpolation has a corner at every pixel: a sample this close to one may fall on
    # the other side in another precision, and its gradient is another one then. No upstream
    # gradient arrives there (pixels).
    corner = 1e-3

    def map_values(self, size):  # here an image takes the part of the map
        return size.batch * size.channels * size.image**2

    def shapes(self, size):
        image = (size.batch, size.channels, size.image, size.image)
        return {"image": image, "flow": (size.batch, 2, size.grid, size.grid)}, image

    def operations(self, size, backward):
        """Per value of the result four multiply-adds forward; backward four more for the image's
        gradient and four for the flow's."""
        return 8 * self.map_values(size) * (3 if backward else 1)

    def inputs(self, size, generator):
        """A smooth flow of a few pixels."""
        found = super().inputs(size, generator)
        found["flow"] = 0.1 * F.avg_pool2d(found["flow"], 5, 1, 2)
        found["flow"] += pose_kernels.identity_flow(size.grid, size.grid).to(generator.device)
        return found

    def widened(self, inputs):
        """The same displacements: an identity flow is rounded to the flow's own dtype."""
        found, flow = super().widened(inputs), inputs["flow"]
        extent, identity = flow.shape[2:], pose_kernels.identity_flow
        found["flow"] -= identity(*extent, dtype=flow.dtype, device=flow.device).double()
        found["flow"] += identity(*extent, dtype=torch.float64, device=flow.device)
        return found

    def upstream(self, size, inputs, generator):
        grad = super().upstream(size, inputs, generator)
        fine = pose_kernels.resize_flow(self.widened(inputs)["flow"], (size.image, size.image))
        pixels = ((fine + 1) * size.image - 1) / 2
        near = ((pixels - pixels.round()).abs() < self.corner).any(dim=1, keepdim=True)
        return grad.masked_fill_(near, 0)

    def slack(self, size):
        """Float32 rounds a location in pixels, so the error grows with the image."""
        return max(1.0, size.image / 128) if itemsize(size.dtype) > 2 else 1.0

    def forms(self, size, device, options):
        here, notes = FlowSample(), []
        if size.image != size.grid:
            notes.append("interpolate + grid_sample: differs at the border")
        if itemsize(size.dtype) == 2 and device.type == "cpu":
            # grid_sample's offsets in 16 bits overflow there and it writes where it should not
            # (torch 2.14: heap corruption from 256 x 256 on).
            here.eager = interpolate_and_grid_sample_in_float32
            notes.append("through float32: grid_sample crashes in 16 bits")
        here.differs = "; ".join(notes)
        return super(FlowSample, here).forms(size, device, options)


OPERATIONS = {
    op.name: op
    for op in (
        Correlation4d(),
        SoftMutualNormalize(),
        GuidedCorrelation(),
        GuidedCorrelationConv2d(),
        FlowSample(),
    )
}
