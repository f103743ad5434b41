"""Sampling at a flow, and its gradients, in Triton; `pose_kernels/flow_sample.py` has the
mathematics.

Forward: `displacements`, d = flow - identity on the coarse grid, exactly zero for an identity;
`sample`, a program takes a block of output pixels and of channels.
Backward to the flow: `position_gradient` on the output's grid, summed over channels; then
`transpose_interpolation` along each axis, every coarse cell gathering from the pixels that read it.
Backward to the image: `scatter` with atomics, or where torch is told to be deterministic
`contributions`, a stable sort by destination, and `gather`, every pixel adding up its own in order.

With d = 0 every expression below is exact, whether or not the compiler fuses its operations.
"""

import math

import torch
import triton
import triton.language as tl

from .. import _checks
from . import common
from .common import block_offsets

#: Coarse cells or pixels of a program that works on one value each.
BLOCK = 256
#: Sizes are converted to floating point, which a 1 that was made a constant is not.
_SIZES = [
    "channels", "flow_height", "flow_width", "out_height", "out_width", "height", "width",
    "coarse", "out", "inner", "longest",
]  # fmt: skip


def _tile(channels: int) -> dict[str, int]:
    """Channels by pixels of a program."""
    block = min(triton.next_power_of_2(channels), 16)
    return {"BLOCK_C": block, "BLOCK_P": 64 if block > 4 else 256, "num_warps": 4}


@triton.jit(do_not_specialize=_SIZES)
def displacements(
    p_flow, stride_b, stride_d, stride_h, stride_w, p_out, count, height, width,
    BLOCK: tl.constexpr,
):  # fmt: skip
    o, m = block_offsets(tl.program_id(0).to(tl.int64) * BLOCK, count, BLOCK)
    x = o % width
    y = o // width % height
    d = o // width // height % 2
    b = o // width // height // 2
    p = p_flow + b * stride_b + d * stride_d + y * stride_h + x * stride_w
    # As identity_flow: float64, rounded to the flow's dtype.
    b_size = tl.where(d == 0, width, height)
    b_centre = (2 * tl.where(d == 0, x, y) + 1 - b_size).to(tl.float64) / b_size.to(tl.float64)
    if p_flow.dtype.element_ty == tl.float64:
        b_rounded = b_centre
    elif p_flow.dtype.element_ty == tl.bfloat16:  # by hand: the interpreter would cut digits off
        b_bits = b_centre.to(tl.float32).to(tl.int32, bitcast=True)
        b_bits = (b_bits + 0x7FFF + ((b_bits >> 16) & 1)) & -0x10000
        b_rounded = b_bits.to(tl.float32, bitcast=True)
    else:
        b_rounded = b_centre.to(tl.float32).to(p_flow.dtype.element_ty)
    dtype: tl.constexpr = p_out.dtype.element_ty
    b_flow = tl.load(p, mask=m, other=0.0).to(dtype)
    tl.store(p_out + o, b_flow - b_rounded.to(dtype), mask=m)


@triton.jit
def ratio(numerator, denominator, dtype: tl.constexpr):
    """Rounded once from float64, as everywhere else."""
    return (numerator.to(tl.float64) / denominator.to(tl.float64)).to(dtype)


@triton.jit
def coarse_tap(o, coarse, out, dtype: tl.constexpr, INTERPOLATED: tl.constexpr):
    """Of output rows or columns: the lower coarse neighbour and the weight of the upper one."""
    if INTERPOLATED:
        b_position = (o.to(dtype) + 0.5) * ratio(coarse, out, dtype) - 0.5
        b_low = tl.minimum(tl.maximum(tl.floor(b_position), 0.0), (coarse - 2).to(dtype))
        b_weight = b_position - b_low  # below 0 or above 1: extrapolation
        b_low = b_low.to(tl.int32)
    else:
        b_low = tl.minimum(o, coarse - 1)  # one coarse cell, or as many as there are pixels
        b_weight = tl.zeros_like(o).to(dtype)
    return b_low, b_weight


@triton.jit
def pixel_centre(o, out, extent, dtype: tl.constexpr, RESIZED: tl.constexpr):
    """In pixels of the image."""
    if RESIZED:
        return (o.to(dtype) + 0.5) * ratio(extent, out, dtype) - 0.5
    else:
        return o.to(dtype)


@triton.jit
def neighbours(b_position, extent, ZEROS: tl.constexpr):
    """The lower neighbour, the weight of the upper one, and where the position can move.

    As grid_sample: no gradient where a position was clamped, or sits on the end. A NaN stays one.
    """
    dtype: tl.constexpr = b_position.dtype
    low_end = tl.full((), -2.0 if ZEROS else 0.0, dtype)
    high_end = (extent + (1 if ZEROS else -1)).to(dtype)
    m_moves = (b_position > low_end) & (b_position < high_end)
    b_position = tl.where(b_position < low_end, low_end, b_position)
    b_position = tl.where(b_position > high_end, high_end, b_position)
    b_low = tl.floor(tl.where(b_position == b_position, b_position, 0.0))
    return b_low.to(tl.int32), b_position - b_low, m_moves


@triton.jit
def locate(
    p_displacement, o_y, o_x, flow_height, flow_width, out_height, out_width, height, width,
    ZEROS: tl.constexpr, INTERPOLATED_Y: tl.constexpr, INTERPOLATED_X: tl.constexpr,
    RESIZED_Y: tl.constexpr, RESIZED_X: tl.constexpr,
):  # fmt: skip
    """Where the output pixels (o_y, o_x) of one sample lie in the image, as `neighbours` says."""
    dtype: tl.constexpr = p_displacement.dtype.element_ty
    b_top, b_down = coarse_tap(o_y, flow_height, out_height, dtype, INTERPOLATED_Y)
    b_left, b_right = coarse_tap(o_x, flow_width, out_width, dtype, INTERPOLATED_X)
    p_x = p_displacement + b_top.to(tl.int64) * flow_width + b_left
    p_y = p_x + flow_height.to(tl.int64) * flow_width
    b_dx, b_dy = tl.load(p_x), tl.load(p_y)
    # Without interpolation the other neighbours are not looked at: they may be infinite.
    if INTERPOLATED_Y:
        b_dx = b_dx * (1 - b_down) + tl.load(p_x + flow_width) * b_down
        b_dy = b_dy * (1 - b_down) + tl.load(p_y + flow_width) * b_down
    if INTERPOLATED_X:
        b_dx_right, b_dy_right = tl.load(p_x + 1), tl.load(p_y + 1)
        if INTERPOLATED_Y:
            p_next = p_x + flow_width + 1
            b_dx_right = b_dx_right * (1 - b_down) + tl.load(p_next) * b_down
            p_next = p_y + flow_width + 1
            b_dy_right = b_dy_right * (1 - b_down) + tl.load(p_next) * b_down
        b_dx = b_dx * (1 - b_right) + b_dx_right * b_right
        b_dy = b_dy * (1 - b_right) + b_dy_right * b_right
    b_x = pixel_centre(o_x, out_width, width, dtype, RESIZED_X) + b_dx * (width.to(dtype) * 0.5)
    b_y = pixel_centre(o_y, out_height, height, dtype, RESIZED_Y) + b_dy * (height.to(dtype) * 0.5)
    b_left, b_right, m_x = neighbours(b_x, width, ZEROS)
    b_top, b_down, m_y = neighbours(b_y, height, ZEROS)
    return b_top, b_down, m_y, b_left, b_right, m_x


@triton.jit
def load_neighbour(p_image, m_c, b_y, b_x, stride_h, stride_w, height, width, dtype: tl.constexpr):
    """[channels, pixels]; 0 outside of the image."""
    m_inside = (b_y >= 0) & (b_y < height) & (b_x >= 0) & (b_x < width)
    p = p_image + (b_y.to(tl.int64) * stride_h + b_x.to(tl.int64) * stride_w)[None, :]
    return tl.load(p, mask=m_c[:, None] & m_inside[None, :], other=0.0).to(dtype)


@triton.jit(do_not_specialize=_SIZES)
def sample(
    p_image, stride_b, stride_c, stride_h, stride_w, p_displacement, p_out, channels,
    flow_height, flow_width, out_height, out_width, height, width,
    ZEROS: tl.constexpr, INTERPOLATED_Y: tl.constexpr, INTERPOLATED_X: tl.constexpr,
    RESIZED_Y: tl.constexpr, RESIZED_X: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    pixels = out_height * out_width
    i_c = tl.program_id(0) % tl.cdiv(channels, BLOCK_C)
    i_p = tl.program_id(0) // tl.cdiv(channels, BLOCK_C) % tl.cdiv(pixels, BLOCK_P)
    i_b = tl.program_id(0) // tl.cdiv(channels, BLOCK_C) // tl.cdiv(pixels, BLOCK_P)
    i_b = i_b.to(tl.int64)
    o_c, m_c = block_offsets(i_c * BLOCK_C, channels, BLOCK_C)
    o_p, m_p = block_offsets(i_p * BLOCK_P, pixels, BLOCK_P)
    p_displacement += i_b * 2 * flow_height * flow_width
    o_y = tl.minimum(o_p // out_width, out_height - 1)  # those too many repeat the last row
    b_top, b_down, m_y, b_left, b_right, m_x = locate(
        p_displacement, o_y, o_p % out_width, flow_height, flow_width, out_height, out_width,
        height, width, ZEROS, INTERPOLATED_Y, INTERPOLATED_X, RESIZED_Y, RESIZED_X,
    )  # fmt: skip
    dtype: tl.constexpr = p_displacement.dtype.element_ty
    p_c = p_image + i_b * stride_b + o_c.to(tl.int64)[:, None] * stride_c
    b_00 = load_neighbour(p_c, m_c, b_top, b_left, stride_h, stride_w, height, width, dtype)
    b_01 = load_neighbour(p_c, m_c, b_top, b_left + 1, stride_h, stride_w, height, width, dtype)
    b_10 = load_neighbour(p_c, m_c, b_top + 1, b_left, stride_h, stride_w, height, width, dtype)
    b_11 = load_neighbour(p_c, m_c, b_top + 1, b_left + 1, stride_h, stride_w, height, width, dtype)
    b_sum = b_00 * ((1 - b_down) * (1 - b_right))[None, :]
    b_sum += b_01 * ((1 - b_down) * b_right)[None, :]
    b_sum += b_10 * (b_down * (1 - b_right))[None, :]
    b_sum += b_11 * (b_down * b_right)[None, :]
    p_out += (i_b * channels + o_c)[:, None] * pixels + o_p[None, :]
    tl.store(p_out, b_sum.to(p_out.dtype.element_ty), mask=m_c[:, None] & m_p[None, :])


@triton.jit(do_not_specialize=_SIZES)
def position_gradient(
    p_grad, grad_stride_b, grad_stride_c, grad_stride_h, grad_stride_w,
    p_image, stride_b, stride_c, stride_h, stride_w, p_displacement, p_out, channels,
    flow_height, flow_width, out_height, out_width, height, width,
    ZEROS: tl.constexpr, INTERPOLATED_Y: tl.constexpr, INTERPOLATED_X: tl.constexpr,
    RESIZED_Y: tl.constexpr, RESIZED_X: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """dL/dd on the output's grid, [B, 2, pixels]."""
    pixels = out_height * out_width
    i_p = tl.program_id(0) % tl.cdiv(pixels, BLOCK_P)
    i_b = (tl.program_id(0) // tl.cdiv(pixels, BLOCK_P)).to(tl.int64)
    o_p, m_p = block_offsets(i_p * BLOCK_P, pixels, BLOCK_P)
    o_y, o_x = tl.minimum(o_p // out_width, out_height - 1), o_p % out_width
    p_displacement += i_b * 2 * flow_height * flow_width
    b_top, b_down, m_y, b_left, b_right, m_x = locate(
        p_displacement, o_y, o_x, flow_height, flow_width, out_height, out_width,
        height, width, ZEROS, INTERPOLATED_Y, INTERPOLATED_X, RESIZED_Y, RESIZED_X,
    )  # fmt: skip
    dtype: tl.constexpr = p_displacement.dtype.element_ty
    p_pixel = p_grad + i_b * grad_stride_b
    p_pixel += o_y.to(tl.int64) * grad_stride_h + o_x.to(tl.int64) * grad_stride_w
    b_along_x = tl.zeros([BLOCK_C, BLOCK_P], dtype)
    b_along_y = tl.zeros([BLOCK_C, BLOCK_P], dtype)
    for c in range(0, channels, BLOCK_C):
        o_c, m_c = block_offsets(c, channels, BLOCK_C)
        p_g = p_pixel[None, :] + o_c.to(tl.int64)[:, None] * grad_stride_c
        b_g = tl.load(p_g, mask=m_c[:, None] & m_p[None, :], other=0.0).to(dtype)
        p_c = p_image + i_b * stride_b + o_c.to(tl.int64)[:, None] * stride_c
        b_00 = load_neighbour(p_c, m_c, b_top, b_left, stride_h, stride_w, height, width, dtype)
        b_01 = load_neighbour(p_c, m_c, b_top, b_left + 1, stride_h, stride_w, height, width, dtype)
        b_10 = load_neighbour(p_c, m_c, b_top + 1, b_left, stride_h, stride_w, height, width, dtype)
        b_11 = load_neighbour(
            p_c, m_c, b_top + 1, b_left + 1, stride_h, stride_w, height, width, dtype
        )
        b_above, b_below = b_01 - b_00, b_11 - b_10
        b_along_x += b_g * (b_above * (1 - b_down)[None, :] + b_below * b_down[None, :])
        b_west, b_east = b_10 - b_00, b_11 - b_01
        b_along_y += b_g * (b_west * (1 - b_right)[None, :] + b_east * b_right[None, :])
    b_x = tl.sum(b_along_x, axis=0) * (width.to(dtype) * 0.5)
    b_y = tl.sum(b_along_y, axis=0) * (height.to(dtype) * 0.5)
    p_out += i_b * 2 * pixels + o_p
    tl.store(p_out, tl.where(m_x, b_x, 0.0), mask=m_p)
    tl.store(p_out + pixels, tl.where(m_y, b_y, 0.0), mask=m_p)


@triton.jit(do_not_specialize=_SIZES)
def transpose_interpolation(
    p_grad, p_out, count, coarse, out, inner, longest,
    INTERPOLATED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """[n, out, inner] to [n, coarse, inner]."""
    o, m = block_offsets(tl.program_id(0).to(tl.int64) * BLOCK, count, BLOCK)
    o_inner, o_cell, o_n = o % inner, (o // inner % coarse).to(tl.int32), o // inner // coarse
    dtype: tl.constexpr = p_grad.dtype.element_ty
    # The first pixel that may read the cell, or one or two before it.
    b_first = tl.zeros([BLOCK], tl.int32)
    if INTERPOLATED:
        b_pixel = (o_cell.to(dtype) - 0.5) * ratio(out, coarse, dtype) - 1.5
        b_first = tl.maximum(tl.where(o_cell > 1, tl.floor(b_pixel), 0.0), 0.0).to(tl.int32)
    b_sum = tl.zeros([BLOCK], dtype)
    for step in range(0, longest):
        b_at = b_first + step
        b_low, b_weight = coarse_tap(b_at, coarse, out, dtype, INTERPOLATED)
        m_reads = m & (b_at < out) & ((b_low == o_cell) | (INTERPOLATED & (b_low + 1 == o_cell)))
        p = p_grad + (o_n * out + b_at) * inner + o_inner
        b_g = tl.load(p, mask=m_reads, other=0.0)
        b_sum += b_g * tl.where(b_low == o_cell, 1 - b_weight, b_weight)
    tl.store(p_out + o, b_sum.to(p_out.dtype.element_ty), mask=m)


@triton.jit
def neighbour_weight(
    b_down, b_right, b_top, b_left, N: tl.constexpr, height, width,
):  # fmt: skip
    """Of neighbour N (0 and 1 above, 0 and 2 left): row, column, weight, whether it counts."""
    b_y, b_x = b_top + N // 2, b_left + N % 2
    b_weight = (b_down if N // 2 else 1 - b_down) * (b_right if N % 2 else 1 - b_right)
    m = (b_y >= 0) & (b_y < height) & (b_x >= 0) & (b_x < width) & (b_weight == b_weight)
    return b_y, b_x, b_weight, m


@triton.jit(do_not_specialize=_SIZES)
def scatter(
    p_grad, grad_stride_b, grad_stride_c, grad_stride_h, grad_stride_w,
    p_displacement, p_out, channels,
    flow_height, flow_width, out_height, out_width, height, width,
    ZEROS: tl.constexpr, INTERPOLATED_Y: tl.constexpr, INTERPOLATED_X: tl.constexpr,
    RESIZED_Y: tl.constexpr, RESIZED_X: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    pixels = out_height * out_width
    i_c = tl.program_id(0) % tl.cdiv(channels, BLOCK_C)
    i_p = tl.program_id(0) // tl.cdiv(channels, BLOCK_C) % tl.cdiv(pixels, BLOCK_P)
    i_b = tl.program_id(0) // tl.cdiv(channels, BLOCK_C) // tl.cdiv(pixels, BLOCK_P)
    i_b = i_b.to(tl.int64)
    o_c, m_c = block_offsets(i_c * BLOCK_C, channels, BLOCK_C)
    o_p, m_p = block_offsets(i_p * BLOCK_P, pixels, BLOCK_P)
    o_y, o_x = tl.minimum(o_p // out_width, out_height - 1), o_p % out_width
    p_displacement += i_b * 2 * flow_height * flow_width
    b_top, b_down, m_y, b_left, b_right, m_x = locate(
        p_displacement, o_y, o_x, flow_height, flow_width, out_height, out_width,
        height, width, ZEROS, INTERPOLATED_Y, INTERPOLATED_X, RESIZED_Y, RESIZED_X,
    )  # fmt: skip
    p_pixel = p_grad + i_b * grad_stride_b
    p_pixel += o_y.to(tl.int64) * grad_stride_h + o_x.to(tl.int64) * grad_stride_w
    p_g = p_pixel[None, :] + o_c.to(tl.int64)[:, None] * grad_stride_c
    m_g = m_c[:, None] & m_p[None, :]
    b_g = tl.load(p_g, mask=m_g, other=0.0).to(p_out.dtype.element_ty)
    p_c = p_out + (i_b * channels + o_c)[:, None] * height * width
    for N in tl.static_range(4):
        b_y, b_x, b_weight, m = neighbour_weight(b_down, b_right, b_top, b_left, N, height, width)
        p = p_c + (b_y.to(tl.int64) * width + b_x)[None, :]
        tl.atomic_add(p, b_g * b_weight[None, :], mask=m_g & m[None, :], sem="relaxed")


@triton.jit(do_not_specialize=_SIZES)
def contributions(
    p_displacement, p_key, p_weight,
    flow_height, flow_width, out_height, out_width, height, width,
    ZEROS: tl.constexpr, INTERPOLATED_Y: tl.constexpr, INTERPOLATED_X: tl.constexpr,
    RESIZED_Y: tl.constexpr, RESIZED_X: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """[B, 4, pixels]: destination in the image and weight; beyond the image where there is none."""
    pixels = out_height * out_width
    i_p = tl.program_id(0) % tl.cdiv(pixels, BLOCK_P)
    i_b = (tl.program_id(0) // tl.cdiv(pixels, BLOCK_P)).to(tl.int64)
    o_p, m_p = block_offsets(i_p * BLOCK_P, pixels, BLOCK_P)
    o_y = tl.minimum(o_p // out_width, out_height - 1)
    p_displacement += i_b * 2 * flow_height * flow_width
    b_top, b_down, m_y, b_left, b_right, m_x = locate(
        p_displacement, o_y, o_p % out_width, flow_height, flow_width, out_height, out_width,
        height, width, ZEROS, INTERPOLATED_Y, INTERPOLATED_X, RESIZED_Y, RESIZED_X,
    )  # fmt: skip
    for N in tl.static_range(4):
        b_y, b_x, b_weight, m = neighbour_weight(b_down, b_right, b_top, b_left, N, height, width)
        b_key = tl.where(m, b_y.to(tl.int64) * width + b_x, height.to(tl.int64) * width)
        tl.store(p_key + (i_b * 4 + N) * pixels + o_p, b_key, mask=m_p)
        tl.store(p_weight + (i_b * 4 + N) * pixels + o_p, b_weight, mask=m_p)


@triton.jit(do_not_specialize=_SIZES)
def gather(
    p_grad, grad_stride_b, grad_stride_c, grad_stride_h, grad_stride_w,
    p_order, p_start, p_weight, p_out, channels, out_height, out_width, height, width,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """A pixel of the image adds up contributions start[pixel] to start[pixel + 1] in order."""
    pixels, places = height * width, out_height * out_width
    i_c = tl.program_id(0) % tl.cdiv(channels, BLOCK_C)
    i_p = tl.program_id(0) // tl.cdiv(channels, BLOCK_C) % tl.cdiv(pixels, BLOCK_P)
    i_b = tl.program_id(0) // tl.cdiv(channels, BLOCK_C) // tl.cdiv(pixels, BLOCK_P)
    i_b = i_b.to(tl.int64)
    o_c, m_c = block_offsets(i_c * BLOCK_C, channels, BLOCK_C)
    o_p, m_p = block_offsets(i_p * BLOCK_P, pixels, BLOCK_P)
    p_start += i_b * (pixels + 1)
    b_first = tl.load(p_start + o_p, mask=m_p, other=0)
    b_last = tl.load(p_start + o_p + 1, mask=m_p, other=0)
    p_order += i_b * 4 * places
    p_weight += i_b * 4 * places
    p_c = p_grad + i_b * grad_stride_b + o_c.to(tl.int64)[:, None] * grad_stride_c
    dtype: tl.constexpr = p_weight.dtype.element_ty
    b_sum = tl.zeros([BLOCK_C, BLOCK_P], dtype)
    for step in range(0, tl.max(b_last - b_first, axis=0)):
        m = b_first + step < b_last
        b_from = tl.load(p_order + b_first + step, mask=m, other=0)
        b_weight = tl.load(p_weight + b_from, mask=m, other=0.0)
        b_place = b_from % places
        b_at = b_place // out_width * grad_stride_h + b_place % out_width * grad_stride_w
        b_g = tl.load(p_c + b_at[None, :], mask=m_c[:, None] & m[None, :], other=0.0).to(dtype)
        b_sum += b_g * b_weight[None, :]
    p_out += (i_b * channels + o_c)[:, None] * pixels + o_p[None, :]
    tl.store(p_out, b_sum.to(p_out.dtype.element_ty), mask=m_c[:, None] & m_p[None, :])


def _displacements(flow, dtype):
    out = torch.empty(flow.shape, dtype=dtype, device=flow.device)
    common.launch(
        displacements, triton.cdiv(flow.numel(), BLOCK),
        flow, *flow.stride(), out, flow.numel(), *flow.shape[2:], BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    return out


def _geometry(image, flow, height, width, zeros):
    """The sizes that every kernel takes, and what it need not do."""
    sizes = (*flow.shape[2:], height, width, *image.shape[2:])
    flags = {"ZEROS": zeros}
    for axis, out, dim in (("Y", height, 2), ("X", width, 3)):
        flags[f"INTERPOLATED_{axis}"] = flow.shape[dim] not in (1, out)
        flags[f"RESIZED_{axis}"] = image.shape[dim] != out
    return sizes, flags


def flow_sample(image, flow, height, width, zeros):
    """Bilinear sampling of the image at the flow."""
    batch, channels = image.shape[:2]
    out = torch.empty((batch, channels, height, width), dtype=image.dtype, device=image.device)
    if batch > 0:
        displacement = _displacements(flow, _checks.compute_dtype(image.dtype))
        sizes, flags = _geometry(image, flow, height, width, zeros)
        tile = _tile(channels)
        blocks = triton.cdiv(channels, tile["BLOCK_C"])
        common.launch(
            sample, batch * blocks * triton.cdiv(height * width, tile["BLOCK_P"]),
            image, *image.stride(), displacement, out, channels, *sizes, **flags, **tile,
        )  # fmt: skip
    return out


def _image_gradient(grad, image, displacement, sizes, flags):
    batch, channels, height, width = image.shape
    tile = _tile(channels)
    blocks = batch * triton.cdiv(channels, tile["BLOCK_C"])
    pixels = grad.shape[2:].numel()
    if not torch.are_deterministic_algorithms_enabled():
        sums = torch.zeros(image.shape, dtype=displacement.dtype, device=image.device)
        common.launch(
            scatter, blocks * triton.cdiv(pixels, tile["BLOCK_P"]),
            grad, *grad.stride(), displacement, sums, channels, *sizes, **flags, **tile,
        )  # fmt: skip
        return sums.to(image.dtype)
    key = torch.empty(batch, 4 * pixels, dtype=torch.int64, device=image.device)
    weight = torch.empty(key.shape, dtype=displacement.dtype, device=image.device)
    common.launch(
        contributions, batch * triton.cdiv(pixels, BLOCK),
        displacement, key, weight, *sizes, **flags, BLOCK_P=BLOCK, num_warps=4,
    )  # fmt: skip
    key, order = torch.sort(key, dim=1, stable=True)
    ends = torch.arange(height * width + 1, device=image.device).expand(batch, -1).contiguous()
    start = torch.searchsorted(key, ends)
    out = torch.empty(image.shape, dtype=image.dtype, device=image.device)
    common.launch(
        gather, blocks * triton.cdiv(height * width, tile["BLOCK_P"]),
        grad, *grad.stride(), order, start, weight, out, channels, *sizes[2:], **tile,
    )  # fmt: skip
    return out


def _flow_gradient(grad, image, flow, displacement, sizes, flags):
    batch, channels = image.shape[:2]
    tile = _tile(channels)
    out = displacement.new_empty(batch, 2, *grad.shape[2:])
    common.launch(
        position_gradient, batch * triton.cdiv(grad.shape[2:].numel(), tile["BLOCK_P"]),
        grad, *grad.stride(), image, *image.stride(), displacement, out, channels,
        *sizes, **flags, **tile,
    )  # fmt: skip
    for dim, axis in ((2, "Y"), (3, "X")):
        coarse, fine = flow.shape[dim], grad.shape[dim]
        if coarse == fine:
            continue
        shape = [coarse if d == dim else n for d, n in enumerate(out.shape)]
        summed = out.new_empty(shape)
        # A cell and its neighbours reach 1.5 cells to both sides; at an end also to the border.
        longest = min(fine, math.ceil(2.5 * fine / coarse) + 6) if coarse > 1 else fine
        common.launch(
            transpose_interpolation, triton.cdiv(summed.numel(), BLOCK),
            out, summed, summed.numel(), coarse, fine, math.prod(shape[dim + 1 :]), longest,
            INTERPOLATED=flags[f"INTERPOLATED_{axis}"], BLOCK=BLOCK, num_warps=4,
        )  # fmt: skip
        out = summed
    return out.to(flow.dtype)


def flow_sample_backward(grad, image, flow, zeros, image_grad, flow_grad):
    """d image and d flow."""
    height, width = grad.shape[2:]
    if grad.shape[0] == 0:
        return (
            image.new_empty(image.shape if image_grad else 0),
            flow.new_empty(flow.shape if flow_grad else 0),
        )
    displacement = _displacements(flow, _checks.compute_dtype(image.dtype))
    sizes, flags = _geometry(image, flow, height, width, zeros)
    return (
        _image_gradient(grad, image, displacement, sizes, flags)
        if image_grad
        else image.new_empty(0),
        _flow_gradient(grad, image, flow, displacement, sizes, flags)
        if flow_grad
        else flow.new_empty(0),
    )
