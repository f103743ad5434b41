"""Annotation, pairs and list files: read, written, refused; the pair rule; names."""

import itertools
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posemodel.data import annotations as an
from posemodel.errors import UserError

HEADER = "name:keypoints_y:keypoints_x\n"
SHARED = Path(os.environ.get("POSEMODEL_SHARED_DATA",
                             Path(__file__).parents[3] / "shared" / "data"))
MARKET_TRAIN = SHARED / "market-annotation-train.csv"
needs_market = pytest.mark.skipif(not MARKET_TRAIN.exists(), reason=f"{MARKET_TRAIN} is not there")


def row(name: str, y=range(18), x=range(20, 38)) -> str:
    return f"{name}: {list(y)}: {list(x)}\n"


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "annotation.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def message(call, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- annotations --------------------------------------------------------------------------------


def test_y_comes_first(tmp_path):
    names, joints = an.read_annotations(write(tmp_path, HEADER + row("a.jpg")))
    assert names == ("a.jpg",)
    assert joints.dtype == np.float32 and joints.shape == (1, 18, 3)
    np.testing.assert_array_equal(joints[0, :, 0], np.arange(20, 38))
    np.testing.assert_array_equal(joints[0, :, 1], np.arange(18))
    assert (joints[0, :, 2] == 1).all()


def test_the_header_says_which_column_is_which(tmp_path):
    swapped = "name: keypoints_x: keypoints_y\n"
    _, joints = an.read_annotations(write(tmp_path, swapped + row("a.jpg")))
    np.testing.assert_array_equal(joints[0, :, 1], np.arange(20, 38))


def test_a_joint_is_missing_where_either_number_is_minus_one(tmp_path):
    y, x = list(range(18)), list(range(20, 38))
    y[3] = x[5] = y[7] = x[7] = -1
    x[9] = -7  # left of the 176 columns: a coordinate
    _, joints = an.read_annotations(write(tmp_path, HEADER + row("a.jpg", y, x)))
    assert np.flatnonzero(joints[0, :, 2] == 0).tolist() == [3, 5, 7]
    assert (joints[0, [3, 5, 7]] == 0).all()
    assert joints[0, 9].tolist() == [-7, 9, 1]


@pytest.mark.parametrize("change", [
    lambda text: text.replace("\n", "\r\n"),
    lambda text: text + "\n\n  \n",
    lambda text: "\ufeff" + text,
    lambda text: text.rstrip("\n"),
    lambda text: text.replace(": [", ":["),
])
def test_harmless_differences(tmp_path, change):
    text = HEADER + row("a.jpg") + row("b.jpg")
    plain = an.read_annotations(write(tmp_path, text))
    names, joints = an.read_annotations(write(tmp_path, change(text)))
    assert names == plain[0] == ("a.jpg", "b.jpg")
    np.testing.assert_array_equal(joints, plain[1])


def test_a_header_alone_has_no_rows(tmp_path):
    names, joints = an.read_annotations(write(tmp_path, HEADER))
    assert names == () and joints.shape == (0, 18, 3)


NUMBERS = "[" + ", ".join("1" * 18) + "]"
BAD_ROWS = {
    "x.jpg": "columns",
    f"x.jpg: {NUMBERS}": "columns",
    f"x.jpg: {NUMBERS}: {NUMBERS}: {NUMBERS}": "columns",
    f"x.jpg: {NUMBERS[:-4]}]: {NUMBERS}": "17 numbers, expected .* 18 joints; 17 is COCO",
    f"x.jpg: {NUMBERS}: {NUMBERS[:-1]}{', 1' * 7}]": "BODY_25",
    f"x.jpg: {NUMBERS[:-1]}: {NUMBERS}": "keypoints_y is no list",
    f"x.jpg: {NUMBERS}: {NUMBERS} 1": "keypoints_x is no list",
    f"x.jpg: {NUMBERS}: ": "keypoints_x is no list",
    f"x.jpg: {NUMBERS}: 7": "no list",
    f"x.jpg: {NUMBERS}: {NUMBERS.replace('1', 'true')}": "no list",
    f"x.jpg: {NUMBERS}: {NUMBERS.replace('1', 'null')}": "no list",
    f"x.jpg: {NUMBERS}: {NUMBERS.replace('1', 'NaN')}": "no list",
    f"x.jpg: {NUMBERS}: {NUMBERS.replace('1', '[1]')}": "no list",
    f"x.jpg: {NUMBERS}: {'[' * 100_000}": "no list",
    f"x.jpg: {NUMBERS}: {NUMBERS.replace('1', '1e999')}": "beyond",
    f"x.jpg: {NUMBERS}: {NUMBERS.replace('1', '1' * 400)}": "beyond",
    f": {NUMBERS}: {NUMBERS}": "plain file name",
    f"../x.jpg: {NUMBERS}: {NUMBERS}": "plain file name",
    f"c\\x.jpg: {NUMBERS}: {NUMBERS}": "plain file name",
    f"x\0.jpg: {NUMBERS}: {NUMBERS}": "plain file name",
}


@pytest.mark.parametrize("bad", BAD_ROWS, ids=lambda bad: bad[:12] + BAD_ROWS[bad][:12])
def test_a_bad_row_is_named(tmp_path, bad):
    path = write(tmp_path, HEADER + row("a.jpg") + "\n" + bad + "\n" + row("b.jpg"))
    text = message(an.read_annotations, path)
    assert text.startswith(f"{path}, line 4: ")
    assert re.search(BAD_ROWS[bad], text)
    assert len(text) < 500


def test_several_bad_rows_are_named(tmp_path):
    path = write(tmp_path, HEADER + row("a.jpg") + "bad\n" * 5)
    text = message(an.read_annotations, path)
    assert all(f"line {number}: " in text for number in (3, 4, 5))
    assert "line 6" not in text and text.endswith("and 2 more")


def test_a_name_that_comes_twice_is_named_with_both_lines(tmp_path):
    path = write(tmp_path, HEADER + row("a.jpg") + row("b.jpg") + row("a.jpg"))
    assert message(an.read_annotations, path) == f"{path}, line 4: a.jpg is in line 2 already"


@pytest.mark.parametrize("content, says", [
    (b"", "line 1: expected the header"),
    (row("a.jpg").encode(), "line 1: expected the header"),
    (b"name:x:y\n", "line 1: expected the header"),
    ((HEADER + row("a.jpg")).encode() + b"\xff\xd8", "line 3: no text"),
])
def test_files_of_another_kind(tmp_path, content, says):
    assert says in message(an.read_annotations, write(tmp_path, content))


def test_a_file_that_is_not_there(tmp_path):
    assert "No such file" in message(an.read_annotations, tmp_path / "nothing.csv")


ROWS = [row(f"{number}.jpg") for number in range(4)]


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, 3), start=st.integers(0, 170), length=st.integers(0, 30),
       new=st.text(alphabet='0123456789-.,:[]{}"eEx \t\x00\x0b\u2028é/\\', max_size=8))
def test_a_mutated_row_is_read_or_named(tmp_path_factory, at, start, length, new):
    folder = tmp_path_factory.getbasetemp()
    changed = ROWS[at][:-1]
    changed = changed[:start] + new + changed[start + length:]
    path = write(folder, HEADER + "".join(ROWS[:at]) + changed + "\n" + "".join(ROWS[at + 1:]))
    try:
        names, joints = an.read_annotations(path)
    except UserError as error:
        # A name that the row took from a later one is found in the later one.
        where = [f"{path}, line {line}: " for line in range(at + 2, 6)]
        assert str(error).startswith(tuple(where))
        assert str(error).startswith(where[0]) or "already" in str(error)
    else:
        assert len(names) == len(joints) == 4 - (not changed.strip())
        assert np.isfinite(joints).all() and (joints[joints[..., 2] == 0] == 0).all()
        others = [f"{number}.jpg" for number in range(4) if number != at]
        assert set(others) <= set(names)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 255), st.integers(0, 255))),
                         min_size=18, max_size=18), max_size=4))
def test_what_is_written_is_read_again(tmp_path_factory, bodies):
    path = tmp_path_factory.getbasetemp() / "written.csv"
    joints = np.array([[(*point, 1) if point else (0, 0, 0) for point in body] for body in bodies],
                      np.float32).reshape(-1, 18, 3)
    names = tuple(f"{number}.jpg" for number in range(len(bodies)))
    an.write_annotations(path, names, joints)
    again = an.read_annotations(path)
    assert again[0] == names
    np.testing.assert_array_equal(again[1], joints)


def test_a_joint_that_would_read_as_missing_is_not_written(tmp_path):
    joints = np.ones((1, 18, 3))
    joints[0, 3, 0] = -1.2
    with pytest.raises(ValueError, match="missing"):
        an.write_annotations(tmp_path / "a.csv", ["a.jpg"], joints)


# --- pairs --------------------------------------------------------------------------------------


def test_pairs_are_indices(tmp_path):
    path = write(tmp_path, "from,to\r\nb,a\r\nc, b\na,a\n\n")
    pairs = an.read_pairs(path, ["a", "b", "c"])
    assert pairs.dtype == np.int64 and pairs.tolist() == [[1, 0], [2, 1], [0, 0]]
    an.write_pairs(tmp_path / "again.csv", ["a", "b", "c"], pairs)
    assert (tmp_path / "again.csv").read_text() == "from,to\nb,a\nc,b\na,a\n"
    assert an.read_pairs(write(tmp_path, "from,to\n"), ["a"]).shape == (0, 2)


@pytest.mark.parametrize("text, says", [
    ("", "line 1: expected the header from,to"), ("to,from\na,b\n", "line 1: expected the header"),
    ("from,to\na,b\na\n", "line 3: expected two names"),
    ("from,to\na,b\n\na,b,b\n", "line 4: expected two names"),
    ("from,to\na,b\nb,x\n", "line 3: 'x' has no row of joints"),
])
def test_bad_pairs_are_named(tmp_path, text, says):
    path = write(tmp_path, text)
    assert message(an.read_pairs, path, ["a", "b"]).startswith(f"{path}, {says}")


def random_market(people: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    random = np.random.default_rng(seed)
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
    found = [(names[source], names[target]) for source, target in an.market_pairs(names, joints)]
    assert found == expected and len(found) > 50
    assert an.market_pairs([], np.zeros((0, 18, 3))).shape == (0, 2)


def test_the_test_pairs_of_market_are_a_sample_by_seed_0():
    names, joints = random_market(400)
    pairs = an.market_pairs(names, joints)
    assert len(pairs) < 12_000
    np.testing.assert_array_equal(an.market_test_pairs(names, joints), pairs)
    names = [f"0001_{number}" for number in range(120)]
    joints = np.ones((120, 18, 3))
    order = np.random.RandomState(0).permutation(120 * 119)[:12_000]
    np.testing.assert_array_equal(an.market_test_pairs(names, joints),
                                  an.market_pairs(names, joints)[order])


@needs_market
def test_the_published_pairs_of_market_come_out():
    started = time.process_time()
    names, joints = an.read_annotations(MARKET_TRAIN)
    pairs = an.market_pairs(names, joints)
    assert time.process_time() - started < 10
    assert len(names) == 12_936 and (joints[..., 2].sum(1) == 0).sum() == 419
    usable = an.has_torso(joints)
    assert usable.sum() == 12_116
    persons = [an.market_person(name) for name in names]
    assert len({person for person, whole in zip(persons, usable, strict=True) if whole}) == 745
    assert len(pairs) == 263_632
    assert all(persons[source] == persons[target] for source, target in pairs[::997])


@needs_market
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells memory in /proc only")
def test_market_takes_little_memory():
    script = ("import sys, pathlib\nfrom posemodel.data import annotations as an\n"
              "an.market_pairs(*an.read_annotations(pathlib.Path(sys.argv[1])))\n"
              "assert 'torch' not in sys.modules\n"
              "print(pathlib.Path('/proc/self/status').read_text())")
    ran = subprocess.run([sys.executable, "-c", script, MARKET_TRAIN], capture_output=True,
                         text=True, check=True)
    # Not ru_maxrss, which begins with the size of the process that started this one.
    assert int(re.search(r"VmHWM:\s+(\d+) kB", ran.stdout)[1]) < 200_000


@needs_market
def test_a_real_file_is_written_to_the_same_bytes(tmp_path):
    an.write_annotations(tmp_path / "again.csv", *an.read_annotations(MARKET_TRAIN))
    assert (tmp_path / "again.csv").read_bytes() == MARKET_TRAIN.read_bytes()


# --- names --------------------------------------------------------------------------------------


RAW = "WOMEN/Tees_Tanks/id_00007838/05_7_additional.jpg"
FLAT = "fashionWOMENTees_Tanksid0000783805_7additional.jpg"


def test_inshop_paths_are_flattened():
    assert an.flatten_inshop(RAW) == FLAT
    assert an.flatten_inshop("MEN/Denim/id_00000080/01_1_front.jpg") == \
        "fashionMENDenimid0000008001_1front.jpg"
    assert an.flatten_inshop("WOMEN/Tees_Tanks/id_00007334/03_4_full.jpg", spelling="fasion") == \
        "fasionWOMENTeesTanksid0000733403_4full.jpg"


@pytest.mark.parametrize("path", ["", "a.jpg", f"img/{RAW}", "WOMEN/Tees/id_1/front.jpg"])
def test_other_paths_are_refused(path):
    assert "no path of the In-shop benchmark" in message(an.flatten_inshop, path)


def test_a_person_is_a_garment_in_an_outfit_whatever_the_spelling():
    both = [an.flatten_inshop(RAW, spelling=spelling) for spelling in ("fashion", "fasion")]
    assert {an.fashion_person(name) for name in both} == {"WOMENTeesTanksid0000783805"}
    other_outfit = an.flatten_inshop(RAW.replace("/05", "/06"))
    assert an.fashion_person(other_outfit) != an.fashion_person(FLAT)
    other_view = an.flatten_inshop(RAW.replace("7_additional", "2_side"))
    assert an.fashion_person(other_view) == an.fashion_person(FLAT)


@pytest.mark.parametrize("name", ["", "a.jpg", "0002_c1s1_000451_03.jpg", FLAT[7:]])
def test_other_names_have_no_garment(name):
    assert "no flattened DeepFashion name" in message(an.fashion_person, name)


def test_people_of_market():
    assert an.market_person("0002_c1s1_000451_03.jpg") == "0002"
    assert an.market_person("-1_c1s1_000401_03.jpg") == "-1"


def test_lists(tmp_path):
    path = tmp_path / "train.lst"
    path.write_bytes(f"{FLAT}\r\n\nb.jpg\n".encode())
    assert an.read_list(path) == [FLAT, "b.jpg"]
