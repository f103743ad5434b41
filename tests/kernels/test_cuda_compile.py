"""What nvcc made of the kernels: in the library that is here, registers do not spill."""

import sys
from pathlib import Path

import pytest

from pose_kernels import _library

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "emulation"))
import resources  # noqa: E402

LIBRARY = Path(_library.__file__).parent / "_C_cuda.so"


@pytest.mark.skipif(not LIBRARY.exists(), reason="no CUDA library")
@pytest.mark.skipif(resources.cuobjdump() is None, reason="no cuobjdump")
def test_no_kernel_spills():
    """In every type that matters, for every architecture the library was built for."""
    report = resources.of_library(LIBRARY)
    architectures = _library.build_info["cuda"]["architectures"].replace("+PTX", "").split(";")
    assert set(report) == {name.replace(".", "") for name in architectures}
    for rows in report.values():
        assert {
            "row_maxima_kernel",
            "column_sums_kernel",
            "write_map_kernel",
            "map_gradient_kernel",
            "feature_gradients_kernel",
            "readout_kernel",
            "readout_gradient_kernel",
        } <= {name.partition("<")[0] for name, _, _ in rows}
        rows = [row for row in rows if "double" not in row[0]]
        assert [(n, s) for n, _, s in rows if s > 0] == []
        # Two blocks of 256 threads per multiprocessor hide each other's latencies: 128 registers.
        assert [(n, r) for n, r, _ in rows if r > 128] == []
