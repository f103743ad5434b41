"""Runs `triton_interpreted.py` where Triton interprets its kernels: decided when it is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pose_kernels


def test_the_kernels_through_the_interpreter():
    pytest.importorskip("triton")
    inner = Path(__file__).with_name("triton_interpreted.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(inner)]
    run = subprocess.run(
        command,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=inner.parents[2],
    )
    assert run.returncode == 0, run.stdout


def test_says_where_it_runs():
    entry = pose_kernels.implementations()["guided_correlation"]["triton"]
    assert entry.devices == ("cuda",)
    if not entry.available:
        assert entry.reason == "Triton is not installed"
