"""The benchmarks run, and check what they time. Their figures are not judged here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def bench(name, *words):
    return subprocess.run([sys.executable, str(ROOT / "benchmarks" / name), *words], cwd=ROOT,
                          capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["corr_bench.py", "data_bench.py", "experiments.py"])
def test_help(name):
    done = bench(name, "--help")
    assert done.returncode == 0 and "usage" in done.stdout


def test_data_bench_measures_a_rate():
    done = bench("data_bench.py", "--sizes", "32", "--seconds", "0.1", "--threads", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pairs_per_second_32"] > 0


def test_experiments_names_the_variants_when_one_is_misspelt():
    done = bench("experiments.py", "affine-zero")
    assert done.returncode == 2 and "affine-0" in done.stderr and "Traceback" not in done.stderr


def test_corr_bench_checks_before_it_times(tmp_path):
    file = tmp_path / "bench.json"
    done = bench("corr_bench.py", "--grid", "8", "--features", "4", "--image", "16", "--repeats",
                 "2", "--threads", "1", "--json", str(file))
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())["rows"]
    ours = [row for row in rows if row["impl"] == "cpp"]
    assert {row["op"] for row in ours} == {"guided_correlation", "flow_sample"}
    assert all(row["error"] < 1e-5 for row in ours)
