"""What the kernels share: packed features, their products, statistics of a map, launching, blocks.

Packed features are [B, positions, width] in the compute type, zeros at the end: both sides of every
product are then contiguous along what is summed, and whatever came in, there is one kernel.
"""

import contextlib

import torch
import triton
import triton.language as tl

from .. import _checks

#: Most columns of packed features that a product takes at once; more are walked in steps of half.
WIDTH = 128
#: Most features whose gradient a program adds up.
FEATURES = 64
#: Programs that keep a large GPU busy.
PROGRAMS = 128


def pack(features: torch.Tensor, parts: int = 1, low: int = 0,
         dtype: torch.dtype | None = None) -> torch.Tensor:
    """[B, m, ...] in any layout to [B, positions, width]; of three parts, number ``low`` is low.

    In ``dtype``, by default the one that computes with such features.
    """
    z = features.flatten(2)
    batch, m, positions = z.shape
    columns = parts * m
    step = max(triton.next_power_of_2(columns), 16) if columns <= WIDTH else WIDTH // 2
    width = triton.cdiv(columns, step) * step
    packed = z.new_empty(batch, positions, width, dtype=dtype or _checks.compute_dtype(z.dtype))
    if batch > 0:
        block = min(width, 64)
        programs = batch * triton.cdiv(positions, 64) * triton.cdiv(width, block)
        launch(pack_block, programs, z, *z.stride(), packed, m, positions, WIDTH=width, PARTS=parts,
               LOW=low, BLOCK_N=64, BLOCK_W=block, num_warps=4)
    return packed


def pack_pair(source: torch.Tensor, target: torch.Tensor, tf32: bool):
    """Both packed for their product: sum of high high + high low + low high where they are split.

    float32 that must stay accurate is multiplied as high and low parts, each exact in TF32. They
    stand side by side, so that it is one product over three times the features. The rest multiplies
    as it is: float16 and bfloat16 are exact in TF32, and AMD GPUs and float64 do without.
    """
    if source.dtype != torch.float32 or tf32 or torch.version.hip:
        return pack(source), pack(target)
    return pack(source, 3, 2), pack(target, 3, 1)


def product_sizes(packed: torch.Tensor) -> dict[str, int | str]:
    """Of <source, target> for features from `pack_pair`."""
    width = packed.shape[2]
    simple = packed.dtype == torch.float64 or torch.version.hip
    return {"WIDTH": width, "BLOCK_K": width if width <= WIDTH else WIDTH // 2,
            "PRECISION": "ieee" if simple else "tf32"}


def gradient_sizes(packed: torch.Tensor, tf32: bool) -> dict[str, int | str]:
    """Of sum dC z for features that `pack` packed in one part; dC may have all bits of float32."""
    width = packed.shape[2]
    simple = packed.dtype == torch.float64 or torch.version.hip
    return {"FEATURES": width, "BLOCK_F": min(width, FEATURES),
            "GRAD_PRECISION": "ieee" if simple else "tf32" if tf32 else "tf32x3"}


def owned(batch: int, positions: int, packed: torch.Tensor, most: int = 128) -> dict[str, int]:
    """How many positions a program owns, and walks over at once: many, while all of a GPU works.

    The more it owns, the less often the others are read. A function of shapes only, so that results
    are too. In two stages all of it fits the 99 KiB of shared memory that small GPUs have.
    """
    if packed.dtype == torch.float64:
        return {"BLOCK_OWN": 32, "BLOCK_WALK": 16, "num_warps": 4, "num_stages": 1}
    own = most
    while own > 32 and batch * triton.cdiv(positions, own) < PROGRAMS:
        own //= 2
    walk = 32 if packed.shape[2] > 64 or most < 128 else 64
    return {"BLOCK_OWN": own, "BLOCK_WALK": walk, "num_warps": 8 if own == 128 else 4,
            "num_stages": 2}


def most_owned(packed: torch.Tensor) -> int:
    """For gradients: registers are short, and shorter where features are walked in steps."""
    return 64 if packed.shape[2] <= WIDTH else 32


def launch_owners(kernel, positions: int, packed: torch.Tensor, *arguments, most: int = 128,
                  groups: int | None = None, **sizes) -> None:
    """A program per block of positions of each sample, and per group: block of features of a
    gradient unless there are ``groups``."""
    batch = packed.shape[0]
    if batch > 0:
        sizes |= owned(batch, positions, packed, most=most)
        blocks = batch * triton.cdiv(positions, sizes["BLOCK_OWN"])
        if groups is None:
            groups = sizes["FEATURES"] // sizes["BLOCK_F"] if "FEATURES" in sizes else 1
        launch(kernel, blocks * groups, *arguments, **sizes)


def launch(kernel, programs: int, *arguments, **sizes) -> None:
    """Run ``programs`` programs on the device of the first argument."""
    device = arguments[0].device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[(programs,)](*arguments, **sizes)


def lists_of(keys: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of keys [B, n]: the n numbers in the order of their keys, equal ones as they were, and
    [B, count + 1] where the list of each key below ``count`` begins."""
    ordered, numbers = torch.sort(keys, dim=1, stable=True)
    every = torch.arange(count + 1, device=keys.device).expand(len(keys), -1).contiguous()
    return numbers, torch.searchsorted(ordered, every)


@triton.jit
def round_to_tf32(b_x):
    b_bits = b_x.to(tl.int32, bitcast=True)
    b_rounded = ((b_bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return tl.where(tl.abs(b_x) < float("inf"), b_rounded, b_x)


@triton.jit(do_not_specialize=["m"])
def pack_block(p_z, stride_b, stride_k, stride_n, p_packed, m, N, WIDTH: tl.constexpr,
               PARTS: tl.constexpr, LOW: tl.constexpr, BLOCK_N: tl.constexpr,
               BLOCK_W: tl.constexpr):
    i_b, i_w, o_n, m_n = own_block(N, BLOCK_N, WIDTH // BLOCK_W)
    o_w = i_w * BLOCK_W + tl.arange(0, BLOCK_W)
    b_part = o_w // m
    p_tile = p_z + i_b * stride_b + tile_offsets(o_n, stride_n, o_w % m, stride_k)
    b_z = tl.load(p_tile, mask=m_n[:, None] & (b_part < PARTS)[None, :], other=0.0)
    b_z = b_z.to(p_packed.dtype.element_ty)
    if PARTS == 3:
        b_high = round_to_tf32(b_z)
        # Infinity has one part only, which meets the partner's first: elsewhere it could meet a 0.
        m_finite = tl.abs(b_high) < float("inf")
        b_low = tl.where(m_finite, round_to_tf32(b_z - b_high), 0.0)
        b_z = tl.where((b_part == 0)[None, :] | m_finite, b_high, 0.0)
        b_z = tl.where((b_part == LOW)[None, :], b_low, b_z)
    p_packed += i_b * N * WIDTH + tile_offsets(o_n, WIDTH, o_w, 1)
    tl.store(p_packed, b_z, mask=m_n[:, None])


@triton.jit
def load_packed(p_z, o_n, m_n, first, WIDTH: tl.constexpr, BLOCK_K: tl.constexpr):
    """Features [first, first + BLOCK_K) of the positions o_n, zeros where m_n is off."""
    o_k = first + tl.arange(0, BLOCK_K)
    p_n = p_z + o_n.to(tl.int64)[:, None] * WIDTH
    return tl.load(p_n + o_k[None, :], mask=m_n[:, None], other=0.0)


@triton.jit
def correlate(b_own, b_walk, p_own, p_walk, o_own, o_walk, m_own, m_walk, WIDTH: tl.constexpr,
              BLOCK_K: tl.constexpr, PRECISION: tl.constexpr):
    """[own, walk] of C; b_own and b_walk are the first BLOCK_K features, kept by the caller."""
    b_c = tl.dot(b_own, tl.trans(b_walk), input_precision=PRECISION)
    if WIDTH > BLOCK_K:
        for k in range(BLOCK_K, WIDTH, BLOCK_K):
            b_a = load_packed(p_own, o_own, m_own, k, WIDTH, BLOCK_K)
            b_b = load_packed(p_walk, o_walk, m_walk, k, WIDTH, BLOCK_K)
            b_c = tl.dot(b_a, tl.trans(b_b), b_c, input_precision=PRECISION, out_dtype=b_c.dtype)
    return b_c


@triton.jit
def add_product(b_sum, b_a, b_b, PRECISION: tl.constexpr):
    return tl.dot(b_a, b_b, b_sum, input_precision=PRECISION, out_dtype=b_sum.dtype)


@triton.jit
def block_offsets(first, end, BLOCK: tl.constexpr):
    o = first + tl.arange(0, BLOCK)
    return o, o < end


@triton.jit
def tile_offsets(o_rows, stride_rows, o_columns, stride_columns):
    o_r = o_rows.to(tl.int64)[:, None] * stride_rows
    return o_r + o_columns.to(tl.int64)[None, :] * stride_columns


@triton.jit
def own_block(positions, BLOCK: tl.constexpr, groups):
    """Of this program: sample, group, the positions that it owns, which of them exist.

    Programs count groups first, then blocks of positions, then samples.
    """
    blocks = tl.cdiv(positions, BLOCK)
    i_group = tl.program_id(0) % groups
    i_own = tl.program_id(0) // groups % blocks
    i_b = (tl.program_id(0) // groups // blocks).to(tl.int64)
    o_own, m_own = block_offsets(i_own * BLOCK, positions, BLOCK)
    return i_b, i_group, o_own, m_own


@triton.jit
def load_tile(p_x, o_rows, m_rows, stride_rows, o_columns, m_columns, stride_columns,
              dtype: tl.constexpr):
    """[rows, columns], 0 where one of the masks is off."""
    p_tile = p_x + tile_offsets(o_rows, stride_rows, o_columns, stride_columns)
    return tl.load(p_tile, mask=m_rows[:, None] & m_columns[None, :], other=0.0).to(dtype)


@triton.jit
def store_tile(p_x, o_rows, m_rows, stride_rows, o_columns, m_columns, stride_columns, b_x):
    p_tile = p_x + tile_offsets(o_rows, stride_rows, o_columns, stride_columns)
    m_tile = m_rows[:, None] & m_columns[None, :]
    if p_x.dtype.element_ty.primitive_bitwidth == 16:
        b_x = b_x.to(tl.float32)  # the interpreter has no way from float64 to bfloat16
    tl.store(p_tile, b_x.to(p_x.dtype.element_ty), mask=m_tile)


@triton.jit
def at_least(b_x, eps):
    """A NaN stays one."""
    floor = tl.full((), eps, b_x.dtype)
    return tl.where(b_x < floor, floor, b_x)


@triton.jit
def above_floor(b_x, b_statistic, eps):
    """0 where the statistic, a maximum or a norm, is at its floor."""
    return tl.where(b_statistic == tl.full((), eps, b_statistic.dtype), 0.0, b_x)


@triton.jit
def slope(b_dots, b_norm, eps):
    """D_t / n_t^2, the weight of u in du, from sum_s G u; 0 where n is at its floor."""
    b_scale = 1.0 / b_norm
    return above_floor(b_dots * b_scale * b_scale * b_scale, b_norm, eps)


@triton.jit
def gradient_tile(b_c, b_g, b_inverse_b, b_scale, b_slope):
    """dC without beta, and du C^3 / b: the summands of -beta b."""
    b_square = b_c * b_c * b_inverse_b
    b_u = b_square * b_c
    b_du = b_g * b_scale - b_u * b_slope
    return 3.0 * b_square * b_du, b_du * b_u


@triton.jit
def keep_maximum(b_c, o_walk, m_walk, b_best, b_at):
    """Running maximum of every lane and where it is first; a NaN is the largest value."""
    b_c = tl.where(m_walk[None, :], b_c, float("-inf"))
    m_better = (b_c > b_best) | ((b_c != b_c) & (b_best == b_best))
    return tl.where(m_better, b_c, b_best), tl.where(m_better, o_walk[None, :], b_at)


@triton.jit
def first_maximum(b_best, b_at):
    """Of every row the maximum and the first place where it is, from what the lanes have kept."""
    m_lost = b_best != b_best
    m_any = tl.max(m_lost.to(tl.int32), axis=1) > 0
    b_max = tl.max(tl.where(m_lost, float("-inf"), b_best), axis=1)
    m_here = tl.where(m_any[:, None], m_lost, b_best == b_max[:, None])
    b_first = tl.min(tl.where(m_here, b_at, 2147483647), axis=1)
    return tl.where(m_any, float("nan"), b_max), b_first


@triton.jit
def store_maxima(p_max, p_argmax, o_s, m_s, b_best, b_at, eps):
    """b and t* of the rows of one sample."""
    b_max, b_first = first_maximum(b_best, b_at)
    tl.store(p_max + o_s, at_least(b_max, eps), mask=m_s)
    tl.store(p_argmax + o_s, b_first.to(tl.int64), mask=m_s)
