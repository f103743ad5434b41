"""The guided correlation and the convolution that follows it, without the map between them."""

import torch
import torch.nn.functional as F
from operation import Form, Operation

import pose_kernels
from operators import guided_correlation


def convolution(features, weight, bias):
    return F.conv2d(features, weight, bias, padding="same")


def literal(source, target, weight, bias):
    return convolution(guided_correlation.literal(source, target), weight, bias)


def ncnet(source, target, weight, bias):
    return convolution(guided_correlation.ncnet(source, target), weight, bias)


def over_guided(source, target, weight, bias):
    return convolution(pose_kernels.guided_correlation(source, target), weight, bias)


def over_channels_last(source, target, weight, bias):
    format = torch.channels_last
    ready = pose_kernels.guided_correlation(source, target, memory_format=format)
    return convolution(ready, weight.contiguous(memory_format=format), bias)


class GuidedCorrelationConv2d(Operation):
    name = "guided_correlation_conv2d"
    fields = ("batch", "grid", "dtype", "features", "outputs", "kernel")
    eager = oracle = staticmethod(literal)
    ncnet = staticmethod(ncnet)
    shared = ("weight", "bias")
    eager_maps, ours_maps = (5, 12), (0.2, 0.4)

    def shapes(self, size, form=None):
        features = (size.batch, size.features, size.grid, size.grid)
        stored = (size.batch, size.grid**2, size.grid, size.grid)
        weight = (size.outputs, size.grid**2, size.kernel, size.kernel)
        ready = form is not None and form.ready_map
        before = {"map": stored} if ready else {"source": features, "target": features}
        result = (size.batch, size.outputs, size.grid, size.grid)
        return {**before, "weight": weight, "bias": weight[:1]}, result

    def operations(self, size, backward, form=None):
        """The correlation's products and the convolution's: one forward, two more backward."""
        correlation = 0 if form and form.ready_map else size.features
        products = 2 * self.map_values(size) * (correlation + size.outputs * size.kernel**2)
        return products * (3 if backward else 1)

    def inputs(self, size, generator):
        inputs = super().inputs(size, generator)
        inputs["weight"] /= size.grid * size.kernel  # results of about one
        return inputs

    def inputs_of(self, form, inputs):
        """Of a convolution alone: the map, ready."""
        if not form.ready_map:
            return inputs
        format = torch.channels_last if form.channels_last else torch.contiguous_format
        with torch.no_grad():
            ready = pose_kernels.guided_correlation(
                inputs["source"], inputs["target"], memory_format=format)
        weight = inputs["weight"].detach().contiguous(memory_format=format)
        return {"map": ready, "weight": weight, "bias": inputs["bias"].detach()}

    def oracle_need(self, size):
        """And torch's convolution in float64 unfolds the map."""
        columns = 8 * size.grid**4 * size.kernel**2
        return super().oracle_need(size) + columns

    def peers(self, options):
        note = "the convolution only, of a ready map"
        forms = [Form("conv alone", convolution, "other", (1.5, 3), note, ready_map=True),
                 Form("conv alone, ch.-last", convolution, "other", (1.5, 3), note, True, True),
                 Form("conv over guided", over_guided, "peer", (2.5, 4.5))]
        if options.channels_last:
            name = "conv over guided, ch.-last"
            forms.append(Form(name, over_channels_last, "peer", (2.5, 4.5), channels_last=True))
        return forms


OPERATOR = GuidedCorrelationConv2d()
