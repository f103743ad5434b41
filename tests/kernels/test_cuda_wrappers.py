"""Runs csrc/cuda/*.cu whole on the CPU: `cuda_emulated.py`, `cuda_kernels_emulated.py`,
`cuda_device_emulated.py`, and the tests of every implementation where its name is `cuda`. In a
process of its own, for there it takes the place of the CPU library. And the kernels under
sanitizers.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pose_kernels

pytestmark = pytest.mark.skipif(shutil.which("g++") is None,
                                reason="executing the CUDA sources needs g++")

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "emulation"))
import build  # noqa: E402

# What is Python's alone, and repeats, which change nothing here: `cuda_kernels_emulated.py`
# changes the order of threads. Large results are about pages of the CPU's memory. Derivatives are
# checked where the floor of the norms is active, and in one layout. Of a pair of read-outs they are
# those of two.
LEFT_OUT = ("same_bits or compile or export or forward_mode or layout_of_what or vmap or jacobian"
            " or second_derivatives_say_no or (second_derivative and channels_last)"
            " or (gradcheck and 1e-05)"
            " or (large_results and sizes0 and not flow_sample)"
            " or gradcheck_of_a_pair or (a_pair_against and not float32)")
CHOSEN = f"(cuda or band or channels_last_result) and not ({LEFT_OUT})"


def test_the_operators_of_cuda():
    here = Path(__file__).parent
    tests = [f"test_{op}" for op in pose_kernels.implementations()]
    files = [str(here / f"{name}.py")
             for name in ("cuda_emulated", "cuda_kernels_emulated", "cuda_device_emulated",
                          "test_operators", *tests)]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p",
               "emulated_cuda", "-k", CHOSEN, *files]
    path = os.pathsep.join([str(here.parent / "emulation"), *sys.path])
    run = subprocess.run(command, cwd=here.parents[1], text=True,
                         env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert run.returncode == 0, run.stdout


def test_sanitizers_find_nothing():
    """Every kernel on awkward shapes under AddressSanitizer and UBSan, in both orders."""
    try:
        program = build.sanitized_program()
    except RuntimeError as error:
        if "asan" in str(error) or "ubsan" in str(error):
            pytest.skip("no sanitizer runtime for this compiler")
        raise
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
