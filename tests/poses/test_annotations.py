"""Annotation files: read, written, refused."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posemodel.poses import annotations
from posemodel.runtime.errors import UserError
from tests.small_datasets import MARKET_TRAIN, needs_market, refusal

HEADER = "name:keypoints_y:keypoints_x\n"


def row(name: str, y=range(18), x=range(20, 38)) -> str:
    return f"{name}: {list(y)}: {list(x)}\n"


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "annotation.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


# --- annotations --------------------------------------------------------------------------------


def test_y_comes_first(tmp_path):
    names, joints = annotations.read_annotations(write(tmp_path, HEADER + row("a.jpg")))
    assert names == ("a.jpg",)
    assert joints.dtype == np.float32 and joints.shape == (1, 18, 3)
    np.testing.assert_array_equal(joints[0, :, 0], np.arange(20, 38))
    np.testing.assert_array_equal(joints[0, :, 1], np.arange(18))
    assert (joints[0, :, 2] == 1).all()


def test_the_header_says_which_column_is_which(tmp_path):
    swapped = "name: keypoints_x: keypoints_y\n"
    _, joints = annotations.read_annotations(write(tmp_path, swapped + row("a.jpg")))
    np.testing.assert_array_equal(joints[0, :, 1], np.arange(20, 38))


def test_a_joint_is_missing_where_either_number_is_minus_one(tmp_path):
    y, x = list(range(18)), list(range(20, 38))
    y[3] = x[5] = y[7] = x[7] = -1
    x[9] = -7  # left of the 176 columns: a coordinate
    _, joints = annotations.read_annotations(write(tmp_path, HEADER + row("a.jpg", y, x)))
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
    plain = annotations.read_annotations(write(tmp_path, text))
    names, joints = annotations.read_annotations(write(tmp_path, change(text)))
    assert names == plain[0] == ("a.jpg", "b.jpg")
    np.testing.assert_array_equal(joints, plain[1])


def test_a_header_alone_has_no_rows(tmp_path):
    names, joints = annotations.read_annotations(write(tmp_path, HEADER))
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
    f"x.jpg: {NUMBERS}: {NUMBERS.replace('1', 'Infinity')}": "no list",
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
    text = refusal(annotations.read_annotations, path)
    assert text.startswith(f"{path}, line 4: ")
    assert re.search(BAD_ROWS[bad], text)
    assert len(text) < 500


def test_several_bad_rows_are_named(tmp_path):
    path = write(tmp_path, HEADER + row("a.jpg") + "bad\n" * 5)
    text = refusal(annotations.read_annotations, path)
    assert all(f"line {number}: " in text for number in (3, 4, 5))
    assert "line 6" not in text and text.endswith("and 2 more")


def test_a_name_that_comes_twice_is_named_with_both_lines(tmp_path):
    path = write(tmp_path, HEADER + row("a.jpg") + row("b.jpg") + row("a.jpg"))
    said = refusal(annotations.read_annotations, path)
    assert said == f"{path}, line 4: a.jpg is in line 2 already"


@pytest.mark.parametrize("content, says", [
    (b"", "line 1: expected the header"), (row("a.jpg").encode(), "line 1: expected the header"),
    (b"name:x:y\n", "line 1: expected the header"),
    ((HEADER + row("a.jpg")).encode() + b"\xff\xd8", "line 3: no text"),
])
def test_files_of_another_kind(tmp_path, content, says):
    assert says in refusal(annotations.read_annotations, write(tmp_path, content))


def test_a_file_that_is_not_there(tmp_path):
    assert "No such file" in refusal(annotations.read_annotations, tmp_path / "nothing.csv")


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
        names, joints = annotations.read_annotations(path)
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
    annotations.write_annotations(path, names, joints)
    again = annotations.read_annotations(path)
    assert again[0] == names
    np.testing.assert_array_equal(again[1], joints)


def test_a_joint_that_would_read_as_missing_is_not_written(tmp_path):
    joints = np.ones((1, 18, 3))
    joints[0, 3, 0] = -1.2
    with pytest.raises(ValueError, match="missing"):
        annotations.write_annotations(tmp_path / "a.csv", ["a.jpg"], joints)


@needs_market
def test_a_real_file_is_written_to_the_same_bytes(tmp_path):
    read = annotations.read_annotations(MARKET_TRAIN)
    annotations.write_annotations(tmp_path / "again.csv", *read)
    assert (tmp_path / "again.csv").read_bytes() == MARKET_TRAIN.read_bytes()


@pytest.mark.parametrize("word", ["null", "NaN"])
def test_null_and_nan_are_missing_joints(tmp_path, word):
    text = row("x.jpg").replace("[0, 1,", f"[0, {word},")
    assert word in text
    _, joints = annotations.read_annotations(write(tmp_path, HEADER + text))
    assert np.flatnonzero(joints[0, :, 2] == 0).tolist() == [1]


def as_pandas(text: str, separator: str, *, index: bool = True) -> str:
    """Its default: commas, quotes where cells have some, numbers of the rows before them."""
    lines = []
    for number, line in enumerate(text.splitlines(), -1):
        cells = [f'"{cell.strip()}"' if "," in cell else cell.strip() for cell in line.split(":")]
        lines.append(separator.join([str(number) if number >= 0 else ""] * index + cells))
    return "\n".join([*lines, ""])


@pytest.mark.parametrize("change", [
    lambda text: text.encode("utf-16"),
    lambda text: text.encode("utf-16-le"),
    lambda text: text.replace("\n", "\r\n").encode("utf-8-sig"),
    lambda text: "".join(f'"{line}"\n' for line in text.splitlines()).encode(),
    lambda text: "".join(f'"{line}";;\n' for line in text.splitlines()).encode(),
    lambda text: "".join(":".join(f'"{cell.strip()}"' for cell in line.split(":")) + "\n"
                         for line in text.splitlines()).encode(),
    lambda text: text.replace("keypoints_x", "keypoints_x,,,").encode(),
    lambda text: as_pandas(text, ",").encode(),
    lambda text: as_pandas(text, ";", index=False).encode(),
], ids=["UTF-16", "UTF-16 without a mark", "Windows", "quoted lines", "padded", "quoted cells",
        "padded header", "pandas", "pandas without numbers"])
def test_as_spreadsheets_and_windows_save_it(tmp_path, change):
    text = HEADER + row("a.jpg") + row("b.jpg")
    plain = annotations.read_annotations(write(tmp_path, text))
    path = tmp_path / "saved.csv"
    path.write_bytes(change(text))
    names, joints = annotations.read_annotations(path)
    assert names == plain[0] == ("a.jpg", "b.jpg")
    np.testing.assert_array_equal(joints, plain[1])


def test_damaged_quotes_are_named(tmp_path):
    text = refusal(annotations.read_annotations,
                   write(tmp_path, HEADER + row("a.jpg") + '"b.jpg: [1\r, 2]\n'))
    assert "line 3" in text
