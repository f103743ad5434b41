"""Eqs. 1, 9 and 2 in one, and their gradient, in Triton; the mathematics is in
`pose_kernels/guided_correlation.py`. The product is computed again wherever C is needed.

Forward: `row_maxima`, a program owns a block of sources and walks over the targets; `columns`, a
program owns a block of targets and walks over the sources twice, for the norm and to write.
Backward: `gradient_dots`, D_t by programs that own targets; `source_gradient`, dz_s and beta by
programs that own sources; `target_gradient`, dz_t by programs that own targets, beta added to dC at
the maxima. In bands of targets the same kernels add to what is there, and at the end
`source_maximum` and `target_maximum` add the terms of beta.

A tile is [what the program owns, what it walks over]. The upstream gradient is read three times,
which is less traffic than adding up partial sums of dz_s, and needs no memory.
"""

import torch
import triton
import triton.language as tl

from . import common
from .common import (
    add_product,
    block_offsets,
    correlate,
    first_maximum,
    keep_maximum,
    load_packed,
    tile_offsets,
)


@triton.jit
def row_maxima(
    p_source, p_target, p_max, p_argmax, eps: tl.float64, S, T,
    WIDTH: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_OWN: tl.constexpr, BLOCK_WALK: tl.constexpr,
):  # fmt: skip
    i_s = tl.program_id(0) % tl.cdiv(S, BLOCK_OWN)
    i_b = (tl.program_id(0) // tl.cdiv(S, BLOCK_OWN)).to(tl.int64)
    p_source += i_b * S * WIDTH
    p_target += i_b * T * WIDTH
    dtype: tl.constexpr = p_source.dtype.element_ty
    o_s, m_s = block_offsets(i_s * BLOCK_OWN, S, BLOCK_OWN)
    b_s = load_packed(p_source, o_s, m_s, 0, WIDTH, BLOCK_K)
    b_best = tl.full([BLOCK_OWN, BLOCK_WALK], float("-inf"), dtype)
    b_at = tl.zeros([BLOCK_OWN, BLOCK_WALK], tl.int32)
    for t in range(0, T, BLOCK_WALK):
        o_t, m_t = block_offsets(t, T, BLOCK_WALK)
        b_t = load_packed(p_target, o_t, m_t, 0, WIDTH, BLOCK_K)
        b_c = correlate(b_s, b_t, p_source, p_target, o_s, o_t, m_s, m_t, WIDTH, BLOCK_K, PRECISION)
        b_best, b_at = keep_maximum(b_c, o_t, m_t, b_best, b_at)
    b_max, b_first = first_maximum(b_best, b_at)
    floor = tl.full((), eps, dtype)
    tl.store(p_max + i_b * S + o_s, tl.where(b_max < floor, floor, b_max), mask=m_s)
    tl.store(p_argmax + i_b * S + o_s, b_first.to(tl.int64), mask=m_s)


@triton.jit
def cubes(
    b_t, p_source, p_target, p_max, s, S, o_t, m_t,
    WIDTH: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """u = C^3 / b for the sources from s on, [targets, sources]; 0 outside of the map."""
    o_s, m_s = block_offsets(s, S, BLOCK)
    b_s = load_packed(p_source, o_s, m_s, 0, WIDTH, BLOCK_K)
    b_c = correlate(b_t, b_s, p_target, p_source, o_t, o_s, m_t, m_s, WIDTH, BLOCK_K, PRECISION)
    b_inverse_b = 1.0 / tl.load(p_max + o_s, mask=m_s, other=1.0)
    return b_c * b_c * (b_c * b_inverse_b[None, :])


@triton.jit
def columns(
    p_source, p_target, p_max, p_norm, norm_stride_b, p_result, stride_b, stride_s, stride_t,
    eps: tl.float64, S, T,
    WIDTH: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_OWN: tl.constexpr, BLOCK_WALK: tl.constexpr,
):  # fmt: skip
    i_t = tl.program_id(0) % tl.cdiv(T, BLOCK_OWN)
    i_b = (tl.program_id(0) // tl.cdiv(T, BLOCK_OWN)).to(tl.int64)
    p_source += i_b * S * WIDTH
    p_target += i_b * T * WIDTH
    p_max += i_b * S
    p_result += i_b * stride_b
    dtype: tl.constexpr = p_source.dtype.element_ty
    o_t, m_t = block_offsets(i_t * BLOCK_OWN, T, BLOCK_OWN)
    b_t = load_packed(p_target, o_t, m_t, 0, WIDTH, BLOCK_K)
    # A sum per lane, then one over lanes: two levels keep float32 accurate over thousands of rows.
    b_squares = tl.zeros([BLOCK_OWN, BLOCK_WALK], dtype)
    for s in range(0, S, BLOCK_WALK):
        b_u = cubes(
            b_t, p_source, p_target, p_max, s, S, o_t, m_t, WIDTH, BLOCK_K, PRECISION, BLOCK_WALK
        )
        b_squares += b_u * b_u
    b_norm = tl.sqrt(tl.sum(b_squares, axis=1))
    floor = tl.full((), eps, dtype)
    b_norm = tl.where(b_norm < floor, floor, b_norm)
    tl.store(p_norm + i_b * norm_stride_b + o_t, b_norm, mask=m_t)
    b_scale = (1.0 / b_norm)[:, None]
    for s in range(0, S, BLOCK_WALK):
        b_u = cubes(
            b_t, p_source, p_target, p_max, s, S, o_t, m_t, WIDTH, BLOCK_K, PRECISION, BLOCK_WALK
        )
        o_s, m_s = block_offsets(s, S, BLOCK_WALK)
        p_tile = p_result + tile_offsets(o_t, stride_t, o_s, stride_s)
        b_q = (b_u * b_scale).to(p_result.dtype.element_ty)
        tl.store(p_tile, b_q, mask=m_t[:, None] & m_s[None, :])


@triton.jit
def gradient_dots(
    p_grad, stride_b, stride_s, stride_t, p_source, p_target, p_max, p_norm, norm_stride_b,
    p_slope, eps: tl.float64, S, T,
    WIDTH: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_OWN: tl.constexpr, BLOCK_WALK: tl.constexpr,
):  # fmt: skip
    """slope_t = D_t / n_t^2, the weight of u in du; 0 where n is at its floor."""
    i_t = tl.program_id(0) % tl.cdiv(T, BLOCK_OWN)
    i_b = (tl.program_id(0) // tl.cdiv(T, BLOCK_OWN)).to(tl.int64)
    p_source += i_b * S * WIDTH
    p_target += i_b * T * WIDTH
    p_max += i_b * S
    p_grad += i_b * stride_b
    dtype: tl.constexpr = p_source.dtype.element_ty
    o_t, m_t = block_offsets(i_t * BLOCK_OWN, T, BLOCK_OWN)
    b_t = load_packed(p_target, o_t, m_t, 0, WIDTH, BLOCK_K)
    b_dots = tl.zeros([BLOCK_OWN, BLOCK_WALK], dtype)
    for s in range(0, S, BLOCK_WALK):
        b_u = cubes(
            b_t, p_source, p_target, p_max, s, S, o_t, m_t, WIDTH, BLOCK_K, PRECISION, BLOCK_WALK
        )
        o_s, m_s = block_offsets(s, S, BLOCK_WALK)
        p_tile = p_grad + tile_offsets(o_t, stride_t, o_s, stride_s)
        b_g = tl.load(p_tile, mask=m_t[:, None] & m_s[None, :], other=0.0)
        b_dots += b_u * b_g.to(dtype)
    b_norm = tl.load(p_norm + i_b * norm_stride_b + o_t, mask=m_t, other=1.0)
    b_scale = 1.0 / b_norm
    b_slope = tl.sum(b_dots, axis=1) * b_scale * b_scale * b_scale
    b_slope = tl.where(b_norm == tl.full((), eps, dtype), 0.0, b_slope)
    tl.store(p_slope + i_b * T + o_t, b_slope, mask=m_t)


@triton.jit
def gradient_tile(b_c, b_g, b_inverse_b, b_scale, b_slope):
    """dC without beta, and du C^3 / b: the summands of -beta b."""
    b_square = b_c * b_c * b_inverse_b
    b_u = b_square * b_c
    b_du = b_g.to(b_c.dtype) * b_scale - b_u * b_slope
    return 3.0 * b_square * b_du, b_du * b_u


@triton.jit(do_not_specialize=["m"])
def source_gradient(
    p_grad, stride_b, stride_s, stride_t, p_source, p_target, p_plain, p_max, p_argmax,
    p_norm, norm_stride_b, p_slope, p_beta, p_out, eps: tl.float64, m, S, T,
    WIDTH: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
    FEATURES: tl.constexpr, BLOCK_F: tl.constexpr, GRAD_PRECISION: tl.constexpr,
    BLOCK_OWN: tl.constexpr, BLOCK_WALK: tl.constexpr, BAND: tl.constexpr,
):  # fmt: skip
    """BLOCK_F features of dz_s, and beta; a band adds to both and leaves the maxima for later."""
    blocks = tl.cdiv(S, BLOCK_OWN)
    i_f = tl.program_id(0) % (FEATURES // BLOCK_F)
    i_s = tl.program_id(0) // (FEATURES // BLOCK_F) % blocks
    i_b = (tl.program_id(0) // (FEATURES // BLOCK_F) // blocks).to(tl.int64)
    p_source += i_b * S * WIDTH
    p_target += i_b * T * WIDTH
    p_plain += i_b * T * FEATURES
    p_grad += i_b * stride_b
    p_norm += i_b * norm_stride_b
    p_slope += i_b * T
    dtype: tl.constexpr = p_source.dtype.element_ty
    o_s, m_s = block_offsets(i_s * BLOCK_OWN, S, BLOCK_OWN)
    b_s = load_packed(p_source, o_s, m_s, 0, WIDTH, BLOCK_K)
    b_max = tl.load(p_max + i_b * S + o_s, mask=m_s, other=1.0)
    b_inverse_b = (1.0 / b_max)[:, None]
    b_sum = tl.zeros([BLOCK_OWN, BLOCK_F], dtype)
    b_summands = tl.zeros([BLOCK_OWN, BLOCK_WALK], dtype)
    for t in range(0, T, BLOCK_WALK):
        o_t, m_t = block_offsets(t, T, BLOCK_WALK)
        p_tile = p_grad + tile_offsets(o_s, stride_s, o_t, stride_t)
        b_g = tl.load(p_tile, mask=m_s[:, None] & m_t[None, :], other=0.0)
        b_scale = 1.0 / tl.load(p_norm + o_t, mask=m_t, other=1.0)
        b_slope = tl.load(p_slope + o_t, mask=m_t, other=0.0)
        b_t = load_packed(p_target, o_t, m_t, 0, WIDTH, BLOCK_K)
        b_c = correlate(b_s, b_t, p_source, p_target, o_s, o_t, m_s, m_t, WIDTH, BLOCK_K, PRECISION)
        b_dc, b_share = gradient_tile(b_c, b_g, b_inverse_b, b_scale[None, :], b_slope[None, :])
        b_summands += b_share
        b_t = load_packed(p_plain, o_t, m_t, i_f * BLOCK_F, FEATURES, BLOCK_F)
        b_sum = add_product(b_sum, b_dc, b_t, GRAD_PRECISION)
    b_beta = -tl.sum(b_summands, axis=1) / b_max
    p_beta += i_b * S + o_s
    o_f, m_f = block_offsets(i_f * BLOCK_F, m, BLOCK_F)
    p_out += i_b * m * S + tile_offsets(o_s, 1, o_f, S)
    m_out = m_s[:, None] & m_f[None, :]
    m_beta = m_s & (i_f == 0)  # the programs of the other features have the same
    if BAND:
        b_beta += tl.load(p_beta, mask=m_beta, other=0.0)
        b_sum += tl.load(p_out, mask=m_out, other=0.0)
    else:
        b_beta = tl.where(b_max == tl.full((), eps, dtype), 0.0, b_beta)
        b_argmax = tl.load(p_argmax + i_b * S + o_s, mask=m_s, other=0)
        b_z = load_packed(p_plain, b_argmax, m_s, i_f * BLOCK_F, FEATURES, BLOCK_F)
        b_sum += b_beta[:, None] * b_z
    tl.store(p_beta, b_beta, mask=m_beta)
    tl.store(p_out, b_sum.to(p_out.dtype.element_ty), mask=m_out)


@triton.jit(do_not_specialize=["m"])
def target_gradient(
    p_grad, stride_b, stride_s, stride_t, p_source, p_target, p_plain, p_max, p_argmax,
    p_norm, norm_stride_b, p_slope, p_beta, p_out, out_stride_b, out_stride_k, m, S, T,
    WIDTH: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
    FEATURES: tl.constexpr, BLOCK_F: tl.constexpr, GRAD_PRECISION: tl.constexpr,
    BLOCK_OWN: tl.constexpr, BLOCK_WALK: tl.constexpr, BAND: tl.constexpr,
):  # fmt: skip
    """BLOCK_F features of dz_t; for a band without the terms of the maxima."""
    blocks = tl.cdiv(T, BLOCK_OWN)
    i_f = tl.program_id(0) % (FEATURES // BLOCK_F)
    i_t = tl.program_id(0) // (FEATURES // BLOCK_F) % blocks
    i_b = (tl.program_id(0) // (FEATURES // BLOCK_F) // blocks).to(tl.int64)
    p_source += i_b * S * WIDTH
    p_target += i_b * T * WIDTH
    p_plain += i_b * S * FEATURES
    p_max += i_b * S
    p_argmax += i_b * S
    p_beta += i_b * S
    p_grad += i_b * stride_b
    dtype: tl.constexpr = p_source.dtype.element_ty
    o_t, m_t = block_offsets(i_t * BLOCK_OWN, T, BLOCK_OWN)
    b_t = load_packed(p_target, o_t, m_t, 0, WIDTH, BLOCK_K)
    b_scale = 1.0 / tl.load(p_norm + i_b * norm_stride_b + o_t, mask=m_t, other=1.0)
    b_slope = tl.load(p_slope + i_b * T + o_t, mask=m_t, other=0.0)
    b_sum = tl.zeros([BLOCK_OWN, BLOCK_F], dtype)
    for s in range(0, S, BLOCK_WALK):
        o_s, m_s = block_offsets(s, S, BLOCK_WALK)
        p_tile = p_grad + tile_offsets(o_t, stride_t, o_s, stride_s)
        b_g = tl.load(p_tile, mask=m_t[:, None] & m_s[None, :], other=0.0)
        b_inverse_b = 1.0 / tl.load(p_max + o_s, mask=m_s, other=1.0)
        b_s = load_packed(p_source, o_s, m_s, 0, WIDTH, BLOCK_K)
        b_c = correlate(b_t, b_s, p_target, p_source, o_t, o_s, m_t, m_s, WIDTH, BLOCK_K, PRECISION)
        b_dc, _ = gradient_tile(b_c, b_g, b_inverse_b[None, :], b_scale[:, None], b_slope[:, None])
        if not BAND:
            b_argmax = tl.load(p_argmax + o_s, mask=m_s, other=-1)
            b_beta = tl.load(p_beta + o_s, mask=m_s, other=0.0)
            b_dc += tl.where(o_t[:, None] == b_argmax[None, :], b_beta[None, :], 0.0)
        b_s = load_packed(p_plain, o_s, m_s, i_f * BLOCK_F, FEATURES, BLOCK_F)
        b_sum = add_product(b_sum, b_dc, b_s, GRAD_PRECISION)
    o_f, m_f = block_offsets(i_f * BLOCK_F, m, BLOCK_F)
    p_out += i_b * out_stride_b + tile_offsets(o_t, 1, o_f, out_stride_k)
    tl.store(p_out, b_sum.to(p_out.dtype.element_ty), mask=m_t[:, None] & m_f[None, :])


@triton.jit(do_not_specialize=["m"])
def source_maximum(
    p_target, p_max, p_argmax, p_beta, p_out, eps: tl.float64, m, S, T,
    FEATURES: tl.constexpr, BLOCK_F: tl.constexpr,
    BLOCK_OWN: tl.constexpr, BLOCK_WALK: tl.constexpr,
):  # fmt: skip
    """dz_s += beta_s z_t(t*)."""
    blocks = tl.cdiv(S, BLOCK_OWN)
    i_f = tl.program_id(0) % (FEATURES // BLOCK_F)
    i_s = tl.program_id(0) // (FEATURES // BLOCK_F) % blocks
    i_b = (tl.program_id(0) // (FEATURES // BLOCK_F) // blocks).to(tl.int64)
    o_s, m_s = block_offsets(i_s * BLOCK_OWN, S, BLOCK_OWN)
    b_max = tl.load(p_max + i_b * S + o_s, mask=m_s, other=1.0)
    b_beta = tl.load(p_beta + i_b * S + o_s, mask=m_s, other=0.0)
    b_beta = tl.where(b_max == tl.full((), eps, b_max.dtype), 0.0, b_beta)
    b_argmax = tl.load(p_argmax + i_b * S + o_s, mask=m_s, other=0)
    p_target += i_b * T * FEATURES
    b_z = load_packed(p_target, b_argmax, m_s, i_f * BLOCK_F, FEATURES, BLOCK_F)
    o_f, m_f = block_offsets(i_f * BLOCK_F, m, BLOCK_F)
    m_out = m_s[:, None] & m_f[None, :]
    p_out += i_b * m * S + tile_offsets(o_s, 1, o_f, S)
    tl.store(p_out, tl.load(p_out, mask=m_out, other=0.0) + b_beta[:, None] * b_z, mask=m_out)


@triton.jit(do_not_specialize=["m"])
def target_maximum(
    p_source, p_max, p_argmax, p_beta, p_out, eps: tl.float64, m, S, T,
    FEATURES: tl.constexpr, BLOCK_F: tl.constexpr, GRAD_PRECISION: tl.constexpr,
    BLOCK_OWN: tl.constexpr, BLOCK_WALK: tl.constexpr,
):  # fmt: skip
    """dz_t(t*) += beta_s z_s, as a product with beta at the maxima: so the order is fixed."""
    blocks = tl.cdiv(T, BLOCK_OWN)
    i_f = tl.program_id(0) % (FEATURES // BLOCK_F)
    i_t = tl.program_id(0) // (FEATURES // BLOCK_F) % blocks
    i_b = (tl.program_id(0) // (FEATURES // BLOCK_F) // blocks).to(tl.int64)
    p_source += i_b * S * FEATURES
    p_max += i_b * S
    p_argmax += i_b * S
    p_beta += i_b * S
    dtype: tl.constexpr = p_source.dtype.element_ty
    o_t, m_t = block_offsets(i_t * BLOCK_OWN, T, BLOCK_OWN)
    b_sum = tl.zeros([BLOCK_OWN, BLOCK_F], dtype)
    for s in range(0, S, BLOCK_WALK):
        o_s, m_s = block_offsets(s, S, BLOCK_WALK)
        b_max = tl.load(p_max + o_s, mask=m_s, other=1.0)
        b_beta = tl.load(p_beta + o_s, mask=m_s, other=0.0)
        b_beta = tl.where(b_max == tl.full((), eps, dtype), 0.0, b_beta)
        b_argmax = tl.load(p_argmax + o_s, mask=m_s, other=-1)
        b_dc = tl.where(o_t[:, None] == b_argmax[None, :], b_beta[None, :], 0.0)
        b_s = load_packed(p_source, o_s, m_s, i_f * BLOCK_F, FEATURES, BLOCK_F)
        b_sum = add_product(b_sum, b_dc, b_s, GRAD_PRECISION)
    o_f, m_f = block_offsets(i_f * BLOCK_F, m, BLOCK_F)
    m_out = m_t[:, None] & m_f[None, :]
    p_out += i_b * m * T + tile_offsets(o_t, 1, o_f, T)
    tl.store(p_out, tl.load(p_out, mask=m_out, other=0.0) + b_sum, mask=m_out)


def _row_maxima(z_s, z_t, eps):
    (batch, S, _), T = z_s.shape, z_t.shape[1]
    row_max = z_s.new_empty(batch, S)
    row_argmax = torch.empty(batch, S, dtype=torch.int64, device=z_s.device)
    if batch > 0:
        sizes = common.owned(batch, S, z_s)
        common.launch(
            row_maxima, batch * triton.cdiv(S, sizes["BLOCK_OWN"]),
            z_s, z_t, row_max, row_argmax, eps, S, T, **common.product_sizes(z_s), **sizes,
        )  # fmt: skip
    return row_max, row_argmax


def _columns(z_s, z_t, row_max, eps, out, norm):
    (batch, S, _), T = z_s.shape, z_t.shape[1]
    if batch > 0:
        sizes = common.owned(batch, T, z_s)
        common.launch(
            columns, batch * triton.cdiv(T, sizes["BLOCK_OWN"]),
            z_s, z_t, row_max, norm, norm.stride(0), out, *out.stride(), eps, S, T,
            **common.product_sizes(z_s), **sizes,
        )  # fmt: skip


def _backward(
    G, source, target, row_max, row_argmax, norm, eps, tf32, source_grad, target_grad, beta, band
):
    """Both gradients of features [B, m, S] and [B, m, T]; row_argmax is not read for a band."""
    batch, m, S = source.shape
    T = target.shape[2]
    if batch == 0:
        return
    z_s, z_t = common.pack_pair(source, target, tf32)
    plain_s, plain_t = common.pack(source), common.pack(target)
    product = common.product_sizes(z_s)
    both = product | common.gradient_sizes(plain_s, tf32)
    groups = both["FEATURES"] // both["BLOCK_F"]
    slope = z_t.new_empty(batch, T)
    sizes = common.owned(batch, T, z_s)
    common.launch(
        gradient_dots, batch * triton.cdiv(T, sizes["BLOCK_OWN"]),
        G, *G.stride(), z_s, z_t, row_max, norm, norm.stride(0), slope, eps, S, T,
        **product, **sizes,
    )  # fmt: skip
    statistics = (row_max, row_argmax, norm, norm.stride(0), slope, beta)
    sizes = common.owned(batch, S, z_s, most=64)
    common.launch(
        source_gradient, batch * triton.cdiv(S, sizes["BLOCK_OWN"]) * groups,
        G, *G.stride(), z_s, z_t, plain_t, *statistics, source_grad, eps, m, S, T,
        **both, **sizes, BAND=band,
    )  # fmt: skip
    sizes = common.owned(batch, T, z_s, most=64)
    common.launch(
        target_gradient, batch * triton.cdiv(T, sizes["BLOCK_OWN"]) * groups,
        G, *G.stride(), z_s, z_t, plain_s, *statistics, target_grad, *target_grad.stride()[:2],
        m, S, T, **both, **sizes, BAND=band,
    )  # fmt: skip


def guided_correlation(source, target, eps, tf32, channels_last):
    """Qhat and the statistics that its gradient needs."""
    batch, _, hs, ws = source.shape
    result = torch.empty(
        (batch, hs * ws, *target.shape[2:]),
        dtype=source.dtype,
        device=source.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )
    z_s, z_t = common.pack_pair(source, target, tf32)
    row_max, row_argmax = _row_maxima(z_s, z_t, eps)
    norm = z_t.new_empty(z_t.shape[:2])
    _columns(z_s, z_t, row_max, eps, result.flatten(2), norm)
    return result, row_max, row_argmax, norm


def guided_correlation_backward(grad, source, target, row_max, row_argmax, norm, eps, tf32):
    """dz_s and dz_t."""
    source_grad, target_grad = (
        torch.empty(z.shape, dtype=z.dtype, device=z.device) for z in (source, target)
    )
    row_max, row_argmax, norm = (x.contiguous() for x in (row_max, row_argmax, norm))
    _backward(
        grad.flatten(2), source.flatten(2), target.flatten(2), row_max, row_argmax, norm, eps, tf32,
        source_grad.flatten(2), target_grad.flatten(2), torch.empty_like(row_max), band=False,
    )  # fmt: skip
    return source_grad, target_grad


def guided_correlation_row_max(source, target, eps, tf32):
    """b_s and t*(s)."""
    return _row_maxima(*common.pack_pair(source, target, tf32), eps)


def _band(target, begin, count):
    if not 0 <= begin <= begin + count <= target.shape[2]:
        raise ValueError(
            f"begin: {count} targets from {begin} on are more than the {target.shape[2]} there are"
        )
    return slice(begin, begin + count)


def _check_in_place(**tensors):
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise ValueError(f"{name}: expected a contiguous tensor to write into")


def guided_correlation_band(source, target, row_max, eps, tf32, begin, out, norm):
    """Writes the columns [begin, begin + n) of Qhat and norm."""
    _check_in_place(out=out, norm=norm)
    band = _band(target, begin, out.shape[2])
    z_s, z_t = common.pack_pair(source, target[:, :, band], tf32)
    _columns(z_s, z_t, row_max.contiguous(), eps, out, norm[:, band])


def guided_correlation_band_backward(
    grad, source, target, row_max, norm, eps, tf32, begin, source_grad, target_grad, beta
):
    """Adds to source_grad and beta, writes the band's columns of target_grad."""
    _check_in_place(source_grad=source_grad, target_grad=target_grad, beta=beta)
    band = _band(target, begin, grad.shape[2])
    row_max = row_max.contiguous()
    _backward(
        grad, source, target[:, :, band], row_max, row_max, norm.contiguous()[:, band], eps, tf32,
        source_grad, target_grad[:, :, band], beta, band=True,
    )  # fmt: skip


def guided_correlation_row_max_backward(
    source, target, row_max, row_argmax, eps, beta, source_grad, target_grad
):
    """source_grad(s) += beta_s z_t(t*), target_grad(t*) += beta_s z_s, above the floor."""
    _check_in_place(source_grad=source_grad, target_grad=target_grad)
    batch, m, S = source.shape
    T = target.shape[2]
    if batch == 0:
        return
    row_max, row_argmax, beta = (x.contiguous() for x in (row_max, row_argmax, beta))
    z_s, z_t = common.pack(source), common.pack(target)
    features = common.gradient_sizes(z_s, False)
    groups = features["FEATURES"] // features["BLOCK_F"]
    sizes = common.owned(batch, S, z_s, most=64)
    common.launch(
        source_maximum, batch * triton.cdiv(S, sizes["BLOCK_OWN"]) * groups,
        z_t, row_max, row_argmax, beta, source_grad, eps, m, S, T, **features, **sizes,
    )  # fmt: skip
    sizes = common.owned(batch, T, z_s, most=64)
    common.launch(
        target_maximum, batch * triton.cdiv(T, sizes["BLOCK_OWN"]) * groups,
        z_s, row_max, row_argmax, beta, target_grad, eps, m, S, T, **features, **sizes,
    )  # fmt: skip
