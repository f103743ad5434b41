"""Sampling at a flow, and its gradients, in Triton; `pose_kernels/flow_sample.py` has the
mathematics.

Forward: `sample`, a program takes a block of output pixels and of channels; where they lie,
`flow_geometry.py` says.
Backward to the flow: `position_gradient` on the output's grid, summed over channels; then
`transpose_interpolation` along each axis, every coarse cell gathering from the pixels that read it.
Backward to the image: `scatter` with atomics, or where it shall be deterministic
`contributions`, a stable sort by destination, and `gather`, every pixel adding up its own in order.
"""

import math

import torch
import triton
import triton.language as tl

from .. import _checks
from .._library import new_gradient
from . import common
from .common import block_offsets, own_block, store_tile
from .flow_geometry import (
    BLOCK,
    SIZES,
    coarse_displacements,
    coarse_tap,
    geometry,
    locate,
    ratio,
    row_and_column,
)


@triton.jit
def load_neighbour(p_image, m_c, b_y, b_x, stride_h, stride_w, height, width, dtype: tl.constexpr):
    m_inside = (b_y >= 0) & (b_y < height) & (b_x >= 0) & (b_x < width)
    p = p_image + (b_y.to(tl.int64) * stride_h + b_x.to(tl.int64) * stride_w)[None, :]
    return tl.load(p, mask=m_c[:, None] & m_inside[None, :], other=0.0).to(dtype)


@triton.jit
def load_neighbours(p_image, o_c, m_c, b_top, b_left, stride_c, stride_h, stride_w, height, width,
                    dtype: tl.constexpr):
    """[channels, pixels] of the four neighbours, the upper ones first; 0 outside of the image."""
    p = p_image + o_c.to(tl.int64)[:, None] * stride_c
    b_00 = load_neighbour(p, m_c, b_top, b_left, stride_h, stride_w, height, width, dtype)
    b_01 = load_neighbour(p, m_c, b_top, b_left + 1, stride_h, stride_w, height, width, dtype)
    b_10 = load_neighbour(p, m_c, b_top + 1, b_left, stride_h, stride_w, height, width, dtype)
    b_11 = load_neighbour(p, m_c, b_top + 1, b_left + 1, stride_h, stride_w, height, width, dtype)
    return b_00, b_01, b_10, b_11


@triton.jit
def load_pixels(p_x, o_c, m_c, o_y, o_x, m_p, stride_c, stride_h, stride_w, dtype: tl.constexpr):
    """[channels, pixels]."""
    p_pixel = p_x + (o_y.to(tl.int64) * stride_h + o_x.to(tl.int64) * stride_w)
    p = p_pixel[None, :] + o_c.to(tl.int64)[:, None] * stride_c
    return tl.load(p, mask=m_c[:, None] & m_p[None, :], other=0.0).to(dtype)


@triton.jit(do_not_specialize=SIZES)
def sample(p_image, stride_b, stride_c, stride_h, stride_w, p_displacement, p_out, channels,
           flow_height, flow_width, out_height, out_width, height, width, ZEROS: tl.constexpr,
           INTERPOLATED_Y: tl.constexpr, INTERPOLATED_X: tl.constexpr, RESIZED_Y: tl.constexpr,
           RESIZED_X: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    pixels = out_height * out_width
    i_b, i_c, o_p, m_p = own_block(pixels, BLOCK_P, tl.cdiv(channels, BLOCK_C))
    o_c, m_c = block_offsets(i_c * BLOCK_C, channels, BLOCK_C)
    b_top, b_down, m_y, b_left, b_right, m_x = locate(
        p_displacement, i_b, o_p, flow_height, flow_width, out_height, out_width, height, width,
        ZEROS, INTERPOLATED_Y, INTERPOLATED_X, RESIZED_Y, RESIZED_X)
    dtype: tl.constexpr = p_displacement.dtype.element_ty
    b_00, b_01, b_10, b_11 = load_neighbours(p_image + i_b * stride_b, o_c, m_c, b_top, b_left,
                                             stride_c, stride_h, stride_w, height, width, dtype)
    b_sum = b_00 * ((1 - b_down) * (1 - b_right))[None, :]
    b_sum += b_01 * ((1 - b_down) * b_right)[None, :]
    b_sum += b_10 * (b_down * (1 - b_right))[None, :]
    b_sum += b_11 * (b_down * b_right)[None, :]
    store_tile(p_out + i_b * channels * pixels, o_c, m_c, pixels, o_p, m_p, 1, b_sum)


@triton.jit(do_not_specialize=SIZES)
def position_gradient(p_grad, grad_stride_b, grad_stride_c, grad_stride_h, grad_stride_w, p_image,
                      stride_b, stride_c, stride_h, stride_w, p_displacement, p_out, channels,
                      flow_height, flow_width, out_height, out_width, height, width,
                      ZEROS: tl.constexpr, INTERPOLATED_Y: tl.constexpr,
                      INTERPOLATED_X: tl.constexpr, RESIZED_Y: tl.constexpr,
                      RESIZED_X: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """dL/dd on the output's grid, [B, 2, pixels]."""
    pixels = out_height * out_width
    i_b, _, o_p, m_p = own_block(pixels, BLOCK_P, 1)
    b_top, b_down, m_y, b_left, b_right, m_x = locate(
        p_displacement, i_b, o_p, flow_height, flow_width, out_height, out_width, height, width,
        ZEROS, INTERPOLATED_Y, INTERPOLATED_X, RESIZED_Y, RESIZED_X)
    dtype: tl.constexpr = p_displacement.dtype.element_ty
    p_image += i_b * stride_b
    p_grad += i_b * grad_stride_b
    o_y, o_x = row_and_column(o_p, out_height, out_width)
    b_along_x = tl.zeros([BLOCK_C, BLOCK_P], dtype)
    b_along_y = tl.zeros([BLOCK_C, BLOCK_P], dtype)
    for c in range(0, channels, BLOCK_C):
        o_c, m_c = block_offsets(c, channels, BLOCK_C)
        b_g = load_pixels(p_grad, o_c, m_c, o_y, o_x, m_p, grad_stride_c, grad_stride_h,
                          grad_stride_w, dtype)
        b_00, b_01, b_10, b_11 = load_neighbours(p_image, o_c, m_c, b_top, b_left, stride_c,
                                                 stride_h, stride_w, height, width, dtype)
        b_above, b_below = b_01 - b_00, b_11 - b_10
        b_along_x += b_g * (b_above * (1 - b_down)[None, :] + b_below * b_down[None, :])
        b_west, b_east = b_10 - b_00, b_11 - b_01
        b_along_y += b_g * (b_west * (1 - b_right)[None, :] + b_east * b_right[None, :])
    b_x = tl.sum(b_along_x, axis=0) * (width.to(dtype) * 0.5)
    b_y = tl.sum(b_along_y, axis=0) * (height.to(dtype) * 0.5)
    p_out += i_b * 2 * pixels + o_p
    tl.store(p_out, tl.where(m_x, b_x, 0.0), mask=m_p)
    tl.store(p_out + pixels, tl.where(m_y, b_y, 0.0), mask=m_p)


@triton.jit(do_not_specialize=SIZES)
def transpose_interpolation(p_grad, p_out, count, coarse, out, inner, longest,
                            INTERPOLATED: tl.constexpr, BLOCK: tl.constexpr):
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
def neighbour_weight(b_down, b_right, b_top, b_left, N: tl.constexpr, height, width):
    """Of neighbour N (0 and 1 above, 0 and 2 left): row, column, weight, whether it counts."""
    b_y, b_x = b_top + N // 2, b_left + N % 2
    b_weight = (b_down if N // 2 else 1 - b_down) * (b_right if N % 2 else 1 - b_right)
    m = (b_y >= 0) & (b_y < height) & (b_x >= 0) & (b_x < width) & (b_weight == b_weight)
    return b_y, b_x, b_weight, m


@triton.jit(do_not_specialize=SIZES)
def scatter(p_grad, grad_stride_b, grad_stride_c, grad_stride_h, grad_stride_w, p_displacement,
            p_out, channels, flow_height, flow_width, out_height, out_width, height, width,
            ZEROS: tl.constexpr, INTERPOLATED_Y: tl.constexpr, INTERPOLATED_X: tl.constexpr,
            RESIZED_Y: tl.constexpr, RESIZED_X: tl.constexpr, BLOCK_C: tl.constexpr,
            BLOCK_P: tl.constexpr):
    pixels = out_height * out_width
    i_b, i_c, o_p, m_p = own_block(pixels, BLOCK_P, tl.cdiv(channels, BLOCK_C))
    o_c, m_c = block_offsets(i_c * BLOCK_C, channels, BLOCK_C)
    b_top, b_down, m_y, b_left, b_right, m_x = locate(
        p_displacement, i_b, o_p, flow_height, flow_width, out_height, out_width, height, width,
        ZEROS, INTERPOLATED_Y, INTERPOLATED_X, RESIZED_Y, RESIZED_X)
    o_y, o_x = row_and_column(o_p, out_height, out_width)
    b_g = load_pixels(p_grad + i_b * grad_stride_b, o_c, m_c, o_y, o_x, m_p, grad_stride_c,
                      grad_stride_h, grad_stride_w, p_out.dtype.element_ty)
    m_g = m_c[:, None] & m_p[None, :]
    p_c = p_out + (i_b * channels + o_c)[:, None] * height * width
    for N in tl.static_range(4):
        b_y, b_x, b_weight, m = neighbour_weight(b_down, b_right, b_top, b_left, N, height, width)
        p = p_c + (b_y.to(tl.int64) * width + b_x)[None, :]
        tl.atomic_add(p, b_g * b_weight[None, :], mask=m_g & m[None, :], sem="relaxed")


@triton.jit(do_not_specialize=SIZES)
def contributions(p_displacement, p_key, p_weight, flow_height, flow_width, out_height, out_width,
                  height, width, ZEROS: tl.constexpr, INTERPOLATED_Y: tl.constexpr,
                  INTERPOLATED_X: tl.constexpr, RESIZED_Y: tl.constexpr, RESIZED_X: tl.constexpr,
                  BLOCK_P: tl.constexpr):
    """[B, 4, pixels]: destination in the image and weight; beyond the image where there is none."""
    pixels = out_height * out_width
    i_b, _, o_p, m_p = own_block(pixels, BLOCK_P, 1)
    b_top, b_down, m_y, b_left, b_right, m_x = locate(
        p_displacement, i_b, o_p, flow_height, flow_width, out_height, out_width, height, width,
        ZEROS, INTERPOLATED_Y, INTERPOLATED_X, RESIZED_Y, RESIZED_X)
    for N in tl.static_range(4):
        b_y, b_x, b_weight, m = neighbour_weight(b_down, b_right, b_top, b_left, N, height, width)
        b_key = tl.where(m, b_y.to(tl.int64) * width + b_x, height.to(tl.int64) * width)
        tl.store(p_key + (i_b * 4 + N) * pixels + o_p, b_key, mask=m_p)
        tl.store(p_weight + (i_b * 4 + N) * pixels + o_p, b_weight, mask=m_p)


@triton.jit(do_not_specialize=SIZES)
def gather(p_grad, grad_stride_b, grad_stride_c, grad_stride_h, grad_stride_w, p_order, p_start,
           p_weight, p_out, channels, out_height, out_width, height, width, BLOCK_C: tl.constexpr,
           BLOCK_P: tl.constexpr):
    """A pixel of the image adds up contributions start[pixel] to start[pixel + 1] in order."""
    pixels, places = height * width, out_height * out_width
    i_b, i_c, o_p, m_p = own_block(pixels, BLOCK_P, tl.cdiv(channels, BLOCK_C))
    o_c, m_c = block_offsets(i_c * BLOCK_C, channels, BLOCK_C)
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
    store_tile(p_out + i_b * channels * pixels, o_c, m_c, pixels, o_p, m_p, 1, b_sum)


def _launch_tiles(kernel, batch, channels, pixels, *arguments, walk=False, **flags):
    """A program per tile of channels and pixels; one that walks over channels takes all of them."""
    block_c = min(triton.next_power_of_2(channels), 16)
    block_p = 64 if block_c > 4 else 256
    blocks = 1 if walk else triton.cdiv(channels, block_c)
    common.launch(kernel, batch * blocks * triton.cdiv(pixels, block_p), *arguments, **flags,
                  BLOCK_C=block_c, BLOCK_P=block_p, num_warps=4)


def flow_sample(image, flow, height, width, zeros):
    """Bilinear sampling of the image at the flow."""
    batch, channels = image.shape[:2]
    out = image.new_empty((batch, channels, height, width))
    if batch > 0:
        displacement = coarse_displacements(flow, _checks.compute_dtype(image.dtype))
        sizes, flags = geometry(image, flow, height, width, zeros)
        _launch_tiles(sample, batch, channels, height * width, image, *image.stride(), displacement,
                      out, channels, *sizes, **flags)
    return out


def _image_gradient(grad, image, displacement, sizes, flags, deterministic):
    batch, channels, height, width = image.shape
    pixels = grad.shape[2:].numel()
    if not deterministic:
        sums = torch.zeros(image.shape, dtype=displacement.dtype, device=image.device)
        _launch_tiles(scatter, batch, channels, pixels, grad, *grad.stride(), displacement, sums,
                      channels, *sizes, **flags)
        return sums.to(image.dtype)
    key = torch.empty(batch, 4 * pixels, dtype=torch.int64, device=image.device)
    weight = displacement.new_empty(key.shape)
    common.launch(contributions, batch * triton.cdiv(pixels, BLOCK), displacement, key, weight,
                  *sizes, **flags, BLOCK_P=BLOCK, num_warps=4)
    order, start = common.lists_of(key, height * width)
    out = image.new_empty(image.shape)
    _launch_tiles(gather, batch, channels, height * width, grad, *grad.stride(), order, start,
                  weight, out, channels, *sizes[2:])
    return out


def _flow_gradient(grad, image, flow, displacement, sizes, flags):
    batch, channels = image.shape[:2]
    out = displacement.new_empty(batch, 2, *grad.shape[2:])
    _launch_tiles(position_gradient, batch, channels, grad.shape[2:].numel(), grad, *grad.stride(),
                  image, *image.stride(), displacement, out, channels, *sizes, walk=True, **flags)
    for dim, axis in ((2, "Y"), (3, "X")):
        coarse, fine = flow.shape[dim], grad.shape[dim]
        if coarse == fine:
            continue
        shape = [coarse if d == dim else n for d, n in enumerate(out.shape)]
        summed = out.new_empty(shape)
        # A cell and its neighbours reach 1.5 cells to both sides; at an end also to the border.
        longest = min(fine, math.ceil(2.5 * fine / coarse) + 6) if coarse > 1 else fine
        common.launch(transpose_interpolation, triton.cdiv(summed.numel(), BLOCK), out, summed,
                      summed.numel(), coarse, fine, math.prod(shape[dim + 1 :]), longest,
                      INTERPOLATED=flags[f"INTERPOLATED_{axis}"], BLOCK=BLOCK, num_warps=4)
        out = summed
    return out.to(flow.dtype)


def flow_sample_backward(grad, image, flow, zeros, deterministic, image_grad, flow_grad):
    """d image and d flow."""
    gradients = [new_gradient(image, image_grad), new_gradient(flow, flow_grad)]
    if grad.shape[0] > 0:
        displacement = coarse_displacements(flow, _checks.compute_dtype(image.dtype))
        sizes, flags = geometry(image, flow, *grad.shape[2:], zeros)
        if image_grad:
            gradients[0] = _image_gradient(grad, image, displacement, sizes, flags, deterministic)
        if flow_grad:
            gradients[1] = _flow_gradient(grad, image, flow, displacement, sizes, flags)
    return tuple(gradients)
