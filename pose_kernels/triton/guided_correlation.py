"""Eqs. 1, 9 and 2 in one, and their gradient, in Triton; the mathematics is in
`pose_kernels/guided_correlation.py`. The product is computed again wherever C is needed.

Forward: `row_maxima`, a program owns a block of sources and walks over the targets; `columns`, a
program owns a block of targets and walks over the sources twice, for the norm and to write.
Backward: `gradient_dots`, D_t by programs that own targets; `source_gradient`, dz_s and beta by
programs that own sources; `target_gradient`, dz_t by programs that own targets. Sources lie in the
order of their maxima t*, so that a program finds those of its targets without looking at others. In
bands of targets the same kernels add to what is there, and at the end `source_maximum` and
`target_maximum` add the terms of beta.

A tile is [what the program owns, what it walks over]. The upstream gradient is read three times,
which is less traffic than adding up partial sums of dz_s, and needs no memory.
"""

import triton
import triton.language as tl

from .._library import new_gradient
from ..correlation_4d import new_map
from ..soft_mutual_normalize import new_statistics
from . import common
from .common import (
    above_floor,
    add_product,
    at_least,
    block_offsets,
    correlate,
    gradient_tile,
    keep_maximum,
    load_packed,
    load_tile,
    own_block,
    slope,
    store_maxima,
    store_tile,
)


@triton.jit
def row_maxima(p_source, p_target, p_max, p_argmax, eps: tl.float64, S, T, WIDTH: tl.constexpr,
               BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, BLOCK_OWN: tl.constexpr,
               BLOCK_WALK: tl.constexpr):
    i_b, _, o_s, m_s = own_block(S, BLOCK_OWN, 1)
    p_source += i_b * S * WIDTH
    p_target += i_b * T * WIDTH
    b_s = load_packed(p_source, o_s, m_s, 0, WIDTH, BLOCK_K)
    b_best = tl.full([BLOCK_OWN, BLOCK_WALK], float("-inf"), p_source.dtype.element_ty)
    b_at = tl.zeros([BLOCK_OWN, BLOCK_WALK], tl.int32)
    for t in range(0, T, BLOCK_WALK):
        o_t, m_t = block_offsets(t, T, BLOCK_WALK)
        b_t = load_packed(p_target, o_t, m_t, 0, WIDTH, BLOCK_K)
        b_c = correlate(b_s, b_t, p_source, p_target, o_s, o_t, m_s, m_t, WIDTH, BLOCK_K, PRECISION)
        b_best, b_at = keep_maximum(b_c, o_t, m_t, b_best, b_at)
    store_maxima(p_max + i_b * S, p_argmax + i_b * S, o_s, m_s, b_best, b_at, eps)


@triton.jit
def cubes(b_t, p_source, p_target, p_max, o_s, m_s, o_t, m_t, WIDTH: tl.constexpr,
          BLOCK_K: tl.constexpr, PRECISION: tl.constexpr):
    """u = C^3 / b, [targets, sources]; 0 outside of the map."""
    b_s = load_packed(p_source, o_s, m_s, 0, WIDTH, BLOCK_K)
    b_c = correlate(b_t, b_s, p_target, p_source, o_t, o_s, m_t, m_s, WIDTH, BLOCK_K, PRECISION)
    b_inverse_b = 1.0 / tl.load(p_max + o_s, mask=m_s, other=1.0)
    return b_c * b_c * (b_c * b_inverse_b[None, :])


@triton.jit
def columns(p_source, p_target, p_max, p_norm, norm_stride_b, p_result, stride_b, stride_s,
            stride_t, eps: tl.float64, S, T, WIDTH: tl.constexpr, BLOCK_K: tl.constexpr,
            PRECISION: tl.constexpr, BLOCK_OWN: tl.constexpr, BLOCK_WALK: tl.constexpr):
    i_b, _, o_t, m_t = own_block(T, BLOCK_OWN, 1)
    p_source += i_b * S * WIDTH
    p_target += i_b * T * WIDTH
    p_max += i_b * S
    p_result += i_b * stride_b
    b_t = load_packed(p_target, o_t, m_t, 0, WIDTH, BLOCK_K)
    # A sum per lane, then one over lanes: two levels keep float32 accurate over thousands of rows.
    b_squares = tl.zeros([BLOCK_OWN, BLOCK_WALK], p_source.dtype.element_ty)
    for s in range(0, S, BLOCK_WALK):
        o_s, m_s = block_offsets(s, S, BLOCK_WALK)
        b_u = cubes(b_t, p_source, p_target, p_max, o_s, m_s, o_t, m_t, WIDTH, BLOCK_K, PRECISION)
        b_squares += b_u * b_u
    b_norm = at_least(tl.sqrt(tl.sum(b_squares, axis=1)), eps)
    tl.store(p_norm + i_b * norm_stride_b + o_t, b_norm, mask=m_t)
    b_scale = (1.0 / b_norm)[:, None]
    for s in range(0, S, BLOCK_WALK):
        o_s, m_s = block_offsets(s, S, BLOCK_WALK)
        b_u = cubes(b_t, p_source, p_target, p_max, o_s, m_s, o_t, m_t, WIDTH, BLOCK_K, PRECISION)
        store_tile(p_result, o_t, m_t, stride_t, o_s, m_s, stride_s, b_u * b_scale)


@triton.jit
def gradient_dots(p_grad, stride_b, stride_s, stride_t, p_source, p_target, p_max, p_norm,
                  norm_stride_b, p_slope, eps: tl.float64, S, T, WIDTH: tl.constexpr,
                  BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, BLOCK_OWN: tl.constexpr,
                  BLOCK_WALK: tl.constexpr):
    i_b, _, o_t, m_t = own_block(T, BLOCK_OWN, 1)
    p_source += i_b * S * WIDTH
    p_target += i_b * T * WIDTH
    p_max += i_b * S
    p_grad += i_b * stride_b
    dtype: tl.constexpr = p_source.dtype.element_ty
    b_t = load_packed(p_target, o_t, m_t, 0, WIDTH, BLOCK_K)
    b_dots = tl.zeros([BLOCK_OWN, BLOCK_WALK], dtype)
    for s in range(0, S, BLOCK_WALK):
        o_s, m_s = block_offsets(s, S, BLOCK_WALK)
        b_u = cubes(b_t, p_source, p_target, p_max, o_s, m_s, o_t, m_t, WIDTH, BLOCK_K, PRECISION)
        b_dots += b_u * load_tile(p_grad, o_t, m_t, stride_t, o_s, m_s, stride_s, dtype)
    b_norm = tl.load(p_norm + i_b * norm_stride_b + o_t, mask=m_t, other=1.0)
    tl.store(p_slope + i_b * T + o_t, slope(tl.sum(b_dots, axis=1), b_norm, eps), mask=m_t)


@triton.jit(do_not_specialize=["m"])
def source_gradient(p_grad, stride_b, stride_s, stride_t, p_source, p_target, p_plain, p_max,
                    p_argmax, p_norm, norm_stride_b, p_slope, p_beta, p_out, eps: tl.float64, m, S,
                    T, WIDTH: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
                    FEATURES: tl.constexpr, BLOCK_F: tl.constexpr, GRAD_PRECISION: tl.constexpr,
                    BLOCK_OWN: tl.constexpr, BLOCK_WALK: tl.constexpr, BAND: tl.constexpr,
                    WANTED: tl.constexpr):
    """BLOCK_F features of dz_s where it is wanted, and beta; a band adds to both and leaves the
    maxima for later."""
    i_b, i_f, o_s, m_s = own_block(S, BLOCK_OWN, FEATURES // BLOCK_F)
    p_source += i_b * S * WIDTH
    p_target += i_b * T * WIDTH
    p_plain += i_b * T * FEATURES
    p_grad += i_b * stride_b
    p_norm += i_b * norm_stride_b
    p_slope += i_b * T
    dtype: tl.constexpr = p_source.dtype.element_ty
    b_s = load_packed(p_source, o_s, m_s, 0, WIDTH, BLOCK_K)
    b_max = tl.load(p_max + i_b * S + o_s, mask=m_s, other=1.0)
    b_inverse_b = (1.0 / b_max)[:, None]
    b_sum = tl.zeros([BLOCK_OWN, BLOCK_F], dtype)
    b_summands = tl.zeros([BLOCK_OWN, BLOCK_WALK], dtype)
    for t in range(0, T, BLOCK_WALK):
        o_t, m_t = block_offsets(t, T, BLOCK_WALK)
        b_g = load_tile(p_grad, o_s, m_s, stride_s, o_t, m_t, stride_t, dtype)
        b_scale = 1.0 / tl.load(p_norm + o_t, mask=m_t, other=1.0)
        b_slope = tl.load(p_slope + o_t, mask=m_t, other=0.0)
        b_t = load_packed(p_target, o_t, m_t, 0, WIDTH, BLOCK_K)
        b_c = correlate(b_s, b_t, p_source, p_target, o_s, o_t, m_s, m_t, WIDTH, BLOCK_K, PRECISION)
        b_dc, b_share = gradient_tile(b_c, b_g, b_inverse_b, b_scale[None, :], b_slope[None, :])
        b_summands += b_share
        if WANTED:
            b_t = load_packed(p_plain, o_t, m_t, i_f * BLOCK_F, FEATURES, BLOCK_F)
            b_sum = add_product(b_sum, b_dc, b_t, GRAD_PRECISION)
    b_beta = -tl.sum(b_summands, axis=1) / b_max
    p_beta += i_b * S + o_s
    o_f, m_f = block_offsets(i_f * BLOCK_F, m, BLOCK_F)
    p_out += i_b * m * S
    m_beta = m_s & (i_f == 0)  # the programs of the other features have the same
    if BAND:
        b_beta += tl.load(p_beta, mask=m_beta, other=0.0)
    else:
        b_beta = above_floor(b_beta, b_max, eps)
    tl.store(p_beta, b_beta, mask=m_beta)
    if WANTED:
        if BAND:
            b_sum += load_tile(p_out, o_s, m_s, 1, o_f, m_f, S, dtype)
        else:
            b_argmax = tl.load(p_argmax + i_b * S + o_s, mask=m_s, other=0)
            b_z = load_packed(p_plain, b_argmax, m_s, i_f * BLOCK_F, FEATURES, BLOCK_F)
            b_sum += b_beta[:, None] * b_z
        store_tile(p_out, o_s, m_s, 1, o_f, m_f, S, b_sum)


@triton.jit
def load_beta(p_beta, p_max, o_s, m_s, eps):
    """beta_s, 0 where b_s is at its floor."""
    b_max = tl.load(p_max + o_s, mask=m_s, other=1.0)
    return above_floor(tl.load(p_beta + o_s, mask=m_s, other=0.0), b_max, eps)


@triton.jit
def add_maxima(b_sum, p_order, p_start, p_source, p_max, p_argmax, p_beta, eps, first_feature, o_t,
               first_target, T, FEATURES: tl.constexpr, BLOCK_F: tl.constexpr,
               GRAD_PRECISION: tl.constexpr, BLOCK_OWN: tl.constexpr, BLOCK_WALK: tl.constexpr):
    """[targets, features] += beta_s z_s at t*(s), as a product with beta at the maxima of the
    sources that these targets have: so the order is fixed."""
    first = tl.load(p_start + first_target).to(tl.int32)
    last = tl.load(p_start + tl.minimum(first_target + BLOCK_OWN, T)).to(tl.int32)
    for step in range(0, last - first, BLOCK_WALK):
        o_i, m_s = block_offsets(first + step, last, BLOCK_WALK)
        o_s = tl.load(p_order + o_i, mask=m_s, other=0).to(tl.int32)
        b_beta = load_beta(p_beta, p_max, o_s, m_s, eps)
        b_argmax = tl.load(p_argmax + o_s, mask=m_s, other=-1).to(tl.int32)
        b_dc = tl.where(o_t[:, None] == b_argmax[None, :], b_beta[None, :], 0.0)
        b_s = load_packed(p_source, o_s, m_s, first_feature, FEATURES, BLOCK_F)
        b_sum = add_product(b_sum, b_dc, b_s, GRAD_PRECISION)
    return b_sum


@triton.jit(do_not_specialize=["m"])
def target_gradient(p_grad, stride_b, stride_s, stride_t, p_source, p_target, p_plain, p_max,
                    p_argmax, p_norm, norm_stride_b, p_slope, p_beta, p_order, p_start, p_out,
                    out_stride_b, out_stride_k, eps: tl.float64, m, S, T, WIDTH: tl.constexpr,
                    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, FEATURES: tl.constexpr,
                    BLOCK_F: tl.constexpr, GRAD_PRECISION: tl.constexpr, BLOCK_OWN: tl.constexpr,
                    BLOCK_WALK: tl.constexpr, BAND: tl.constexpr):
    """BLOCK_F features of dz_t; for a band without the terms of the maxima."""
    i_b, i_f, o_t, m_t = own_block(T, BLOCK_OWN, FEATURES // BLOCK_F)
    p_source += i_b * S * WIDTH
    p_target += i_b * T * WIDTH
    p_plain += i_b * S * FEATURES
    p_max += i_b * S
    p_argmax += i_b * S
    p_beta += i_b * S
    p_grad += i_b * stride_b
    dtype: tl.constexpr = p_source.dtype.element_ty
    b_t = load_packed(p_target, o_t, m_t, 0, WIDTH, BLOCK_K)
    b_scale = 1.0 / tl.load(p_norm + i_b * norm_stride_b + o_t, mask=m_t, other=1.0)
    b_slope = tl.load(p_slope + i_b * T + o_t, mask=m_t, other=0.0)
    b_sum = tl.zeros([BLOCK_OWN, BLOCK_F], dtype)
    for s in range(0, S, BLOCK_WALK):
        o_s, m_s = block_offsets(s, S, BLOCK_WALK)
        b_g = load_tile(p_grad, o_t, m_t, stride_t, o_s, m_s, stride_s, dtype)
        b_inverse_b = 1.0 / tl.load(p_max + o_s, mask=m_s, other=1.0)
        b_s = load_packed(p_source, o_s, m_s, 0, WIDTH, BLOCK_K)
        b_c = correlate(b_t, b_s, p_target, p_source, o_t, o_s, m_t, m_s, WIDTH, BLOCK_K, PRECISION)
        b_dc, _ = gradient_tile(b_c, b_g, b_inverse_b[None, :], b_scale[:, None], b_slope[:, None])
        b_s = load_packed(p_plain, o_s, m_s, i_f * BLOCK_F, FEATURES, BLOCK_F)
        b_sum = add_product(b_sum, b_dc, b_s, GRAD_PRECISION)
    if not BAND:
        b_sum = add_maxima(b_sum, p_order + i_b * S, p_start + i_b * (T + 1), p_plain, p_max,
                           p_argmax, p_beta, eps, i_f * BLOCK_F, o_t, tl.min(o_t, axis=0), T,
                           FEATURES, BLOCK_F, GRAD_PRECISION, BLOCK_OWN, BLOCK_WALK)
    o_f, m_f = block_offsets(i_f * BLOCK_F, m, BLOCK_F)
    store_tile(p_out + i_b * out_stride_b, o_t, m_t, 1, o_f, m_f, out_stride_k, b_sum)


@triton.jit(do_not_specialize=["m"])
def source_maximum(p_target, p_max, p_argmax, p_beta, p_out, eps: tl.float64, m, S, T,
                   FEATURES: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_OWN: tl.constexpr,
                   BLOCK_WALK: tl.constexpr):
    """dz_s += beta_s z_t(t*)."""
    i_b, i_f, o_s, m_s = own_block(S, BLOCK_OWN, FEATURES // BLOCK_F)
    b_beta = load_beta(p_beta + i_b * S, p_max + i_b * S, o_s, m_s, eps)
    b_argmax = tl.load(p_argmax + i_b * S + o_s, mask=m_s, other=0)
    p_target += i_b * T * FEATURES
    b_z = load_packed(p_target, b_argmax, m_s, i_f * BLOCK_F, FEATURES, BLOCK_F)
    o_f, m_f = block_offsets(i_f * BLOCK_F, m, BLOCK_F)
    p_out += i_b * m * S
    b_sum = load_tile(p_out, o_s, m_s, 1, o_f, m_f, S, b_z.dtype) + b_beta[:, None] * b_z
    store_tile(p_out, o_s, m_s, 1, o_f, m_f, S, b_sum)


@triton.jit(do_not_specialize=["m"])
def target_maximum(p_source, p_max, p_argmax, p_beta, p_order, p_start, p_out, eps: tl.float64, m,
                   S, T, FEATURES: tl.constexpr, BLOCK_F: tl.constexpr,
                   GRAD_PRECISION: tl.constexpr, BLOCK_OWN: tl.constexpr,
                   BLOCK_WALK: tl.constexpr):
    """dz_t(t*) += beta_s z_s."""
    i_b, i_f, o_t, m_t = own_block(T, BLOCK_OWN, FEATURES // BLOCK_F)
    o_f, m_f = block_offsets(i_f * BLOCK_F, m, BLOCK_F)
    p_out += i_b * m * T
    b_sum = tl.zeros([BLOCK_OWN, BLOCK_F], p_source.dtype.element_ty)
    b_sum = add_maxima(b_sum, p_order + i_b * S, p_start + i_b * (T + 1),
                       p_source + i_b * S * FEATURES, p_max + i_b * S, p_argmax + i_b * S,
                       p_beta + i_b * S, eps, i_f * BLOCK_F, o_t, tl.min(o_t, axis=0), T, FEATURES,
                       BLOCK_F, GRAD_PRECISION, BLOCK_OWN, BLOCK_WALK)
    b_sum = load_tile(p_out, o_t, m_t, 1, o_f, m_f, T, b_sum.dtype) + b_sum
    store_tile(p_out, o_t, m_t, 1, o_f, m_f, T, b_sum)


def _row_maxima(z_s, z_t, eps, row_max, row_argmax):
    S, T = z_s.shape[1], z_t.shape[1]
    common.launch_owners(row_maxima, S, z_s, z_s, z_t, row_max, row_argmax, eps, S, T,
                         **common.product_sizes(z_s))


def _columns(z_s, z_t, row_max, eps, out, norm):
    S, T = z_s.shape[1], z_t.shape[1]
    common.launch_owners(columns, T, z_s, z_s, z_t, row_max, norm, norm.stride(0), out,
                         *out.stride(), eps, S, T, **common.product_sizes(z_s))


def _backward(G, source, target, row_max, row_argmax, norm, eps, tf32, source_grad, target_grad,
              beta, band):
    """Both gradients of features [B, m, S] and [B, m, T], but those that are empty tensors;
    row_argmax is not read for a band."""
    batch, m, S = source.shape
    T = target.shape[2]
    z_s, z_t = common.pack_pair(source, target, tf32)
    plain_s, plain_t = common.pack(source), common.pack(target)
    product = common.product_sizes(z_s)
    both = product | common.gradient_sizes(plain_s, tf32)
    slope = z_t.new_empty(batch, T)
    common.launch_owners(gradient_dots, T, z_s, G, *G.stride(), z_s, z_t, row_max, norm,
                         norm.stride(0), slope, eps, S, T, **product)
    statistics = (row_max, row_argmax, norm, norm.stride(0), slope, beta)
    wanted = source_grad.numel() > 0
    own = both if wanted else both | {"FEATURES": both["BLOCK_F"]}  # beta alone: a program's work
    common.launch_owners(source_gradient, S, z_s, G, *G.stride(), z_s, z_t, plain_t, *statistics,
                         source_grad, eps, m, S, T, **own, BAND=band, WANTED=wanted,
                         most=common.most_owned(z_s))
    if target_grad.numel() > 0:
        lists = (row_argmax, row_argmax) if band else common.lists_of(row_argmax, T)
        common.launch_owners(target_gradient, T, z_s, G, *G.stride(), z_s, z_t, plain_s,
                             *statistics, *lists, target_grad, *target_grad.stride()[:2], eps, m, S,
                             T, **both, BAND=band, most=common.most_owned(z_s))


def guided_correlation(source, target, eps, tf32, channels_last, out_dtype):
    """Qhat and the statistics that its gradient needs."""
    result = new_map(source, target, channels_last, out_dtype)
    return result, *_guide(source, target, eps, tf32, result)


def guided_correlation_out(source, target, eps, tf32, out):
    """Qhat alone."""
    _guide(source, target, eps, tf32, out)


def _guide(source, target, eps, tf32, result):
    z_s, z_t = common.pack_pair(source, target, tf32)
    row_max, row_argmax, norm = new_statistics(z_s, z_s.shape[1], z_t.shape[1])
    _row_maxima(z_s, z_t, eps, row_max, row_argmax)
    _columns(z_s, z_t, row_max, eps, result.flatten(2), norm)
    return row_max, row_argmax, norm


def guided_correlation_backward(grad, source, target, row_max, row_argmax, norm, eps, tf32,
                                source_grad, target_grad):
    """dz_s and dz_t."""
    grads = new_gradient(source, source_grad), new_gradient(target, target_grad)
    row_max, row_argmax, norm = (x.contiguous() for x in (row_max, row_argmax, norm))
    beta = row_max.new_empty(row_max.shape)
    _backward(grad.flatten(2), source.flatten(2), target.flatten(2), row_max, row_argmax, norm, eps,
              tf32, *(g.flatten(2) if g.dim() == 4 else g for g in grads), beta, band=False)
    return grads


def guided_correlation_row_max(source, target, eps, tf32):
    """b_s and t*(s)."""
    z_s, z_t = common.pack_pair(source, target, tf32)
    row_max, row_argmax, _ = new_statistics(z_s, z_s.shape[1], 0)
    _row_maxima(z_s, z_t, eps, row_max, row_argmax)
    return row_max, row_argmax


def _band(target, begin, count):
    if not 0 <= begin <= begin + count <= target.shape[2]:
        raise ValueError(f"begin: {count} targets from {begin} on are more than the "
                         f"{target.shape[2]} there are")
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


def guided_correlation_band_backward(grad, source, target, row_max, norm, eps, tf32, begin,
                                     source_grad, target_grad, beta):
    """Adds to source_grad and beta, writes the band's columns of target_grad."""
    _check_in_place(source_grad=source_grad, target_grad=target_grad, beta=beta)
    band = _band(target, begin, grad.shape[2])
    row_max = row_max.contiguous()
    _backward(grad, source, target[:, :, band], row_max, row_max, norm.contiguous()[:, band], eps,
              tf32, source_grad, target_grad[..., band] if target_grad.dim() == 3 else target_grad,
              beta, band=True)


def guided_correlation_row_max_backward(source, target, row_max, row_argmax, eps, beta, source_grad,
                                        target_grad):
    """source_grad(s) += beta_s z_t(t*), target_grad(t*) += beta_s z_s, above the floor."""
    _check_in_place(source_grad=source_grad, target_grad=target_grad)
    m, S = source.shape[1:]
    T = target.shape[2]
    row_max, row_argmax, beta = (x.contiguous() for x in (row_max, row_argmax, beta))
    z_s, z_t = common.pack(source), common.pack(target)
    features = common.gradient_sizes(z_s, False)
    if source_grad.numel() > 0:
        common.launch_owners(source_maximum, S, z_s, z_t, row_max, row_argmax, beta, source_grad,
                             eps, m, S, T, FEATURES=features["FEATURES"],
                             BLOCK_F=features["BLOCK_F"], most=64)
    if target_grad.numel() > 0:
        common.launch_owners(target_maximum, T, z_s, z_s, row_max, row_argmax, beta,
                             *common.lists_of(row_argmax, T), target_grad, eps, m, S, T, **features,
                             most=64)
