"""The time of an install, divided into its parts where a line of pip's begins one."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def bench():
    return runpy.run_path(str(ROOT / "benchmarks" / "install_bench.py"))


def test_parts_have_their_times(bench, capsys):
    """Those of processes of processes too, and those that never began are not there."""
    work = "sum(i for i in range(4_000_000))"
    code = (f"import subprocess, sys\n{work}\nprint('now the second', flush=True)\n"
            f"subprocess.run([sys.executable, '-c', '{work}; {work}; {work}; {work}'])\n")
    first, second = bench["parts_of"]([sys.executable, "-c", code], dict(os.environ), {
        "one": None, "two": r"the sec\w+$", "three": "never"})
    assert (first["part"], second["part"]) == ("one", "two")
    assert 0.02 < first["cpu_s"] < second["cpu_s"] <= second["wall_s"] + 0.1
    assert "of CPU time" in capsys.readouterr().out


def test_a_command_that_fails_ends_with_its_last_lines(bench):
    with pytest.raises(SystemExit, match="(?s)no such package.*ended with 3"):
        bench["parts_of"]([sys.executable, "-c", "print('no such package'); raise SystemExit(3)"],
                          dict(os.environ), {"all": None})


def test_help():
    done = subprocess.run([sys.executable, ROOT / "benchmarks" / "install_bench.py", "--help"],
                          capture_output=True, text=True)
    assert done.returncode == 0 and "usage" in done.stdout


def test_the_page_has_the_figures_of_its_file(bench):
    found = json.loads((ROOT / "docs" / "install.json").read_text())
    rows = re.findall(r"^\| ([^|]+) \| (\d+) \| (\d+) \|$",
                      (ROOT / "docs" / "install.md").read_text(), re.MULTILINE)
    assert [row[0] for row in rows] == [*bench["PARTS"], "together", "CPU time of it"]
    for column, name in enumerate(("before", "after"), start=1):
        seconds = [one["wall_s"] for one in found[name]["parts"]]
        assert [one["part"] for one in found[name]["parts"]] == list(bench["PARTS"])
        assert [row[column] for row in rows] == [
            f"{value:.0f}" for value in (*seconds, sum(seconds), found[name]["cpu_s"])]
    for one in found["cpu_s_of_one_file"].values():  # "about halves"
        assert one["after"] == pytest.approx(one["before"] / 2, rel=0.1)
