"""bfloat16 through AVX512-BF16 or Intel AMX against the same operators without them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernel_helpers import assert_same_bits_every_time, features, relative_error

import pose_kernels
from pose_kernels import _library

BF16, EPS = 3, 1e-5
ops = torch.ops.pose_kernels
pytestmark = pytest.mark.skipif(
    _library.cpu_reason is not None or ops.simd_level() < BF16, reason="neither is here")

#: B, m, source, target: depths below, at and above the tiles', whole and broken blocks, no sample.
SHAPES = [(2, 1, (3, 5), (4, 3)), (2, 35, (13, 7), (9, 17)), (1, 64, (8, 16), (12, 8)),
          (3, 130, (9, 11), (10, 13)), (1, 33, (16, 17), (15, 21)), (0, 35, (4, 4), (5, 4))]


def broken(z, kind):
    """With what a maximum, a norm or a sum must notice."""
    if kind == "nan":
        z[0][0, 1, 0, 2] = z[1][-1, 0, 1, 1] = float("nan")
    elif kind == "infinite":
        z[1][0, 3, 2, 2] = float("inf")
    elif kind == "ties":
        z[1][:, :, 2] = z[1][:, :, 1]
    return z


def outcomes():
    """Of every operator that may use it, in the order of the calls: tensors."""
    torch.manual_seed(5)
    cases = [(shape, None) for shape in SHAPES]
    cases += [(SHAPES[1], kind) for kind in ("nan", "infinite", "ties")]
    for shape, kind in cases:
        z = broken(features(*shape, torch.bfloat16), kind)
        yield ops.correlation_4d(*z, False, False, torch.bfloat16)
        yield ops.correlation_4d(*z, False, True, torch.bfloat16)
        yield from ops.mutual_matches(*z, 2, False)
        map_and_statistics = ops.guided_correlation(*z, EPS, False, False, torch.bfloat16)
        yield from map_and_statistics
        G = torch.randn(map_and_statistics[0].shape).bfloat16()
        yield from ops.guided_correlation_backward(G, *z, *map_and_statistics[1:], EPS, False,
                                                   True, True)
        S = shape[2][0] * shape[2][1]
        for power in (1, 2):
            for outputs in (2, 33):
                for dtype in (torch.float32, torch.bfloat16):
                    values = torch.randn(shape[0], outputs, S).to(dtype)
                    result = ops.guided_readout(*z, values, power, EPS, False)
                    yield from result
                    G = torch.randn(result[0].shape).to(dtype)
                    if kind == "infinite":
                        G[0, 0, 0, 0] = float("inf")
                    yield from ops.guided_readout_backward(
                        G, *z, values, *result, power, EPS, False, True, True, True)
        for dtype in (torch.float32, torch.bfloat16):
            values, squared = torch.randn(33, S).to(dtype), torch.randn(2, S)
            results = ops.guided_readout_pair(*z, values, squared, EPS, False)
            yield from results
            yield from ops.guided_readout_pair_backward(
                *(torch.randn(x.shape).to(x.dtype) for x in results[:2]), *z, values, squared,
                *results, EPS, False, True, True, True, True)


def save(path):
    torch.save(list(outcomes()), path)


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    path = tmp_path_factory.mktemp("bf16") / "outcomes.pt"
    code = (f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_bf16;"
            f" assert test_bf16.ops.simd_level() == 2; test_bf16.save({str(path)!r})")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={**os.environ, "POSE_KERNELS_SIMD": "avx512"})
    assert done.returncode == 0, done.stderr
    return torch.load(path)


def test_the_same_to_rounding(without):
    found = list(outcomes())
    assert len(found) == len(without)
    for a, b in zip(found, without, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        if not a.is_floating_point():
            assert torch.equal(a, b)
            continue
        assert torch.equal(a.isnan(), b.isnan()) and torch.equal(a.isinf(), b.isinf())
        a, b = (torch.where(x.isfinite(), x, 0) for x in (a, b))
        if not b.any():  # a gradient that cancels, of no magnitude
            assert a.abs().max() < 1e-6 if a.numel() else True
            continue
        assert relative_error(a, b) < (2e-3 if a.dtype == torch.bfloat16 else 2e-5)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("power", [1, 2])
def test_the_same_bits_for_any_number_of_threads(power, own):
    z = features(3, 35, (17, 16), (16, 19), torch.bfloat16)
    values = torch.randn(*((3, 40) if own else (40,)), 272).bfloat16()
    assert_same_bits_every_time(
        lambda *x: pose_kernels.guided_readout(*x, power, impl="cpp"), [*z, values])


def test_accuracy_of_products_with_float32():
    """dC and the powers are in two parts: the gradients of float32 values know more than bfloat16
    could, and infinities stay what they are."""
    z = features(1, 64, (16, 16), (16, 18), torch.bfloat16)
    values = torch.randn(32, 256).bfloat16().double()
    wide = [*(x.double() for x in z), values]
    for x in wide:
        x.requires_grad_()
    oracle = pose_kernels.guided_readout(*wide, impl="reference")
    G = torch.randn(oracle.shape).bfloat16()
    exact = torch.autograd.grad(oracle, wide, G.double())
    narrow = values.detach().bfloat16()
    result = ops.guided_readout(*z, narrow, 1, EPS, False)
    # Rounded to bfloat16 at the end: half a unit of 2^-8 at most, some 1.7e-3 on average.
    assert relative_error(result[0], oracle) < 2e-3
    found = ops.guided_readout_backward(G, *z, narrow, oracle.detach().bfloat16(), *result[1:], 1,
                                        EPS, False, True, True, True)
    for a, b in zip(found, exact, strict=True):
        assert relative_error(a, b) < 4e-3
