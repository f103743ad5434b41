"""Two read-outs of one guided correlation map, as our model makes them: weights, and the places of
the expected match, x and y, with the squares.
"""

import torch
from operation import Form

import pose_kernels
from operators import guided_correlation
from operators.guided_readout import GuidedReadout, read_out

_SQUARES = 2


def joined(map, values, squared):
    return torch.cat([read_out(map, values, 1), read_out(map, squared, 2)], dim=1)


def literal(source, target, values, squared):
    return joined(guided_correlation.literal(source, target), values, squared)


def over_guided(source, target, values, squared):
    return joined(pose_kernels.guided_correlation(source, target), values, squared)


def one_call(source, target, values, squared, *, impl=None):
    return torch.cat(pose_kernels.guided_readout(source, target, (values, squared), (1, 2),
                                                 impl=impl), dim=1)


def two_calls(source, target, values, squared):
    return torch.cat([pose_kernels.guided_readout(source, target, values, 1),
                      pose_kernels.guided_readout(source, target, squared, 2)], dim=1)


class GuidedReadoutPair(GuidedReadout):
    name, operator = "guided_readout_pair", "guided_readout"
    fields = ("batch", "grid", "dtype", "features", "outputs")
    shared = ("values", "squared")
    eager_maps, oracle_maps = (6, 14), 15

    def __init__(self):
        self.keywords = {}
        self.eager = self.oracle = literal

    def of(self, size):
        return self

    def shapes(self, size, form=None):
        inputs, (batch, outputs, *grid) = super().shapes(size, form)
        return ({**inputs, "squared": (_SQUARES, size.grid**2)},
                (batch, outputs + _SQUARES, *grid))

    def operations(self, size, backward, form=None):
        more = 2 * self.map_values(size) * _SQUARES
        return super().operations(size, backward, form) + more * (3 if backward else 1)

    def function(self):
        return one_call

    def peers(self, options):
        return [Form("two calls", two_calls, "peer", (0, 0)),
                Form("stored map, matmul", over_guided, "peer", (2, 5))]


OPERATOR = GuidedReadoutPair()
