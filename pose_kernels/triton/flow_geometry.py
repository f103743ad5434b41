"""Where the pixels of an output lie in the image: how all kernels of `flow_sample.py` begin.

`displacements` is a kernel of its own: d = flow - identity on the coarse grid, exactly zero for an
identity. `locate` interpolates it at output pixels. With d = 0 every expression below is exact,
whether or not the compiler fuses its operations.
"""

import torch
import triton
import triton.language as tl

from . import common
from .common import block_offsets

#: Coarse cells or pixels of a program that works on one value each.
BLOCK = 256
#: Sizes are converted to floating point, which a 1 that was made a constant is not.
SIZES = ["channels", "flow_height", "flow_width", "out_height", "out_width", "height", "width",
         "coarse", "out", "inner", "longest"]


@triton.jit(do_not_specialize=SIZES)
def displacements(p_flow, stride_b, stride_d, stride_h, stride_w, p_out, count, height, width,
                  BLOCK: tl.constexpr):
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
def row_and_column(o_p, out_height, out_width):
    """Of output pixels; those too many repeat the last row."""
    return tl.minimum(o_p // out_width, out_height - 1), o_p % out_width


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
def locate(p_displacement, i_b, o_p, flow_height, flow_width, out_height, out_width, height, width,
           ZEROS: tl.constexpr, INTERPOLATED_Y: tl.constexpr, INTERPOLATED_X: tl.constexpr,
           RESIZED_Y: tl.constexpr, RESIZED_X: tl.constexpr):
    """Where the output pixels o_p of sample i_b lie in the image, as `neighbours` says."""
    dtype: tl.constexpr = p_displacement.dtype.element_ty
    o_y, o_x = row_and_column(o_p, out_height, out_width)
    p_displacement += i_b * 2 * flow_height * flow_width
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


def coarse_displacements(flow, dtype):
    """[B, 2, h, w]."""
    out = torch.empty(flow.shape, dtype=dtype, device=flow.device)
    common.launch(displacements, triton.cdiv(flow.numel(), BLOCK), flow, *flow.stride(), out,
                  flow.numel(), *flow.shape[2:], BLOCK=BLOCK, num_warps=4)
    return out


def geometry(image, flow, height, width, zeros):
    """The sizes that every kernel takes, and what it need not do."""
    sizes = (*flow.shape[2:], height, width, *image.shape[2:])
    flags = {"ZEROS": zeros}
    for axis, out, dim in (("Y", height, 2), ("X", width, 3)):
        flags[f"INTERPOLATED_{axis}"] = flow.shape[dim] not in (1, out)
        flags[f"RESIZED_{axis}"] = image.shape[dim] != out
    return sizes, flags
