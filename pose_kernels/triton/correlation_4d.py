"""Eq. 1 and its gradients in Triton; the mathematics is in `pose_kernels/correlation_4d.py`.

Forward: `product`, a program per tile of the result. Backward: `weighted_sum`, a program owns a
block of sources (or of targets) and walks over all targets (sources): dz = sum dC z.
"""

import torch
import triton
import triton.language as tl

from .._library import new_gradient
from ..correlation_4d import new_map
from . import common
from .common import (
    add_product,
    block_offsets,
    correlate,
    load_packed,
    load_tile,
    own_block,
    store_tile,
)


@triton.jit
def product(p_source, p_target, p_result, stride_b, stride_s, stride_t, S, T, WIDTH: tl.constexpr,
            BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, BLOCK_OWN: tl.constexpr,
            BLOCK_WALK: tl.constexpr):
    i_b, i_t, o_s, m_s = own_block(S, BLOCK_OWN, tl.cdiv(T, BLOCK_WALK))
    p_source += i_b * S * WIDTH
    p_target += i_b * T * WIDTH
    o_t, m_t = block_offsets(i_t * BLOCK_WALK, T, BLOCK_WALK)
    b_s = load_packed(p_source, o_s, m_s, 0, WIDTH, BLOCK_K)
    b_t = load_packed(p_target, o_t, m_t, 0, WIDTH, BLOCK_K)
    b_c = correlate(b_s, b_t, p_source, p_target, o_s, o_t, m_s, m_t, WIDTH, BLOCK_K, PRECISION)
    store_tile(p_result + i_b * stride_b, o_s, m_s, stride_s, o_t, m_t, stride_t, b_c)


@triton.jit(do_not_specialize=["m"])
def weighted_sum(p_grad, stride_b, stride_own, stride_walk, p_z, p_out, m, owned, walked,
                 FEATURES: tl.constexpr, BLOCK_F: tl.constexpr, GRAD_PRECISION: tl.constexpr,
                 BLOCK_OWN: tl.constexpr, BLOCK_WALK: tl.constexpr):
    """out[k, own] = sum of grad[own, walk] z[walk, k], for BLOCK_F features."""
    i_b, i_f, o_own, m_own = own_block(owned, BLOCK_OWN, FEATURES // BLOCK_F)
    p_z += i_b * walked * FEATURES
    p_grad += i_b * stride_b
    dtype: tl.constexpr = p_z.dtype.element_ty
    b_sum = tl.zeros([BLOCK_OWN, BLOCK_F], dtype)
    for walk in range(0, walked, BLOCK_WALK):
        o_walk, m_walk = block_offsets(walk, walked, BLOCK_WALK)
        b_g = load_tile(p_grad, o_own, m_own, stride_own, o_walk, m_walk, stride_walk, dtype)
        b_z = load_packed(p_z, o_walk, m_walk, i_f * BLOCK_F, FEATURES, BLOCK_F)
        b_sum = add_product(b_sum, b_g, b_z, GRAD_PRECISION)
    o_f, m_f = block_offsets(i_f * BLOCK_F, m, BLOCK_F)
    store_tile(p_out + i_b * m * owned, o_own, m_own, 1, o_f, m_f, owned, b_sum)


def correlation_4d(source, target, tf32, channels_last, out_dtype):
    """C(s, t) = <z_s(s), z_t(t)>."""
    result = new_map(source, target, channels_last, out_dtype)
    correlation_4d_out(source, target, tf32, result)
    return result


def correlation_4d_out(source, target, tf32, out):
    """The same into memory that is there; flatten makes no copy of either layout."""
    batch, C = source.shape[0], out.flatten(2)
    if batch == 0:
        return
    z_s, z_t = common.pack_pair(source, target, tf32)
    S, T = C.shape[1:]
    sizes = common.owned(batch, S, z_s)
    if z_s.dtype != torch.float64:
        sizes["BLOCK_WALK"] = 64  # there is no walk here, one step may take all the shared memory
    programs = triton.cdiv(S, sizes["BLOCK_OWN"]) * triton.cdiv(T, sizes["BLOCK_WALK"])
    common.launch(product, batch * programs, z_s, z_t, C, *C.stride(), S, T,
                  **common.product_sizes(z_s), **sizes)


def correlation_4d_backward(grad, source, target, tf32, source_grad, target_grad):
    """dz_s(s) = sum_t dC(s, t) z_t(t), dz_t(t) = sum_s dC(s, t) z_s(s)."""
    G = grad.flatten(2)
    stride_b, stride_s, stride_t = G.stride()

    def gradient(wanted, of, other, stride_own, stride_walk):
        out = new_gradient(of, wanted)
        if not wanted:
            return out
        z, positions = common.pack(other), of.shape[2:].numel()
        # float16 and bfloat16 gradients and features are both exact in TF32.
        features = common.gradient_sizes(z, tf32 or of.dtype != torch.float32)
        common.launch_owners(weighted_sum, positions, z, G, stride_b, stride_own, stride_walk, z,
                             out, of.shape[1], positions, z.shape[1], **features, most=64)
        return out

    return (gradient(source_grad, source, target, stride_s, stride_t),
            gradient(target_grad, target, source, stride_t, stride_s))
