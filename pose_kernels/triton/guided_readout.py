"""Sums over the guided correlation map and their gradient in Triton; the mathematics is in
`pose_kernels/guided_readout.py`. No tile of the map leaves the program that made it.

Forward: the row maxima, then `readout`, a program owns a block of targets and a block of outputs
and walks over the sources once.
Backward: `gradient_dots`, D_t; `values_gradient`, dv by programs that own sources;
`source_gradient`, dz_s and beta by programs that own sources; `target_gradient`, dz_t by programs
that own targets. The last two make g from values and upstream gradient, a product like that of the
features, beside C.

A tile is [what the program owns, what it walks over]. Values and upstream gradient are packed as
features are, [positions, outputs], in the type of the map. Every sum has one owner that adds in
order: no atomics, and the same bits at every run.
"""

import triton
import triton.language as tl

from .._library import new_gradient
from ..soft_mutual_normalize import new_statistics
from . import common
from .common import (
    above_floor,
    add_product,
    at_least,
    block_offsets,
    correlate,
    load_packed,
    load_tile,
    own_block,
    store_tile,
)
from .guided_correlation import add_maxima, cubes, row_maxima

#: Most outputs that the product for g takes at once, and in steps of how many more are walked: then
#: registers are short.
WHOLE, STEP = 32, 16


@triton.jit
def power_of(b_x, POWER: tl.constexpr):
    if POWER == 2:
        b_x = b_x * b_x
    return b_x


@triton.jit(do_not_specialize=["n"])
def readout(p_source, p_target, p_values, values_stride_b, p_max, p_norm, p_result,
            eps: tl.float64, n, S, T, WIDTH: tl.constexpr, BLOCK_K: tl.constexpr,
            PRECISION: tl.constexpr, OUTPUTS: tl.constexpr, BLOCK_N: tl.constexpr,
            SUM_PRECISION: tl.constexpr, POWER: tl.constexpr, BLOCK_OWN: tl.constexpr,
            BLOCK_WALK: tl.constexpr):
    """BLOCK_N outputs, and the norm."""
    i_b, i_n, o_t, m_t = own_block(T, BLOCK_OWN, OUTPUTS // BLOCK_N)
    p_source += i_b * S * WIDTH
    p_target += i_b * T * WIDTH
    p_values += i_b * values_stride_b
    p_max += i_b * S
    dtype: tl.constexpr = p_source.dtype.element_ty
    b_t = load_packed(p_target, o_t, m_t, 0, WIDTH, BLOCK_K)
    b_squares = tl.zeros([BLOCK_OWN, BLOCK_WALK], dtype)
    b_sum = tl.zeros([BLOCK_OWN, BLOCK_N], dtype)
    for s in range(0, S, BLOCK_WALK):
        o_s, m_s = block_offsets(s, S, BLOCK_WALK)
        b_u = cubes(b_t, p_source, p_target, p_max, o_s, m_s, o_t, m_t, WIDTH, BLOCK_K, PRECISION)
        b_squares += b_u * b_u
        b_v = load_packed(p_values, o_s, m_s, i_n * BLOCK_N, OUTPUTS, BLOCK_N)
        b_sum = add_product(b_sum, power_of(b_u, POWER), b_v, SUM_PRECISION)
    b_norm = at_least(tl.sqrt(tl.sum(b_squares, axis=1)), eps)
    m_norm = m_t & (i_n == 0)  # the programs of the other outputs have the same
    tl.store(p_norm + i_b * T + o_t, b_norm, mask=m_norm)
    b_scale = power_of(1.0 / b_norm, POWER)
    o_n, m_n = block_offsets(i_n * BLOCK_N, n, BLOCK_N)
    store_tile(p_result + i_b * n * T, o_t, m_t, 1, o_n, m_n, T, b_sum * b_scale[:, None])


@triton.jit(do_not_specialize=["n"])
def gradient_dots(p_grad, p_result, stride_b, stride_n, stride_t, p_norm, p_dots, eps: tl.float64,
                  n, T, OUTPUTS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_OWN: tl.constexpr):
    """D_t, 0 where n_t is at its floor."""
    i_b, _, o_t, m_t = own_block(T, BLOCK_OWN, 1)
    p_grad += i_b * T * OUTPUTS
    p_result += i_b * stride_b
    dtype: tl.constexpr = p_grad.dtype.element_ty
    b_dots = tl.zeros([BLOCK_OWN, BLOCK_N], dtype)
    for first in range(0, OUTPUTS, BLOCK_N):
        o_n, m_n = block_offsets(first, n, BLOCK_N)
        b_result = load_tile(p_result, o_t, m_t, stride_t, o_n, m_n, stride_n, dtype)
        b_dots += b_result * load_packed(p_grad, o_t, m_t, first, OUTPUTS, BLOCK_N)
    b_norm = tl.load(p_norm + i_b * T + o_t, mask=m_t, other=1.0)
    b_dots = above_floor(tl.sum(b_dots, axis=1), b_norm, eps)
    tl.store(p_dots + i_b * T + o_t, b_dots, mask=m_t)


@triton.jit(do_not_specialize=["n"])
def values_gradient(p_grad, p_source, p_target, p_max, p_norm, p_out, n, S, T,
                    WIDTH: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
                    OUTPUTS: tl.constexpr, BLOCK_N: tl.constexpr, SUM_PRECISION: tl.constexpr,
                    POWER: tl.constexpr, BLOCK_OWN: tl.constexpr, BLOCK_WALK: tl.constexpr):
    """BLOCK_N outputs of dv, for each sample."""
    i_b, i_n, o_s, m_s = own_block(S, BLOCK_OWN, OUTPUTS // BLOCK_N)
    p_source += i_b * S * WIDTH
    p_target += i_b * T * WIDTH
    p_grad += i_b * T * OUTPUTS
    p_norm += i_b * T
    b_s = load_packed(p_source, o_s, m_s, 0, WIDTH, BLOCK_K)
    b_inverse_b = (1.0 / tl.load(p_max + i_b * S + o_s, mask=m_s, other=1.0))[:, None]
    b_sum = tl.zeros([BLOCK_OWN, BLOCK_N], p_source.dtype.element_ty)
    for t in range(0, T, BLOCK_WALK):
        o_t, m_t = block_offsets(t, T, BLOCK_WALK)
        b_scale = (1.0 / tl.load(p_norm + o_t, mask=m_t, other=1.0))[None, :]
        b_t = load_packed(p_target, o_t, m_t, 0, WIDTH, BLOCK_K)
        b_c = correlate(b_s, b_t, p_source, p_target, o_s, o_t, m_s, m_t, WIDTH, BLOCK_K, PRECISION)
        b_q = power_of(b_c * b_c * (b_c * b_inverse_b) * b_scale, POWER)
        b_g = load_packed(p_grad, o_t, m_t, i_n * BLOCK_N, OUTPUTS, BLOCK_N)
        b_sum = add_product(b_sum, b_q, b_g, SUM_PRECISION)
    o_n, m_n = block_offsets(i_n * BLOCK_N, n, BLOCK_N)
    store_tile(p_out + i_b * n * S, o_s, m_s, 1, o_n, m_n, S, b_sum)


@triton.jit
def gradient_tile(b_c, b_g, b_inverse_b, b_scale, b_dots, POWER: tl.constexpr):
    """dC without beta, and du C^3 / b: the summands of -beta b."""
    b_square = b_c * b_c * b_inverse_b
    b_u = b_square * b_c
    b_q = b_u * b_scale
    if POWER == 1:
        b_du = (b_g - b_q * b_dots) * b_scale
    else:
        b_du = 2.0 * b_q * (b_g - b_dots) * b_scale
    return 3.0 * b_square * b_du, b_du * b_u


@triton.jit(do_not_specialize=["m"])
def source_gradient(p_grad, p_values, values_stride_b, p_source, p_target, p_plain, p_max, p_argmax,
                    p_norm, p_dots, p_beta, p_out, eps: tl.float64, m, S, T, WIDTH: tl.constexpr,
                    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, OUTPUTS: tl.constexpr,
                    BLOCK_N: tl.constexpr, G_PRECISION: tl.constexpr, FEATURES: tl.constexpr,
                    BLOCK_F: tl.constexpr, GRAD_PRECISION: tl.constexpr, POWER: tl.constexpr,
                    WANTED: tl.constexpr, BLOCK_OWN: tl.constexpr, BLOCK_WALK: tl.constexpr):
    """beta, and where dz_s is wanted BLOCK_F features of it."""
    i_b, i_f, o_s, m_s = own_block(S, BLOCK_OWN, FEATURES // BLOCK_F if WANTED else 1)
    p_source += i_b * S * WIDTH
    p_target += i_b * T * WIDTH
    p_plain += i_b * T * FEATURES
    p_values += i_b * values_stride_b
    p_grad += i_b * T * OUTPUTS
    p_norm += i_b * T
    p_dots += i_b * T
    dtype: tl.constexpr = p_source.dtype.element_ty
    b_s = load_packed(p_source, o_s, m_s, 0, WIDTH, BLOCK_K)
    b_v = load_packed(p_values, o_s, m_s, 0, OUTPUTS, BLOCK_N)
    b_max = tl.load(p_max + i_b * S + o_s, mask=m_s, other=1.0)
    b_inverse_b = (1.0 / b_max)[:, None]
    b_sum = tl.zeros([BLOCK_OWN, BLOCK_F], dtype)
    b_summands = tl.zeros([BLOCK_OWN, BLOCK_WALK], dtype)
    for t in range(0, T, BLOCK_WALK):
        o_t, m_t = block_offsets(t, T, BLOCK_WALK)
        b_g = load_packed(p_grad, o_t, m_t, 0, OUTPUTS, BLOCK_N)
        b_g = correlate(b_v, b_g, p_values, p_grad, o_s, o_t, m_s, m_t, OUTPUTS, BLOCK_N,
                        G_PRECISION)
        b_scale = 1.0 / tl.load(p_norm + o_t, mask=m_t, other=1.0)
        b_dots = tl.load(p_dots + o_t, mask=m_t, other=0.0)
        b_t = load_packed(p_target, o_t, m_t, 0, WIDTH, BLOCK_K)
        b_c = correlate(b_s, b_t, p_source, p_target, o_s, o_t, m_s, m_t, WIDTH, BLOCK_K, PRECISION)
        b_dc, b_share = gradient_tile(b_c, b_g, b_inverse_b, b_scale[None, :], b_dots[None, :],
                                      POWER)
        b_summands += b_share
        if WANTED:
            b_t = load_packed(p_plain, o_t, m_t, i_f * BLOCK_F, FEATURES, BLOCK_F)
            b_sum = add_product(b_sum, b_dc, b_t, GRAD_PRECISION)
    b_beta = above_floor(-tl.sum(b_summands, axis=1) / b_max, b_max, eps)
    tl.store(p_beta + i_b * S + o_s, b_beta, mask=m_s & (i_f == 0))
    if WANTED:
        b_argmax = tl.load(p_argmax + i_b * S + o_s, mask=m_s, other=0)
        b_z = load_packed(p_plain, b_argmax, m_s, i_f * BLOCK_F, FEATURES, BLOCK_F)
        o_f, m_f = block_offsets(i_f * BLOCK_F, m, BLOCK_F)
        store_tile(p_out + i_b * m * S, o_s, m_s, 1, o_f, m_f, S, b_sum + b_beta[:, None] * b_z)


@triton.jit(do_not_specialize=["m"])
def target_gradient(p_grad, p_values, values_stride_b, p_source, p_target, p_plain, p_max, p_argmax,
                    p_norm, p_dots, p_beta, p_order, p_start, p_out, eps: tl.float64, m, S, T,
                    WIDTH: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
                    OUTPUTS: tl.constexpr, BLOCK_N: tl.constexpr, G_PRECISION: tl.constexpr,
                    FEATURES: tl.constexpr, BLOCK_F: tl.constexpr, GRAD_PRECISION: tl.constexpr,
                    POWER: tl.constexpr, BLOCK_OWN: tl.constexpr, BLOCK_WALK: tl.constexpr):
    """BLOCK_F features of dz_t."""
    i_b, i_f, o_t, m_t = own_block(T, BLOCK_OWN, FEATURES // BLOCK_F)
    p_source += i_b * S * WIDTH
    p_target += i_b * T * WIDTH
    p_plain += i_b * S * FEATURES
    p_values += i_b * values_stride_b
    p_grad += i_b * T * OUTPUTS
    p_max += i_b * S
    p_argmax += i_b * S
    p_beta += i_b * S
    b_t = load_packed(p_target, o_t, m_t, 0, WIDTH, BLOCK_K)
    b_upstream = load_packed(p_grad, o_t, m_t, 0, OUTPUTS, BLOCK_N)
    b_scale = (1.0 / tl.load(p_norm + i_b * T + o_t, mask=m_t, other=1.0))[:, None]
    b_dots = tl.load(p_dots + i_b * T + o_t, mask=m_t, other=0.0)[:, None]
    b_sum = tl.zeros([BLOCK_OWN, BLOCK_F], p_source.dtype.element_ty)
    for s in range(0, S, BLOCK_WALK):
        o_s, m_s = block_offsets(s, S, BLOCK_WALK)
        b_v = load_packed(p_values, o_s, m_s, 0, OUTPUTS, BLOCK_N)
        b_g = correlate(b_upstream, b_v, p_grad, p_values, o_t, o_s, m_t, m_s, OUTPUTS, BLOCK_N,
                        G_PRECISION)
        b_inverse_b = 1.0 / tl.load(p_max + o_s, mask=m_s, other=1.0)
        b_s = load_packed(p_source, o_s, m_s, 0, WIDTH, BLOCK_K)
        b_c = correlate(b_t, b_s, p_target, p_source, o_t, o_s, m_t, m_s, WIDTH, BLOCK_K, PRECISION)
        b_dc, _ = gradient_tile(b_c, b_g, b_inverse_b[None, :], b_scale, b_dots, POWER)
        b_s = load_packed(p_plain, o_s, m_s, i_f * BLOCK_F, FEATURES, BLOCK_F)
        b_sum = add_product(b_sum, b_dc, b_s, GRAD_PRECISION)
    b_sum = add_maxima(b_sum, p_order + i_b * S, p_start + i_b * (T + 1), p_plain, p_max, p_argmax,
                       p_beta, eps, i_f * BLOCK_F, o_t, tl.min(o_t, axis=0), T, FEATURES, BLOCK_F,
                       GRAD_PRECISION, BLOCK_OWN, BLOCK_WALK)
    o_f, m_f = block_offsets(i_f * BLOCK_F, m, BLOCK_F)
    store_tile(p_out + i_b * m * T, o_t, m_t, 1, o_f, m_f, T, b_sum)


def _pack_values(values, dtype):
    """[B or 1, S, width], and how far apart the values of two samples are: 0 where all share."""
    own = values.dim() == 3
    packed = common.pack(values if own else values[None], dtype=dtype)
    return packed, packed.stride(0) if own else 0


def _product_sizes(packed, power):
    return common.product_sizes(packed) | {"POWER": power, "most": common.most_owned(packed)}


def _sum_sizes(packed, tf32):
    """Of a sum of the map times packed values, or times the packed upstream gradient."""
    sizes = common.gradient_sizes(packed, tf32)
    outputs, block = sizes["FEATURES"], sizes["BLOCK_F"]
    return {"OUTPUTS": outputs, "BLOCK_N": block, "SUM_PRECISION": sizes["GRAD_PRECISION"],
            "groups": outputs // block}


def _g_sizes(packed, tf32):
    """Of the product for g."""
    sizes = common.gradient_sizes(packed, tf32)
    outputs = sizes["FEATURES"]
    return {"OUTPUTS": outputs, "BLOCK_N": outputs if outputs <= WHOLE else STEP,
            "G_PRECISION": sizes["GRAD_PRECISION"]}


def guided_readout(source, target, values, power, eps, tf32):
    """The sums, and the statistics that their gradient needs."""
    z_s, z_t = common.pack_pair(source, target, tf32)
    batch, S, T = z_s.shape[0], z_s.shape[1], z_t.shape[1]
    v, stride = _pack_values(values, z_s.dtype)
    n = values.shape[-2]
    result = values.new_empty(batch, n, *target.shape[2:])
    row_max, row_argmax, norm = new_statistics(z_s, S, T)
    common.launch_owners(row_maxima, S, z_s, z_s, z_t, row_max, row_argmax, eps, S, T,
                         **common.product_sizes(z_s))
    common.launch_owners(readout, T, z_s, z_s, z_t, v, stride, row_max, norm, result, eps, n, S, T,
                         **_product_sizes(z_s, power), **_sum_sizes(v, tf32))
    return result, row_max, row_argmax, norm


def _dots(G, result, norm, eps):
    batch, T, width = G.shape
    result, dots = result.flatten(2), norm.new_empty(norm.shape)
    if batch > 0:
        common.launch(gradient_dots, batch * triton.cdiv(T, 64), G, result, *result.stride(), norm,
                      dots, eps, result.shape[1], T, OUTPUTS=width, BLOCK_N=min(width, 32),
                      BLOCK_OWN=64, num_warps=4)
    return dots


def _values_gradient(z_s, z_t, G, values, row_max, norm, power, tf32):
    """dv; of values that samples share it is added up over them in the type of the map."""
    batch, S, T = z_s.shape[0], z_s.shape[1], z_t.shape[1]
    n, shared = values.shape[-2], values.dim() == 2
    out = values.new_empty(batch, n, S, dtype=z_s.dtype if shared else values.dtype)
    common.launch_owners(values_gradient, S, z_s, G, z_s, z_t, row_max, norm, out, n, S, T,
                         **_product_sizes(z_s, power), **_sum_sizes(G, tf32))
    return out.sum(0).to(values.dtype) if shared else out


def guided_readout_backward(grad, source, target, values, result, row_max, row_argmax, norm, power,
                            eps, tf32, source_grad, target_grad, values_grad):
    """dz_s, dz_t and dv, those that are asked for."""
    dz_s, dz_t = new_gradient(source, source_grad), new_gradient(target, target_grad)
    dv = new_gradient(values, False)
    row_max, row_argmax, norm = (x.contiguous() for x in (row_max, row_argmax, norm))
    z_s, z_t = common.pack_pair(source, target, tf32)
    G = common.pack(grad, dtype=z_s.dtype)
    if values_grad:
        dv = _values_gradient(z_s, z_t, G, values, row_max, norm, power, tf32)
    if source_grad or target_grad:
        m, S, T = source.shape[1], z_s.shape[1], z_t.shape[1]
        v, stride = _pack_values(values, z_s.dtype)
        # 16-bit values and gradients are both exact in TF32.
        sizes = _product_sizes(z_s, power) | _g_sizes(G, tf32 or values.dtype.itemsize == 2)
        beta = row_max.new_empty(row_max.shape)
        statistics = (row_max, row_argmax, norm, _dots(G, result, norm, eps), beta)
        plain = common.pack(target) if source_grad else z_t  # that one is not read
        common.launch_owners(source_gradient, S, z_s, G, v, stride, z_s, z_t, plain, *statistics,
                             dz_s, eps, m, S, T, **sizes, **common.gradient_sizes(plain, tf32),
                             WANTED=source_grad, groups=None if source_grad else 1)
    if target_grad:
        plain = common.pack(source)
        common.launch_owners(target_gradient, T, z_s, G, v, stride, z_s, z_t, plain, *statistics,
                             *common.lists_of(row_argmax, T), dz_t, eps, m, S, T, **sizes,
                             **common.gradient_sizes(plain, tf32))
    return dz_s, dz_t, dv
