"""Runs `triton_interpreted.py`, and of the tests of every implementation those that are quick
enough, where Triton interprets its kernels: decided when it is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pose_kernels

INTERPRETED = ("triton_interpreted.py", "test_flow_sample.py::test_agrees_with_grid_sample",
               "test_flow_sample.py::test_dtypes", "test_operators.py::test_empty_batch",
               "test_operators.py::test_against_the_reference_in_float64",
               "test_guided_correlation.py::test_bands_make_up_the_map_and_its_gradient",
               "test_guided_correlation.py::test_zero_column",
               "test_map_results.py::test_a_narrower_map_is_rounded_once",
               "test_map_results.py::test_a_result_in_given_memory",
               "test_correlation_4d.py::test_second_derivative_in_other_types",
               "test_guided_correlation.py::test_ties_go_to_the_first",
               "test_guided_readout.py::test_floors_and_zero_columns",
               "test_guided_readout.py::test_ties_go_to_the_first",
               "test_guided_readout.py::test_squares_move_values_to_where_they_match",
               "test_mutual_matches.py::test_what_is_not_finite",
               "test_mutual_matches.py::test_ties_go_to_the_lowest_index",
               "test_mutual_matches.py::test_nothing_but_minus_infinity")


def test_the_kernels_through_the_interpreter():
    pytest.importorskip("triton")
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
               *(str(here / name) for name in INTERPRETED)]
    run = subprocess.run(command, cwd=here.parents[1], text=True,
                         env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert run.returncode == 0, run.stdout


def test_says_where_it_runs():
    entry = pose_kernels.implementations()["guided_correlation"]["triton"]
    assert entry.devices == ("cuda",)
    if not entry.available:
        assert entry.reason.startswith("Triton ")
