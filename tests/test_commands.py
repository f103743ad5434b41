"""Every command answers `--help` at once: without torch, whose import takes seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("words, says", [
    ("posemodel.train", "--optim.lr"), ("posemodel.evaluate", "--protocol"),
    ("posemodel.export", "--compile"), ("posemodel.transfer", "--source-pose"),
    ("posemodel.doctor", "--data"), ("posemodel.demo", "--port"), ("posemodel.study", "serve"),
    ("posemodel.reproduce", "table1"), ("posemodel.reproduce table5", "--poses"),
    ("posemodel.reid", "augment"), ("posemodel.evaluation", "pckh"),
    ("posemodel.data", "synthesize"),
    ("posemodel.data check", "--json"), ("posemodel.data prepare", "--annotations"),
    ("posemodel.data synthesize", "--layout"), ("posemodel.data pose", "--threshold"),
    ("benchmarks/corr_bench.py", "--grids"), ("benchmarks/step_bench.py", "eager compiled"),
])
def test_help_needs_no_torch(words, says):
    program, *rest = words.split()
    # The help of the data commands lists layouts, whose code needs NumPy.
    heavy = {"torch"} if program == "posemodel.data" else {"torch", "numpy", "PIL"}
    run = "run_path" if program.endswith(".py") else "run_module"
    code = (f"import runpy, sys\nsys.argv = {[program, *rest, '--help']!r}\n"
            "sys.path.insert(0, 'benchmarks')\n"
            f"try:\n    runpy.{run}({program!r}, run_name='__main__')\n"
            "except SystemExit as stop:\n    assert stop.code in (0, None), stop.code\n"
            f"assert not {heavy!r} & sys.modules.keys()\n")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "usage" in done.stdout and says in done.stdout
