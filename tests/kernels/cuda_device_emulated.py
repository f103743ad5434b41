"""Row maxima, products of 16-bit numbers and copies that run ahead, in the CUDA kernels' own source
executed on the CPU (`cuda_kernels_emulated.py` says how).

Run by `test_cuda_wrappers.py`, with the plugin `emulated_cuda`.
"""

import pytest
import torch
from kernel_helpers import TOLERANCE, features, relative_error, value_and_gradients

import pose_kernels
from pose_kernels import _checks

ops, emulation = torch.ops.pose_kernels, torch.ops.pose_kernels_emulation
FLOAT, DOUBLE, HALF, BFLOAT = torch.float32, torch.float64, torch.float16, torch.bfloat16
INF, NAN = torch.inf, torch.nan


@pytest.fixture(autouse=True)
def as_it_was():
    yield
    emulation.set(False, False, False)


def guided(impl="cuda", **options):
    return lambda *z: pose_kernels.guided_correlation(*z, impl=impl, **options)


def errors_of_gradients(inputs, **options):
    """Relative errors of value and gradients."""
    oracle = value_and_gradients(guided("reference"), [x.double() for x in inputs])
    found = value_and_gradients(guided(**options), inputs)
    return [relative_error(a, b) for a, b in zip(found, oracle, strict=True)]


# ---- row maxima


@pytest.mark.parametrize("dtype", [FLOAT, DOUBLE, HALF, BFLOAT], ids=str)
@pytest.mark.parametrize("few", [False, True], ids=["many blocks", "few blocks"])
def test_where_row_maxima_are(dtype, few):
    """The first of equal ones and of NaN, wherever they lie in a patch, a tile, a run, a warp."""
    T = 391
    rows = [{}, {390: 1}, {0: 1, 390: 1}, {130: 1, 129: 1}, {133: 1, 131: 1, 3: 0.5},
            {7: NAN}, {390: NAN, 260: NAN, 1: 2}, {258: INF, 257: 5}, {64: 2, 127: 2, 63: 1},
            {0: INF, 200: NAN}, {5: -1}]
    target = torch.zeros(len(rows), 1, T)
    for row, places in zip(target, rows, strict=True):
        for at, value in places.items():
            row[0, at] = value
    target = torch.cat([target, torch.full((1, 1, T), -INF), -torch.ones(1, 1, T)])
    target[-1, 0, 300] = -0.5
    target = target.to(dtype)
    source = torch.ones(len(target), 1, 2, dtype=dtype)
    source[:, 0, 1] = 2
    C = (source.mT @ target).float()
    emulation.set(False, few, False)
    for tf32 in (False, True):
        row_max, row_argmax = ops.guided_correlation_row_max(source, target, 1e-5, tf32)
        expected = C.amax(2).clamp(min=1e-5)
        torch.testing.assert_close(row_max.float(), expected, rtol=1e-6, atol=0, equal_nan=True)
        same = C.isnan() | (C == C.amax(2, keepdim=True))
        first = torch.where(C.isnan().any(2, keepdim=True), C.isnan(), same).int().argmax(2)
        assert torch.equal(row_argmax, first)


# ---- products of 16-bit numbers


@pytest.mark.parametrize("dtype", [HALF, BFLOAT], ids=str)
def test_fragments_of_16_bits(dtype):
    """mma.m16n8k16 of the PTX manual, number by number: a[0..7], b[0..3], c[0..3] of a lane."""
    A, B, C = torch.randn(16, 16).to(dtype), torch.randn(16, 8).to(dtype), torch.randn(16, 8)
    a, b, c = torch.empty(32, 8, dtype=dtype), torch.empty(32, 4, dtype=dtype), torch.empty(32, 4)

    def place_of_c(lane, i):
        return lane // 4 + (8 if i >= 2 else 0), lane % 4 * 2 + i % 2

    for lane in range(32):
        group, thread = lane // 4, lane % 4
        for i in range(8):
            row = group if i < 2 or 4 <= i < 6 else group + 8
            a[lane, i] = A[row, thread * 2 + i % 2 + (8 if i >= 4 else 0)]
        for i in range(4):
            b[lane, i] = B[thread * 2 + i % 2 + (8 if i >= 2 else 0), group]
            c[lane, i] = C[place_of_c(lane, i)]
    emulation.multiply_add_pairs(a, b, c)
    expected = C + A.float() @ B.float()
    for lane in range(32):
        for i in range(4):
            torch.testing.assert_close(c[lane, i], expected[place_of_c(lane, i)])


@pytest.mark.parametrize("dtype", [HALF, BFLOAT], ids=str)
@pytest.mark.parametrize("m", [1, 16, 35])
def test_16_bits_are_multiplied_16_at_a_time(m, dtype, monkeypatch):
    """As exactly as in TF32, with half the instructions."""
    inputs = features(1, m, (5, 7), (9, 16), dtype)
    monkeypatch.setattr(_checks, "allow_tf32", lambda tensor: True)

    def counted(z):
        before = emulation.products()
        C = pose_kernels.correlation_4d(*z, impl="cuda")
        return C, emulation.products() - before

    (found, narrow), (same, wide) = counted(inputs), counted([x.float() for x in inputs])
    assert narrow * -(-m // 8) == wide * -(-m // 16) > 0
    assert relative_error(found, same) < TOLERANCE[dtype][0]
    exact = torch.einsum("bmij,bmkl->bijkl", *(x.double() for x in inputs)).flatten(1, 2)
    assert relative_error(same, exact) < 1e-6


# ---- copies that run ahead


def test_a_copy_is_held_back_until_it_is_waited_for():
    """Or made at once, in the other order: hardware may do either."""
    source = torch.randn(64, 4)
    for reverse, wait, there in [(False, True, (True, False)), (False, False, (False, False)),
                                 (True, False, (True, True)), (True, True, (True, True))]:
        emulation.set(reverse, False, False)
        to = torch.zeros(64, 4)
        emulation.copy_ahead(source, to, wait)
        for half, come in zip((slice(0, 32), slice(32, 64)), there, strict=True):
            assert torch.equal(to[half], source[half]) == come
            assert come or to[half].isnan().all()


@pytest.mark.parametrize("dtype", [FLOAT, BFLOAT, DOUBLE], ids=str)
def test_kernels_that_do_not_wait_are_found_out(dtype):
    """Without its waits the backward reads what has not come; with them it is right."""
    inputs = features(1, 5, (13, 12), (19, 16), dtype)  # quads: what is whole is copied
    assert all(error < TOLERANCE[dtype][1] for error in errors_of_gradients(inputs)[1:])
    emulation.set(False, False, False, waiting=False)
    assert not all(error < TOLERANCE[dtype][1] for error in errors_of_gradients(inputs)[1:])


@pytest.mark.parametrize("sizes", [((13, 12), (19, 16)), ((13, 11), (9, 17))], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_gradients_that_run_ahead_over_many_tiles(sizes, memory_format):
    """Few blocks walk far, whether or not the rows of the gradient are whole quads."""
    emulation.set(False, True, False)
    inputs = features(2, 9, *sizes, FLOAT)
    assert max(errors_of_gradients(inputs, memory_format=memory_format)) < 2e-6
