"""Eq. 1 and its gradients in Triton; the mathematics is in `pose_kernels/correlation_4d.py`.

Forward: `product`, a program per tile of the result. Backward: `weighted_sum`, a program owns a
block of sources (or of targets) and walks over all targets (sources): dz = sum dC z.
"""

import torch
import triton
import triton.language as tl

from . import common
from .common import add_product, block_offsets, correlate, load_packed, tile_offsets


@triton.jit
def product(
    p_source, p_target, p_result, stride_b, stride_s, stride_t, S, T,
    WIDTH: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_OWN: tl.constexpr, BLOCK_WALK: tl.constexpr,
):  # fmt: skip
    blocks_s, blocks_t = tl.cdiv(S, BLOCK_OWN), tl.cdiv(T, BLOCK_WALK)
    i_t = tl.program_id(0) % blocks_t
    i_s = tl.program_id(0) // blocks_t % blocks_s
    i_b = (tl.program_id(0) // blocks_t // blocks_s).to(tl.int64)
    p_source += i_b * S * WIDTH
    p_target += i_b * T * WIDTH
    o_s, m_s = block_offsets(i_s * BLOCK_OWN, S, BLOCK_OWN)
    o_t, m_t = block_offsets(i_t * BLOCK_WALK, T, BLOCK_WALK)
    b_s = load_packed(p_source, o_s, m_s, 0, WIDTH, BLOCK_K)
    b_t = load_packed(p_target, o_t, m_t, 0, WIDTH, BLOCK_K)
    b_c = correlate(b_s, b_t, p_source, p_target, o_s, o_t, m_s, m_t, WIDTH, BLOCK_K, PRECISION)
    p_tile = p_result + i_b * stride_b + tile_offsets(o_s, stride_s, o_t, stride_t)
    tl.store(p_tile, b_c.to(p_result.dtype.element_ty), mask=m_s[:, None] & m_t[None, :])


@triton.jit(do_not_specialize=["m"])
def weighted_sum(
    p_grad, stride_b, stride_own, stride_walk, p_z, p_out, m, owned, walked,
    FEATURES: tl.constexpr, BLOCK_F: tl.constexpr, GRAD_PRECISION: tl.constexpr,
    BLOCK_OWN: tl.constexpr, BLOCK_WALK: tl.constexpr,
):  # fmt: skip
    """out[k, own] = sum of grad[own, walk] z[walk, k], for BLOCK_F features."""
    blocks = tl.cdiv(owned, BLOCK_OWN)
    i_f = tl.program_id(0) % (FEATURES // BLOCK_F)
    i_own = tl.program_id(0) // (FEATURES // BLOCK_F) % blocks
    i_b = (tl.program_id(0) // (FEATURES // BLOCK_F) // blocks).to(tl.int64)
    p_z += i_b * walked * FEATURES
    p_grad += i_b * stride_b
    o_own, m_own = block_offsets(i_own * BLOCK_OWN, owned, BLOCK_OWN)
    b_sum = tl.zeros([BLOCK_OWN, BLOCK_F], p_z.dtype.element_ty)
    for walk in range(0, walked, BLOCK_WALK):
        o_walk, m_walk = block_offsets(walk, walked, BLOCK_WALK)
        p_tile = p_grad + tile_offsets(o_own, stride_own, o_walk, stride_walk)
        b_g = tl.load(p_tile, mask=m_own[:, None] & m_walk[None, :], other=0.0)
        b_z = load_packed(p_z, o_walk, m_walk, i_f * BLOCK_F, FEATURES, BLOCK_F)
        b_sum = add_product(b_sum, b_g.to(b_z.dtype), b_z, GRAD_PRECISION)
    o_f, m_f = block_offsets(i_f * BLOCK_F, m, BLOCK_F)
    p_out += i_b * m * owned + tile_offsets(o_own, 1, o_f, owned)
    tl.store(p_out, b_sum.to(p_out.dtype.element_ty), mask=m_own[:, None] & m_f[None, :])


def correlation_4d(source, target, tf32, channels_last):
    """C(s, t) = <z_s(s), z_t(t)>."""
    batch, _, hs, ws = source.shape
    result = torch.empty(
        (batch, hs * ws, *target.shape[2:]),
        dtype=source.dtype,
        device=source.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )
    if batch == 0:
        return result
    (z_s, z_t), C = common.pack_pair(source, target, tf32), result.flatten(2)
    S, T = C.shape[1:]
    sizes = common.owned(batch, S, z_s)
    if z_s.dtype != torch.float64:
        sizes["BLOCK_WALK"] = 64  # there is no walk here, one step may take all the shared memory
    programs = triton.cdiv(S, sizes["BLOCK_OWN"]) * triton.cdiv(T, sizes["BLOCK_WALK"])
    common.launch(
        product, batch * programs, z_s, z_t, C, *C.stride(), S, T,
        **common.product_sizes(z_s), **sizes,
    )  # fmt: skip
    return result


def correlation_4d_backward(grad, source, target, tf32, source_grad, target_grad):
    """dz_s(s) = sum_t dC(s, t) z_t(t), dz_t(t) = sum_s dC(s, t) z_s(s)."""
    G = grad.flatten(2)
    stride_b, stride_s, stride_t = G.stride()

    def gradient(wanted, of, other, stride_own, stride_walk):
        if not wanted or grad.shape[0] == 0:
            return of.new_empty(of.shape if wanted else 0)
        batch, m = of.shape[:2]
        out = torch.empty(of.shape, dtype=of.dtype, device=of.device)
        z, positions = common.pack(other), of.shape[2:].numel()
        # float16 and bfloat16 gradients and features are both exact in TF32.
        features = common.gradient_sizes(z, tf32 or of.dtype != torch.float32)
        sizes = common.owned(batch, positions, z, most=64)
        groups = features["FEATURES"] // features["BLOCK_F"]
        common.launch(
            weighted_sum, batch * triton.cdiv(positions, sizes["BLOCK_OWN"]) * groups,
            G, stride_b, stride_own, stride_walk, z, out, m, positions, z.shape[1],
            **features, **sizes,
        )  # fmt: skip
        return out

    return (
        gradient(source_grad, source, target, stride_s, stride_t),
        gradient(target_grad, target, source, stride_t, stride_s),
    )
