"""FlopCounterMode: the operators count as the plain PyTorch of their references does."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import pose_kernels

ROOT = Path(__file__).resolve().parents[2]
B, M, SOURCE, TARGET = 2, 5, (4, 6), (3, 7)
MAP = 2 * B * M * 24 * 21
CONVOLUTION, READING = 2 * B * 8 * 24 * 9 * 21, 2 * B * 3 * 24 * 21


def features():
    torch.manual_seed(0)
    return [torch.randn(B, M, *size, requires_grad=True) for size in (SOURCE, TARGET)]


CALLS = {
    "correlation_4d": (lambda s, t, **o: pose_kernels.correlation_4d(s, t, **o), MAP, 2 * MAP),
    "guided_correlation": (
        lambda s, t, **o: pose_kernels.guided_correlation(s, t, **o), MAP, 3 * MAP),
    "guided_correlation_conv2d": (
        lambda s, t, **o: pose_kernels.guided_correlation_conv2d(
            s, t, torch.randn(8, 24, 3, 3, requires_grad=True), **o),
        MAP + CONVOLUTION, 3 * MAP + 2 * CONVOLUTION),
    "guided_readout": (
        lambda s, t, **o: pose_kernels.guided_readout(
            s, t, torch.randn(3, 24, requires_grad=True), **o),
        MAP + READING, 3 * MAP + 2 * READING),
}


@pytest.mark.parametrize("name", CALLS)
def test_forward_as_the_reference_and_backward_with_the_map_made_again(name):
    call, forward, backward = CALLS[name]
    with FlopCounterMode(display=False) as plain:
        call(*features(), impl="reference")
    assert plain.get_total_flops() == forward
    with FlopCounterMode(display=False) as counter:
        result = call(*features(), impl="cpp")
        assert counter.get_total_flops() == forward
        result.sum().backward()
    assert counter.get_total_flops() == forward + backward


def test_gradients_that_nobody_asked_for_count_nothing():
    source, target = features()
    values = torch.randn(3, 24)
    with FlopCounterMode(display=False) as counter:
        pose_kernels.guided_readout(source, target.detach(), values, impl="cpp").sum().backward()
    assert counter.get_total_flops() == MAP + READING + 2 * MAP + READING


def test_two_read_outs_make_the_map_once():
    source, target = features()
    values, squared = (torch.randn(3, 24, requires_grad=grad) for grad in (True, False))
    with FlopCounterMode(display=False) as counter:
        first, second = pose_kernels.guided_readout(source, target, (values, squared), (1, 2),
                                                    impl="cpp")
        assert counter.get_total_flops() == MAP + 2 * READING
        (first.sum() + second.sum()).backward()
    assert counter.get_total_flops() == MAP + 2 * READING + 3 * MAP + 3 * READING


def test_matches_are_one_map():
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        pose_kernels.mutual_matches(*features(), impl="cpp")
    assert counter.get_total_flops() == MAP


def test_whoever_imports_the_counter_last_has_the_formulas_and_nobody_pays_for_it():
    code = ("import sys, torch, pose_kernels as p\n"
            "x = torch.randn(1, 2, 3, 3)\n"
            "p.correlation_4d(x, x, impl='cpp')\n"
            "assert 'torch.utils.flop_counter' not in sys.modules\n"
            "from torch.utils.flop_counter import FlopCounterMode\n"
            "with FlopCounterMode(display=False) as counter: p.correlation_4d(x, x, impl='cpp')\n"
            "assert counter.get_total_flops() == 2 * 2 * 81, counter.get_total_flops()\n")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 0, done.stderr
