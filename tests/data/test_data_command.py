"""`python -m posemodel.data`: exit codes, one line for a mistake, help without torch."""

import json
import sys

import pytest

from posemodel.data import pose_command
from posemodel.data.__main__ import main
from posemodel.data.reading import open_pairs
from posemodel.runtime.main import run_main
from tests.small_datasets import make_market


def exit_of(argv, monkeypatch, capsys) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["posemodel.data", *map(str, argv)])
    with pytest.raises(SystemExit) as stop:
        run_main(main)
    out, error = capsys.readouterr()
    return stop.value.code, out, error


@pytest.mark.parametrize("layout", ["deepfashion", "market"])
def test_generate_check_open(tmp_path, layout, monkeypatch, capsys):
    root = tmp_path / "set"
    command = ["synthesize", root, "--layout", layout, "--pairs", 4, "--test-pairs", 2,
               "--image-rows", 32]
    code, out, _ = exit_of(command, monkeypatch, capsys)
    assert code == 0 and f"check {root}" in out
    assert "complete already" in exit_of(command, monkeypatch, capsys)[1]
    code, out, _ = exit_of(["check", tmp_path, "--json", tmp_path / "c.json"], monkeypatch, capsys)
    assert code == 0 and "problems: none" in out
    written = json.loads((tmp_path / "c.json").read_text())
    assert written["ok"] is True and written["splits"]["train"]["pairs"] == 4
    assert len(open_pairs(root, "test").pairs) == 2


def test_check_ends_with_2_where_something_is_wrong(tmp_path, monkeypatch, capsys):
    make_market(tmp_path)
    command = ["check", tmp_path, "--json", tmp_path / "c.json"]
    code, out, error = exit_of(command, monkeypatch, capsys)
    assert code == 0 and error == ""  # a small set is no fault
    assert "problems: none" in out and "24 pairs instead of 263,632" in out.split("\nnotes\n")[1]
    assert json.loads((tmp_path / "c.json").read_text())["ok"] is True
    min((tmp_path / "train").iterdir()).write_bytes(b"no image")
    code, out, error = exit_of(command, monkeypatch, capsys)
    assert code == 2 and error == "" and "\nproblems\n" in out
    assert json.loads((tmp_path / "c.json").read_text())["ok"] is False


@pytest.mark.parametrize("argv, says", [
    (["check", "nowhere"], "error: nowhere is no folder"),
    (["check", ".", "--sample", "-1"], "error: --sample -1: expected 0 or more"),
    (["prepare", "nowhere", "--out", "out", "--kind", "market"], "no such file"),
    (["synthesize", "out", "--layout", "market", "--seed", str(2**32)], "error: --seed"),
    (["synthesize", "out", "--layout", "market", "--pairs", "0"], "error: --pairs 0"),
])
def test_mistakes_get_one_line(tmp_path, argv, says, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, error = exit_of(argv, monkeypatch, capsys)
    assert code == 2 and out == ""
    assert says in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("argv", [[], ["chekc", "."], ["check"], ["check", ".", "--frame", "100"]])
def test_wrong_words_end_with_2(argv, monkeypatch, capsys):
    code, _, error = exit_of(argv, monkeypatch, capsys)
    assert code == 2 and "usage: python -m posemodel.data" in error


def test_pose_is_handed_on(monkeypatch):
    monkeypatch.setattr(pose_command, "main", lambda argv: {"--flag x": 7}[" ".join(argv)])
    assert main(["pose", "--flag", "x"]) == 7
