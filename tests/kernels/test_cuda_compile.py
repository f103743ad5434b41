"""The kernels compile for real architectures, and their registers do not spill."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "emulation"))
import resources  # noqa: E402


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
@pytest.mark.parametrize("architecture", resources.ARCHITECTURES)
def test_no_kernel_spills(architecture):
    report = resources.report(architecture)
    names = {name.partition("<")[0] for name, _, _ in report}
    assert {
        "row_maxima_kernel",
        "column_sums_kernel",
        "write_map_kernel",
        "map_gradient_kernel",
        "feature_gradients_kernel",
        "readout_kernel",
        "readout_gradient_kernel",
    } <= names
    assert [(n, s) for n, _, s in report if s > 0] == []
    # Two blocks of 256 threads per multiprocessor hide each other's latencies: 128 registers.
    assert [(n, r) for n, r, _ in report if "<float" in n and r > 128] == []
