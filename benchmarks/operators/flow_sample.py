"""An image, or features, sampled at a flow of another resolution: T of the paper."""

from functools import partial

import torch
import torch.nn.functional as F
from operation import Form, Operation, itemsize

import pose_kernels


def interpolate_and_grid_sample(image, flow):
    if flow.shape[2:] != image.shape[2:]:
        flow = F.interpolate(flow, size=image.shape[2:], mode="bilinear", align_corners=False)
    return F.grid_sample(image, flow.permute(0, 2, 3, 1), "bilinear", "border", False)


def interpolate_and_grid_sample_in_float32(image, flow):
    return interpolate_and_grid_sample(image.float(), flow.float()).to(image.dtype)


class FlowSample(Operation):
    name = "flow_sample"
    fields = ("batch", "grid", "dtype", "image", "channels")
    oracle = staticmethod(partial(pose_kernels.flow_sample, impl="reference"))
    eager_maps, ours_maps, oracle_maps = (2, 3), (1, 2), 20

    #: Bilinear interpolation has a corner at every pixel: a sample this close to one may fall on
    # the other side in another precision, and its gradient is another one then. No upstream
    # gradient arrives there (pixels).
    corner = 1e-3

    def map_values(self, size):  # here an image takes the part of the map
        return size.batch * size.channels * size.image**2

    def shapes(self, size, form=None):
        image = (size.batch, size.channels, size.image, size.image)
        return {"image": image, "flow": (size.batch, 2, size.grid, size.grid)}, image

    def operations(self, size, backward, form=None):
        """Per value of the result four multiply-adds forward; backward four more for the image's
        gradient and four for the flow's."""
        return 8 * self.map_values(size) * (3 if backward else 1)

    def inputs(self, size, generator):
        """A smooth flow of a few pixels."""
        inputs = super().inputs(size, generator)
        inputs["flow"] = 0.1 * F.avg_pool2d(inputs["flow"], 5, 1, 2)
        inputs["flow"] += pose_kernels.identity_flow(size.grid, size.grid).to(generator.device)
        return inputs

    def widened(self, inputs):
        """The same displacements: an identity flow is rounded to the flow's own dtype."""
        wide, flow = super().widened(inputs), inputs["flow"]
        extent, identity = flow.shape[2:], pose_kernels.identity_flow
        wide["flow"] -= identity(*extent, dtype=flow.dtype, device=flow.device).double()
        wide["flow"] += identity(*extent, dtype=torch.float64, device=flow.device)
        return wide

    def upstream(self, size, inputs, generator):
        grad = super().upstream(size, inputs, generator)
        fine = pose_kernels.resize_flow(self.widened(inputs)["flow"], (size.image, size.image))
        pixels = ((fine + 1) * size.image - 1) / 2
        near = ((pixels - pixels.round()).abs() < self.corner).any(dim=1, keepdim=True)
        return grad.masked_fill_(near, 0)

    def slack(self, size):
        """Float32 rounds a location in pixels, so the error grows with the image."""
        return max(1.0, size.image / 128) if itemsize(size.dtype) > 2 else 1.0

    def eager_form(self, size, device):
        function, notes = interpolate_and_grid_sample, []
        if size.image != size.grid:
            notes.append("interpolate + grid_sample: differs at the border")
        if itemsize(size.dtype) == 2 and device.type == "cpu":
            # grid_sample's offsets in 16 bits overflow there and it writes where it should not
            # (torch 2.14: heap corruption from 256 x 256 on).
            function = interpolate_and_grid_sample_in_float32
            notes.append("through float32: grid_sample crashes in 16 bits")
        kind = "other" if notes else "peer"
        return Form("eager", function, kind, self.eager_maps, "; ".join(notes))


OPERATOR = FlowSample()
