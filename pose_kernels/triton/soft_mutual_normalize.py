"""Eqs. 9 and 2 and their gradient in Triton; `pose_kernels/soft_mutual_normalize.py` has the
mathematics.

Forward: `row_maxima`, a program owns a block of sources; `normalize`, a program owns a block of
targets and walks over the sources twice, for the norm and to write.
Backward: `gradient_dots`, D_t by programs that own targets; `gradient`, dC and beta by programs
that own sources and write the element of the maximum last.
"""

import torch
import triton
import triton.language as tl

from .. import _checks
from . import common
from .common import block_offsets, first_maximum, keep_maximum, tile_offsets

#: Sources by targets of one step of a program.
ROWS = {"BLOCK_S": 16, "BLOCK_T": 128, "num_warps": 4}
COLUMNS = {"BLOCK_S": 64, "BLOCK_T": 32, "num_warps": 4}


@triton.jit
def load_tile(p_x, o_s, m_s, o_t, m_t, stride_s, stride_t, dtype: tl.constexpr):
    p_tile = p_x + tile_offsets(o_s, stride_s, o_t, stride_t)
    return tl.load(p_tile, mask=m_s[:, None] & m_t[None, :], other=0.0).to(dtype)


@triton.jit
def row_maxima(
    p_c, stride_b, stride_s, stride_t, p_max, p_argmax, eps: tl.float64, S, T,
    BLOCK_S: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    i_s = tl.program_id(0) % tl.cdiv(S, BLOCK_S)
    i_b = (tl.program_id(0) // tl.cdiv(S, BLOCK_S)).to(tl.int64)
    o_s, m_s = block_offsets(i_s * BLOCK_S, S, BLOCK_S)
    p_c += i_b * stride_b
    dtype: tl.constexpr = p_max.dtype.element_ty
    b_best = tl.full([BLOCK_S, BLOCK_T], float("-inf"), dtype)
    b_at = tl.zeros([BLOCK_S, BLOCK_T], tl.int32)
    for t in range(0, T, BLOCK_T):
        o_t, m_t = block_offsets(t, T, BLOCK_T)
        b_c = load_tile(p_c, o_s, m_s, o_t, m_t, stride_s, stride_t, dtype)
        b_best, b_at = keep_maximum(b_c, o_t, m_t, b_best, b_at)
    b_max, b_first = first_maximum(b_best, b_at)
    floor = tl.full((), eps, dtype)
    tl.store(p_max + i_b * S + o_s, tl.where(b_max < floor, floor, b_max), mask=m_s)
    tl.store(p_argmax + i_b * S + o_s, b_first.to(tl.int64), mask=m_s)


@triton.jit
def normalize(
    p_c, stride_b, stride_s, stride_t, p_max, p_norm, p_result, eps: tl.float64, S, T,
    BLOCK_S: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    i_t = tl.program_id(0) % tl.cdiv(T, BLOCK_T)
    i_b = (tl.program_id(0) // tl.cdiv(T, BLOCK_T)).to(tl.int64)
    o_t, m_t = block_offsets(i_t * BLOCK_T, T, BLOCK_T)
    p_c += i_b * stride_b
    dtype: tl.constexpr = p_max.dtype.element_ty
    b_squares = tl.zeros([BLOCK_S, BLOCK_T], dtype)
    for s in range(0, S, BLOCK_S):
        o_s, m_s = block_offsets(s, S, BLOCK_S)
        b_inverse_b = 1.0 / tl.load(p_max + i_b * S + o_s, mask=m_s, other=1.0)
        b_c = load_tile(p_c, o_s, m_s, o_t, m_t, stride_s, stride_t, dtype)
        b_u = b_c * b_c * (b_c * b_inverse_b[:, None])
        b_squares += b_u * b_u
    b_norm = tl.sqrt(tl.sum(b_squares, axis=0))
    floor = tl.full((), eps, dtype)
    b_norm = tl.where(b_norm < floor, floor, b_norm)
    tl.store(p_norm + i_b * T + o_t, b_norm, mask=m_t)
    b_scale = 1.0 / b_norm
    p_result += i_b * S * T
    for s in range(0, S, BLOCK_S):
        o_s, m_s = block_offsets(s, S, BLOCK_S)
        b_inverse_b = 1.0 / tl.load(p_max + i_b * S + o_s, mask=m_s, other=1.0)
        b_c = load_tile(p_c, o_s, m_s, o_t, m_t, stride_s, stride_t, dtype)
        b_q = b_c * b_c * (b_c * b_inverse_b[:, None]) * b_scale[None, :]
        p_tile = p_result + tile_offsets(o_s, T, o_t, 1)
        tl.store(p_tile, b_q.to(p_result.dtype.element_ty), mask=m_s[:, None] & m_t[None, :])


@triton.jit
def gradient_dots(
    p_grad, grad_stride_b, grad_stride_s, grad_stride_t, p_c, stride_b, stride_s, stride_t,
    p_max, p_norm, p_slope, eps: tl.float64, S, T,
    BLOCK_S: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """slope_t = D_t / n_t^2, the weight of u in du; 0 where n is at its floor."""
    i_t = tl.program_id(0) % tl.cdiv(T, BLOCK_T)
    i_b = (tl.program_id(0) // tl.cdiv(T, BLOCK_T)).to(tl.int64)
    o_t, m_t = block_offsets(i_t * BLOCK_T, T, BLOCK_T)
    p_c += i_b * stride_b
    p_grad += i_b * grad_stride_b
    dtype: tl.constexpr = p_max.dtype.element_ty
    b_dots = tl.zeros([BLOCK_S, BLOCK_T], dtype)
    for s in range(0, S, BLOCK_S):
        o_s, m_s = block_offsets(s, S, BLOCK_S)
        b_inverse_b = 1.0 / tl.load(p_max + i_b * S + o_s, mask=m_s, other=1.0)
        b_c = load_tile(p_c, o_s, m_s, o_t, m_t, stride_s, stride_t, dtype)
        b_g = load_tile(p_grad, o_s, m_s, o_t, m_t, grad_stride_s, grad_stride_t, dtype)
        b_dots += b_c * b_c * (b_c * b_inverse_b[:, None]) * b_g
    b_norm = tl.load(p_norm + i_b * T + o_t, mask=m_t, other=1.0)
    b_scale = 1.0 / b_norm
    b_slope = tl.sum(b_dots, axis=0) * b_scale * b_scale * b_scale
    b_slope = tl.where(b_norm == tl.full((), eps, dtype), 0.0, b_slope)
    tl.store(p_slope + i_b * T + o_t, b_slope, mask=m_t)


@triton.jit
def gradient(
    p_grad, grad_stride_b, grad_stride_s, grad_stride_t, p_c, stride_b, stride_s, stride_t,
    p_max, p_argmax, p_norm, p_slope, p_out, eps: tl.float64, S, T,
    BLOCK_S: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    i_s = tl.program_id(0) % tl.cdiv(S, BLOCK_S)
    i_b = (tl.program_id(0) // tl.cdiv(S, BLOCK_S)).to(tl.int64)
    o_s, m_s = block_offsets(i_s * BLOCK_S, S, BLOCK_S)
    p_c += i_b * stride_b
    p_grad += i_b * grad_stride_b
    p_out += i_b * S * T
    dtype: tl.constexpr = p_max.dtype.element_ty
    out: tl.constexpr = p_out.dtype.element_ty
    b_max = tl.load(p_max + i_b * S + o_s, mask=m_s, other=1.0)
    b_argmax = tl.load(p_argmax + i_b * S + o_s, mask=m_s, other=0)
    b_inverse_b = (1.0 / b_max)[:, None]
    b_beta = tl.zeros([BLOCK_S, BLOCK_T], dtype)
    b_there = tl.zeros([BLOCK_S, BLOCK_T], dtype)
    for t in range(0, T, BLOCK_T):
        o_t, m_t = block_offsets(t, T, BLOCK_T)
        b_scale = 1.0 / tl.load(p_norm + i_b * T + o_t, mask=m_t, other=1.0)
        b_slope = tl.load(p_slope + i_b * T + o_t, mask=m_t, other=0.0)
        b_c = load_tile(p_c, o_s, m_s, o_t, m_t, stride_s, stride_t, dtype)
        b_g = load_tile(p_grad, o_s, m_s, o_t, m_t, grad_stride_s, grad_stride_t, dtype)
        b_square = b_c * b_c * b_inverse_b
        b_u = b_square * b_c
        b_du = b_g * b_scale[None, :] - b_u * b_slope[None, :]
        b_dc = 3.0 * b_square * b_du
        b_beta += b_du * b_u
        m_there = o_t[None, :] == b_argmax[:, None]
        b_there = tl.where(m_there, b_dc, b_there)
        m_write = m_s[:, None] & m_t[None, :] & (m_there == 0)
        tl.store(p_out + tile_offsets(o_s, T, o_t, 1), b_dc.to(out), mask=m_write)
    b_beta_s = -tl.sum(b_beta, axis=1) / b_max
    b_beta_s = tl.where(b_max == tl.full((), eps, dtype), 0.0, b_beta_s)
    b_last = tl.sum(b_there, axis=1) + b_beta_s
    tl.store(p_out + o_s.to(tl.int64) * T + b_argmax, b_last.to(out), mask=m_s)


def soft_mutual_normalize(correlation, eps):
    """Qhat and the statistics that its gradient needs."""
    batch, S = correlation.shape[:2]
    T = correlation.shape[2:].numel()
    device, dtype = correlation.device, _checks.compute_dtype(correlation.dtype)
    result = torch.empty(correlation.shape, dtype=correlation.dtype, device=device)
    row_max = torch.empty(batch, S, dtype=dtype, device=device)
    row_argmax = torch.empty(batch, S, dtype=torch.int64, device=device)
    norm = torch.empty(batch, T, dtype=dtype, device=device)
    if batch > 0:
        C = correlation.flatten(2)
        common.launch(
            row_maxima, batch * triton.cdiv(S, ROWS["BLOCK_S"]),
            C, *C.stride(), row_max, row_argmax, eps, S, T, **ROWS,
        )  # fmt: skip
        common.launch(
            normalize, batch * triton.cdiv(T, COLUMNS["BLOCK_T"]),
            C, *C.stride(), row_max, norm, result, eps, S, T, **COLUMNS,
        )  # fmt: skip
    return result, row_max, row_argmax, norm


def soft_mutual_normalize_backward(grad, correlation, row_max, row_argmax, norm, eps):
    """dC, with beta at the maxima."""
    out = torch.empty(correlation.shape, dtype=correlation.dtype, device=correlation.device)
    if correlation.shape[0] > 0:
        G, C = grad.flatten(2), correlation.flatten(2)
        batch, S, T = C.shape
        row_max, row_argmax, norm = (x.contiguous() for x in (row_max, row_argmax, norm))
        slope = torch.empty_like(norm)
        common.launch(
            gradient_dots, batch * triton.cdiv(T, COLUMNS["BLOCK_T"]),
            G, *G.stride(), C, *C.stride(), row_max, norm, slope, eps, S, T, **COLUMNS,
        )  # fmt: skip
        common.launch(
            gradient, batch * triton.cdiv(S, ROWS["BLOCK_S"]),
            G, *G.stride(), C, *C.stride(), row_max, row_argmax, norm, slope, out, eps, S, T,
            **ROWS,
        )  # fmt: skip
    return out
