"""Sampling of an image or of features at a flow.

T of "Pose transfer using a single spatial transformation".

The *displacement* d = flow - identity is interpolated bilinearly at the output's pixel centres
(beyond the outermost centres the border cell's plane goes on), then out(y, x) = image(y' + d_y H/2,
x' + d_x W/2), bilinear in pixels, where (x', y') is the output's pixel centre in pixels of the
image: x' = x when the sizes agree. Hence an identity flow of any coarseness returns the image
exactly, and an affine flow of any coarseness is affine up to the border.
Gradients: with w the four bilinear weights, d_image(p) += w_p g and d_d = W/2 sum_c g d(image)/dx,
scattered to the coarse flow by the weights of its interpolation. Where "border" clamps a coordinate
its gradient is zero.
"""

import torch

from . import _checks, _dispatch, _library
from .identity_flow import identity_flow
from .resize_flow import interpolate_linearly

_library.define(
    "flow_sample(Tensor image, Tensor flow, SymInt height, SymInt width, bool zeros) -> Tensor",
    # Without `deterministic` a GPU may add to the image's gradient in any order.
    "flow_sample_backward(Tensor grad, Tensor image, Tensor flow, bool zeros, bool deterministic,"
    " bool image_grad, bool flow_grad) -> (Tensor image_grad, Tensor flow_grad)",
    triton="flow_sample",
)

PADDING_MODES = ("border", "zeros")


def _limit(position: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Into [low, high]; as grid_sample, no gradient where it had to move or sits on an end."""
    within = (position > low) & (position < high)
    return torch.where(within | position.isnan(), position, position.detach().clamp(low, high))


def reference(image, flow, size: tuple[int, int], padding_mode: str) -> torch.Tensor:
    batch, channels, height, width = image.shape
    dtype = _checks.compute_dtype(image.dtype)
    identity = identity_flow(flow.shape[2], flow.shape[3], dtype=flow.dtype, device=flow.device)
    displacement = flow.to(dtype) - identity.to(dtype)  # [B, 2, h, w]
    displacement = interpolate_linearly(displacement, size[0], 2)
    displacement = interpolate_linearly(displacement, size[1], 3)  # [B, 2, *size]

    def pixel_position(axis: int, out: int, extent: int) -> torch.Tensor:
        j = torch.arange(out, dtype=dtype, device=image.device)
        centre = j if out == extent else (j + 0.5) * (extent / out) - 0.5
        centre = centre.view((1, 1, out) if axis == 0 else (1, out, 1))
        position = centre + displacement[:, axis] * (extent / 2)
        if padding_mode == "border":
            return _limit(position, 0, extent - 1)
        # Beyond a pixel outside all neighbours are zero; stay near, so that infinity is a number.
        return _limit(position, -2, extent + 1)

    x, y = pixel_position(0, size[1], width), pixel_position(1, size[0], height)  # [B, *size]
    x0, y0 = x.detach().floor(), y.detach().floor()
    wx, wy = x - x0, y - y0
    pixels = image.to(dtype).flatten(2)  # [B, C, H*W]
    result = torch.zeros((), dtype=dtype, device=image.device)
    for yi, row_weight in ((y0, 1 - wy), (y0 + 1, wy)):
        for xi, column_weight in ((x0, 1 - wx), (x0 + 1, wx)):
            inside = (xi >= 0) & (xi < width) & (yi >= 0) & (yi < height)
            at = torch.where(inside, yi, 0).long() * width + torch.where(inside, xi, 0).long()
            at = at.flatten(1).unsqueeze(1).expand(-1, channels, -1)  # [B, C, pixels]
            value = pixels.gather(2, at).unflatten(2, size)
            weight = (row_weight * column_weight).unsqueeze(1)
            result = result + value.masked_fill(~inside.unsqueeze(1), 0) * weight
    lost = (x.isnan() | y.isnan()).unsqueeze(1)
    return result.masked_fill(lost, float("nan")).to(image.dtype)


def compiled(ops, image, flow, size: tuple[int, int], padding_mode: str) -> torch.Tensor:
    return ops.flow_sample(image, flow, size[0], size[1], padding_mode == "zeros")


def _fake(image, flow, height, width, zeros):
    return image.new_empty(image.shape[0], image.shape[1], height, width)


def _fake_backward(grad, image, flow, zeros, deterministic, image_grad, flow_grad):
    return _library.new_gradient(image, image_grad), _library.new_gradient(flow, flow_grad)


def _setup_context(ctx, inputs, output):
    image, flow, _, _, ctx.zeros = inputs
    ctx.save_for_backward(image, flow)


def _backward(ops, ctx, grad):
    wanted = ctx.needs_input_grad[:2]
    deterministic = torch.are_deterministic_algorithms_enabled()
    return ops.flow_sample_backward(grad, *ctx.saved_tensors, ctx.zeros, deterministic, *wanted)


def _example():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 24, 20, generator=generator, dtype=torch.float64)
    noise = torch.randn(2, 2, 6, 5, generator=generator, dtype=torch.float64)
    return [image, identity_flow(6, 5, dtype=torch.float64) + 0.05 * noise]


_library.register_operator("flow_sample", reference, compiled, _fake, _fake_backward,
                           _setup_context, _backward, _example)


def _check_arguments(image, flow, size, padding_mode) -> tuple[int, int]:
    """The size of the output."""
    _checks.check_tensor("image", image, "[B, C, H, W]")
    _checks.check_flow(flow)
    _checks.check_same_device("flow", flow, "image", image)
    if flow.shape[0] != image.shape[0]:
        raise ValueError(f"flow: expected batch {image.shape[0]} as image, "
                         f"got shape {list(flow.shape)}")
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"padding_mode: expected one of {', '.join(PADDING_MODES)}, "
                         f"got {padding_mode!r}")
    return _checks.check_size(image.shape[2:] if size is None else size)


def flow_sample(image: torch.Tensor, flow: torch.Tensor, size: tuple[int, int] | None = None,
                padding_mode: str = "border", *, impl: str | None = None) -> torch.Tensor:
    """Sample an image or features at a flow of any resolution, bilinearly (the paper's T).

    ``out[b, c, i, j] = image[b, c, y, x]`` with ``(x, y)`` the flow at output pixel ``(i, j)`` in
    pixels; where the flow is coarser (or finer) than the output its displacement ``flow -
    identity`` is interpolated bilinearly.

    Args:
        image: ``[B, C, H, W]``.
        flow: ``[B, 2, h, w]``; its dtype may differ from the image's.
        size: output ``(height, width)``; None: the image's.
        padding_mode: ``"border"`` repeats the edge, ``"zeros"`` puts zeros outside, both as torch's
            ``grid_sample``.
        impl: one of :func:`implementations` by name; None picks the best that can run.

    Returns: ``[B, C, *size]`` in the dtype of the image.

    Convention:
        Flow channels (x, y): absolute sampling locations in the image in normalised [-1, 1], pixel
        centres (``align_corners=False``), see :func:`identity_flow`. Beyond the outermost coarse
        centres the displacement is continued linearly; a flow dimension of size 1 is a constant
        displacement. With ``flow`` at the output's size this is ``grid_sample(...,
        align_corners=False)``. A NaN location gives NaN; a NaN pixel reaches the outputs that have
        it among their four neighbours.
    Precision:
        Locations and weights in float32 (float64 for a float64 image), also for float16 and
        bfloat16 and under autocast. An identity flow of any size and of its own dtype returns the
        image exactly. On a GPU the image's gradient is added up in any order, so that its last bits
        vary, unless ``torch.use_deterministic_algorithms`` is set when it is computed.
    Memory:
        The result; the interpolated flow is never stored. Backward on a GPU: a float32 copy of the
        image's gradient for 16 bits; where it is deterministic lists of some 90 bytes an output
        pixel instead. ``reference``: some 15 images with gradients.
    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or value.
        RuntimeError: the requested implementation cannot run.
        NotImplementedError: second derivatives of anything but ``reference``.
    """
    size = _check_arguments(image, flow, size, padding_mode)
    return _dispatch.choose("flow_sample", impl, image.device)(image, flow, size, padding_mode)
