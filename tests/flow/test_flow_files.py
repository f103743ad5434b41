"""Middlebury .flo and .npy files."""

import struct

import numpy as np
import pytest

from posemodel.flow.files import write_flo, write_npy
from tests.flow_reader import read_flo


@pytest.fixture
def flow():
    flow = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    flow[:, 1, 2] = np.nan
    return flow


def test_what_was_written_is_read(tmp_path, flow):
    write_flo(tmp_path / "a.flo", flow)
    np.testing.assert_array_equal(read_flo(tmp_path / "a.flo"), flow)
    assert [file.name for file in tmp_path.iterdir()] == ["a.flo"]


def test_bytes_are_those_of_middlebury(tmp_path, flow):
    write_flo(tmp_path / "a.flo", flow)
    content = (tmp_path / "a.flo").read_bytes()
    assert struct.unpack("<fii", content[:12]) == (202021.25, 5, 3)
    values = struct.unpack("<30f", content[12:])
    assert values[:4] == pytest.approx([flow[0, 0, 0], flow[1, 0, 0], flow[0, 0, 1], flow[1, 0, 1]])
    assert min(values[2 * 7:2 * 7 + 2]) > 1e9  # row 1, column 2 is not known


def test_half_known_is_not_known(tmp_path):
    flow = np.zeros((2, 1, 2), np.float32)
    flow[1, 0, 1] = np.inf
    write_flo(tmp_path / "a.flo", flow)
    assert np.isnan(read_flo(tmp_path / "a.flo")).tolist() == [[[False, True]]] * 2


def test_npy_keeps_what_is_not_known(tmp_path, flow):
    write_npy(tmp_path / "a.npy", flow.astype(np.float64))
    read = np.load(tmp_path / "a.npy")
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, flow)


@pytest.mark.parametrize("write", [write_flo, write_npy])
def test_shapes_are_checked(tmp_path, write):
    with pytest.raises(ValueError, match="expected"):
        write(tmp_path / "a", np.zeros((3, 5, 2)))
    assert not list(tmp_path.iterdir())
