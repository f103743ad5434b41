"""The best matches both ways in Triton; what they are is in `pose_kernels/mutual_matches.py`.

`row_maxima` (guided_correlation.py), a program owns a block of sources and walks over the targets;
`best_sources`, a program owns a block of targets and walks over the sources, once for every rank:
the next best is the best of what comes after the last one found.
"""

import torch
import triton
import triton.language as tl

from ..mutual_matches import new_matches
from . import common
from .common import block_offsets, correlate, first_maximum, load_packed, own_block
from .guided_correlation import row_maxima

#: Above every place.
NOWHERE = tl.constexpr(2147483647)


@triton.jit
def comes_after(b_c, o_s, b_last, b_last_at):
    """Whether values come after those found last: smaller, or equal and further on; NaN first."""
    m_lost, m_last_lost = b_c != b_c, b_last != b_last
    m_equal = (b_c == b_last) | (m_lost & m_last_lost)
    return (b_c < b_last) | (m_last_lost & (b_c == b_c)) | (m_equal & (o_s > b_last_at))


@triton.jit
def best_sources(p_source, p_target, p_correlations, p_places, k, S, T, WIDTH: tl.constexpr,
                 BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, BLOCK_OWN: tl.constexpr,
                 BLOCK_WALK: tl.constexpr):
    i_b, _, o_t, m_t = own_block(T, BLOCK_OWN, 1)
    p_source += i_b * S * WIDTH
    p_target += i_b * T * WIDTH
    dtype: tl.constexpr = p_source.dtype.element_ty
    b_t = load_packed(p_target, o_t, m_t, 0, WIDTH, BLOCK_K)
    # Before all values, NaN among them, and before every place.
    b_last = tl.full([BLOCK_OWN], float("nan"), dtype)
    b_last_at = tl.full([BLOCK_OWN], -1, tl.int32)
    for rank in range(0, k):
        b_best = tl.full([BLOCK_OWN, BLOCK_WALK], float("-inf"), dtype)
        b_at = tl.full([BLOCK_OWN, BLOCK_WALK], NOWHERE, tl.int32)
        for s in range(0, S, BLOCK_WALK):
            o_s, m_s = block_offsets(s, S, BLOCK_WALK)
            b_s = load_packed(p_source, o_s, m_s, 0, WIDTH, BLOCK_K)
            b_c = correlate(b_t, b_s, p_target, p_source, o_t, o_s, m_t, m_s, WIDTH, BLOCK_K,
                            PRECISION)
            m_better = (b_c > b_best) | ((b_c != b_c) & (b_best == b_best)) | (b_at == NOWHERE)
            m_better &= comes_after(b_c, o_s[None, :], b_last[:, None], b_last_at[:, None])
            m_better &= m_s[None, :]
            b_best = tl.where(m_better, b_c, b_best)
            b_at = tl.where(m_better, o_s[None, :], b_at)
        b_last, b_last_at = first_maximum(b_best, b_at)
        p_rank = (i_b * k + rank) * T + o_t
        tl.store(p_correlations + p_rank, b_last, mask=m_t)
        tl.store(p_places + p_rank, b_last_at.to(tl.int64), mask=m_t)


def mutual_matches(source, target, k, tf32):
    """Sources and correlations of every target, target and correlation of every source."""
    z_s, z_t = common.pack_pair(source, target, tf32)
    found = new_matches(source, target, k, z_s.dtype)
    sources, correlations, targets, target_correlations = found
    sizes, S, T = common.product_sizes(z_s), z_s.shape[1], z_t.shape[1]
    common.launch_owners(row_maxima, S, z_s, z_s, z_t, target_correlations, targets, float("-inf"),
                         S, T, **sizes)
    common.launch_owners(best_sources, T, z_s, z_s, z_t, correlations, sources, k, S, T, **sizes)
    return tuple(x.to(source.dtype) if x.dtype != torch.int64 else x for x in found)
