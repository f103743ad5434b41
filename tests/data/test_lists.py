"""Pairs and list files, the rule that makes pairs, and the names of the published data sets."""

import itertools
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from posemodel.config.sections import ON_DISK, WITH_BORDERS
from posemodel.data import lists
from posemodel.data.layouts import LAYOUTS
from posemodel.data.layouts.deepfashion import DEEPFASHION, flatten_inshop
from posemodel.data.layouts.market import MARKET
from posemodel.poses import annotations
from tests.small_datasets import MARKET_TRAIN, needs_market, refusal


def write(folder: Path, text: str) -> Path:
    path = folder / "pairs.csv"
    path.write_bytes(text.encode())
    return path


def test_the_config_knows_the_names_of_the_layouts():
    assert tuple(LAYOUTS) == ON_DISK
    assert tuple(name for name, layout in LAYOUTS.items() if layout.border) == WITH_BORDERS


# --- pairs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [
    '"from,to"\n"b,a"\n"a,a"\n', '"from","to"\n"b","a"\n"a","a"\n', "from,to;;\nb,a;;\na,a\n"])
@pytest.mark.parametrize("code", ["utf-8", "utf-16"])
def test_pairs_as_spreadsheets_save_them(tmp_path, text, code):
    path = tmp_path / "pairs.csv"
    path.write_bytes(text.encode(code))
    assert lists.read_pairs(path, ["a", "b"]).tolist() == [[1, 0], [0, 0]]
    names = tmp_path / "train.lst"
    names.write_bytes('"a"\n"b"\n'.encode(code))
    assert lists.read_list(names) == ["a", "b"]


def test_pairs_are_indices(tmp_path):
    path = write(tmp_path, "from,to\r\nb,a\r\nc, b\na,a\n\n")
    pairs = lists.read_pairs(path, ["a", "b", "c"])
    assert pairs.dtype == np.int64 and pairs.tolist() == [[1, 0], [2, 1], [0, 0]]
    lists.write_pairs(tmp_path / "again.csv", ["a", "b", "c"], pairs)
    assert (tmp_path / "again.csv").read_text() == "from,to\nb,a\nc,b\na,a\n"
    assert lists.read_pairs(write(tmp_path, "from,to\n"), ["a"]).shape == (0, 2)


@pytest.mark.parametrize("text, says", [
    ("", "line 1: expected the header from,to"), ("to,from\na,b\n", "line 1: expected the header"),
    ("from,to\na,b\na\n", "line 3: expected two names"),
    ("from,to\na,b\n\na,b,b\n", "line 4: expected two names"),
    ("from,to\na,b\nb,x\n", "line 3: 'x' has no row of joints"),
])
def test_bad_pairs_are_named(tmp_path, text, says):
    path = write(tmp_path, text)
    assert refusal(lists.read_pairs, path, ["a", "b"]).startswith(f"{path}, {says}")


def random_market(people: int) -> tuple[list[str], np.ndarray]:
    random = np.random.default_rng(0)
    names = [f"{person:04d}_c{random.integers(1, 7)}s1_{number:06d}_01.jpg"
             for number, person in enumerate(random.integers(0, people, 6 * people))]
    names[3], names[5] = "-1_c1s1_000000_01.jpg", "-1_c1s1_000001_01.jpg"
    joints = np.ones((len(names), 18, 3))
    joints[..., 2] = random.random((len(names), 18)) < 0.95
    return names, joints


def test_the_pair_rule_is_that_of_permutations():
    names, joints = random_market(9)
    torso = joints[:, 2, 2] * joints[:, 5, 2] * joints[:, 8, 2] * joints[:, 11, 2] > 0
    usable = [name for name, whole in zip(names, torso, strict=True)
              if whole and not name.startswith(("-1", "0000"))]
    persons = dict.fromkeys(name.split("_")[0] for name in usable)
    expected = [pair for person in persons for pair in itertools.permutations(
        [name for name in usable if name.split("_")[0] == person], 2)]
    found = [(names[source], names[target])
             for source, target in MARKET.pairs("train", names, joints)]
    assert found == expected and len(found) > 50
    assert MARKET.pairs("train", [], np.zeros((0, 18, 3))).shape == (0, 2)


def test_the_test_pairs_of_market_are_a_sample_by_seed_0():
    names, joints = random_market(400)
    pairs = MARKET.pairs("train", names, joints)
    assert len(pairs) < 12_000
    np.testing.assert_array_equal(MARKET.pairs("test", names, joints), pairs)
    names = [f"0001_{number}" for number in range(120)]
    joints = np.ones((120, 18, 3))
    order = np.random.RandomState(0).permutation(120 * 119)[:12_000]
    np.testing.assert_array_equal(MARKET.pairs("test", names, joints),
                                  MARKET.pairs("train", names, joints)[order])


@needs_market
def test_the_published_pairs_of_market_come_out():
    started = time.process_time()
    names, joints = annotations.read_annotations(MARKET_TRAIN)
    pairs = MARKET.pairs("train", names, joints)
    assert time.process_time() - started < 10
    assert len(names) == 12_936 and (joints[..., 2].sum(1) == 0).sum() == 419
    usable = annotations.has_torso(joints)
    assert usable.sum() == 12_116
    persons = [MARKET.person(name) for name in names]
    assert len({person for person, whole in zip(persons, usable, strict=True) if whole}) == 745
    assert len(pairs) == 263_632
    assert all(persons[source] == persons[target] for source, target in pairs[::997])


@needs_market
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells memory in /proc only")
def test_market_takes_little_memory():
    script = ("import sys, pathlib\nfrom posemodel.data.layouts.market import MARKET\n"
              "from posemodel.poses import annotations\n"
              "read = annotations.read_annotations(pathlib.Path(sys.argv[1]))\n"
              "MARKET.pairs('train', *read)\n"
              "assert 'torch' not in sys.modules\n"
              "print(pathlib.Path('/proc/self/status').read_text())")
    ran = subprocess.run([sys.executable, "-c", script, MARKET_TRAIN], capture_output=True,
                         text=True, check=True)
    # Not ru_maxrss, which begins with the size of the process that started this one.
    assert int(re.search(r"VmHWM:\s+(\d+) kB", ran.stdout)[1]) < 200_000


# --- names --------------------------------------------------------------------------------------


RAW = "WOMEN/Tees_Tanks/id_00007838/05_7_additional.jpg"
FLAT = "fashionWOMENTees_Tanksid0000783805_7additional.jpg"


def test_inshop_paths_are_flattened():
    assert flatten_inshop(RAW) == FLAT
    assert flatten_inshop("MEN/Denim/id_00000080/01_1_front.jpg") == \
        "fashionMENDenimid0000008001_1front.jpg"


@pytest.mark.parametrize("path", ["", "a.jpg", f"img/{RAW}", "WOMEN/Tees/id_1/front.jpg"])
def test_other_paths_are_refused(path):
    assert "no path of the In-shop benchmark" in refusal(flatten_inshop, path)


def test_a_person_is_a_garment_in_an_outfit_whatever_the_spelling():
    both = (FLAT, "fasionWOMENTeesTanksid0000783805_7additional.jpg")
    assert {DEEPFASHION.person(name) for name in both} == {"WOMENTeesTanksid0000783805"}
    other_outfit = flatten_inshop(RAW.replace("/05", "/06"))
    assert DEEPFASHION.person(other_outfit) != DEEPFASHION.person(FLAT)
    other_view = flatten_inshop(RAW.replace("7_additional", "2_side"))
    assert DEEPFASHION.person(other_view) == DEEPFASHION.person(FLAT)


@pytest.mark.parametrize("name", ["", "a.jpg", "0002_c1s1_000451_03.jpg", FLAT[7:]])
def test_other_names_have_no_garment(name):
    assert "no flattened DeepFashion name" in refusal(DEEPFASHION.person, name)


def test_people_of_market():
    assert MARKET.person("0002_c1s1_000451_03.jpg") == "0002"
    assert MARKET.person("-1_c1s1_000401_03.jpg") == "-1"


def test_lists(tmp_path):
    path = tmp_path / "train.lst"
    path.write_bytes(f"{FLAT}\r\n\nb.jpg\n".encode())
    assert lists.read_list(path) == [FLAT, "b.jpg"]
