"""What is read out of the guided correlation: sums over the sources, without the map (Eq. 1, 9, 2).
"""

from functools import partial

import torch.nn.functional as F
from operation import Form, Operation

import pose_kernels
from operators import guided_correlation


def read_out(map, values, power):
    Q = map.flatten(2)
    weights = Q if power == 1 else Q.square()
    return (values.expand(len(Q), -1, -1) @ weights).unflatten(2, map.shape[2:])


def literal(source, target, values, power):
    return read_out(guided_correlation.literal(source, target), values, power)


def over_guided(source, target, values, power):
    return read_out(pose_kernels.guided_correlation(source, target), values, power)


def attention(source, target, values):
    """Softmax in the place of the guided correlation. Heads as long as the values: for no others
    PyTorch has a kernel on a CPU that stores no map, and it is the faster, zeros and all."""
    length = max(source.shape[1], len(values))
    query, key = (F.pad(x.flatten(2).mT, (0, length - x.shape[1])) for x in (target, source))
    value = F.pad(values.mT, (0, length - len(values))).expand(len(source), -1, -1)
    found = F.scaled_dot_product_attention(*(x.contiguous().unsqueeze(1)  # one head
                                             for x in (query, key, value)))
    return found[:, 0, :, :len(values)].mT.unflatten(2, target.shape[2:])


class GuidedReadout(Operation):
    name = "guided_readout"
    fields = ("batch", "grid", "dtype", "features", "outputs", "power")
    shared = ("values",)
    ours_maps = (0, 0)

    def __init__(self, power=1):
        self.keywords = {"power": power}
        self.eager = self.oracle = partial(literal, power=power)
        # The squares are one map more, and two with gradients.
        self.eager_maps, self.oracle_maps = (4 + power, 9 + 2 * power), 10 + 2 * power

    def of(self, size):
        return GuidedReadout(size.power)

    def shapes(self, size, form=None):
        features = (size.batch, size.features, size.grid, size.grid)
        result = (size.batch, size.outputs, size.grid, size.grid)
        return {"source": features, "target": features,
                "values": (size.outputs, size.grid**2)}, result

    def operations(self, size, backward, form=None):
        """The correlation's products and those with the values: one forward, two more backward."""
        products = 2 * self.map_values(size) * (size.features + size.outputs)
        return products * (3 if backward else 1)

    def peers(self, options):
        power = self.keywords["power"]
        stored = partial(over_guided, power=power)
        return [Form("stored map, matmul", stored, "peer", (power, 1 + 2 * power)),
                Form("sdpa", attention, "other", (0, 0), "softmax: another function")]


OPERATOR = GuidedReadout()
