"""Runs csrc/cuda/*.cu whole on the CPU: `cuda_emulated.py`, and the tests of every implementation
where its name is `cuda`. In a process of its own, for there it takes the place of the CPU library.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pose_kernels

#: What is Python's alone, and repeats, which change nothing here: `cuda_emulated.py` changes the
# order of threads.
LEFT_OUT = "same_bits or compile or export or forward_mode or layout_of_what"
CHOSEN = f"(cuda or band or channels_last_result) and not ({LEFT_OUT})"


@pytest.mark.skipif(shutil.which("g++") is None, reason="executing the CUDA sources needs g++")
def test_the_host_code_of_the_cuda_operators():
    here = Path(__file__).parent
    tests = [f"test_{op}" for op in pose_kernels.implementations()]
    files = [str(here / f"{name}.py") for name in ("cuda_emulated", "test_operators", *tests)]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p",
               "emulated_cuda", "-k", CHOSEN, *files]
    path = os.pathsep.join([str(here.parent / "emulation"), *sys.path])
    run = subprocess.run(command, cwd=here.parents[1], text=True,
                         env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert run.returncode == 0, run.stdout
