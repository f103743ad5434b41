"""Eqs. 9 and 2 and their gradient in Triton; `pose_kernels/soft_mutual_normalize.py` has the
mathematics.

Forward: `row_maxima`, a program owns a block of sources; `normalize`, a program owns a block of
targets and walks over the sources twice, for the norm and to write.
Backward: `gradient_dots`, D_t by programs that own targets; `gradient`, dC and beta by programs
that own sources and write the element of the maximum last.
"""

import triton
import triton.language as tl

from ..soft_mutual_normalize import new_statistics
from . import common
from .common import (
    above_floor,
    at_least,
    block_offsets,
    gradient_tile,
    keep_maximum,
    load_tile,
    own_block,
    slope,
    store_maxima,
    store_tile,
    tile_offsets,
)

#: Sources by targets of one step of a program.
ROWS = {"BLOCK_S": 16, "BLOCK_T": 128, "num_warps": 4}
COLUMNS = {"BLOCK_S": 64, "BLOCK_T": 32, "num_warps": 4}


@triton.jit
def row_maxima(p_c, stride_b, stride_s, stride_t, p_max, p_argmax, eps: tl.float64, S, T,
               BLOCK_S: tl.constexpr, BLOCK_T: tl.constexpr):
    i_b, _, o_s, m_s = own_block(S, BLOCK_S, 1)
    p_c += i_b * stride_b
    dtype: tl.constexpr = p_max.dtype.element_ty
    b_best = tl.full([BLOCK_S, BLOCK_T], float("-inf"), dtype)
    b_at = tl.zeros([BLOCK_S, BLOCK_T], tl.int32)
    for t in range(0, T, BLOCK_T):
        o_t, m_t = block_offsets(t, T, BLOCK_T)
        b_c = load_tile(p_c, o_s, m_s, stride_s, o_t, m_t, stride_t, dtype)
        b_best, b_at = keep_maximum(b_c, o_t, m_t, b_best, b_at)
    store_maxima(p_max + i_b * S, p_argmax + i_b * S, o_s, m_s, b_best, b_at, eps)


@triton.jit
def cubes(p_c, stride_s, stride_t, p_max, o_s, m_s, o_t, m_t):
    """u = C^3 / b, [sources, targets]; 0 outside of the map."""
    b_inverse_b = 1.0 / tl.load(p_max + o_s, mask=m_s, other=1.0)
    b_c = load_tile(p_c, o_s, m_s, stride_s, o_t, m_t, stride_t, p_max.dtype.element_ty)
    return b_c * b_c * (b_c * b_inverse_b[:, None])


@triton.jit
def normalize(p_c, stride_b, stride_s, stride_t, p_max, p_norm, p_result, result_stride_b,
              result_stride_s, result_stride_t, eps: tl.float64, S, T, BLOCK_S: tl.constexpr,
              BLOCK_T: tl.constexpr):
    i_b, _, o_t, m_t = own_block(T, BLOCK_T, 1)
    p_c += i_b * stride_b
    p_max += i_b * S
    b_squares = tl.zeros([BLOCK_S, BLOCK_T], p_max.dtype.element_ty)
    for s in range(0, S, BLOCK_S):
        o_s, m_s = block_offsets(s, S, BLOCK_S)
        b_u = cubes(p_c, stride_s, stride_t, p_max, o_s, m_s, o_t, m_t)
        b_squares += b_u * b_u
    b_norm = at_least(tl.sqrt(tl.sum(b_squares, axis=0)), eps)
    tl.store(p_norm + i_b * T + o_t, b_norm, mask=m_t)
    b_scale = 1.0 / b_norm
    p_result += i_b * result_stride_b
    for s in range(0, S, BLOCK_S):
        o_s, m_s = block_offsets(s, S, BLOCK_S)
        b_u = cubes(p_c, stride_s, stride_t, p_max, o_s, m_s, o_t, m_t)
        store_tile(p_result, o_s, m_s, result_stride_s, o_t, m_t, result_stride_t,
                   b_u * b_scale[None, :])


@triton.jit
def gradient_dots(p_grad, grad_stride_b, grad_stride_s, grad_stride_t, p_c, stride_b, stride_s,
                  stride_t, p_max, p_norm, p_slope, eps: tl.float64, S, T, BLOCK_S: tl.constexpr,
                  BLOCK_T: tl.constexpr):
    i_b, _, o_t, m_t = own_block(T, BLOCK_T, 1)
    p_c += i_b * stride_b
    p_grad += i_b * grad_stride_b
    p_max += i_b * S
    dtype: tl.constexpr = p_max.dtype.element_ty
    b_dots = tl.zeros([BLOCK_S, BLOCK_T], dtype)
    for s in range(0, S, BLOCK_S):
        o_s, m_s = block_offsets(s, S, BLOCK_S)
        b_u = cubes(p_c, stride_s, stride_t, p_max, o_s, m_s, o_t, m_t)
        b_dots += b_u * load_tile(p_grad, o_s, m_s, grad_stride_s, o_t, m_t, grad_stride_t, dtype)
    b_norm = tl.load(p_norm + i_b * T + o_t, mask=m_t, other=1.0)
    tl.store(p_slope + i_b * T + o_t, slope(tl.sum(b_dots, axis=0), b_norm, eps), mask=m_t)


@triton.jit
def gradient(p_grad, grad_stride_b, grad_stride_s, grad_stride_t, p_c, stride_b, stride_s, stride_t,
             p_max, p_argmax, p_norm, p_slope, p_out, eps: tl.float64, S, T, BLOCK_S: tl.constexpr,
             BLOCK_T: tl.constexpr):
    i_b, _, o_s, m_s = own_block(S, BLOCK_S, 1)
    p_c += i_b * stride_b
    p_grad += i_b * grad_stride_b
    p_out += i_b * S * T
    dtype: tl.constexpr = p_max.dtype.element_ty
    out: tl.constexpr = p_out.dtype.element_ty
    b_max = tl.load(p_max + i_b * S + o_s, mask=m_s, other=1.0)
    b_argmax = tl.load(p_argmax + i_b * S + o_s, mask=m_s, other=0)
    b_inverse_b = (1.0 / b_max)[:, None]
    b_summands = tl.zeros([BLOCK_S, BLOCK_T], dtype)
    b_there = tl.zeros([BLOCK_S, BLOCK_T], dtype)
    for t in range(0, T, BLOCK_T):
        o_t, m_t = block_offsets(t, T, BLOCK_T)
        b_scale = 1.0 / tl.load(p_norm + i_b * T + o_t, mask=m_t, other=1.0)
        b_slope = tl.load(p_slope + i_b * T + o_t, mask=m_t, other=0.0)
        b_c = load_tile(p_c, o_s, m_s, stride_s, o_t, m_t, stride_t, dtype)
        b_g = load_tile(p_grad, o_s, m_s, grad_stride_s, o_t, m_t, grad_stride_t, dtype)
        b_dc, b_share = gradient_tile(b_c, b_g, b_inverse_b, b_scale[None, :], b_slope[None, :])
        b_summands += b_share
        m_there = o_t[None, :] == b_argmax[:, None]
        b_there = tl.where(m_there, b_dc, b_there)
        m_write = m_s[:, None] & m_t[None, :] & (m_there == 0)
        tl.store(p_out + tile_offsets(o_s, T, o_t, 1), b_dc.to(out), mask=m_write)
    b_beta = above_floor(-tl.sum(b_summands, axis=1) / b_max, b_max, eps)
    b_last = tl.sum(b_there, axis=1) + b_beta
    tl.store(p_out + o_s.to(tl.int64) * T + b_argmax, b_last.to(out), mask=m_s)


def soft_mutual_normalize(correlation, eps, out_dtype):
    """Qhat and the statistics that its gradient needs."""
    result = correlation.new_empty(correlation.shape, dtype=out_dtype)
    return result, *_normalize(correlation, eps, result)


def soft_mutual_normalize_out(correlation, eps, out):
    """Qhat alone."""
    _normalize(correlation, eps, out)


def _normalize(correlation, eps, result):
    batch, S = correlation.shape[:2]
    T = correlation.shape[2:].numel()
    row_max, row_argmax, norm = new_statistics(correlation, S, T)
    if batch > 0:
        C, Q = correlation.flatten(2), result.flatten(2)
        common.launch(row_maxima, batch * triton.cdiv(S, ROWS["BLOCK_S"]), C, *C.stride(), row_max,
                      row_argmax, eps, S, T, **ROWS)
        common.launch(normalize, batch * triton.cdiv(T, COLUMNS["BLOCK_T"]), C, *C.stride(),
                      row_max, norm, Q, *Q.stride(), eps, S, T, **COLUMNS)
    return row_max, row_argmax, norm


def soft_mutual_normalize_backward(grad, correlation, row_max, row_argmax, norm, eps):
    """dC, with beta at the maxima."""
    out = correlation.new_empty(correlation.shape)
    if correlation.shape[0] > 0:
        G, C = grad.flatten(2), correlation.flatten(2)
        batch, S, T = C.shape
        row_max, row_argmax, norm = (x.contiguous() for x in (row_max, row_argmax, norm))
        slope = norm.new_empty(norm.shape)
        common.launch(gradient_dots, batch * triton.cdiv(T, COLUMNS["BLOCK_T"]), G, *G.stride(), C,
                      *C.stride(), row_max, norm, slope, eps, S, T, **COLUMNS)
        common.launch(gradient, batch * triton.cdiv(S, ROWS["BLOCK_S"]), G, *G.stride(), C,
                      *C.stride(), row_max, row_argmax, norm, slope, out, eps, S, T, **ROWS)
    return out
